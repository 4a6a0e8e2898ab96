//! Decides each event of a group: a pure function of the log up to S and of the group.
//!
//! Invariants, which hold for everything up to S plus what the group appends, provided that it is appended at S + 1 or
//! not at all: one receipt per id; numbers contiguous from a workflow's head; each predecessor the event before; no
//! member of a chain after the member that breaks it.

use std::collections::{HashMap, HashSet};

use weft_index::receipts::{Accepted, Horizons, WorkflowHead};
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use super::{chain::ChainedSubmission, overlay::Overlay};

/// Result of a look-up in the receipts' file. The default is that of an empty file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Looked {
    /// Cursor of the file at the look-up. The overlay must hold everything after it.
    pub cursor: StreamSeq,
    /// The newest event of the same id.
    pub accepted: Option<Accepted>,
    /// The newest event of the same replay key, and its id.
    pub replayed: Option<(EventId, Accepted)>,
    /// The head of its workflow.
    pub head: Option<WorkflowHead>,
}

/// An event that wants a number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub id: EventId,
    pub workflow: &'a WorkflowId,
    /// Of workflow, type and body.
    pub digest: &'a [u8; 32],
    /// Key by which a replay of the body under another id is recognised, if the source guards against that.
    pub replay_key: Option<EventId>,
    pub looked: &'a Looked,
    /// The chain that it is a member of.
    pub linked: Option<ChainedSubmission>,
}

/// The decision on an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is in the log: this is its receipt.
    Known(Accepted),
    /// Its body is in the log under another id, which its source takes for a replay: that event's id and receipt.
    Replayed(EventId, Accepted),
    /// Its id is in the log, with another body.
    Reused(Accepted),
    /// It is to be appended.
    New {
        /// Number in its workflow.
        sequence_number: SequenceNumber,
        /// Id of the event before it.
        previous: Option<EventId>,
    },
    /// The group holds an event of the same id or replay key before it, at this index, which is [`New`](Self::New).
    Repeat {
        /// The index of the first.
        of: usize,
        /// Whether the body is the same.
        same_body: bool,
    },
    /// Not to be decided now: something before it in its chain is refused, or will be if the group is appended; or it would
    /// be refused itself, and break its chain for those before it that are yet to be stored.
    PredecessorRefused,
}

/// Decides for a group, in order. Everything up to `overlay.end()` is taken into account, and what the group itself
/// appends before each event.
pub(crate) fn decide<'a>(
    overlay: &Overlay,
    horizons: Horizons,
    group: impl IntoIterator<Item = Candidate<'a>>,
) -> Vec<Decision> {
    let now = overlay.now();
    // What the group itself appends.
    let mut firsts: HashMap<EventId, (usize, &[u8; 32])> = HashMap::new();
    let mut bodies: HashMap<EventId, usize> = HashMap::new();
    let mut heads: HashMap<&WorkflowId, (SequenceNumber, EventId)> = HashMap::new();
    // Chains that the group itself breaks, and those of which something is answered only when the group is stored.
    let (mut broken, mut begun) = (HashSet::new(), HashSet::new());
    let decide_one = |(index, candidate): (usize, Candidate<'a>)| {
        let Candidate { id, workflow, digest, replay_key, looked, linked } = candidate;
        debug_assert!(looked.cursor >= overlay.base(), "P2: a gap between the file's answer and the overlay");
        if linked.is_some_and(|linked| linked.broken || broken.contains(&linked.key)) {
            return Decision::PredecessorRefused;
        }
        // Whether a member that is refused has others before it that have no answer yet.
        let mut refused = || {
            let breaks = linked.filter(|linked| linked.reuse_breaks).map(|linked| linked.key);
            broken.extend(breaks);
            breaks.is_some_and(|key| begun.contains(&key))
        };
        if let Some((of, first)) = firsts.get(&id) {
            let same_body = *first == digest;
            if !same_body && refused() {
                return Decision::PredecessorRefused;
            }
            begun.extend(linked.map(|linked| linked.key));
            return Decision::Repeat { of: *of, same_body };
        }
        let accepted = looked.accepted.iter().chain(overlay.accepted(id)).max_by_key(|accepted| accepted.seq);
        if let Some(accepted) = accepted.filter(|accepted| horizons.knows(accepted, now)) {
            let accepted = accepted.clone();
            if accepted.digest == *digest {
                return Decision::Known(accepted);
            }
            return if refused() { Decision::PredecessorRefused } else { Decision::Reused(accepted) };
        }
        if let Some(of) = replay_key.and_then(|key| bodies.get(&key)) {
            begun.extend(linked.map(|linked| linked.key));
            return Decision::Repeat { of: *of, same_body: true };
        }
        let replayed = replay_key.and_then(|key| {
            let stored = looked.replayed.iter().map(|(id, accepted)| (*id, accepted));
            stored.chain(overlay.replayed(key)).max_by_key(|(_, accepted)| accepted.seq)
        });
        if let Some((first, accepted)) = replayed.filter(|(_, accepted)| horizons.knows(accepted, now)) {
            return Decision::Replayed(first, accepted.clone());
        }
        let (sequence_number, previous) = match heads.get(workflow) {
            Some((number, event)) => (number.next(), Some(*event)),
            None => horizons.next(overlay.head(workflow, looked.head).as_ref(), now),
        };
        begun.extend(linked.map(|linked| linked.key));
        firsts.insert(id, (index, digest));
        bodies.extend(replay_key.map(|key| (key, index)));
        heads.insert(workflow, (sequence_number, id));
        Decision::New { sequence_number, previous }
    };
    group.into_iter().enumerate().map(decide_one).collect()
}

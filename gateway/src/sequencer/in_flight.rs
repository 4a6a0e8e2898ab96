//! A decided group of events, during its append and at its end.

use std::collections::VecDeque;

use weft_index::receipts::{Accepted, Horizons, WorkflowHead};
use weft_nats::message::Outgoing;
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use super::{
    SubmitError,
    decide::{Candidate, Decision, decide},
    overlay::Overlay,
    submission::{Submission, no_message},
};

/// A record of heads, as the first message of a group: the heads as of S.
#[derive(Debug)]
pub(super) struct HeadRecord {
    /// The message's id.
    pub id: EventId,
    pub heads: Vec<(WorkflowId, WorkflowHead)>,
    pub message: Outgoing,
}

/// An append after `expected`: the record of heads, if any, then the new events in order.
#[derive(Debug)]
pub(super) struct InFlightAppend {
    expected: StreamSeq,
    head_record: Option<(EventId, Vec<(WorkflowId, WorkflowHead)>)>,
    new_events: Vec<New>,
    /// Events with the id of a new event of this group: answered when that one is stored.
    repeats: Vec<Repeat>,
    /// Events that are decided again once earlier ones of their chains are stored, with their index in the group.
    behind: Vec<(usize, Submission)>,
}

#[derive(Debug)]
struct New {
    /// Its place in the group.
    place: usize,
    submission: Submission,
    sequence_number: SequenceNumber,
    previous: Option<EventId>,
}

#[derive(Debug)]
struct Repeat {
    /// Its place in the group.
    place: usize,
    submission: Submission,
    /// Index in `new_events`.
    of: usize,
    same_body: bool,
}

/// The outcome of an append.
#[derive(Debug, Default)]
pub(super) struct AppendOutcome {
    /// The events that were stored, in the log's order.
    pub appended: Vec<(EventId, Accepted)>,
    /// True if a record of heads was stored.
    pub heads_stored: bool,
    /// Submissions that may not have been stored, in the order of the group.
    pub left: VecDeque<Submission>,
}

impl InFlightAppend {
    /// Decides a group, answers duplicates, and returns the rest with the messages to append after `overlay.end()`.
    pub fn decide(
        overlay: &Overlay,
        horizons: Horizons,
        group: Vec<Submission>,
        head_record: Option<HeadRecord>,
    ) -> (Self, Vec<Outgoing>) {
        let candidates = group.iter().map(|submission| {
            let Submission { id, workflow, digest, replay_key, looked, .. } = submission;
            Candidate { id: *id, workflow, digest, replay_key: *replay_key, looked, linked: submission.linked() }
        });
        let decisions = decide(overlay, horizons, candidates);
        let mut flight = Self {
            expected: overlay.end(),
            head_record: None,
            new_events: Vec::new(),
            repeats: Vec::new(),
            behind: Vec::new(),
        };
        let mut messages = Vec::with_capacity(group.len() + 1);
        if let Some(head_record) = head_record {
            messages.push(head_record.message);
            flight.head_record = Some((head_record.id, head_record.heads));
        }
        // Place in the group → index in `new_events`.
        let mut indices = vec![0; decisions.len()];
        for (place, (mut submission, decision)) in group.into_iter().zip(decisions).enumerate() {
            match decision {
                Decision::Known(accepted) => {
                    let id = submission.id;
                    submission.answer_known(id, &accepted, true);
                }
                Decision::Replayed(first, accepted) => submission.answer_known(first, &accepted, true),
                Decision::Reused(accepted) => {
                    let id = submission.id;
                    submission.answer_known(id, &accepted, false);
                }
                Decision::New { sequence_number, previous } => {
                    if let Some(index) = indices.get_mut(place) {
                        *index = flight.new_events.len();
                    }
                    submission.number(sequence_number, previous);
                    messages.push(std::mem::replace(&mut submission.message, no_message()));
                    flight.new_events.push(New { place, submission, sequence_number, previous });
                }
                Decision::Repeat { of, same_body } => {
                    let of = indices.get(of).copied().unwrap_or_default();
                    flight.repeats.push(Repeat { place, submission, of, same_body });
                }
                Decision::PredecessorRefused if submission.linked().is_none_or(|linked| linked.broken) => {
                    submission.answer(Err(SubmitError::PredecessorRefused));
                }
                Decision::PredecessorRefused => flight.behind.push((place, submission)),
            }
        }
        (flight, messages)
    }

    /// S: the end that the group was decided on.
    pub fn expected(&self) -> StreamSeq {
        self.expected
    }

    /// Cursor of the oldest look-up of the group, which the overlay must not pass: what is left is decided again.
    pub fn looked_at(&self) -> Option<StreamSeq> {
        let submissions = self.new_events.iter().map(|new| &new.submission);
        let submissions = submissions.chain(self.repeats.iter().map(|repeat| &repeat.submission));
        let submissions = submissions.chain(self.behind.iter().map(|(_, submission)| submission));
        submissions.map(|submission| submission.looked.cursor).min()
    }

    /// The first `stored` messages are certainly stored: adds them to the overlay, answers their senders, and returns
    /// the rest.
    pub fn complete(self, stored: usize, messages: Vec<Outgoing>, overlay: &mut Overlay) -> AppendOutcome {
        let mut heads_stored = false;
        let mut seq = self.expected;
        let mut messages = messages.into_iter();
        let mut stored_events = stored;
        if let Some((id, heads)) = self.head_record {
            messages.next();
            if stored > 0 {
                seq = seq.next();
                overlay.append_heads(seq, id, heads);
                stored_events -= 1;
                heads_stored = true;
            }
        }
        let mut left = self.behind;
        let mut appended: Vec<(EventId, Accepted)> = Vec::with_capacity(stored_events);
        for (index, (new, message)) in self.new_events.into_iter().zip(messages).enumerate() {
            let New { place, mut submission, sequence_number, previous } = new;
            if index < stored_events {
                seq = seq.next();
                let accepted = submission.accepted(seq, sequence_number, previous);
                overlay.append(submission.id, accepted.clone());
                appended.push((submission.id, accepted));
                submission.answer_new(sequence_number, previous);
            } else {
                submission.message = message;
                left.push((place, submission));
            }
        }
        for Repeat { place, submission, of, same_body } in self.repeats {
            match appended.get(of) {
                Some((first, accepted)) => submission.answer_known(*first, accepted, same_body),
                None => left.push((place, submission)),
            }
        }
        left.sort_unstable_by_key(|(place, _)| *place);
        AppendOutcome { appended, heads_stored, left: left.into_iter().map(|(_, submission)| submission).collect() }
    }
}

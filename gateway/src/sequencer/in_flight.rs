//! A decided group on its way into the log, and what becomes of it there.

use std::collections::VecDeque;

use weft_index::receipts::{Accepted, Head, Horizons};
use weft_nats::message::Outgoing;
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use super::{
    SubmitError,
    decide::{Candidate, Decision, decide},
    overlay::Overlay,
    submission::{Submission, no_message},
};

/// Heads to be heads_stored forward, as the first message of a group: they hold at S.
#[derive(Debug)]
pub(super) struct HeadRecord {
    /// The message's id.
    pub id: EventId,
    pub heads: Vec<(WorkflowId, Head)>,
    pub message: Outgoing,
}

/// What is being appended behind `expected`: the heads, if any, then the new events in order.
#[derive(Debug)]
pub(super) struct InFlightAppend {
    expected: StreamSeq,
    head_record: Option<(EventId, Vec<(WorkflowId, Head)>)>,
    new_events: Vec<New>,
    /// Events whose id a new one of this group has: answered when that one is stored.
    repeats: Vec<Repeat>,
    /// Events to be decided again when those before them in their chains are stored. With their places in the group.
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

/// What has become of a flight.
#[derive(Debug, Default)]
pub(super) struct AppendOutcome {
    /// The events that were stored, in the log's order.
    pub appended: Vec<(EventId, Accepted)>,
    /// Whether the heads were stored, if there were any.
    pub heads_stored: bool,
    /// Not certainly stored, in their order in the group.
    pub left: VecDeque<Submission>,
}

impl InFlightAppend {
    /// Decides for a group, answers what is known already, and returns the rest with the messages to be appended behind
    /// `overlay.end()`.
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

    /// The end that everything in it was decided on.
    pub fn expected(&self) -> StreamSeq {
        self.expected
    }

    /// The file's cursor of the oldest look-up in it: the overlay must keep what lies behind, since what is left is
    /// decided again.
    pub fn looked_at(&self) -> Option<StreamSeq> {
        let submissions = self.new_events.iter().map(|new| &new.submission);
        let submissions = submissions.chain(self.repeats.iter().map(|repeat| &repeat.submission));
        let submissions = submissions.chain(self.behind.iter().map(|(_, submission)| submission));
        submissions.map(|submission| submission.looked.cursor).min()
    }

    /// The first `stored` of `messages` are certainly stored behind `expected`: enters them into the overlay, answers
    /// who waits for them, and gives back the rest.
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

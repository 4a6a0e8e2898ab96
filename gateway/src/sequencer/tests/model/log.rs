//! The stream of the model: what is applied can be read, what is proposed only refuses other appends.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use weft_index::receipts::body_digest;
use weft_nats::{
    entry::Entry,
    erasure::{Author, Erasure},
    event::{Event, StoredEvent},
    message::{Outgoing, Stored},
    records,
    streams::{LeaderView, Presence, StreamState},
};
use weft_proto::{ids::StreamSeq, internal};

use super::{LAYOUT, Mutant};
use crate::sequencer::Receipt;

#[derive(Debug)]
pub struct Log {
    /// The committed messages.
    messages: Vec<Stored>,
    /// Sequences of messages that have been removed.
    removed: HashSet<StreamSeq>,
    /// Sequences of erased events, with those of their records.
    erased: HashMap<StreamSeq, StreamSeq>,
    /// Records of heads that were appended without a comparison.
    uncompared: HashSet<StreamSeq>,
    /// The messages that a leader has accepted and not applied.
    proposed: Vec<Stored>,
    /// Committed messages that the leader that answers has not applied.
    lag: usize,
    /// Messages stored ever: each has a different time.
    stored: i64,
    pub mutant: Mutant,
}

impl Log {
    pub fn new(mutant: Mutant) -> Self {
        Self {
            messages: Vec::new(),
            removed: HashSet::new(),
            erased: HashMap::new(),
            uncompared: HashSet::new(),
            proposed: Vec::new(),
            lag: 0,
            stored: 0,
            mutant,
        }
    }

    /// The end of what is committed.
    fn end(&self) -> StreamSeq {
        StreamSeq(self.messages.len() as u64)
    }

    /// The end that appends are compared with.
    fn proposed_end(&self) -> StreamSeq {
        StreamSeq((self.messages.len() + self.proposed.len()) as u64)
    }

    /// All or nothing; committed at once. A refusal names the end that it was compared with.
    pub fn append(&mut self, expected: StreamSeq, messages: &[Outgoing]) -> Result<(), StreamSeq> {
        self.propose(expected, messages)?;
        self.apply(usize::MAX);
        Ok(())
    }

    /// All or nothing; no reader sees the messages yet.
    pub fn propose(&mut self, expected: StreamSeq, messages: &[Outgoing]) -> Result<(), StreamSeq> {
        if expected != self.proposed_end() && self.mutant != Mutant::NoComparison {
            return Err(self.proposed_end());
        }
        for message in messages {
            let seq = self.proposed_end().next();
            self.stored += 1;
            self.proposed.push(Stored {
                seq,
                stored_at: Timestamp::from_second(1_700_000_000 + self.stored).unwrap(),
                subject: message.subject.clone(),
                headers: message.headers.to_map(),
                payload: message.payload.clone(),
            });
        }
        Ok(())
    }

    pub fn apply(&mut self, messages: usize) {
        let applied = self.proposed.drain(..self.proposed.len().min(messages));
        self.messages.extend(applied);
    }

    /// Whether there was anything that vanishes.
    pub fn vanish(&mut self) -> bool {
        !std::mem::take(&mut self.proposed).is_empty()
    }

    pub fn lag(&mut self, messages: usize) {
        self.lag = messages;
    }

    pub fn hole(&mut self) {
        let message = Outgoing { subject: "events.x".into(), headers: Default::default(), payload: "".into() };
        if self.append(self.end(), &[message]).is_ok() {
            self.removed.insert(self.end());
        }
    }

    /// Appends a message of a writer that compares nothing: it comes after what is proposed, which is applied with it.
    fn append_uncompared(&mut self, message: Outgoing) -> StreamSeq {
        let _ = self.append(self.proposed_end(), &[message]);
        self.end()
    }

    /// The event that stands this far back among those that are held.
    fn event_at(&self, back: usize) -> Option<(&Stored, Event)> {
        let events = self.held().filter_map(|message| match Entry::decode(LAYOUT, message) {
            Entry::Event(event) => Some((message, *event)),
            Entry::Heads(_) | Entry::Erased(_) | Entry::Foreign(_) => None,
        });
        let mut events: Vec<_> = events.collect();
        let count = events.len();
        (count > 0).then(|| events.swap_remove(count - 1 - back % count))
    }

    /// An admin erases an event: its record is appended, and its message removed.
    pub fn erase(&mut self, back: usize) {
        let Some((message, event)) = self.event_at(back) else { return };
        let (seq, stored_at) = (message.seq, message.stored_at);
        let digest = body_digest(&event.workflow, &event.event_type, &event.payload);
        let by = Author {
            operator: "ab12cd34".into(),
            reason: String::new(),
            request_id: "r-1".into(),
            at: Timestamp::UNIX_EPOCH,
        };
        let replay_key = Erasure::replay_key_of(message);
        let erasure = Erasure::new(StoredEvent { seq, stored_at, event }, digest, replay_key, by);
        let record = self.append_uncompared(erasure.encode(LAYOUT));
        self.removed.insert(seq);
        self.erased.insert(seq, record);
    }

    /// The shard's owner, which makes room, carries the head forward that it has found. The workflow may have a later one.
    pub fn carry_uncompared(&mut self, back: usize) {
        let Some((message, event)) = self.event_at(back) else { return };
        let head = internal::Head {
            workflow_id: event.workflow.to_string(),
            sequence_number: event.sequence_number.0,
            event_id: event.id.to_vec(),
            stored_at_ms: message.stored_at.as_millisecond(),
        };
        let record = self.append_uncompared(records::heads("heads.0".into(), vec![head]).1);
        self.uncompared.insert(record);
    }

    /// Whether a record of heads was appended without a comparison.
    pub fn is_uncompared(&self, seq: StreamSeq) -> bool {
        self.uncompared.contains(&seq)
    }

    /// Whether events were erased.
    pub fn has_erased(&self) -> bool {
        !self.erased.is_empty()
    }

    /// All messages that are held, and the erased ones as they were.
    pub fn ever(&self) -> impl Iterator<Item = &Stored> {
        let is_erased = |seq| self.erased.contains_key(&seq);
        self.messages.iter().filter(move |message| !self.removed.contains(&message.seq) || is_erased(message.seq))
    }

    pub fn roll_back(&mut self, keep: usize) {
        let _ = self.vanish();
        self.lag = 0;
        self.messages.truncate(keep % (self.messages.len() + 1));
        let end = self.end();
        self.removed.retain(|seq| *seq <= end);
    }

    /// When the last message that was proposed was.
    pub fn last_proposed(&self) -> Option<Timestamp> {
        self.proposed.last().map(|message| message.stored_at)
    }

    /// Whether the message that was proposed then has been committed.
    pub fn has_committed(&self, proposed: Timestamp) -> bool {
        self.messages.iter().any(|message| message.stored_at == proposed)
    }

    /// Whether the message that was proposed then may still be committed.
    pub fn is_proposed(&self, proposed: Timestamp) -> bool {
        self.proposed.iter().any(|message| message.stored_at == proposed)
    }

    /// All messages that are held.
    pub fn held(&self) -> impl Iterator<Item = &Stored> {
        self.messages.iter().filter(|message| !self.removed.contains(&message.seq))
    }

    /// The messages after `after` that the leader holds.
    pub fn readable(&self, after: StreamSeq) -> impl Iterator<Item = &Stored> {
        let applied = self.view().state.last;
        self.held().filter(move |message| message.seq > after && message.seq <= applied)
    }

    /// The message at `seq`.
    pub fn at(&self, seq: StreamSeq) -> Option<&Stored> {
        self.held().find(|message| message.seq == seq)
    }

    /// The leader's view of the stream.
    pub fn view(&self) -> LeaderView {
        let last = StreamSeq(self.messages.len().saturating_sub(self.lag) as u64);
        let removed = self.removed.iter().filter(|seq| **seq <= last).count() as u64;
        let state = StreamState { created: Timestamp::UNIX_EPOCH, first: StreamSeq(1), last };
        LeaderView { state, replicas: 3, clustered: true, leader: Some("leader".into()), quorum: true, removed }
    }

    /// Whether the leader has applied all that is committed.
    pub fn is_complete(&self) -> bool {
        self.view().state.last == self.end()
    }

    /// The leader's answer about a range.
    pub fn presence(&self, after: StreamSeq, through: StreamSeq) -> Presence {
        let nothing = self.readable(after).next().is_none_or(|next| next.seq > through);
        let asked = if nothing { Presence::Absent } else { Presence::Present };
        if self.mutant == Mutant::ProposalsConclude {
            return asked;
        }
        self.view().presence(after, through).unwrap_or(asked)
    }

    /// Whether what a receipt says stands in the log.
    pub fn holds(&self, receipt: &Receipt) -> bool {
        self.ever().any(|message| match Entry::decode(LAYOUT, message) {
            Entry::Event(event) => {
                (event.id, event.sequence_number, event.previous)
                    == (receipt.event_id, receipt.sequence_number, receipt.previous)
            }
            Entry::Heads(_) | Entry::Erased(_) | Entry::Foreign(_) => false,
        })
    }
}

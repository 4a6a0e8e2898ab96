//! The log after the cursor of the receipts' file, up to S, the end that decisions are made on.
//!
//! Local events enter when they are acked; events of other gateways when they are read, or with an append notice, which
//! counts like an ack. They leave when they are committed to the file.
//!
//! Invariant: `entries` has an entry for each message in (`base`, `end`], and `ids` and `heads` follow from the
//! entries.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use weft_index::{
    projection::Mark,
    receipts::{Accepted, Change, Content, Statement, WorkflowHead},
};
use weft_proto::ids::{EventId, StreamSeq, WorkflowId};

use super::append_notice::AppendNotice;

/// Storage time of a message that was neither read back nor confirmed: later than all others, so that it is not
/// forgotten.
pub(crate) const UNCONFIRMED: Timestamp = Timestamp::MAX;

/// The overlay. See the module.
#[derive(Debug)]
pub(super) struct Overlay {
    /// The file holds everything up to here.
    base: StreamSeq,
    /// S: everything up to here is known.
    end: StreamSeq,
    /// Position of the newest message that was read or confirmed.
    newest: Option<(StreamSeq, Mark)>,
    entries: VecDeque<OverlayEntry>,
    /// Number of entries at the end that were neither read back nor confirmed.
    unconfirmed: usize,
    ids: HashMap<EventId, Accepted>,
    /// Replay keys, with the sequence and the id of the event.
    replays: HashMap<EventId, (StreamSeq, EventId)>,
    /// Heads, with the sequence of the message that states each.
    heads: HashMap<WorkflowId, (StreamSeq, Statement)>,
}

#[derive(Debug)]
struct OverlayEntry {
    seq: StreamSeq,
    /// Its `Nats-Msg-Id`.
    id: Option<EventId>,
    kind: EntryKind,
}

#[derive(Debug)]
enum EntryKind {
    Event(EventId, WorkflowId),
    /// An event whose id was used again beyond the dedup horizon: what `ids` held of it.
    Superseded(EventId, Box<Accepted>),
    Heads(Vec<(WorkflowId, WorkflowHead)>),
    /// The record of an erased event.
    Erased(EventId, Box<Accepted>),
    Nothing,
}

/// Another message stands at a sequence that was acked to this gateway: the log is not the one that it appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another message than the one that was appended stands at {0}")]
pub(super) struct LogMismatch(pub StreamSeq);

impl Overlay {
    /// A file that holds everything up to `base`, on a log that ends at `end` with nothing in between; `newest` is its
    /// newest message, if known.
    pub fn new(base: StreamSeq, end: StreamSeq, newest: Option<(StreamSeq, Mark)>) -> Self {
        Self {
            base,
            end: end.max(base),
            newest,
            entries: VecDeque::new(),
            unconfirmed: 0,
            ids: HashMap::new(),
            replays: HashMap::new(),
            heads: HashMap::new(),
        }
    }

    /// Everything up to here must be looked up in the file.
    pub fn base(&self) -> StreamSeq {
        self.base
    }

    /// The known end of the log.
    pub fn end(&self) -> StreamSeq {
        self.end
    }

    /// Stream time: storage time of the newest message that was read or confirmed.
    pub fn now(&self) -> Timestamp {
        self.newest.map_or(Timestamp::UNIX_EPOCH, |(_, mark)| mark.stored_at)
    }

    /// The newest message that was read or confirmed.
    pub fn newest(&self) -> Option<(StreamSeq, Mark)> {
        self.newest
    }

    /// Messages held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The newest event of this id that a message beyond the file states. The record of an erased event states one that
    /// may be older than that in the file.
    pub fn accepted(&self, id: EventId) -> Option<&Accepted> {
        self.ids.get(&id)
    }

    /// The newest event of this replay key that a message beyond the file states, and its id; as [`accepted`](Self::accepted).
    pub fn replayed(&self, key: EventId) -> Option<(EventId, &Accepted)> {
        let (_, id) = self.replays.get(&key)?;
        self.ids.get(id).map(|accepted| (*id, accepted))
    }

    /// Whether a message beyond the file states the head of a workflow.
    pub fn has_head(&self, workflow: &WorkflowId) -> bool {
        self.heads.contains_key(workflow)
    }

    /// The head of a workflow, whose head in the file is `stored`. A record that was appended without a comparison may
    /// state an older head than the file.
    pub fn head(&self, workflow: &WorkflowId, stored: Option<WorkflowHead>) -> Option<WorkflowHead> {
        // Of the file's own statements nothing older counts either.
        let stored = stored.map(|head| Statement { head, by_event: true });
        match self.heads.get(workflow) {
            Some((_, stated)) => Some(stated.after(stored).head),
            None => stored.map(|stored| stored.head),
        }
    }

    /// A local event was stored at `end` + 1, unless it has been read already.
    pub fn append(&mut self, id: EventId, accepted: Accepted) {
        if accepted.seq > self.end {
            self.unconfirmed += 1;
            self.push_event(Some(id), id, accepted);
        }
    }

    /// Applies an append notice, which must leave no gap. Returns true if it brought anything new.
    pub fn apply_notice(&mut self, notice: AppendNotice) -> bool {
        debug_assert!(notice.behind() <= self.end, "P2: a gap in what is known");
        let before = self.end;
        for (id, accepted) in notice.into_events() {
            self.append(id, accepted);
        }
        self.end > before
    }

    /// A local record of heads was stored at `seq` with message id `id`, unless it has been read already.
    pub fn append_heads(&mut self, seq: StreamSeq, id: EventId, heads: Vec<(WorkflowId, WorkflowHead)>) {
        if seq > self.end {
            self.unconfirmed += 1;
            self.push_heads(seq, Some(id), heads);
        }
    }

    /// A message was read. Returns true if it was known by an ack or a notice.
    ///
    /// Its whole content is compared with what was acked: after a roll-back another gateway may have stored the same id
    /// at the same sequence with another body, workflow or number.
    ///
    /// # Errors
    ///
    /// [`LogMismatch`]: the message is not the one that was acked here.
    pub fn read(&mut self, change: &Change) -> Result<bool, LogMismatch> {
        if self.unconfirmed > 0 {
            let content = self.stamp_next(change.seq, change.mark)?;
            return if content == change.content { Ok(true) } else { Err(LogMismatch(change.seq)) };
        }
        if change.seq <= self.end {
            return Err(LogMismatch(change.seq));
        }
        self.newest = Some((change.seq, change.mark));
        match &change.content {
            Content::Event(id, accepted) => self.push_event(change.mark.id, *id, accepted.clone()),
            Content::Heads(heads) => self.push_heads(change.seq, change.mark.id, heads.clone()),
            Content::Erased(id, accepted, head) => self.push_erased(change, *id, accepted, *head),
            Content::Foreign => self.push(change.seq, change.mark.id, EntryKind::Nothing),
        }
        Ok(false)
    }

    /// Sets the storage time of the next unconfirmed message. Returns its content.
    fn stamp_next(&mut self, seq: StreamSeq, mark: Mark) -> Result<Content, LogMismatch> {
        let index = self.entries.len().saturating_sub(self.unconfirmed);
        let Some(entry) = self.entries.get_mut(index).filter(|entry| (entry.seq, entry.id) == (seq, mark.id)) else {
            return Err(LogMismatch(seq));
        };
        let stored_at = whole_millis(mark.stored_at);
        let content = match &mut entry.kind {
            EntryKind::Event(id, workflow) => {
                if let Some((_, stated)) = self.heads.get_mut(workflow).filter(|(said, _)| *said == seq) {
                    stated.head.stored_at = stored_at;
                    stated.head.carried_at = stored_at;
                }
                match self.ids.get_mut(id).filter(|accepted| accepted.seq == seq) {
                    Some(accepted) => {
                        accepted.stored_at = stored_at;
                        Content::Event(*id, accepted.clone())
                    }
                    None => return Err(LogMismatch(seq)),
                }
            }
            EntryKind::Superseded(id, accepted) => {
                if let Some((_, stated)) = self.heads.get_mut(&accepted.workflow).filter(|(said, _)| *said == seq) {
                    stated.head.stored_at = stored_at;
                    stated.head.carried_at = stored_at;
                }
                accepted.stored_at = stored_at;
                Content::Event(*id, Accepted::clone(accepted))
            }
            EntryKind::Heads(heads) => {
                for (workflow, carried) in heads.iter_mut() {
                    carried.carried_at = stored_at;
                    if let Some((_, stated)) = self.heads.get_mut(workflow).filter(|(said, _)| *said == seq) {
                        stated.head.carried_at = stored_at;
                    }
                }
                Content::Heads(heads.clone())
            }
            // Never appended here.
            EntryKind::Erased(..) => return Err(LogMismatch(seq)),
            EntryKind::Nothing => Content::Foreign,
        };
        self.unconfirmed -= 1;
        self.newest = Some((seq, mark));
        Ok(content)
    }

    /// Sequence of the first unconfirmed message, or of the next message of the log.
    pub fn unconfirmed_from(&self) -> StreamSeq {
        let first = self.entries.len().checked_sub(self.unconfirmed).and_then(|index| self.entries.get(index));
        first.map_or(self.end.next(), |entry| entry.seq)
    }

    /// True if messages were neither read back nor confirmed.
    pub fn has_unconfirmed(&self) -> bool {
        self.unconfirmed > 0
    }

    /// Confirms the messages up to `at`, the only one that was read, and returns their changes. Their storage times are
    /// unknown; they count as stored with `at`, slightly late, so that they are not forgotten too soon.
    ///
    /// # Errors
    ///
    /// [`LogMismatch`]: the message is not the one that was acked here.
    pub fn confirm(&mut self, at: &Change) -> Result<Vec<Change>, LogMismatch> {
        let entries = self.entries.iter().skip(self.entries.len().saturating_sub(self.unconfirmed));
        let confirmed: Vec<_> =
            entries.map(|entry| (entry.seq, entry.id)).take_while(|entry| entry.0 <= at.seq).collect();
        if confirmed.last().is_some_and(|entry| *entry != (at.seq, at.mark.id)) {
            return Err(LogMismatch(at.seq));
        }
        let mut changes = Vec::with_capacity(confirmed.len());
        for (seq, id) in confirmed {
            let mark = Mark { id, ..at.mark };
            changes.push(Change { seq, mark, content: self.stamp_next(seq, mark)? });
        }
        if changes.last().is_some_and(|change| change.content != at.content) {
            return Err(LogMismatch(at.seq));
        }
        Ok(changes)
    }

    /// There are no messages after the known end up to `end`.
    pub fn skip_to(&mut self, end: StreamSeq) {
        self.end = self.end.max(end);
    }

    /// Drops what the file holds: everything up to `cursor`.
    pub fn prune(&mut self, cursor: StreamSeq) {
        while let Some(entry) = self.entries.front()
            && entry.seq <= cursor
            && self.entries.len() > self.unconfirmed
            && let Some(entry) = self.entries.pop_front()
        {
            self.base = entry.seq;
            match entry.kind {
                EntryKind::Event(id, workflow) => {
                    if let Some(key) = self.ids.get(&id).and_then(|accepted| accepted.replay_key) {
                        self.replays.remove_if(&key, |(said, _)| *said <= entry.seq);
                    }
                    self.ids.remove_if(&id, |accepted| accepted.seq <= entry.seq);
                    self.heads.remove_if(&workflow, |(said, _)| *said <= entry.seq);
                }
                EntryKind::Superseded(_, accepted) => {
                    if let Some(key) = accepted.replay_key {
                        self.replays.remove_if(&key, |(said, _)| *said <= entry.seq);
                    }
                    self.heads.remove_if(&accepted.workflow, |(said, _)| *said <= entry.seq);
                }
                EntryKind::Heads(heads) => {
                    for (workflow, _) in heads {
                        self.heads.remove_if(&workflow, |(said, _)| *said <= entry.seq);
                    }
                }
                EntryKind::Erased(id, accepted) => {
                    self.ids.remove_if(&id, |known| known.seq == accepted.seq && known.seq <= entry.seq);
                    if let Some(key) = accepted.replay_key {
                        self.replays.remove_if(&key, |(said, _)| *said <= entry.seq);
                    }
                    self.heads.remove_if(&accepted.workflow, |(said, _)| *said <= entry.seq);
                }
                EntryKind::Nothing => {}
            }
        }
    }

    fn push_event(&mut self, message_id: Option<EventId>, id: EventId, accepted: Accepted) {
        let seq = accepted.seq;
        let head = WorkflowHead {
            sequence_number: accepted.sequence_number,
            event_id: id,
            stored_at: accepted.stored_at,
            carried_at: accepted.stored_at,
        };
        self.heads.insert(accepted.workflow.clone(), (seq, Statement { head, by_event: true }));
        let kind = EntryKind::Event(id, accepted.workflow.clone());
        self.replays.extend(accepted.replay_key.map(|key| (key, (seq, id))));
        if let Some(earlier) = self.ids.insert(id, accepted) {
            self.supersede(id, earlier);
        }
        self.push(seq, message_id, kind);
    }

    /// Moves the content of an event from `ids` to its entry.
    fn supersede(&mut self, id: EventId, earlier: Accepted) {
        let index = self.entries.partition_point(|entry| entry.seq < earlier.seq);
        if let Some(entry) = self.entries.get_mut(index).filter(|entry| entry.seq == earlier.seq) {
            entry.kind = EntryKind::Superseded(id, Box::new(earlier));
        }
    }

    fn push_heads(&mut self, seq: StreamSeq, message_id: Option<EventId>, heads: Vec<(WorkflowId, WorkflowHead)>) {
        for (workflow, carried) in &heads {
            self.state_head(workflow, seq, *carried);
        }
        self.push(seq, message_id, EntryKind::Heads(heads));
    }

    /// Takes a head from the record at `seq`, unless a later one is known beyond the file.
    fn state_head(&mut self, workflow: &WorkflowId, seq: StreamSeq, head: WorkflowHead) {
        let known = self.heads.get(workflow).map(|(_, stated)| *stated);
        let stated = Statement { head, by_event: false }.after(known);
        if known.is_none_or(|known| known.head != stated.head) {
            self.heads.insert(workflow.clone(), (seq, stated));
        }
    }

    /// An event was erased: its receipt and head stay known, also to a gateway that has not read the event itself.
    fn push_erased(&mut self, change: &Change, id: EventId, accepted: &Accepted, erased: WorkflowHead) {
        let seq = change.seq;
        self.state_head(&accepted.workflow, seq, erased);
        let is_newest = |known: &Accepted| known.seq < accepted.seq;
        let replayed = accepted.replay_key.filter(|key| self.replayed(*key).is_none_or(|(_, known)| is_newest(known)));
        if self.ids.get(&id).is_none_or(is_newest) {
            self.replays.extend(replayed.map(|key| (key, (seq, id))));
            self.ids.insert(id, accepted.clone());
        }
        self.push(seq, change.mark.id, EntryKind::Erased(id, Box::new(accepted.clone())));
    }

    fn push(&mut self, seq: StreamSeq, id: Option<EventId>, kind: EntryKind) {
        self.end = seq;
        self.entries.push_back(OverlayEntry { seq, id, kind });
    }
}

/// Removal of an entry that meets a condition.
trait RemoveIf<K, V> {
    fn remove_if(&mut self, key: &K, condition: impl FnOnce(&V) -> bool);
}

impl<K: std::hash::Hash + Eq, V> RemoveIf<K, V> for HashMap<K, V> {
    fn remove_if(&mut self, key: &K, condition: impl FnOnce(&V) -> bool) {
        if self.get(key).is_some_and(condition) {
            self.remove(key);
        }
    }
}

fn whole_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

//! A gateway of the model: its sequencer without tasks, its file, and what it has handed to others.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::Instant,
};
use weft_index::{
    projection::Mark,
    receipts::{Accepted, Change, Content, Statement, WorkflowHead},
};
use weft_nats::{message::Outgoing, records};
use weft_proto::{
    ids::{EventId, StreamSeq, WorkflowId},
    internal,
};

use super::{CHAINS, Fate, LAYOUT, Log, Mutant, NOW, horizons};
use crate::{
    forwarding::{
        decode_notice, encode_notice, reconcile,
        wire::{self, ForwardReply},
    },
    sequencer::{
        append_notice::AppendNotice,
        chain::Chain,
        decide::Looked,
        end::LogEnd,
        in_flight::{AppendOutcome, HeadRecord, InFlightAppend},
        log_tracker::{LogTracker, TrackingMode},
        overlay::Overlay,
        submission::{self, Submission},
    },
};

/// The receipts' file.
#[derive(Debug, Default)]
struct File {
    cursor: StreamSeq,
    /// Mark that distinguishes the message at the cursor from another.
    newest: Option<(StreamSeq, Mark)>,
    ids: HashMap<EventId, Accepted>,
    heads: HashMap<WorkflowId, WorkflowHead>,
}

impl File {
    /// Takes a head from a record, as the receipts do.
    fn states(&mut self, workflow: WorkflowId, head: WorkflowHead) {
        let known = self.heads.get(&workflow).map(|head| Statement { head: *head, by_event: true });
        self.heads.insert(workflow, Statement { head, by_event: false }.after(known).head);
    }
}

/// An event that another gateway is to append.
struct Away {
    submission: Submission,
    /// Its receipt from there.
    there: oneshot::Receiver<submission::Answer>,
}

/// As in a session: nothing is decided before the log's identity is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    Doubted,
    Compared,
    Verified,
}

/// How an append fails.
enum Failure {
    /// The log has moved on, or will, to this end.
    Refused(StreamSeq),
    Unknown,
}

pub struct Gateway {
    /// Submitted, and on no way yet.
    pub submitted: Vec<Submission>,
    /// Batches that are not whole yet, by their chains.
    pub batches: [Vec<Submission>; CHAINS],
    away: Vec<Away>,
    /// Senders that wait for what is decided here and there.
    reconciling: JoinSet<()>,
    file: File,
    overlay: Overlay,
    pub tracker: LogTracker,
    /// Read or confirmed, and not in the file.
    unwritten: Vec<Change>,
    pub arrived: Vec<Submission>,
    pub ready: VecDeque<Submission>,
    flight: Option<(InFlightAppend, Vec<Outgoing>)>,
    /// When the last message of the flight was proposed, if it was.
    proposed: Option<Timestamp>,
    end: LogEnd,
    /// It must hear where the log ends before it decides.
    asks: bool,
    identity: Identity,
    /// How often it rebuilt its receipts.
    pub rebuilt: usize,
    /// How often it dropped what it knew beyond its file.
    pub dropped: usize,
    /// The chains that senders add to, with their numbers.
    pub chains: [Option<(usize, Chain)>; CHAINS],
}

impl Gateway {
    pub fn new() -> Self {
        Self {
            submitted: Vec::new(),
            batches: Default::default(),
            away: Vec::new(),
            reconciling: JoinSet::new(),
            file: File::default(),
            overlay: Overlay::new(StreamSeq(0), StreamSeq(0), None),
            // Given up as soon as may be.
            tracker: LogTracker::new(1, Instant::now()),
            unwritten: Vec::new(),
            arrived: Vec::new(),
            ready: VecDeque::new(),
            flight: None,
            proposed: None,
            end: LogEnd::default(),
            asks: false,
            identity: Identity::Verified,
            rebuilt: 0,
            dropped: 0,
            chains: [None, None],
        }
    }

    /// It is killed and starts again: nothing but its file stays. What was on its way.
    pub fn kill(&mut self, log: &Log) -> Option<(StreamSeq, Vec<Outgoing>)> {
        let on_its_way = self.flight.take().filter(|_| self.proposed.is_none());
        self.start(log);
        on_its_way.map(|(flight, messages)| (flight.expected(), messages))
    }

    /// It starts with nothing but its file, which it compares before it decides anything.
    fn start(&mut self, log: &Log) {
        let file = std::mem::take(&mut self.file);
        let overlay = Overlay::new(file.cursor, file.cursor, file.newest);
        let (rebuilt, dropped, end) = (self.rebuilt, self.dropped, LogEnd::new(log.view().state.last));
        *self = Self { file, overlay, end, identity: Identity::Doubted, rebuilt, dropped, ..Self::new() };
    }

    /// Its entries beyond the file are of another log. The file may be, too.
    fn start_over(&mut self, log: &Log) {
        self.dropped += 1;
        if !is_of(log, self.file.cursor, self.file.newest) {
            self.rebuilt += 1;
            self.file = File::default();
        }
        self.start(log);
    }

    /// Its connection is lost: no ack comes any more, and the log may be another by the time it is back.
    pub fn disconnect(&mut self, log: &mut Log) {
        self.proposed = None;
        self.land(log, Fate::Lost, &mut Vec::new());
        if log.mutant != Mutant::NoDoubt {
            self.identity = Identity::Doubted;
        }
        self.tracker.foreign_appends();
    }

    pub fn compare(&mut self, log: &Log) {
        let view = log.view();
        if self.identity == Identity::Doubted {
            let behind = view.state.last < self.overlay.end();
            if behind && !believed(log) {
                return;
            }
            if behind || !is_of(log, StreamSeq(0), self.overlay.newest()) {
                return self.start_over(log);
            }
            self.end.reports(view.state.last);
            self.identity = Identity::Compared;
        }
        if self.identity == Identity::Compared
            && (!self.overlay.has_unconfirmed() || log.mutant == Mutant::AckedIsTrusted)
        {
            self.identity = Identity::Verified;
        }
    }

    pub fn ask(&mut self, log: &Log) {
        let view = log.view();
        if self.identity != Identity::Verified {
            return;
        }
        if view.state.last < self.overlay.end() {
            if believed(log) {
                self.start_over(log);
            }
            return;
        }
        if self.asks {
            self.asks = false;
            self.end.reports(view.state.last);
        } else if self.overlay.end() < self.end.wanted() {
            let (read, through) = (self.overlay.end(), self.end.wanted());
            let presence = log.presence(read, through);
            self.end.reports(view.state.last);
            if let Some(end) = self.end.concludes(read, read, through, presence) {
                self.overlay.skip_to(end);
            }
        }
    }

    pub fn end_chain(&mut self, chain: usize) {
        self.chains[chain] = None;
        self.submitted.append(&mut self.batches[chain]);
    }

    /// The events that it would forward, as they arrive at the other gateway.
    pub fn forward(&mut self, mutant: Mutant, room: &Arc<Semaphore>) -> Vec<Submission> {
        let request = wire::request(NOW, &self.submitted);
        let events = wire::events(request, LAYOUT, NOW, Duration::ZERO).expect("a request");
        let mut there = Vec::new();
        for (submission, arrived) in self.submitted.drain(..).zip(events) {
            let room = room.clone().try_acquire_owned().expect("room for all");
            let link = arrived.link.filter(|_| mutant != Mutant::BatchesFallApart);
            let (arriving, answer) = arrived.event.expect("an event").submission(Instant::now(), room, link);
            there.push(arriving);
            self.away.push(Away { submission, there: answer });
        }
        there
    }

    pub fn hear(&mut self) {
        for Away { submission, mut there } in std::mem::take(&mut self.away) {
            match there.try_recv() {
                Ok(answer) => {
                    let verdict = wire::encode_verdict(ForwardReply::Decided(answer));
                    match wire::decode_verdict(verdict, submission.id, &submission.workflow) {
                        ForwardReply::Decided(answer) => submission.answer(answer),
                        ForwardReply::NotTaken => panic!("it was taken"),
                    }
                }
                Err(oneshot::error::TryRecvError::Empty) => self.away.push(Away { submission, there }),
                // Killed: nothing will come from there.
                Err(oneshot::error::TryRecvError::Closed) => self.take_back(submission, oneshot::channel().1),
            }
        }
    }

    fn take_back(&mut self, mut submission: Submission, there: oneshot::Receiver<submission::Answer>) {
        let (tell, here) = oneshot::channel();
        let sender = submission.redirect(tell);
        self.reconciling.spawn(async move {
            let _ = sender.send(reconcile(here, there).await);
        });
        self.arrived.push(submission);
    }

    pub fn give_up(&mut self, mutant: Mutant) {
        for Away { submission, there } in std::mem::take(&mut self.away) {
            let silent = oneshot::channel().1;
            self.take_back(submission, if mutant == Mutant::NoLateWord { silent } else { there });
        }
    }

    pub fn look_up(&mut self) {
        self.arrived.append(&mut self.submitted);
        for mut submission in self.arrived.drain(..) {
            submission.looked = Looked {
                cursor: self.file.cursor,
                accepted: self.file.ids.get(&submission.id).cloned(),
                replayed: None,
                head: self.file.heads.get(&submission.workflow).copied(),
            };
            self.ready.push_back(submission);
        }
    }

    pub fn launch(&mut self, carry: bool, more: u8, mutant: Mutant) {
        let reads_on = self.asks || self.overlay.end() < self.end.wanted();
        if self.flight.is_some() || reads_on || self.identity != Identity::Verified {
            return;
        }
        let heads: Vec<_> = self.file.heads.iter().map(|(workflow, head)| (workflow.clone(), *head)).collect();
        let carry = (carry && self.file.cursor >= self.overlay.base()).then(|| carry_of(heads, &self.overlay));
        let empty = Overlay::new(self.overlay.base(), self.overlay.end(), self.overlay.newest());
        let overlay = if mutant == Mutant::NoOverlay { &empty } else { &self.overlay };
        let group = self.ready.drain(..self.ready.len().min(usize::from(more) + 1)).collect();
        let (flight, messages) = InFlightAppend::decide(overlay, horizons(), group, carry.flatten());
        self.flight = Some((flight, messages));
    }

    /// Its append is accepted by the leader, and not applied yet, or refused.
    pub fn propose(&mut self, log: &mut Log) {
        let Some((flight, messages)) = self.flight.as_ref().filter(|_| self.proposed.is_none()) else { return };
        if messages.is_empty() {
            return;
        }
        match log.propose(flight.expected(), messages) {
            Ok(()) => self.proposed = log.last_proposed(),
            Err(end) => {
                self.refused(end);
                self.landed(0);
            }
        }
    }

    fn refused(&mut self, end: StreamSeq) {
        if end > self.overlay.end() {
            self.end.refuses(end);
        } else {
            self.asks = true;
        }
    }

    /// Ends the append with this fate. The result is the notice to other gateways, if any.
    pub fn land(&mut self, log: &mut Log, fate: Fate, late: &mut Vec<(StreamSeq, Vec<Outgoing>)>) -> Option<Bytes> {
        let (flight, messages) = self.flight.as_ref()?;
        let expected = flight.expected();
        // How much is certainly stored, and how the append failed if it did.
        let (stored, failure) = match (self.proposed, fate) {
            _ if messages.is_empty() => (0, None),
            (Some(proposed), Fate::Acked | Fate::Partial(_)) if log.has_committed(proposed) => (messages.len(), None),
            (Some(proposed), Fate::Acked) if log.is_proposed(proposed) => return None,
            (Some(_), _) | (None, Fate::Lost) => (0, Some(Failure::Unknown)),
            (None, Fate::Acked) => match log.append(expected, messages) {
                Ok(()) => (messages.len(), None),
                Err(end) => (0, Some(Failure::Refused(end))),
            },
            (None, Fate::AckLost) => {
                let _ = log.append(expected, messages);
                (0, Some(Failure::Unknown))
            }
            (None, Fate::Partial(count)) => {
                let count = usize::from(count) % (messages.len() + 1);
                let stored = count > 0 && log.append(expected, &messages[..count]).is_ok();
                (if stored { count } else { 0 }, Some(Failure::Unknown))
            }
            (None, Fate::Late) => {
                late.push((expected, messages.clone()));
                (0, Some(Failure::Unknown))
            }
        };
        match failure {
            Some(Failure::Refused(end)) => self.refused(end),
            Some(Failure::Unknown) => self.asks = true,
            None => {}
        }
        self.landed(stored)
    }

    /// The first `stored` messages of its flight are certainly stored.
    fn landed(&mut self, stored: usize) -> Option<Bytes> {
        let (flight, messages) = self.flight.take()?;
        self.proposed = None;
        let sent = messages.len();
        let AppendOutcome { appended, left, .. } = flight.complete(stored, messages, &mut self.overlay);
        if stored > 0 && self.overlay.unconfirmed_from() <= self.overlay.end() {
            self.tracker.unconfirmed_up_to(self.overlay.end(), Instant::now());
        }
        if stored < sent {
            self.tracker.foreign_appends();
        } else if self.identity == Identity::Verified {
            self.tracker.appended(sent, Instant::now());
        }
        for submission in left.into_iter().rev() {
            self.ready.push_front(submission);
        }
        AppendNotice::new(appended).map(|appended| encode_notice(NOW, &appended))
    }

    pub fn told(&mut self, told: Bytes, mutant: Mutant) {
        let appended = decode_notice(told, NOW).expect("a notice");
        let (behind, end, now) = (appended.behind(), appended.end(), Instant::now());
        let unknown = behind > self.overlay.end() || self.identity != Identity::Verified;
        let gap = unknown && mutant != Mutant::GapsUnnoticed;
        if !gap && self.overlay.apply_notice(appended) {
            self.tracker.unconfirmed_up_to(self.overlay.end(), now);
        }
        self.tracker.notified(behind, end, gap, now);
    }

    /// The storage time of an unconfirmed message is taken from a message at or after it.
    pub fn confirm(&mut self, log: &Log, back: u64) {
        let unread = self.overlay.unconfirmed_from()..=self.overlay.end();
        if self.tracker.mode() == TrackingMode::Reading || unread.is_empty() || self.identity != Identity::Verified {
            return;
        }
        let seq = StreamSeq(unread.end().0 - back % (unread.end().0 - unread.start().0 + 1));
        // A replica that lags does not say, nor does any where the message at the end has been removed.
        let Some(at) = log.at(seq).filter(|_| seq <= log.view().state.last) else { return };
        let changes = self.overlay.confirm(&Change::of(LAYOUT, at)).expect("the same log");
        assert_eq!(changes.first().map(|change| change.seq), Some(*unread.start()));
        for change in &changes {
            // Erased since.
            let Some(mut read) = log.at(change.seq).cloned() else { continue };
            assert!(read.stored_at <= change.mark.stored_at);
            read.stored_at = at.stored_at;
            let read = Change::of(LAYOUT, &read);
            assert_eq!((change.seq, change.mark, &change.content), (read.seq, read.mark, &read.content));
        }
        self.tracker.confirmed_up_to(seq);
        self.unwritten.extend(changes);
    }

    pub fn read(&mut self, log: &Log, count: usize) {
        // A reader compares before it reads.
        if self.tracker.mode() == TrackingMode::Confirming || self.identity == Identity::Doubted {
            return;
        }
        let read = self.unwritten.last().map_or(self.file.cursor, |change| change.seq);
        let messages: Vec<_> = log.readable(read).take(count).collect();
        for message in messages {
            let change = Change::of(LAYOUT, message);
            match self.overlay.read(&change) {
                Ok(ours) if ours || self.flight.is_some() => {}
                Ok(_) => self.tracker.foreign_appends(),
                Err(_) => return self.start_over(log),
            }
            self.tracker.confirmed_up_to(message.seq);
            self.unwritten.push(change);
        }
    }

    pub fn commit(&mut self) {
        for change in self.unwritten.drain(..) {
            self.file.cursor = change.seq;
            self.file.newest = Some((change.seq, change.mark));
            match change.content {
                Content::Event(id, accepted) => {
                    let head = WorkflowHead {
                        sequence_number: accepted.sequence_number,
                        event_id: id,
                        stored_at: accepted.stored_at,
                        carried_at: accepted.stored_at,
                    };
                    self.file.heads.insert(accepted.workflow.clone(), head);
                    self.file.ids.insert(id, accepted);
                }
                Content::Heads(heads) => {
                    heads.into_iter().for_each(|(workflow, head)| self.file.states(workflow, head))
                }
                Content::Erased(id, accepted, head) => {
                    self.file.states(accepted.workflow.clone(), head);
                    self.file.ids.insert(id, accepted);
                }
                Content::Foreign => {}
            }
        }
        let looked = self.ready.iter().map(|submission| submission.looked.cursor).min();
        let in_flight = self.flight.as_ref().and_then(|(flight, _)| flight.looked_at());
        let floor = [looked, in_flight].into_iter().flatten().fold(self.file.cursor, StreamSeq::min);
        self.overlay.prune(floor);
    }
}

/// Whether the log ends where its leader says, and not later.
fn believed(log: &Log) -> bool {
    log.is_complete() || log.mutant == Mutant::LaggingLeaderBelieved
}

/// Whether a position is one in this log, which reaches at least to `cursor`.
fn is_of(log: &Log, cursor: StreamSeq, newest: Option<(StreamSeq, Mark)>) -> bool {
    let last = log.view().state.last;
    let same =
        |(seq, mark)| log.at(seq).is_none_or(|message| Mark::of(message) == mark) && (seq <= last || !believed(log));
    (cursor <= last || !believed(log)) && newest.is_none_or(same)
}

fn carry_of(mut heads: Vec<(WorkflowId, WorkflowHead)>, overlay: &Overlay) -> Option<HeadRecord> {
    heads.retain(|(workflow, _)| !overlay.has_head(workflow));
    let records = heads.iter().map(|(workflow, head)| internal::Head {
        workflow_id: workflow.to_string(),
        sequence_number: head.sequence_number.0,
        event_id: head.event_id.to_vec(),
        stored_at_ms: head.stored_at.as_millisecond(),
    });
    let (id, message) = records::heads("heads.0".into(), records.collect());
    (!heads.is_empty()).then_some(HeadRecord { id, heads, message })
}

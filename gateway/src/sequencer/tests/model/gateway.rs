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
    receipts::{Accepted, Change, Content, Head},
};
use weft_nats::{message::Outgoing, records};
use weft_proto::{
    ids::{EventId, StreamSeq, WorkflowId},
    v1,
};

use super::{CHAINS, Fate, LAYOUT, Log, Mutant, NOW, horizons};
use crate::sequencer::{
    chain::Chain,
    decide::Looked,
    flight::{Carry, Flight, Landing},
    follow::{Follow, Source},
    overlay::Overlay,
    preferred::{
        Appended, decode_appended, encode_appended, reconcile,
        wire::{self, Verdict},
    },
    submission::{self, Submission},
};

/// The receipts' file.
#[derive(Debug, Default)]
struct File {
    cursor: StreamSeq,
    ids: HashMap<EventId, Accepted>,
    heads: HashMap<WorkflowId, Head>,
}

/// An event that another gateway is to append.
struct Away {
    submission: Submission,
    /// Its receipt from there.
    there: oneshot::Receiver<submission::Answer>,
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
    pub follow: Follow,
    /// Read or confirmed, and not in the file.
    unwritten: Vec<Change>,
    pub arrived: Vec<Submission>,
    pub ready: VecDeque<Submission>,
    flight: Option<(Flight, Vec<Outgoing>)>,
    pub target: StreamSeq,
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
            overlay: Overlay::new(StreamSeq(0), StreamSeq(0), Timestamp::UNIX_EPOCH),
            // Given up as soon as may be.
            follow: Follow::new(1, Instant::now()),
            unwritten: Vec::new(),
            arrived: Vec::new(),
            ready: VecDeque::new(),
            flight: None,
            target: StreamSeq(0),
            chains: [None, None],
        }
    }

    /// It is killed and starts again at the log's `end`: nothing but its file stays. What was on its way.
    pub fn kill(&mut self, end: StreamSeq) -> Option<(StreamSeq, Vec<Outgoing>)> {
        let on_its_way = self.flight.take().map(|(flight, messages)| (flight.expected(), messages));
        let file = std::mem::take(&mut self.file);
        let overlay = Overlay::new(file.cursor, file.cursor, Timestamp::UNIX_EPOCH);
        *self = Self { file, overlay, target: end, ..Self::new() };
        on_its_way
    }

    pub fn end_chain(&mut self, chain: usize) {
        self.chains[chain] = None;
        self.submitted.append(&mut self.batches[chain]);
    }

    /// What it would forward, as it arrives there.
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
                    let verdict = wire::encode_verdict(Verdict::Told(answer));
                    match wire::decode_verdict(verdict, submission.id, &submission.workflow) {
                        Verdict::Told(answer) => submission.answer(answer),
                        Verdict::NotTaken => panic!("it was taken"),
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
                head: self.file.heads.get(&submission.workflow).copied(),
            };
            self.ready.push_back(submission);
        }
    }

    pub fn launch(&mut self, carry: bool, more: u8, mutant: Mutant) {
        if self.flight.is_some() || self.overlay.end() < self.target {
            return;
        }
        let heads: Vec<_> = self.file.heads.iter().map(|(workflow, head)| (workflow.clone(), *head)).collect();
        let carry = (carry && self.file.cursor >= self.overlay.base()).then(|| carry_of(heads, &self.overlay));
        let empty = Overlay::new(self.overlay.base(), self.overlay.end(), self.overlay.now());
        let overlay = if mutant == Mutant::NoOverlay { &empty } else { &self.overlay };
        let group = self.ready.drain(..self.ready.len().min(usize::from(more) + 1)).collect();
        let (flight, messages) = Flight::decide(overlay, horizons(), group, carry.flatten());
        self.flight = Some((flight, messages));
    }

    /// What it has to tell.
    pub fn land(&mut self, log: &mut Log, fate: Fate, late: &mut Vec<(StreamSeq, Vec<Outgoing>)>) -> Option<Bytes> {
        let (flight, messages) = self.flight.take()?;
        let expected = flight.expected();
        let stored = match fate {
            Fate::Acked if log.append(expected, &messages) => messages.len(),
            Fate::Acked | Fate::Lost => 0,
            Fate::AckLost => {
                log.append(expected, &messages);
                0
            }
            Fate::Partial(count) => {
                let count = usize::from(count) % (messages.len() + 1);
                if log.append(expected, &messages[..count]) { count } else { 0 }
            }
            Fate::Late => {
                late.push((expected, messages.clone()));
                0
            }
        };
        let sent = messages.len();
        let Landing { landed, left, .. } = flight.land(stored, messages, &mut self.overlay);
        if stored > 0 && self.overlay.unread_from() <= self.overlay.end() {
            self.follow.unread(self.overlay.end(), Instant::now());
        }
        if fate == Fate::Acked && stored == sent {
            self.follow.landed(sent, Instant::now());
        } else {
            self.follow.others();
        }
        for submission in left.into_iter().rev() {
            self.ready.push_front(submission);
        }
        self.target = log.end();
        Appended::new(landed).map(|appended| encode_appended(NOW, &appended))
    }

    pub fn told(&mut self, told: Bytes, mutant: Mutant) {
        let appended = decode_appended(told, NOW).expect("what was told");
        let (behind, end, now) = (appended.behind(), appended.end(), Instant::now());
        let gap = behind > self.overlay.end() && mutant != Mutant::GapsUnnoticed;
        if !gap && self.overlay.told(appended) {
            self.follow.unread(self.overlay.end(), now);
        }
        self.follow.told(behind, end, gap, now);
    }

    /// What is left of a message is when it was stored: then, or a little later.
    pub fn confirm(&mut self, log: &Log, back: u64) {
        let unread = self.overlay.unread_from()..=self.overlay.end();
        if self.follow.source() == Source::Reader || unread.is_empty() {
            return;
        }
        let seq = StreamSeq(unread.end().0 - back % (unread.end().0 - unread.start().0 + 1));
        let stored = |seq: StreamSeq| &log.messages[seq.0 as usize - 1];
        let changes = self.overlay.confirm(seq, Mark::of(stored(seq))).expect("the same log");
        assert_eq!(changes.first().map(|change| change.seq), Some(*unread.start()));
        for change in &changes {
            let mut read = stored(change.seq).clone();
            assert!(read.stored_at <= change.mark.stored_at);
            read.stored_at = stored(seq).stored_at;
            same_change(change, &Change::of(LAYOUT, &read));
        }
        self.follow.known(seq);
        self.unwritten.extend(changes);
    }

    pub fn read(&mut self, log: &Log, count: usize) {
        if self.follow.source() == Source::Acks {
            return;
        }
        let read = self.unwritten.last().map_or(self.file.cursor, |change| change.seq);
        for message in log.messages.iter().skip(read.0 as usize).take(count) {
            let decoded = Change::of(LAYOUT, message);
            match self.overlay.read_back(message.seq, Mark::of(message)).expect("the same log") {
                Some(change) => same_change(&change, &decoded),
                None => {
                    if self.flight.is_none() {
                        self.follow.others();
                    }
                    self.overlay.observe(&decoded).expect("the same log");
                }
            }
            self.follow.known(message.seq);
            self.unwritten.push(decoded);
        }
    }

    pub fn commit(&mut self) {
        for change in self.unwritten.drain(..) {
            self.file.cursor = change.seq;
            match change.content {
                Content::Event(id, accepted) => {
                    let head = Head {
                        sequence_number: accepted.sequence_number,
                        event_id: id,
                        stored_at: accepted.stored_at,
                        carried_at: accepted.stored_at,
                    };
                    self.file.heads.insert(accepted.workflow.clone(), head);
                    self.file.ids.insert(id, accepted);
                }
                Content::Heads(heads) => self.file.heads.extend(heads),
                Content::Foreign => {}
            }
        }
        let looked = self.ready.iter().map(|submission| submission.looked.cursor).min();
        let in_flight = self.flight.as_ref().and_then(|(flight, _)| flight.looked_at());
        let floor = [looked, in_flight].into_iter().flatten().fold(self.file.cursor, StreamSeq::min);
        self.overlay.prune(floor);
    }
}

/// What is read back must be what decoding gives.
fn same_change(ours: &Change, decoded: &Change) {
    assert_eq!((ours.seq, ours.mark), (decoded.seq, decoded.mark));
    match (&ours.content, &decoded.content) {
        (Content::Event(a, ours), Content::Event(b, decoded)) => assert_eq!((a, ours), (b, decoded)),
        (Content::Heads(ours), Content::Heads(decoded)) => assert_eq!(ours, decoded),
        (ours, decoded) => panic!("{ours:?} is not {decoded:?}"),
    }
}

fn carry_of(mut heads: Vec<(WorkflowId, Head)>, overlay: &Overlay) -> Option<Carry> {
    heads.retain(|(workflow, _)| overlay.head(workflow).is_none());
    let records = heads.iter().map(|(workflow, head)| v1::Head {
        workflow_id: workflow.to_string(),
        sequence_number: head.sequence_number.0,
        event_id: head.event_id.to_vec(),
        stored_at_ms: head.stored_at.as_millisecond(),
    });
    let (id, message) = records::heads("heads.0".into(), records.collect());
    (!heads.is_empty()).then_some(Carry { id, heads, message })
}

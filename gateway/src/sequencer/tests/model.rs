//! A log and gateways in memory, for the pure part: several sequencers on one log, interleaved at will, that hand events to
//! each other, tell each other what they append and do not wait for ever, with acks and appends that get lost and late copies
//! that arrive after all.

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
    receipts::{Accepted, Change, Content, Head, Horizons},
};
use weft_nats::{
    event::{Entry, Event},
    message::{Outgoing, Stored},
    records,
    subject::Layout,
};
use weft_proto::{
    ids::{EventId, StreamSeq, WorkflowId},
    v1,
};

use crate::sequencer::{
    Receipt, SubmitError,
    chain::{Chain, Reuse},
    decide::Looked,
    flight::{Carry, Flight},
    follow::{Follow, Source},
    overlay::Overlay,
    preferred::{
        Appended, LATE_MAX, decode_appended, encode_appended, reconcile,
        wire::{self, Verdict},
    },
    submission::{self, Encoded, Submission, test_event},
};

pub const LAYOUT: Layout = Layout::new(1);

/// What all clocks say.
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

pub fn horizons() -> Horizons {
    Horizons::new(Duration::from_secs(1_000_000), Duration::from_secs(10_000_000))
}

/// Chains that senders add to at one gateway.
pub const CHAINS: usize = 2;

/// What is switched off, to see that the properties notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    None,
    /// The log stores whatever comes, whatever is expected.
    NoComparison,
    /// What was appended beyond the file is forgotten.
    NoOverlay,
    /// Who has waited no more for another gateway hears nothing from it.
    NoLateWord,
    /// Nobody is told what belongs to one chain.
    NoChain,
    /// Members of lines go to other gateways like any other event.
    LinesHandedOn,
    /// Who is told something does not look whether it knows what stands before it.
    GapsUnnoticed,
    /// Batches go to other gateways, which do not learn that they are batches.
    BatchesFallApart,
}

/// The stream.
#[derive(Debug)]
pub struct Log {
    pub messages: Vec<Stored>,
    pub mutant: Mutant,
}

/// How an append ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// As the log decides, and the gateway learns of it.
    Acked,
    /// As the log decides, and the gateway does not learn of it.
    AckLost,
    /// It never arrives.
    Lost,
    /// One by one, and after so many (modulo the messages) nothing arrives any more.
    Partial(u8),
    /// It arrives later, and the gateway has given it up by then.
    Late,
}

/// What can happen.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// A sender sends delivery `delivery` to a gateway, with its own body or with another one, alone or as the next of
    /// one of the gateway's chains.
    Submit { gateway: usize, delivery: u8, other_body: bool, chain: Option<usize> },
    /// One of the gateway's chains gets no more members; another takes its place. A batch is submitted by this.
    EndChain { gateway: usize, chain: usize },
    /// The oldest that are ready have waited for too long.
    Expire { gateway: usize, count: u8 },
    /// What was submitted to it goes to another one, as a request; lines do not.
    Forward { gateway: usize, to: usize },
    /// It hears what has become of what it handed to others.
    Hear { gateway: usize },
    /// It waits no more for what it handed to others, and appends it itself as well.
    GiveUp { gateway: usize },
    /// It appends what was submitted to it: its sequencer asks the file about that and about what others handed to it.
    LookUp { gateway: usize },
    /// It decides for so many of those that are ready, and one more, and sends off, with heads or without.
    Launch { gateway: usize, carry: bool, more: u8 },
    /// Its append ends.
    Land { gateway: usize, fate: Fate },
    /// Its reader, while it has one, brings so many messages.
    Read { gateway: usize, messages: u8 },
    /// While it has no reader: it learns when one of its messages was stored, so far from the last that it knows of.
    Confirm { gateway: usize, back: u8 },
    /// It is told of something that was appended anywhere, in whatever order, or not at all.
    Tell { gateway: usize, of: u8 },
    /// It goes back to its reader: nothing was appended for a while, or nothing confirmed.
    ReadOn { gateway: usize },
    /// Its file holds all that has been read, and the overlay forgets that.
    Commit { gateway: usize },
    /// It is killed and starts again: nothing but its file stays.
    Kill { gateway: usize },
    /// A late copy arrives.
    Arrive,
}

/// What was sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Tells submissions of one delivery apart, in the log too: when it was received, in seconds.
    pub number: i64,
    pub delivery: u8,
    pub other_body: bool,
    /// The chain that it is a member of.
    pub chain: Option<usize>,
}

/// A delivery's answer, as its sender saw it.
#[derive(Debug)]
pub struct Answer {
    pub sent: Sent,
    /// `None`: the gateway was killed first.
    pub answer: Option<Result<Receipt, SubmitError>>,
}

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

struct Gateway {
    /// Submitted, and on no way yet.
    submitted: Vec<Submission>,
    /// Batches that are not whole yet, by their chains.
    batches: [Vec<Submission>; CHAINS],
    away: Vec<Away>,
    /// Senders that wait for what is decided here and there.
    reconciling: JoinSet<()>,
    file: File,
    overlay: Overlay,
    follow: Follow,
    /// Read or confirmed, and not in the file.
    unwritten: Vec<Change>,
    arrived: Vec<Submission>,
    ready: VecDeque<Submission>,
    flight: Option<(Flight, Vec<Outgoing>)>,
    target: StreamSeq,
    /// The chains that senders add to, with their numbers.
    chains: [Option<(usize, Chain)>; CHAINS],
}

/// A sender that waits, and where the answer comes.
type Waiting = (Sent, oneshot::Receiver<submission::Answer>);

/// All of it.
pub struct World {
    pub log: Log,
    gateways: Vec<Gateway>,
    late: Vec<(StreamSeq, Vec<Outgoing>)>,
    /// What has been appended, as it is told to others.
    told: Vec<Bytes>,
    waiting: Vec<Waiting>,
    room: Arc<Semaphore>,
    chains: usize,
    /// Whether an answer may have been lost to a fault.
    pub faults: bool,
}

/// The workflow of a delivery.
pub fn workflow_of(delivery: u8) -> &'static str {
    ["a", "b", "c"][usize::from(delivery) % 3]
}

/// Whether the chain of this number ends with a reused id.
pub fn reuse_breaks(chain: usize) -> bool {
    chain.is_multiple_of(2)
}

pub fn id_of(delivery: u8) -> EventId {
    EventId::of_delivery("model", &delivery.to_string())
}

impl Log {
    fn end(&self) -> StreamSeq {
        StreamSeq(self.messages.len() as u64)
    }

    /// All or nothing.
    fn append(&mut self, expected: StreamSeq, messages: &[Outgoing]) -> bool {
        if expected != self.end() && self.mutant != Mutant::NoComparison {
            return false;
        }
        for message in messages {
            let seq = self.end().next();
            self.messages.push(Stored {
                seq,
                stored_at: Timestamp::from_second(1_700_000_000 + seq.0 as i64).unwrap(),
                subject: message.subject.clone(),
                headers: message.headers.to_map(),
                payload: message.payload.clone(),
            });
        }
        true
    }
}

impl Gateway {
    fn new() -> Self {
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

    fn end_chain(&mut self, chain: usize) {
        self.chains[chain] = None;
        self.submitted.append(&mut self.batches[chain]);
    }

    /// What it would forward, as it arrives there.
    fn forward(&mut self, mutant: Mutant, room: &Arc<Semaphore>) -> Vec<Submission> {
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

    fn hear(&mut self) {
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

    fn give_up(&mut self, mutant: Mutant) {
        for Away { submission, there } in std::mem::take(&mut self.away) {
            let silent = oneshot::channel().1;
            self.take_back(submission, if mutant == Mutant::NoLateWord { silent } else { there });
        }
    }

    fn look_up(&mut self) {
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

    fn launch(&mut self, carry: bool, more: u8, mutant: Mutant) {
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
    fn land(&mut self, log: &mut Log, fate: Fate, late: &mut Vec<(StreamSeq, Vec<Outgoing>)>) -> Option<Bytes> {
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
        let left = flight.land(stored, messages, &mut self.overlay);
        if stored > 0 && self.overlay.unread_from() <= self.overlay.end() {
            self.follow.unread(self.overlay.end(), Instant::now());
        }
        if fate == Fate::Acked && stored == sent {
            self.follow.landed(sent, Instant::now());
        } else {
            self.follow.others();
        }
        for submission in left.submissions.into_iter().rev() {
            self.ready.push_front(submission);
        }
        self.target = log.end();
        Appended::new(left.landed).map(|appended| encode_appended(NOW, &appended))
    }

    fn told(&mut self, told: Bytes, mutant: Mutant) {
        let appended = decode_appended(told, NOW).expect("what was told");
        let (behind, end, now) = (appended.behind(), appended.end(), Instant::now());
        let gap = behind > self.overlay.end() && mutant != Mutant::GapsUnnoticed;
        if !gap && self.overlay.told(appended) {
            self.follow.unread(self.overlay.end(), now);
        }
        self.follow.told(behind, end, gap, now);
    }

    /// What is left of a message is when it was stored: then, or a little later.
    fn confirm(&mut self, log: &Log, back: u64) {
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

    fn read(&mut self, log: &Log, count: usize) {
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

    fn commit(&mut self) {
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

impl World {
    pub fn new(gateways: usize, mutant: Mutant) -> Self {
        Self {
            log: Log { messages: Vec::new(), mutant },
            gateways: (0..gateways).map(|_| Gateway::new()).collect(),
            late: Vec::new(),
            told: Vec::new(),
            waiting: Vec::new(),
            room: Arc::new(Semaphore::new(1 << 20)),
            chains: 0,
            faults: false,
        }
    }

    pub fn step(&mut self, step: Step) {
        let mutant = self.log.mutant;
        let count = self.gateways.len();
        match step {
            Step::Submit { gateway, delivery, other_body, chain } => {
                let (own, chain_at) = (&mut self.gateways[gateway % count].chains, chain);
                let chain = chain.map(|chain| {
                    own[chain % CHAINS].get_or_insert_with(|| {
                        self.chains += 1;
                        // Every other one goes on behind a reused id.
                        let reuse = if reuse_breaks(self.chains) { Reuse::Breaks } else { Reuse::LeftOut };
                        (self.chains, Chain::new(reuse))
                    })
                });
                let sent = Sent {
                    number: self.waiting.len() as i64,
                    delivery,
                    other_body,
                    chain: chain.as_ref().map(|c| c.0),
                };
                let link = chain.filter(|_| mutant != Mutant::NoChain).map(|(_, chain)| chain.link());
                let body: &'static [u8] = if other_body { b"other" } else { b"body" };
                let mut event = test_event(id_of(delivery), workflow_of(delivery), body);
                event.received_at = Timestamp::from_second(sent.number).unwrap();
                let room = self.room.clone().try_acquire_owned().expect("room for all");
                let (submission, answer) = Encoded::new(event, LAYOUT).submission(Instant::now(), room, link);
                let gateway = &mut self.gateways[gateway % count];
                // As at a desk.
                match (chain_at, sent.chain) {
                    (Some(at), Some(number)) if !reuse_breaks(number) => &mut gateway.batches[at % CHAINS],
                    (Some(_), _) if mutant != Mutant::LinesHandedOn => &mut gateway.arrived,
                    _ => &mut gateway.submitted,
                }
                .push(submission);
                self.waiting.push((sent, answer));
            }
            Step::EndChain { gateway, chain } => self.gateways[gateway % count].end_chain(chain % CHAINS),
            Step::Expire { gateway, count: expired } => {
                self.faults = true;
                let ready = &mut self.gateways[gateway % count].ready;
                for submission in ready.drain(..ready.len().min(expired.into())) {
                    submission.answer(Err(SubmitError::Unavailable));
                }
            }
            Step::Forward { gateway, to } if gateway % count != to % count => {
                let there = self.gateways[gateway % count].forward(mutant, &self.room);
                self.gateways[to % count].arrived.extend(there);
            }
            Step::Forward { .. } => {}
            Step::Hear { gateway } => self.gateways[gateway % count].hear(),
            Step::GiveUp { gateway } => self.gateways[gateway % count].give_up(mutant),
            Step::LookUp { gateway } => self.gateways[gateway % count].look_up(),
            Step::Launch { gateway, carry, more } => self.gateways[gateway % count].launch(carry, more, mutant),
            Step::Land { gateway, fate } => {
                self.faults |= fate != Fate::Acked;
                let told = self.gateways[gateway % count].land(&mut self.log, fate, &mut self.late);
                self.told.extend(told);
            }
            Step::Tell { gateway, of } => {
                // Rather what is new.
                if let Some(of) = self.told.len().checked_sub(1 + usize::from(of)) {
                    self.gateways[gateway % count].told(self.told[of].clone(), mutant);
                }
            }
            Step::Read { gateway, messages } => self.gateways[gateway % count].read(&self.log, messages.into()),
            Step::Confirm { gateway, back } => self.gateways[gateway % count].confirm(&self.log, back.into()),
            Step::ReadOn { gateway } => self.gateways[gateway % count].follow.others(),
            Step::Commit { gateway } => self.gateways[gateway % count].commit(),
            Step::Kill { gateway } => {
                self.faults = true;
                let killed = &mut self.gateways[gateway % count];
                if let Some((flight, messages)) = killed.flight.take() {
                    self.late.push((flight.expected(), messages));
                }
                let file = std::mem::take(&mut killed.file);
                let overlay = Overlay::new(file.cursor, file.cursor, Timestamp::UNIX_EPOCH);
                *killed = Gateway { file, overlay, target: self.log.end(), ..Gateway::new() };
            }
            Step::Arrive => {
                if let Some((expected, messages)) = self.late.pop() {
                    self.log.append(expected, &messages);
                }
            }
        }
    }

    /// Lets everything come to its end, without further faults. Needs a runtime whose time stands still.
    pub async fn settle(&mut self) {
        let gateways = self.gateways.len();
        for gateway in 0..gateways {
            (0..CHAINS).for_each(|chain| self.step(Step::EndChain { gateway, chain }));
        }
        for _ in 0..4 {
            for gateway in 0..gateways {
                self.step(Step::LookUp { gateway });
                self.step(Step::Arrive);
                self.gateways[gateway].target = self.log.end();
                self.step(Step::ReadOn { gateway });
                self.step(Step::Read { gateway, messages: u8::MAX });
                self.step(Step::Launch { gateway, carry: false, more: u8::MAX });
                self.gateways[gateway].land(&mut self.log, Fate::Acked, &mut self.late);
                self.step(Step::Read { gateway, messages: u8::MAX });
                self.step(Step::Hear { gateway });
            }
        }
        // Whoever waits for a late word has heard it by now, or never will.
        tokio::time::sleep(LATE_MAX * 2).await;
    }

    /// What every sender was told.
    pub fn answers(&mut self) -> Vec<Answer> {
        let waiting = self.waiting.iter_mut();
        waiting.map(|(sent, answer)| Answer { sent: *sent, answer: answer.try_recv().ok() }).collect()
    }

    /// The events of the log, with the heads before each carried record checked on the way.
    pub fn events(&self) -> Result<Vec<Event>, String> {
        let mut heads: HashMap<String, (u64, EventId)> = HashMap::new();
        let mut events = Vec::new();
        for message in &self.log.messages {
            match Entry::decode(LAYOUT, message) {
                Entry::Event(event) => {
                    heads.insert(event.workflow.to_string(), (event.sequence_number.0, event.id));
                    events.push(*event);
                }
                Entry::Heads(record) => {
                    for head in record.heads {
                        let stated = (head.sequence_number, EventId::from_slice(&head.event_id).ok_or("no id")?);
                        if heads.get(&head.workflow_id) != Some(&stated) {
                            return Err(format!("a carried head is not the head of {}", head.workflow_id));
                        }
                    }
                }
                Entry::Foreign(error) => return Err(error.to_string()),
            }
        }
        Ok(events)
    }
}

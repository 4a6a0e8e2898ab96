//! A log and gateways in memory, for the pure part: several sequencers on one log, interleaved at will, that forward events
//! to each other, notify each other of their appends and do not wait for ever, with acks and appends that get lost and late
//! copies that arrive after all. The log may be a replicated one (`log`): appends are proposed before they can be read, and may
//! vanish; its leader may lag; and the whole log may be rolled back to a backup and grow again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};
use weft_index::receipts::Horizons;
use weft_nats::{entry::Entry, event::Event, message::Outgoing, subject::Layout};
use weft_proto::ids::{EventId, StreamSeq};

use crate::forwarding::LATE_MAX;
use crate::sequencer::{
    Receipt, SubmitError,
    chain::{Chain, Reuse},
    submission::{self, Encoded, test_event},
};
use gateway::Gateway;
pub use log::Log;

mod gateway;
mod log;

pub const LAYOUT: Layout = Layout::new(1);

/// The time of all clocks.
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

pub fn horizons() -> Horizons {
    Horizons::new(Duration::from_secs(1_000_000), Duration::from_secs(10_000_000))
}

/// Chains that senders add to at one gateway.
pub const CHAINS: usize = 2;

/// A mechanism that is switched off, to see that the properties notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    None,
    /// The log stores every append, regardless of the expected sequence.
    NoComparison,
    /// The messages appended beyond the file are forgotten.
    NoOverlay,
    /// A gateway that has stopped waiting for another gateway ignores its late reply.
    NoLateWord,
    /// Sequencers do not learn which events belong to one chain.
    NoChain,
    /// Members of publish streams go to other gateways like any other event.
    LinesHandedOn,
    /// A gateway that is notified of an append does not check whether it knows the messages before it.
    GapsUnnoticed,
    /// Batches go to other gateways, which do not learn that they are batches.
    BatchesFallApart,
    /// The end of the log that a refused append reports is taken for its end, and messages up to there that cannot be read for
    /// removed.
    ProposalsConclude,
    /// A leader that ends before what was acked is believed, whether it lags or not.
    LaggingLeaderBelieved,
    /// A gateway that lost its connection continues as if the log could not have changed.
    NoDoubt,
    /// A gateway that lost its connection compares the newest message that it has read, and trusts what was only acked.
    AckedIsTrusted,
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
    /// One by one, and after this number (modulo the messages) nothing arrives any more.
    Partial(u8),
    /// It arrives later, and the gateway has given it up by then.
    Late,
}

/// A step of a run.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// A sender sends delivery `delivery` to a gateway, with its own body or with another one, alone or as the next of
    /// one of the gateway's chains.
    Submit { gateway: usize, delivery: u8, other_body: bool, chain: Option<usize> },
    /// One of the gateway's chains gets no more members; another takes its place. A batch is submitted by this.
    EndChain { gateway: usize, chain: usize },
    /// The oldest that are ready have waited for too long.
    Expire { gateway: usize, count: u8 },
    /// The events that were submitted to it go to another one, as a request; members of publish streams do not.
    Forward { gateway: usize, to: usize },
    /// It receives the results of the events that it forwarded.
    Hear { gateway: usize },
    /// It stops waiting for the results of the events that it forwarded, and appends them itself as well.
    GiveUp { gateway: usize },
    /// It appends the events that were submitted to it: its sequencer looks them up in the file, with those forwarded to it.
    LookUp { gateway: usize },
    /// It decides for `more` + 1 of those that are ready, and starts the append, with heads or without.
    Launch { gateway: usize, carry: bool, more: u8 },
    /// Its append ends.
    Land { gateway: usize, fate: Fate },
    /// Its reader, while it has one, brings this number of messages.
    Read { gateway: usize, messages: u8 },
    /// While it has no reader: it learns when one of its messages was stored, at this distance from the last that it knows of.
    Confirm { gateway: usize, back: u8 },
    /// It is notified of an append of any gateway, in any order, or not at all.
    Tell { gateway: usize, of: u8 },
    /// It goes back to its reader: nothing was appended for a while, or nothing confirmed.
    ReadOn { gateway: usize },
    /// Its file holds all that has been read, and the overlay forgets that.
    Commit { gateway: usize },
    /// It is killed and starts again: nothing but its file stays.
    Kill { gateway: usize },
    /// A late copy arrives.
    Arrive,
    /// Its append is proposed: refused by its number, or under way.
    Propose { gateway: usize },
    /// This number of the proposed messages is applied.
    Apply { messages: u8 },
    /// The leader is gone, and with it what was proposed.
    Vanish,
    /// The leader has not applied this number of the newest messages.
    Lag { messages: u8 },
    /// A message was stored and has been removed again.
    Hole,
    /// An admin erases the event this far back.
    Erase { back: u8 },
    /// The shard's owner carries the event this far back forward as its workflow's head, without a comparison.
    CarryUncompared { back: u8 },
    /// It asks the leader about the log's end, or whether there is anything before the end that it waits for.
    Ask { gateway: usize },
    /// Where the log is in doubt it compares what it knows.
    Compare { gateway: usize },
    /// The log is restored to its first `keep` messages. All connections are lost.
    RollBack { keep: u8 },
}

/// A submission of a sender.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Distinguishes submissions of one delivery, in the log too: when it was received, in seconds.
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

/// A sender that waits, and where the answer comes.
type Waiting = (Sent, oneshot::Receiver<submission::Answer>);

/// All of it.
pub struct World {
    pub log: Log,
    gateways: Vec<Gateway>,
    late: Vec<(StreamSeq, Vec<Outgoing>)>,
    /// Encoded notices of the appends.
    told: Vec<Bytes>,
    waiting: Vec<Waiting>,
    room: Arc<Semaphore>,
    chains: usize,
    /// Whether an answer may have been lost to a fault.
    pub faults: bool,
    /// Whether the log was rolled back: then an answer holds for the log of its moment.
    pub rolled_back: bool,
    answered: Vec<Answer>,
    /// The first answer that was not true when it was given.
    lie: Option<String>,
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

impl World {
    pub fn new(gateways: usize, mutant: Mutant) -> Self {
        Self {
            log: Log::new(mutant),
            gateways: (0..gateways).map(|_| Gateway::new()).collect(),
            late: Vec::new(),
            told: Vec::new(),
            waiting: Vec::new(),
            room: Arc::new(Semaphore::new(1 << 20)),
            chains: 0,
            faults: false,
            rolled_back: false,
            answered: Vec::new(),
            lie: None,
        }
    }

    /// How often a gateway rebuilt its receipts, and how often it dropped what it knew beyond them.
    pub fn restarts(&self) -> (usize, usize) {
        self.gateways
            .iter()
            .fold((0, 0), |(rebuilt, dropped), gateway| (rebuilt + gateway.rebuilt, dropped + gateway.dropped))
    }

    /// Takes the answers of senders, and compares them with the log as it is at this moment.
    fn hear_answers(&mut self) {
        let mut waiting = Vec::new();
        for (sent, mut answer) in self.waiting.drain(..) {
            match answer.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => waiting.push((sent, answer)),
                answer => {
                    let answer = answer.ok();
                    if let Some(Ok(receipt)) = &answer
                        && !self.log.holds(receipt)
                    {
                        self.lie.get_or_insert(format!("{sent:?} was answered {receipt:?}, which is not in the log"));
                    }
                    self.answered.push(Answer { sent, answer });
                }
            }
        }
        self.waiting = waiting;
    }

    /// The first answer that was not true when it was given.
    pub fn lie(&self) -> Option<&str> {
        self.lie.as_deref()
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
                        // Every other chain continues after a reused id.
                        let reuse = if reuse_breaks(self.chains) { Reuse::Breaks } else { Reuse::LeftOut };
                        (self.chains, Chain::new(reuse))
                    })
                });
                let sent = Sent {
                    number: (self.waiting.len() + self.answered.len()) as i64,
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
                // As at a submit_queue.
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
            Step::ReadOn { gateway } => self.gateways[gateway % count].tracker.foreign_appends(),
            Step::Commit { gateway } => self.gateways[gateway % count].commit(),
            Step::Kill { gateway } => {
                self.faults = true;
                self.late.extend(self.gateways[gateway % count].kill(&self.log));
            }
            Step::Arrive => {
                if let Some((expected, messages)) = self.late.pop() {
                    let _ = self.log.append(expected, &messages);
                }
            }
            Step::Propose { gateway } => self.gateways[gateway % count].propose(&mut self.log),
            Step::Apply { messages } => self.log.apply(messages.into()),
            // With the leader goes the ack of what it has applied already.
            Step::Vanish => self.faults |= self.log.vanish(),
            Step::Lag { messages } => self.log.lag(messages.into()),
            Step::Hole => self.log.hole(),
            Step::Erase { back } => self.log.erase(back.into()),
            Step::CarryUncompared { back } => self.log.carry_uncompared(back.into()),
            Step::Ask { gateway } => self.gateways[gateway % count].ask(&self.log),
            Step::Compare { gateway } => self.gateways[gateway % count].compare(&self.log),
            Step::RollBack { keep } => {
                (self.faults, self.rolled_back) = (true, true);
                // What was on its way was on connections that are no more.
                self.late.clear();
                self.told.clear();
                for gateway in &mut self.gateways {
                    gateway.disconnect(&mut self.log);
                }
                self.log.roll_back(keep.into());
            }
        }
        self.hear_answers();
    }

    /// Lets everything come to its end, without further faults. Needs a runtime whose time stands still.
    pub async fn settle(&mut self) {
        let gateways = self.gateways.len();
        for gateway in 0..gateways {
            (0..CHAINS).for_each(|chain| self.step(Step::EndChain { gateway, chain }));
        }
        self.step(Step::Lag { messages: 0 });
        self.step(Step::Apply { messages: u8::MAX });
        for _ in 0..6 {
            for gateway in 0..gateways {
                self.step(Step::Compare { gateway });
                self.step(Step::LookUp { gateway });
                self.step(Step::Arrive);
                self.gateways[gateway].land(&mut self.log, Fate::Acked, &mut self.late);
                self.step(Step::ReadOn { gateway });
                // Asked about its end, read to there, and asked about what could not be read.
                for _ in 0..3 {
                    self.step(Step::Ask { gateway });
                    self.step(Step::Read { gateway, messages: u8::MAX });
                }
                self.step(Step::Launch { gateway, carry: false, more: u8::MAX });
                self.gateways[gateway].land(&mut self.log, Fate::Acked, &mut self.late);
                self.step(Step::Read { gateway, messages: u8::MAX });
                self.step(Step::Hear { gateway });
            }
        }
        // Late replies have arrived by now, or never will.
        tokio::time::sleep(LATE_MAX * 2).await;
    }

    /// The answers to all senders.
    pub fn answers(&mut self) -> Vec<Answer> {
        self.hear_answers();
        let silent = self.waiting.drain(..).map(|(sent, _)| Answer { sent, answer: None });
        let mut answers: Vec<_> = self.answered.drain(..).chain(silent).collect();
        answers.sort_unstable_by_key(|answer| answer.sent.number);
        answers
    }

    /// The events of the log, erased ones as they were, with the heads before each carried record checked on the way.
    pub fn events(&self) -> Result<Vec<Event>, String> {
        let mut heads: HashMap<String, (u64, EventId)> = HashMap::new();
        let mut events = Vec::new();
        for message in self.log.ever() {
            match Entry::decode(LAYOUT, message) {
                Entry::Event(event) => {
                    heads.insert(event.workflow.to_string(), (event.sequence_number.0, event.id));
                    events.push(*event);
                }
                Entry::Heads(_) if self.log.is_uncompared(message.seq) => {}
                Entry::Heads(record) => {
                    for head in record.heads {
                        let stated = (head.sequence_number, EventId::from_slice(&head.event_id).ok_or("no id")?);
                        if heads.get(&head.workflow_id) != Some(&stated) {
                            return Err(format!("a carried head is not the head of {}", head.workflow_id));
                        }
                    }
                }
                Entry::Erased(_) => {}
                Entry::Foreign(error) => return Err(error.to_string()),
            }
        }
        Ok(events)
    }
}

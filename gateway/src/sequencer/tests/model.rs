//! A log and gateways in memory, for the pure part: several sequencers on one log, interleaved at will, that hand events to
//! each other, tell each other what they append and do not wait for ever, with acks and appends that get lost and late copies
//! that arrive after all.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};
use weft_index::receipts::Horizons;
use weft_nats::{
    event::{Entry, Event},
    message::{Outgoing, Stored},
    subject::Layout,
};
use weft_proto::ids::{EventId, StreamSeq};

use crate::sequencer::{
    Receipt, SubmitError,
    chain::{Chain, Reuse},
    preferred::LATE_MAX,
    submission::{self, Encoded, test_event},
};
use gateway::Gateway;

mod gateway;

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
                self.late.extend(self.gateways[gateway % count].kill(self.log.end()));
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

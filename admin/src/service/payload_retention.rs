//! The payloads of a source go after its `payload_retention`, from EVENTS as by `EraseEvents`, from DLQ and from REJECTED;
//! what describes the events stays for as long as EVENTS keeps it.
//!
//! Each admin reads on behind what it has looked at, a bounded number of messages at a time, once for all sources. Two admins do
//! no harm to each other: what is erased is no longer there for the second.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use prost::Message as _;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_catalog::Snapshot;
use weft_nats::{
    direct,
    entry::Entry,
    erasure::{Author, remove},
    message::Stored,
    subject::{DLQ_STREAM, REJECTED_STREAM},
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    v1::Rejected,
};

use super::{
    erase::{copied, erase_one, item, of_remove},
    state::LogState,
};
use crate::error::of_direct;

/// Interval of passes while nothing more is due.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause between two pages of a pass, so that senders and readers come first.
const PAGE_PAUSE: Duration = Duration::from_millis(50);
/// Messages and bytes of one page.
const PAGE_MESSAGES: usize = 500;
const PAGE_BYTES: usize = 4 << 20;
/// Payloads that were erased.
const ERASED: &str = "weft_admin_payloads_expired_total";

/// A stream with payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Events(ShardId),
    DeadLetters,
    Refused,
}

/// Up to where the payloads of each source have been looked at, in one stream.
type Positions = BTreeMap<String, StreamSeq>;

/// Erases payloads until `stop`.
pub(super) async fn run(log: LogState, catalog: watch::Receiver<Arc<Snapshot>>, stop: CancellationToken) {
    metrics::describe_counter!(ERASED, "payloads that were erased after the payload_retention of their source");
    metrics::counter!(ERASED).absolute(0);
    let passes = async {
        let mut positions: HashMap<Place, Positions> = HashMap::new();
        loop {
            let retentions = retentions(&catalog.borrow());
            let places = log.layout.all().map(Place::Events).chain([Place::DeadLetters, Place::Refused]);
            for place in places {
                let positions = positions.entry(place).or_default();
                // What cannot be erased in one stream does not keep what is in the others.
                if let Err(status) = pass(&log, place, &retentions, positions).await {
                    tracing::warn!(
                        ?place,
                        problem = status.message(),
                        "payloads beyond their retention cannot be erased; retrying"
                    );
                }
            }
            sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        () = passes => {}
        () = stop.cancelled() => {}
    }
}

/// Retentions of payloads by source, in milliseconds.
fn retentions(snapshot: &Snapshot) -> BTreeMap<String, i64> {
    let sources = snapshot.sources.iter();
    let with = sources.filter(|(_, source)| source.value.payload_retention_ms > 0);
    with.map(|(name, source)| (name.clone(), i64::try_from(source.value.payload_retention_ms).unwrap_or(i64::MAX)))
        .collect()
}

/// Erases all that is due in a stream. A message that cannot be erased ends the pass of its source only.
async fn pass(
    log: &LogState,
    place: Place,
    retentions: &BTreeMap<String, i64>,
    positions: &mut Positions,
) -> Result<(), Status> {
    positions.retain(|source, _| retentions.contains_key(source));
    let mut due = Due::new(retentions, positions);
    let mut problem = None;
    while let Some(from) = due.next() {
        let messages = read(log, place, from).await?;
        let Some(last) = messages.last().map(|message| message.seq) else { break };
        let now = log.connection.server_clock().now();
        for message in &messages {
            let Some(payload) = due.take(message.seq, message.stored_at, now, || source_of(log, place, message)) else {
                continue;
            };
            match erase(log, place, message, now).await {
                Ok(()) => metrics::counter!(ERASED).increment(1),
                Err(status) => {
                    due.stop(&payload, message.seq);
                    problem = problem.or(Some(status));
                }
            }
        }
        due.read_to(last);
        sleep(PAGE_PAUSE).await;
    }
    problem.map_or(Ok(()), Err)
}

/// The sources whose payloads are still looked for in a pass.
struct Due<'p> {
    retentions: &'p BTreeMap<String, i64>,
    positions: &'p mut Positions,
    /// Nothing more of these is due.
    active: Vec<&'p str>,
}

impl<'p> Due<'p> {
    fn new(retentions: &'p BTreeMap<String, i64>, positions: &'p mut Positions) -> Self {
        for source in retentions.keys() {
            positions.entry(source.clone()).or_default();
        }
        Self { retentions, positions, active: retentions.keys().map(String::as_str).collect() }
    }

    /// Where to read on: behind what has been looked at for all sources.
    fn next(&self) -> Option<StreamSeq> {
        let positions = self.active.iter().filter_map(|source| self.positions.get(*source));
        positions.min().map(|position| position.next())
    }

    /// Looks at a message: whether it is one whose payload is due, and of which source. What follows it was stored later.
    fn take(
        &mut self,
        seq: StreamSeq,
        stored_at: Timestamp,
        now: Timestamp,
        source: impl FnOnce() -> Option<String>,
    ) -> Option<String> {
        let retentions = self.retentions;
        self.active.retain(|source| retentions.get(*source).is_some_and(|ms| is_due(stored_at, *ms, now)));
        if self.active.is_empty() {
            return None;
        }
        let source = source()?;
        let is_new = self.positions.get(&source).is_some_and(|position| *position < seq);
        let is_due = is_new && self.active.contains(&source.as_str());
        // The others have nothing here.
        for other in &self.active {
            if let Some(position) = self.positions.get_mut(*other) {
                *position = (*position).max(seq);
            }
        }
        is_due.then_some(source)
    }

    /// Ends the pass of a source before a message.
    fn stop(&mut self, source: &str, seq: StreamSeq) {
        self.active.retain(|active| *active != source);
        if let Some(position) = self.positions.get_mut(source) {
            *position = StreamSeq(seq.0.saturating_sub(1));
        }
    }

    /// All messages up to this one have been looked at for the sources that are left.
    fn read_to(&mut self, last: StreamSeq) {
        for source in &self.active {
            if let Some(position) = self.positions.get_mut(*source) {
                *position = (*position).max(last);
            }
        }
    }
}

async fn read(log: &LogState, place: Place, from: StreamSeq) -> Result<Vec<Stored>, Status> {
    let stream = match place {
        Place::Events(shard) => log.layout.events_stream(shard),
        Place::DeadLetters => DLQ_STREAM.to_owned(),
        Place::Refused => REJECTED_STREAM.to_owned(),
    };
    direct::range(&log.connection, &stream, from, ">", PAGE_MESSAGES, PAGE_BYTES).await.map_err(of_direct)
}

/// The source of the payload that a message has; `None`: it has none.
fn source_of(log: &LogState, place: Place, message: &Stored) -> Option<String> {
    match place {
        Place::Events(_) => match Entry::decode(log.layout, message) {
            Entry::Event(event) => Some(event.source),
            Entry::Heads(_) | Entry::Erased(_) | Entry::Foreign(_) => None,
        },
        Place::DeadLetters => {
            copied(message).map(|(_, event)| event).filter(|event| !event.is_erased()).map(|event| event.source)
        }
        Place::Refused => Rejected::decode(message.payload.clone()).ok().map(|entry| entry.source),
    }
}

async fn erase(log: &LogState, place: Place, message: &Stored, at: Timestamp) -> Result<(), Status> {
    let stream = match place {
        Place::Events(_) => {
            let Entry::Event(event) = Entry::decode(log.layout, message) else { return Ok(()) };
            let (operator, reason, request_id) = (String::new(), String::new(), String::new());
            let by = Author { operator, reason, request_id, at };
            return erase_one(log, &item(message.seq, event.id, &event.workflow), &by).await.map(drop);
        }
        Place::DeadLetters => DLQ_STREAM,
        Place::Refused => REJECTED_STREAM,
    };
    remove(&log.connection, stream, message.seq).await.map_err(of_remove)
}

fn is_due(stored_at: Timestamp, retention_ms: i64, now: Timestamp) -> bool {
    now.as_millisecond().saturating_sub(stored_at.as_millisecond()) >= retention_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn a_payload_is_due_at_its_age() {
        assert!(is_due(at(0), 1_000, at(1_000)) && !is_due(at(1), 1_000, at(1_000)));
        assert!(!is_due(at(2_000), 1_000, at(1_000)), "stored by a clock that is ahead");
    }

    /// One pass over messages of these sources, one a second. Returns what was due, and how many messages were looked at.
    fn passed(
        sources: &[&str],
        retentions: &BTreeMap<String, i64>,
        positions: &mut Positions,
        now: i64,
        page: u64,
    ) -> (Vec<u64>, usize) {
        let mut due = Due::new(retentions, positions);
        let (mut taken, mut looked) = (Vec::new(), 0);
        while let Some(from) = due.next() {
            let end = (from.0 + page - 1).min(sources.len() as u64);
            if from.0 > end {
                break;
            }
            for seq in from.0..=end {
                looked += 1;
                let source = || Some(sources[seq as usize - 1].to_owned());
                if due.take(StreamSeq(seq), at(seq as i64 * 1_000), at(now), source).is_some() {
                    taken.push(seq);
                }
            }
            due.read_to(StreamSeq(end));
        }
        (taken, looked)
    }

    /// Sources of different retentions are erased at their ages, each payload once, and the log is read once for all of them.
    #[test]
    fn one_pass_serves_all_sources() {
        let sources = ["a", "b", "none", "a", "b", "a", "b", "a"];
        let retentions = BTreeMap::from([("a".to_owned(), 1_000), ("b".to_owned(), 4_000), ("c".to_owned(), 1_000)]);
        let mut positions = Positions::new();
        assert_eq!(passed(&sources, &retentions, &mut positions, 7_000, 3), (vec![1, 2, 4, 6], 8));
        let (taken, looked) = passed(&sources, &retentions, &mut positions, 9_000, 3);
        assert_eq!((taken, looked <= 7), (vec![5, 8], true), "{looked}");
        assert_eq!(passed(&sources, &retentions, &mut positions, 20_000, 3).0, [7]);
        assert_eq!(passed(&sources, &retentions, &mut positions, 30_000, 3), (vec![], 0));
    }

    /// A message that cannot be erased is tried again, and keeps no other source.
    #[test]
    fn a_problem_ends_the_pass_of_its_source() {
        let retentions = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]);
        let mut positions = Positions::new();
        let mut due = Due::new(&retentions, &mut positions);
        let source = |name: &'static str| move || Some(name.to_owned());
        assert!(due.take(StreamSeq(1), at(0), at(9), source("a")).is_some());
        due.stop("a", StreamSeq(1));
        assert!(due.take(StreamSeq(2), at(0), at(9), source("b")).is_some());
        assert!(due.take(StreamSeq(3), at(0), at(9), source("a")).is_none());
        due.read_to(StreamSeq(3));
        assert_eq!((due.next(), positions["a"], positions["b"]), (Some(StreamSeq(4)), StreamSeq(0), StreamSeq(3)));
    }
}

//! A receiver that is away while the log grows: what its backlog costs the worker, and what becomes of it.
//!
//! `WEFT_SOAK_EVENTS` says how many events, twenty to a workflow.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use weft_bench::memory::Memory;
use weft_nats::{
    append::{AppendError, AppendErrorKind, Appender, BATCH_MESSAGES_MAX},
    connect::Connection,
    direct,
    event::Event,
    streams,
    subject::{DLQ_STREAM, Layout},
};
use weft_proto::{
    ids::{EventId, SequenceNumber, ShardId, StreamSeq},
    internal::{self, outcome_record::Record},
};
use weft_services::{
    mesh::{SOURCE, Wiring},
    receiver::{Answer, Arrival},
};
use weft_testkit::eventually;

use crate::{mesh::Mesh, order};

const LAYOUT: Layout = Layout::new(1);
/// Events of the ordinary run.
const EVENTS: u64 = 20_000;
const EACH: u64 = 20;
const PAYLOAD: usize = 1024;
/// Maximum growth of the worker, for any backlog.
const GROWTH_MIB_MAX: f64 = 64.0;

/// Appends events to a log, `EACH` to a workflow; returns the end of the log.
pub async fn append(connection: &Connection, events: u64) -> StreamSeq {
    let workflows = events / EACH;
    let mut last = streams::state(connection, &LAYOUT.events_stream(ShardId(0))).await.unwrap().last;
    let mut appender = Appender::new(connection.clone());
    let payload = Bytes::from(vec![b'1'; PAYLOAD]);
    let id = |number: u64| EventId::of_delivery(SOURCE, &number.to_string());
    let numbers: Vec<u64> = (0..events).collect();
    for numbers in numbers.chunks(BATCH_MESSAGES_MAX) {
        let messages: Vec<_> = numbers
            .iter()
            .map(|&number| {
                let event = Event {
                    id: id(number),
                    previous: number.checked_sub(workflows).map(id),
                    sequence_number: SequenceNumber(number / workflows + 1),
                    event_type: "order.changed".into(),
                    delivery_id: Some(number.to_string()),
                    ..weft_testkit::event(&format!("w{}", number % workflows)).payload(payload.clone()).build()
                };
                event.encode(LAYOUT)
            })
            .collect();
        // The mesh's own events come in between, such as that the receiver is away.
        last = loop {
            match appender.append(last, &messages).await {
                Ok(end) => break end,
                Err(AppendError { stored: 0, kind: AppendErrorKind::Conflict { last: Some(end) } }) => last = end,
                Err(error) => panic!("{error:?}"),
            }
        };
    }
    last
}

/// How far the worker has read, by its newest commit.
async fn cursor(connection: &Connection) -> u64 {
    let (stream, subject) = (LAYOUT.outcomes_stream(ShardId(0)), LAYOUT.outcomes_subject(ShardId(0)));
    let Ok(Some(newest)) = direct::last_by_subject(connection, &stream, &subject).await else { return 0 };
    match internal::OutcomeRecord::decode(newest.payload).unwrap().record {
        Some(Record::Commit(commit)) => commit.cursor,
        _ => 0,
    }
}

/// P5, and the bound on memory: however much waits for a receiver that is away, the worker holds a bounded part of it; when
/// the receiver is back, everything is delivered in order, and with the usual retries nothing is a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_backlog_costs_little_memory_and_no_dead_letter() {
    let events = std::env::var("WEFT_SOAK_EVENTS").map_or(EVENTS, |text| text.parse().expect("a number"));
    // Twice as long as the longest that was seen on two busy cores.
    let patience = Duration::from_secs(60) + Duration::from_millis(events);
    let away = Arc::new(AtomicBool::new(true));
    let is_away = Arc::clone(&away);
    let wiring = Wiring { retry: "{}".into(), timeout: "15s".into(), ..Wiring::new() };
    let rule = move |_: &Arrival| Answer::now(if is_away.load(Ordering::SeqCst) { 503 } else { 200 });
    let mesh = Mesh::with(wiring, rule).await;
    let connection = mesh.server.connection("judge").await;
    let pid = mesh.worker.pid().unwrap();
    let before = Memory::of(pid).unwrap();
    let last = append(&connection, events).await;
    let read = eventually(patience, async || cursor(&connection).await >= last.0).await;
    assert!(read, "the worker reads on while the receiver is away");
    let waiting = Memory::of(pid).unwrap();
    away.store(false, Ordering::SeqCst);
    let started = std::time::Instant::now();
    let mut missing = events;
    let mut seen = 0;
    let taken = mesh.receiver.until(patience, |arrivals| {
        missing -= arrivals[seen..].iter().filter(|arrival| arrival.status == 200).count() as u64;
        seen = arrivals.len();
        missing == 0
    });
    assert!(taken.await, "{missing} events are missing");
    let after = Memory::of(pid).unwrap();
    eprintln!(
        "{events} events; worker MiB: {:.1} before, {:.1} with the backlog, {:.1} at most; {:.0} events/s afterwards",
        before.peak_mib,
        waiting.peak_mib,
        after.peak_mib,
        events as f64 / started.elapsed().as_secs_f64(),
    );
    let workflows = events / EACH;
    let all: BTreeMap<_, _> = (0..workflows).map(|workflow| (format!("w{workflow}"), EACH)).collect();
    order::check(&mesh.receiver.arrivals(), &all).unwrap();
    let dead = streams::state(&connection, DLQ_STREAM).await.unwrap().last;
    assert_eq!(dead, StreamSeq(0), "no dead letter");
    let growth = after.peak_mib - before.peak_mib;
    assert!(growth <= GROWTH_MIB_MAX, "the worker has grown by {growth:.1} MiB");
}

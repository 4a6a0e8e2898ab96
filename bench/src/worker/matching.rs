//! Cost of finding the subscriptions that take an event: one of many subscriptions matches it, by the index of types and
//! sources and, where it has one, by its compiled filter.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use weft_catalog::{Matcher, Revised};
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    v1,
};
use weft_worker::matching::{CompiledSubscription, Subscriptions};

use super::{Aim, lines};
use crate::{args::EventArgs, preload::Preload};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
};

/// Maximum time for an event, in microseconds.
const US_MAX: f64 = 2.0;
/// Events that are matched in turn: more than one, so that their data is not in the processor's nearest cache.
const EVENTS: u64 = 4096;
/// Duration of a measurement, and how often it is made: the fastest counts, since others are disturbed.
const DURATION: Duration = Duration::from_millis(500);
const REPEATS: usize = 5;
/// Filters of the subscription that takes the event.
const FILTERS: [(&str, &str); 3] = [
    ("types and sources", ""),
    ("and a filter over event", "event.workflowId != 'w-none' && event.type.startsWith('bench.')"),
    ("and a filter over data", "data.total > 100 && data.currency == 'EUR'"),
];

/// `weft bench worker matching`.
#[derive(Debug, clap::Args)]
pub struct MatchingArgs {
    /// Subscriptions, one of which takes the events; also measured with that one alone
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    subscriptions: u32,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    subscriptions: u32,
    by: &'static str,
    us: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    payload_bytes: usize,
    phases: Vec<Phase>,
    aims: Vec<Aim>,
}

impl Row for Phase {
    const HEADINGS: &'static [&'static str] = &["SUBSCRIPTIONS", "MATCHED BY", "US AN EVENT"];

    fn cells(&self) -> Vec<String> {
        vec![self.subscriptions.to_string(), self.by.to_owned(), format!("{:.2}", self.us)]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: an event is not matched by exactly the one subscription.
pub fn run(args: MatchingArgs) -> Result<(), Failure> {
    let EventArgs { payload: payload_bytes, output } = args.event;
    let events = events(payload_bytes)?;
    let mut phases = Vec::new();
    for subscriptions in [1, args.subscriptions] {
        for (by, filter) in FILTERS {
            let us = measure(&compiled(subscriptions, filter)?, &events)?;
            phases.push(Phase { subscriptions, by, us });
        }
    }
    let of_all = phases.iter().skip(FILTERS.len());
    let aims = of_all.map(|phase| Aim::at_most(phase.by, US_MAX, phase.us)).collect();
    let report = Report { payload_bytes, phases, aims };
    output.print(&report, || {
        let table = output::table(Phase::HEADINGS, report.phases.iter().map(Row::cells));
        format!("{payload_bytes} bytes of data\n{table}\n{}", lines(&report.aims))
    })
}

/// Events with data of about this size.
fn events(payload: usize) -> anyhow::Result<Vec<StoredEvent>> {
    let preload = Preload { workflows: 100, payload };
    let stored = |number: u64| {
        let data = format!("{{\"total\":{},\"currency\":\"EUR\",\"text\":\"", 101 + number);
        let padding = "x".repeat(payload.saturating_sub(data.len() + 2));
        let event = preload.event(number, &Bytes::from(format!("{data}{padding}\"}}")))?;
        Ok(StoredEvent { seq: StreamSeq(number + 1), stored_at: Timestamp::now(), event })
    };
    (0..EVENTS).map(stored).collect()
}

/// Subscriptions of one shard: the first takes the events, the others take others, by a type, by the beginning of one, and by a
/// source.
fn compiled(count: u32, filter: &str) -> anyhow::Result<Subscriptions> {
    let mut subscriptions = Subscriptions::default();
    for number in 0..count {
        let (types, sources) = match number {
            0 => ("bench.*".to_owned(), vec![]),
            _ if number % 3 == 0 => ("bench.*".to_owned(), vec![format!("other-{number}")]),
            _ if number % 3 == 1 => (format!("order-{number}.*"), vec![]),
            _ => (format!("bench.preload-{number}"), vec![]),
        };
        let value = v1::Subscription {
            uid: SubscriptionUid::unique().to_vec(),
            types: vec![types],
            sources,
            filter: filter.to_owned(),
            ..Default::default()
        };
        let matcher = Matcher::new(&value, ShardId(0)).ok_or_else(|| anyhow::anyhow!("a uid that is none"))?;
        let subscription = Revised { revision: 1, value: Arc::new(value) };
        subscriptions.insert(CompiledSubscription { matcher, subscription });
    }
    Ok(subscriptions)
}

/// Microseconds for an event.
fn measure(subscriptions: &Subscriptions, events: &[StoredEvent]) -> anyhow::Result<f64> {
    for event in events {
        ensure!(subscriptions.matching(event).count() == 1, "one subscription takes each event");
    }
    let mut fastest = f64::INFINITY;
    for _ in 0..REPEATS {
        let (started, mut count) = (Instant::now(), 0);
        while started.elapsed() < DURATION {
            for event in events {
                black_box(subscriptions.matching(black_box(event)).count());
            }
            count += events.len();
        }
        fastest = fastest.min(started.elapsed().as_secs_f64() * 1e6 / count as f64);
    }
    Ok(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards: what is measured is one match of many, with a filter that is true.
    #[test]
    fn one_of_many_subscriptions_takes_each_event() {
        let events = events(512).unwrap();
        for (by, filter) in FILTERS {
            let subscriptions = compiled(100, filter).unwrap();
            assert_eq!(subscriptions.uids().count(), 100);
            let counts: Vec<_> = events.iter().take(10).map(|event| subscriptions.matching(event).count()).collect();
            assert_eq!(counts, [1; 10], "{by}");
        }
        let none = compiled(100, "data.total < 0").unwrap();
        assert_eq!(none.matching(&events[0]).count(), 0, "the filter decides");
    }
}

//! Batches of a destination that takes all events of an attempt or none, through failures and crashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use weft_proto::{
    internal,
    v1::{self, AttemptClass},
};
use weft_testkit::eventually;
use weft_worker::destination::{Delivery, DeliveryResult, Destination, Failure, FailureKind};

use crate::support::{Log, PATIENCE, Receiver, Running};

const WORKFLOWS: u64 = 4;
const EACH: u64 = 250;
const MAX_EVENTS: u32 = 16;

/// An event of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    number: u64,
    id: String,
    previous: Option<String>,
}

#[derive(Debug, Clone)]
struct Attempted {
    workflow: String,
    epoch: u64,
    events: Vec<Seen>,
    is_accepted: bool,
}

/// Like a database: a batch is one transaction. One event of each workflow breaks a constraint, and every seventh
/// transaction fails by chance.
#[derive(Debug, Clone, Default)]
struct Table(Arc<Mutex<Vec<Attempted>>>);

fn breaks_a_constraint(number: u64) -> bool {
    number == 100
}

#[async_trait]
impl Destination for Table {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        // Events gather meanwhile.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        let mut attempts = self.0.lock().unwrap();
        let events = deliveries.iter().map(|delivery| Seen {
            number: delivery.event.event.sequence_number.0,
            id: delivery.event.event.id.to_string(),
            previous: delivery.lane_previous.map(|id| id.to_string()),
        });
        let events: Vec<Seen> = events.collect();
        let failure = if events.iter().any(|event| breaks_a_constraint(event.number)) {
            let rejected = Failure::failed(AttemptClass::Protocol, "constraint violated");
            Some(Failure { kind: FailureKind::Rejected, ..rejected })
        } else if attempts.len() % 7 == 3 {
            Some(Failure::failed(AttemptClass::Protocol, "serialization failure"))
        } else {
            None
        };
        attempts.push(Attempted {
            workflow: deliveries[0].event.event.workflow.to_string(),
            epoch: deliveries[0].epoch,
            events,
            is_accepted: failure.is_none(),
        });
        failure.map_or(DeliveryResult::all(deliveries.len()), DeliveryResult::failed)
    }
}

impl Table {
    fn rows(&self) -> BTreeSet<(String, u64)> {
        let attempts = self.0.lock().unwrap();
        let accepted = attempts.iter().filter(|attempt| attempt.is_accepted);
        accepted
            .flat_map(|attempt| attempt.events.iter().map(|event| (attempt.workflow.clone(), event.number)))
            .collect()
    }
}

/// P3 as the destination sees it: a batch holds consecutive events and begins after the last event that was settled; only a
/// new owner may begin earlier. The chain of each workflow leaves out the event that became a dead letter.
fn check_order(attempts: &[Attempted]) {
    let mut lanes: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for attempt in attempts {
        let (epoch, settled) = lanes.entry(&attempt.workflow).or_default();
        let first = attempt.events[0].number;
        let next = *settled + 1;
        let is_next = first == next || breaks_a_constraint(next) && first == next + 1;
        let is_repeated = attempt.epoch > *epoch && first <= *settled;
        assert!(is_next || is_repeated, "{} #{first} came after #{settled}", attempt.workflow);
        for pair in attempt.events.windows(2) {
            let skips = u64::from(breaks_a_constraint(pair[0].number + 1));
            let follows = (pair[0].number + 1..=pair[0].number + 1 + skips).contains(&pair[1].number);
            assert!(follows, "{} #{} after #{} in a batch", attempt.workflow, pair[1].number, pair[0].number);
            assert_eq!(pair[1].previous.as_ref(), Some(&pair[0].id), "the chain within a batch");
        }
        *epoch = attempt.epoch;
        if attempt.is_accepted {
            *settled = attempt.events.last().unwrap().number;
        } else if is_repeated {
            *settled = first - 1;
        }
    }
}

/// P2, P3, P5 with batches: kills in the midst of them lose nothing and break no order, an event that is never accepted is
/// the only dead letter of its workflow, and every event has its own records.
#[tokio::test(flavor = "multi_thread")]
async fn batches_keep_order_through_failures_and_kills() {
    let mut log = Log::start().await;
    let unused = Receiver::start(|_| 200).await;
    let custom = v1::destination::Kind::Custom(v1::CustomDestination { name: "table".into() });
    log.subscribe_with("rows", &unused, 1, |subscription| {
        subscription.destination = Some(v1::Destination { kind: Some(custom) });
        subscription.batch = Some(v1::Batch { max_events: MAX_EVENTS });
    })
    .await;
    log.events((WORKFLOWS * EACH) as usize, WORKFLOWS as usize).await;
    let (folder, table) = (tempfile::tempdir().unwrap(), Table::default());
    let start =
        || Running::start_with(&log, folder.path(), |worker| worker.destination("table", Arc::new(table.clone())));
    for kill in 1..=3 {
        let worker = start();
        let enough = (WORKFLOWS * EACH / 5 * kill) as usize;
        assert!(eventually(PATIENCE, async || table.rows().len() >= enough).await);
        worker.abort().await;
        if kill == 2 {
            std::fs::remove_file(folder.path().join("ledger-0.redb")).unwrap();
        }
    }
    let worker = start();
    let delivered = (WORKFLOWS * (EACH - 1)) as usize;
    assert!(eventually(PATIENCE, async || table.rows().len() == delivered).await, "{} rows", table.rows().len());
    let outcomes = log.outcomes((WORKFLOWS * EACH) as usize).await;
    worker.stop().await;

    let attempts = table.0.lock().unwrap().clone();
    check_order(&attempts);
    let largest = attempts.iter().map(|attempt| attempt.events.len()).max().unwrap();
    assert!(largest > 1 && largest <= MAX_EVENTS as usize, "the largest batch has {largest} events");
    assert!(attempts.len() < delivered / 2, "{} attempts", attempts.len());

    let settled: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.sequence).collect();
    assert_eq!((outcomes.len(), settled.len()), (1000, 1000), "P5: exactly one outcome per event");
    let dead: Vec<_> =
        outcomes.iter().filter(|outcome| outcome.kind() == internal::OutcomeKind::DeadLettered).collect();
    assert_eq!(dead.len() as u64, WORKFLOWS, "one of each workflow");
    assert!(dead.iter().all(|outcome| outcome.reason() == v1::DeadLetterReason::Permanent));
    let commits = log.commits(|commits| !commits.is_empty()).await;
    let records = commits.iter().flat_map(|commit| &commit.attempts);
    let accepted: Vec<_> = records.filter(|record| record.class() == v1::AttemptClass::Delivered).collect();
    let of_events: BTreeSet<_> = accepted.iter().map(|record| record.sequence).collect();
    assert_eq!((accepted.len(), of_events.len()), (delivered, delivered), "each event has the record of its delivery");
    assert!(accepted.iter().any(|record| record.batch_events > 1));
}

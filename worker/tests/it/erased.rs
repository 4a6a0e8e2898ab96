//! Events that are erased before a worker has read them.

use std::collections::{BTreeMap, BTreeSet};

use weft_proto::{
    internal::{Outcome, OutcomeKind},
    v1,
};

use crate::support::{Log, Receiver, Request, Running};

/// P5: each of the first `count` events has one outcome for a subscription: the erased ones are dead letters that say so, the
/// others were delivered.
fn assert_each_has_an_outcome(outcomes: &[Outcome], subscription: &v1::Subscription, count: u64, erased: &[u64]) {
    let of_it = outcomes.iter().filter(|outcome| outcome.subscription == subscription.uid);
    let mut found: BTreeMap<u64, &Outcome> = BTreeMap::new();
    for outcome in of_it {
        assert_eq!(outcome.from, 0, "nothing was lost: {outcome:?}");
        assert!(found.insert(outcome.sequence, outcome).is_none(), "a second outcome: {outcome:?}");
    }
    for seq in 1..=count {
        let outcome = found.get(&seq).unwrap_or_else(|| panic!("{seq} has no outcome"));
        let kind = if erased.contains(&seq) { OutcomeKind::DeadLettered } else { OutcomeKind::Delivered };
        assert_eq!(outcome.kind(), kind, "{outcome:?}");
        assert_eq!(outcome.last_error.contains("asked for"), erased.contains(&seq), "{outcome:?}");
    }
}

/// P3: what was delivered came in order.
fn assert_rising(requests: &[Request]) {
    let sequences: Vec<_> = requests.iter().map(|request| request.sequence).collect();
    assert!(sequences.is_sorted(), "{sequences:?}");
}

/// Events behind a head that waits, more than its lane holds in memory, are erased: at the beginning of the log, between
/// others, one after the other, and at the end. A lane that takes them up reads more than once.
#[tokio::test(flavor = "multi_thread")]
async fn an_erased_event_that_its_lane_has_not_read_is_a_dead_letter() {
    const COUNT: u64 = 300;
    let erased = [1, 2, 70, 100, 101, 102, 200, 299, 300];
    let mut log = Log::start().await;
    let (receiver, other) = (Receiver::start(|_| 200).await, Receiver::start(|_| 200).await);
    log.subscribe("other", &other, 1).await;
    let paused = log.subscribe_with("paused", &receiver, 1, |subscription| subscription.paused = true).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.events(COUNT as usize, 1).await;
    other.until_delivered(COUNT as usize).await;
    for seq in erased {
        log.erase(seq).await;
    }
    log.pause("paused", false).await;
    let outcomes = log.outcomes(2 * COUNT as usize).await;
    worker.stop().await;
    assert_each_has_an_outcome(&outcomes, &paused, COUNT, &erased);
    assert_rising(&receiver.requests.lock().unwrap());
}

/// Events that were erased while no worker ran, and before a subscription that starts with them was there.
#[tokio::test(flavor = "multi_thread")]
async fn an_erased_event_that_no_reader_has_read_is_a_dead_letter() {
    const COUNT: u64 = 400;
    let erased = [2, 3, 10, 301, 400];
    let mut log = Log::start().await;
    let (early, late) = (Receiver::start(|_| 200).await, Receiver::start(|_| 200).await);
    let first = log.subscribe("early", &early, 1).await;
    log.events(COUNT as usize, 1).await;
    for seq in erased {
        log.erase(seq).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    log.outcomes(COUNT as usize).await;
    let second = log.subscribe("late", &late, 1).await;
    let outcomes = log.outcomes(2 * COUNT as usize).await;
    worker.stop().await;
    for (subscription, receiver) in [(first, early), (second, late)] {
        assert_each_has_an_outcome(&outcomes, &subscription, COUNT, &erased);
        let requests = receiver.requests.lock().unwrap();
        assert_rising(&requests);
        assert_eq!(requests.iter().map(|request| request.sequence).collect::<BTreeSet<_>>().len(), 395);
    }
}

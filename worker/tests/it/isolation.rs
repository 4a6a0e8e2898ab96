//! P4: who is stuck holds back nobody. What is counted decides, and no measured time.

use weft_proto::v1;

use crate::support::{Log, Receiver, Running, assert_in_order};

const NEIGHBOURS: usize = 10;
const EACH: u64 = 30;
/// One hour: longer than any test.
const NEVER_MS: u64 = 3_600_000;

/// One workflow's receiver answers 500 for the whole test, at first again and again, then with an hour to wait. There is
/// one place for all workflows: whoever held it while it waits would let nobody through.
#[tokio::test(flavor = "multi_thread")]
async fn a_sick_workflow_holds_no_place_while_it_waits() {
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.workflow == "w0" { 500 } else { 200 }).await;
    let retry = v1::Retry { schedule_ms: vec![20, 20, 20, NEVER_MS], ..Default::default() };
    let sick = |subscription: &mut v1::Subscription| {
        subscription.concurrency = 1;
        subscription.retry = Some(retry);
    };
    log.subscribe_with("billing", &receiver, 1, sick).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let workflows = NEIGHBOURS + 1;
    log.events(workflows * EACH as usize, workflows).await;
    let of_sick = |requests: &[crate::support::Request]| -> Vec<(u64, u32)> {
        let sick = requests.iter().filter(|request| request.workflow == "w0");
        sick.map(|request| (request.sequence, request.attempt)).collect()
    };
    receiver.until(|requests| of_sick(requests).len() == 4).await;
    // It waits for an hour now, and more comes for everybody.
    log.events(workflows * EACH as usize, workflows).await;
    let requests = receiver.until_delivered(2 * NEIGHBOURS * EACH as usize).await;
    worker.stop().await;
    assert_eq!(of_sick(&requests), [(1, 1), (1, 2), (1, 3), (1, 4)], "its head, and nothing behind it");
    let of_neighbours: Vec<_> = requests.iter().filter(|request| request.workflow != "w0").cloned().collect();
    assert_eq!(of_neighbours.len(), 2 * NEIGHBOURS * EACH as usize, "one attempt each");
    assert_in_order(&of_neighbours, NEIGHBOURS, 2 * EACH);
    let outcomes = log.outcomes(2 * NEIGHBOURS * EACH as usize).await;
    assert!(outcomes.iter().all(|outcome| outcome.workflow_id != "w0"), "P5: its events stay");
}

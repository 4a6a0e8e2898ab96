//! Memory of a lane that waits.

use std::time::Duration;

use super::*;
use crate::lane::lane::Lane;

/// Lanes of one subscription whose head failed and waits for an hour; every thousandth workflow is answered, so that the
/// circuit stays closed.
fn failing_lanes(count: u64) -> Lanes {
    let now = Timestamp::from_second(1_000_000).unwrap();
    let mut lanes = Lanes::new(Limits::default(), Restored::default(), now, StdRng::seed_from_u64(1));
    let retry = RetryPolicy::Schedule(vec![Duration::from_secs(3600)]);
    let mut inputs =
        vec![Input::Subscribed(SubscriptionPolicy { retry, types: vec!["*".into()], ..policy(0, false, 1) })];
    for seq in 1..=count {
        let mut event = Arc::unwrap_or_clone(event(seq, 0));
        event.event.workflow = WorkflowId::new(format!("workflow-{seq}")).unwrap();
        inputs.push(Input::Arrived { event: Arc::new(event), matching: vec![uid(0)] });
        while let Some(input) = inputs.pop() {
            let mut actions = vec![];
            lanes.handle(input, now, &mut actions);
            for action in actions {
                let Action::Attempt { id, work, .. } = action else { continue };
                let delivered = work.seq.0.is_multiple_of(1000);
                let end = AttemptEnd {
                    result: if delivered { AttemptResult::Delivered } else { AttemptResult::Failed },
                    class: v1::AttemptClass::HttpStatus,
                    is_attributed: true,
                    status: 500,
                    error: "status 500".into(),
                    response: Bytes::new(),
                    retry_after: None,
                    started_at: now,
                    ended_at: now,
                    connected_ms: None,
                    answered_ms: None,
                };
                inputs.push(Input::AttemptFinished { attempt: id, ends: vec![end] });
            }
            if inputs.is_empty()
                && let Some(pending) = lanes.take_commit()
            {
                inputs.push(Input::CommitStored { number: pending.number });
            }
        }
    }
    lanes
}

/// A lane that waits keeps positions, attempts and its timer: no event, and no room for any.
#[test]
fn a_lane_that_waits_keeps_no_events_and_little_else() {
    let lanes = failing_lanes(2_000);
    assert_eq!(lanes.buffered_bytes(), 0);
    assert_eq!(lanes.state.lanes.len(), 1_998, "those that are delivered are gone");
    assert!(lanes.state.lanes.values().all(|lane| lane.buffer.capacity() == 0));
    let bytes = size_of::<Lane>() + 2 * size_of::<LaneKey>();
    assert!(bytes <= 512, "{bytes} bytes for a lane, its key and its timer");
}

/// For people: `WEFT_MEASURE=1 cargo test -p weft-worker --lib -- --nocapture costs_of_waiting_lanes`.
#[test]
fn costs_of_waiting_lanes() {
    const COUNT: u64 = 200_000;
    if std::env::var_os("WEFT_MEASURE").is_none() {
        return;
    }
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    };
    let before = resident();
    let lanes = failing_lanes(COUNT);
    let bytes = (resident() - before) / COUNT;
    println!(
        "{} lanes, {bytes} bytes each; {} for a lane, {} for a key",
        lanes.lanes_in_memory(),
        size_of::<Lane>(),
        size_of::<LaneKey>()
    );
}

//! Batches: which events an attempt holds, and what becomes of them when it fails.

use super::{script::check, *};
use crate::lane::lane::BATCH_BYTES_MAX;

/// A batch is what is in memory when the lane's turn comes; it waits for nothing.
#[test]
fn a_batch_holds_what_has_gathered_and_never_waits_to_fill() {
    check(
        "batch 3
         arrive 1        => attempt 1
         arrive 2 3 4
         end 1 delivered => attempt 2+3+4
         arrive 5
         end 2 delivered => attempt 5
         end 5 delivered
         commit          => delivered 1, delivered 2, delivered 3, delivered 4, delivered 5",
    );
}

#[test]
fn accepted_events_are_settled_and_the_next_one_is_at_fault() {
    check(
        "batch 3
         arrive 1               => attempt 1
         arrive 2 3 4
         end 1 delivered        => attempt 2+3+4
         end 2 failed after 1
         commit                 => delivered 1, delivered 2
         record                 => 3..=4 attempts 1 uncounted 0
         wait                   => attempt 3+4 #2
         end 3 rejected alone
         commit                 => dead (permanent) 3 with its event, attempt 4",
    );
}

/// A batch is rejected because of its last event: the others are delivered, and it alone is a dead letter.
#[test]
fn the_event_at_fault_in_a_rejected_batch_is_found_with_smaller_batches() {
    check(
        "batch 4
         arrive 1        => attempt 1
         arrive 2 3 4
         end 1 delivered => attempt 2+3+4
         end 2 rejected  => attempt 2+3 #2
         end 2 delivered => attempt 4
         end 4 rejected
         commit          => delivered 1, delivered 2, delivered 3, dead (permanent) 4 with its event",
    );
}

/// A record of the present moment would be a wait by another owner's clock.
#[test]
fn a_rejected_batch_is_divided_without_a_wait() {
    let mut model = script::model_with(3);
    model.batch = 2;
    model.renew(0);
    (0..3).for_each(|_| model.read());
    for result in [AttemptResult::Delivered, AttemptResult::Rejected] {
        let attempt = model.attempts.pop().unwrap();
        model.end(attempt, result);
    }
    model.commit_all();
    let of_first = model.record.lanes.values().filter(|lane| lane.subscription == uid(0).to_vec());
    let recorded: Vec<_> = of_first.map(|lane| (lane.attempts, lane.next_attempt_at_ms)).collect();
    assert_eq!(recorded, [(1, 0)]);
}

/// Events after the one at fault are delivered in full batches.
#[test]
fn batches_are_full_again_after_the_event_at_fault() {
    check(
        "batch 4
         arrive 1        => attempt 1
         arrive 2 3 4
         end 1 delivered => attempt 2+3+4
         end 2 rejected  => attempt 2+3 #2
         end 2 rejected  => attempt 2 #3
         end 2 rejected
         commit          => delivered 1, dead (permanent) 2 with its event, attempt 3+4",
    );
}

/// The retries of the first event are used up by batches, and it has one more attempt alone.
#[test]
fn an_event_is_exhausted_only_by_an_attempt_of_its_own() {
    check(
        "batch 2
         arrive 1        => attempt 1
         arrive 2 3
         end 1 delivered => attempt 2+3
         end 2 failed
         wait            => attempt 2+3 #2
         end 2 failed
         wait            => read 2..=3
         read            => attempt 2+3 #3
         end 2 failed | commit => delivered 1
         record          => 2..=3 attempts 3 uncounted 1
         wait            => read 2..=3
         read            => attempt 2 #4
         end 2 failed
         commit          => dead (exhausted) 2 with its event, attempt 3",
    );
}

#[test]
fn a_blocking_subscription_blocks_for_a_single_event_and_retries_it_alone() {
    check(
        "batch 2 | block
         arrive 1        => attempt 1
         arrive 2 3
         end 1 delivered => attempt 2+3
         end 2 rejected  => attempt 2 #2
         end 2 rejected | commit => delivered 1
         record          => 2..=3 attempts 2 uncounted 1 blocked
         retry 2
         commit          => taken, read 2..=3
         read            => attempt 2 #3",
    );
}

/// An operator skips the first event of a batch in flight: the receiver has taken both.
#[test]
fn a_skipped_event_of_a_batch_in_flight_stays_skipped_and_the_others_are_settled() {
    check(
        "batch 2
         arrive 1        => attempt 1
         arrive 2 3 4
         end 1 delivered => attempt 2+3
         skip 2 | commit => delivered 1, dead (skipped) 2 by ann with its event, taken
         retry 3 | commit => not applicable
         end 2 delivered => attempt 4
         commit          => delivered 3",
    );
}

#[test]
fn a_quarantined_event_ends_a_batch() {
    check(
        "batch 4
         arrive 1        => attempt 1
         arrive 2 3! 4
         end 1 delivered => attempt 2
         end 2 delivered
         commit          => delivered 1, delivered 2, dead (schemainvalid) 3 with its event, attempt 4",
    );
}

/// Without a connection no event is at fault.
#[test]
fn a_batch_without_a_connection_is_retried_whole() {
    check(
        "batch 2
         arrive 1        => attempt 1
         arrive 2 3
         end 1 delivered => attempt 2+3
         end 2 unreachable | commit => delivered 1
         record          => 2..=3 attempts 1 uncounted 1
         wait            => attempt 2+3 #2",
    );
}

/// A batch ends before the bound, and a larger event goes alone.
#[test]
fn a_batch_is_bounded_by_bytes() {
    let (mut lanes, now) = (
        Lanes::new(Limits::default(), Restored::default(), Timestamp::UNIX_EPOCH, StdRng::seed_from_u64(1)),
        Timestamp::UNIX_EPOCH,
    );
    let policy = SubscriptionPolicy { max_events: 10, ..policy(0, false, 1) };
    lanes.handle(Input::Subscribed(policy), now, &mut vec![]);
    let pending = lanes.take_commit().unwrap();
    lanes.handle(Input::CommitStored { number: pending.number }, now, &mut vec![]);
    let payload = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
    let sizes = [100, BATCH_BYTES_MAX / 2, BATCH_BYTES_MAX / 2 - 5000, 100, BATCH_BYTES_MAX + 1, 100];
    let mut attempts = vec![];
    for (seq, bytes) in (1..).zip(sizes) {
        let mut event = Arc::unwrap_or_clone(event(seq, 0));
        event.event.payload = payload(bytes);
        lanes.handle(Input::Arrived { event: Arc::new(event), matching: vec![uid(0)] }, now, &mut attempts);
    }
    let mut batches = vec![];
    while let Some(Action::Attempt { id, events, .. }) = attempts.pop() {
        batches.push(events.iter().map(|event| event.seq.0).collect::<Vec<_>>());
        let end = AttemptEnd {
            result: AttemptResult::Delivered,
            class: v1::AttemptClass::Delivered,
            status: 200,
            is_attributed: true,
            error: String::new(),
            response: Bytes::new(),
            retry_after: None,
            started_at: now,
            ended_at: now,
            connected_ms: None,
            answered_ms: None,
        };
        lanes.handle(Input::AttemptFinished { attempt: id, ends: vec![end; events.len()] }, now, &mut attempts);
    }
    assert_eq!(batches, [vec![1], vec![2, 3, 4], vec![5], vec![6]]);
}

//! Outages of the only receiver of the only workflow.

use super::{script::model_with, *};

/// The only workflow's receiver answers 503 for a time. Returns the number of attempts, and how late the recovery was found.
fn outage(retry: RetryPolicy, away: SignedDuration) -> (Model, u32, SignedDuration) {
    let mut model = model_with(1);
    model.revision += 1;
    model.revisions.insert(0, model.revision);
    model.handle(Input::Subscribed(SubscriptionPolicy { retry, ..policy(0, false, model.revision) }));
    model.read();
    let back = model.now.checked_add(away).unwrap();
    let mut attempts = 0;
    while let Some(attempt) = model.attempts.pop() {
        attempts += 1;
        let up = model.now >= back;
        // The model's bound for retries is that of another policy.
        model.retry_at.clear();
        model.end_with(
            attempt,
            if up { AttemptResult::Delivered } else { AttemptResult::Unavailable },
            if up { 200 } else { 503 },
        );
        model.retry_at.clear();
        model.run(Step::TakeCommit);
        model.commit();
        while model.attempts.is_empty()
            && let Some(at) = model.lanes.next_deadline()
        {
            model.now = model.now.max(at);
            model.handle(Input::TimerFired);
            model.retry_at.clear();
            while !model.catch_ups.is_empty() {
                model.catch_up(0, false);
            }
        }
    }
    let late = model.now.duration_since(back);
    (model, attempts, late)
}

fn exponential(max_retries: u32, base_ms: u64, factor: f64, max_ms: u64) -> RetryPolicy {
    let [base, max] = [base_ms, max_ms].map(std::time::Duration::from_millis);
    RetryPolicy::Exponential { max_retries, base, factor, max, jitter: 0.0 }
}

/// A deploy of the only receiver of the only workflow: with the usual retries it would be a dead letter after seven
/// seconds.
#[test]
fn an_outage_of_ten_seconds_makes_no_dead_letter() {
    let (model, attempts, late) = outage(exponential(3, 1000, 2.0, 3_600_000), SignedDuration::from_secs(10));
    assert!((3..=8).contains(&attempts), "{attempts} attempts");
    assert!(late <= SignedDuration::from_secs(12), "found {late:?} after it is back");
    let kinds: Vec<_> = model.record.outcomes.values().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, [i32::from(internal::OutcomeKind::Delivered)]);
    assert!(model.record.receivers.is_empty(), "a single workflow does not open the circuit");
}

/// However few and quick the retries are: an outage that is over before it is one for the circuit uses up none.
#[test]
fn an_outage_too_short_for_the_circuit_makes_no_dead_letter() {
    let none = exponential(0, 1000, 1.0, 1000);
    for retry in [exponential(3, 100, 1.5, 500), none, RetryPolicy::Schedule(vec![]), exponential(1, 1, 1.0, 1)] {
        for away_ms in [50, 450, 5000] {
            let (model, attempts, late) = outage(retry.clone(), SignedDuration::from_millis(away_ms));
            let kinds: Vec<_> = model.record.outcomes.values().map(|(_, kind)| *kind).collect();
            assert_eq!(kinds, [i32::from(internal::OutcomeKind::Delivered)], "{retry:?}, {away_ms} ms");
            assert!(attempts <= 16, "{retry:?}: {attempts} attempts");
            assert!(late <= SignedDuration::from_secs(5), "{retry:?}: found {late:?} after it is back");
        }
    }
}

//! Events that leave the log before they are settled.

use super::{
    script::{attempted, catch_up_all, commit_all, model_with, model_with_a_blocked_lane},
    *,
};

/// Commits everything and tells what became of the first subscription's events.
fn outcomes(model: &mut Model) -> Vec<v1::Outcome> {
    let mut outcomes = vec![];
    loop {
        catch_up_all(model);
        let Some(pending) = model.lanes.take_commit() else { return outcomes };
        outcomes
            .extend(pending.commit.outcomes.iter().filter(|outcome| outcome.subscription == uid(0).to_vec()).cloned());
        model.commits_taken.push_back(pending);
        model.commit();
    }
}

fn is_expired(outcome: &v1::Outcome) -> bool {
    (outcome.kind(), outcome.reason()) == (v1::OutcomeKind::DeadLettered, v1::DeadLetterReason::Expired)
}

fn sequences(outcomes: &[v1::Outcome]) -> Vec<u64> {
    outcomes.iter().map(|outcome| outcome.sequence).collect()
}

/// Nobody may be attempted, and still nothing leaves the log without a record; what stays in it waits on.
#[test]
fn the_backlog_of_a_paused_subscription_expires() {
    let mut model = model_with(3);
    model.pause(0, true);
    (0..3).for_each(|_| model.read());
    model.age(2);
    let expired = outcomes(&mut model);
    assert!(expired.iter().all(is_expired));
    assert_eq!(sequences(&expired), [1, 2]);
    assert_eq!(expired[0].event_id, model.log[0].event.id.to_vec());
    assert!(attempted(&model).is_empty());
    assert_eq!(model.lanes.buffered_bytes(), 0, "what nobody may attempt stays in the log");
    let lane = model.record.lanes.values().next().unwrap();
    assert_eq!((lane.next, lane.last), (3, 3));
}

#[test]
fn a_blocked_event_expires_and_its_lane_goes_on() {
    let mut model = model_with_a_blocked_lane();
    model.age(1);
    assert_eq!(sequences(&outcomes(&mut model)), [1]);
    assert_eq!(attempted(&model), [2]);
}

/// Its attempt decides; what waits behind it does not.
#[test]
fn an_event_that_is_being_attempted_is_waited_for() {
    let mut model = model_with(2);
    (0..2).for_each(|_| model.read());
    model.age(2);
    assert_eq!(outcomes(&mut model), []);
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Delivered);
    let ended = outcomes(&mut model);
    assert_eq!(ended.iter().map(is_expired).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_retry_that_comes_too_late_is_not_waited_for() {
    let mut model = model_with(1);
    model.read();
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Failed);
    commit_all(&mut model);
    model.age(1);
    let expired = outcomes(&mut model);
    assert_eq!((sequences(&expired), expired[0].attempts), (vec![1], 1));
    assert!(expired[0].first_failed_at_ms > 0);
}

/// However much expires at once, commits stay small and few wait.
#[test]
fn a_large_backlog_expires_bit_by_bit() {
    let mut model = Model::new(1);
    for seq in 1..=40u8 {
        model.log.push(event(u64::from(seq), seq));
    }
    (0..SUBSCRIPTIONS).for_each(|subscription| model.pause(subscription, true));
    (0..40).for_each(|_| model.read());
    commit_all(&mut model);
    model.age(40);
    let mut expired = 0;
    loop {
        while model.backfill() {}
        catch_up_all(&mut model);
        let most = limits().uncommitted_max + limits().lane_events_max;
        assert!(model.lanes.pending.uncommitted_outcomes() <= most);
        let Some(pending) = model.lanes.take_commit() else { break };
        expired += pending.commit.outcomes.iter().filter(|outcome| is_expired(outcome)).count();
        model.commits_taken.push_back(pending);
        model.commit();
    }
    let taken = (1..=40).map(StreamSeq).map(|seq| (0..SUBSCRIPTIONS).filter(|number| takes(*number, seq)).count());
    assert_eq!(expired, taken.sum::<usize>());
    assert!(model.record.lanes.is_empty());
}

/// P5: what has left the log while nobody was there is recorded for its lane, which goes on behind it.
#[test]
fn what_is_gone_is_recorded_as_a_range() {
    let mut model = model_with(3);
    model.pause(0, true);
    (0..3).for_each(|_| model.read());
    model.pause(0, false);
    let (lane, from, through, _) = model.catch_ups.pop().unwrap();
    assert_eq!((from, through), (StreamSeq(1), StreamSeq(3)));
    let events = vec![model.log[2].clone()];
    model.handle(Input::CaughtUp { lane, events, through, gone: StreamSeq(2) });
    assert!(attempted(&model).is_empty(), "not before that is committed");
    model.record.aged = 2;
    let pending = model.lanes.take_commit().unwrap();
    let outcome = &pending.commit.outcomes[0];
    assert!(is_expired(outcome) && outcome.event_id.is_empty());
    assert_eq!((outcome.from, outcome.sequence), (1, 2));
    assert_eq!(model.lost, [(1, 2)]);
    model.commits_taken.push_back(pending);
    model.commit();
    assert_eq!(attempted(&model), [3]);
}

#[test]
fn what_nobody_has_read_is_recorded_without_a_subscription() {
    let mut model = Model::new(1);
    model.handle(Input::Trimmed { through: StreamSeq(9) });
    let pending = model.lanes.take_commit().unwrap();
    let outcome = &pending.commit.outcomes[0];
    assert!(is_expired(outcome) && outcome.subscription.is_empty());
    assert_eq!((outcome.from, outcome.sequence, pending.commit.cursor), (1, 9, 9));
}

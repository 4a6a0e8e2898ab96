//! Events that leave the log before they are settled.

use super::{
    script::{check, model_with},
    *,
};

/// Commits everything, and returns the outcomes of the first subscription's events.
fn outcomes(model: &mut Model) -> Vec<internal::Outcome> {
    let mut outcomes = vec![];
    loop {
        model.catch_up_all();
        let Some(pending) = model.lanes.take_commit() else { return outcomes };
        outcomes
            .extend(pending.commit.outcomes.iter().filter(|outcome| outcome.subscription == uid(0).to_vec()).cloned());
        model.commits_taken.push_back(pending);
        model.commit();
    }
}

fn is_expired(outcome: &internal::Outcome) -> bool {
    (outcome.kind(), outcome.reason()) == (internal::OutcomeKind::DeadLettered, v1::DeadLetterReason::Expired)
}

fn sequences(outcomes: &[internal::Outcome]) -> Vec<u64> {
    outcomes.iter().map(|outcome| outcome.sequence).collect()
}

/// Events of a paused subscription become dead letters before EVENTS drops them; the later ones wait on.
#[test]
fn the_backlog_of_a_paused_subscription_expires() {
    check(
        "pause
         arrive 1 2 3
         expire 2 => read 1..=3
         read
         commit   => dead (expired) 1, dead (expired) 2
         memory   => 0 events
         record   => 3..=3 attempts 0 uncounted 0",
    );
}

#[test]
fn a_blocked_event_expires_and_its_lane_continues() {
    check(
        "block
         arrive 1 2 => attempt 1
         end 1 rejected | commit
         expire 1   => read 1..=2
         read
         commit     => dead (expired) 1, attempt 2",
    );
}

/// The attempt in flight decides about its event, and the next event expires.
#[test]
fn an_event_that_is_being_attempted_does_not_expire() {
    check(
        "arrive 1 2      => attempt 1
         expire 2
         end 1 delivered
         commit          => delivered 1, dead (expired) 2",
    );
}

#[test]
fn a_retry_that_comes_too_late_is_not_waited_for() {
    let mut model = model_with(1);
    model.read();
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Failed);
    model.commit_all();
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
    model.commit_all();
    model.age(40);
    let mut expired = 0;
    loop {
        while model.backfill() {}
        model.catch_up_all();
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

/// P5: events that were dropped while no worker ran are recorded for their lane, which continues after them.
#[test]
fn dropped_events_are_recorded_as_a_range() {
    let mut model = model_with(3);
    model.pause(0, true);
    (0..3).for_each(|_| model.read());
    model.pause(0, false);
    let (lane, from, through, _) = model.catch_ups.pop().unwrap();
    assert_eq!((from, through), (StreamSeq(1), StreamSeq(3)));
    let events = vec![model.log[2].clone()];
    model.handle(Input::CaughtUp { lane, events, through, gone: StreamSeq(2) });
    assert!(model.attempted().is_empty(), "not before that is committed");
    model.record.aged = 2;
    let pending = model.lanes.take_commit().unwrap();
    let outcome = &pending.commit.outcomes[0];
    assert!(is_expired(outcome) && outcome.event_id.is_empty());
    assert_eq!((outcome.from, outcome.sequence), (1, 2));
    assert_eq!(model.lost, [(1, 2)]);
    model.commits_taken.push_back(pending);
    model.commit();
    assert_eq!(model.attempted(), [3]);
}

#[test]
fn unread_events_are_recorded_without_a_subscription() {
    let mut model = Model::new(1);
    model.handle(Input::Trimmed { through: StreamSeq(9) });
    let pending = model.lanes.take_commit().unwrap();
    let outcome = &pending.commit.outcomes[0];
    assert!(is_expired(outcome) && outcome.subscription.is_empty());
    assert_eq!((outcome.from, outcome.sequence, pending.commit.cursor), (1, 9, 9));
}

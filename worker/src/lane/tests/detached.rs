//! Detached subscriptions: from where, and until when, they read on their own.

use super::{script::model_with, *};

#[test]
fn an_earlier_start_reads_on_its_own_and_joins() {
    let mut model = model_with(4);
    (0..4).for_each(|_| model.read());
    let late = SubscriptionPolicy { uid: uid(9), name: "late".into(), ..policy(9, false, 5) };
    model.handle(Input::Subscribed(late));
    for event in model.log.clone() {
        model.handle(Input::Backfilled { uid: uid(9), seq: event.seq, event: None });
    }
    model.handle(Input::Joined { uid: uid(9) });
    let pending = model.lanes.take_commit().unwrap();
    let joined = internal::subscription_change::Change::Detached(internal::Detached { next: 0 });
    assert!(pending.commit.subscriptions.iter().any(|change| change.change.as_ref() == Some(&joined)));
}

/// Otherwise each of its lanes would look for its events in the log.
#[test]
fn a_subscription_that_fills_the_memory_reads_on_its_own() {
    let mut model = model_with(0);
    model.log.extend((1..=30).map(|seq| event(seq, (seq % 3) as u8)));
    (0..30).for_each(|_| model.read());
    assert!(model.detached.contains_key(&uid(0)), "it waits for room");
    while let Some(attempt) = model.attempts.pop() {
        model.end(attempt, AttemptResult::Delivered);
        while model.backfill() {}
        model.commit_all();
        assert!(model.catch_ups.is_empty());
    }
    assert!(!model.detached.contains_key(&uid(0)), "it has met the shared reader");
    let taken = (1..=30).filter(|seq| takes(0, StreamSeq(*seq))).count();
    assert_eq!(model.delivered.iter().filter(|(lane, _)| lane.subscription == uid(0)).count(), taken);
}

/// A reader that outran many lanes would stay ahead of them: none of their later events would be buffered, and each would be
/// searched in the log a second time.
#[test]
fn a_reader_waits_for_lanes_that_read_on() {
    let mut model = model_with(0);
    let roomy = Limits { buffered_bytes_max: 100 * limits().buffered_bytes_max, ..limits() };
    model.handle(Input::LimitsChanged(roomy));
    // At least three events of each of five workflows; a lane buffers two.
    model.log.extend((1..=20).map(|seq| event(seq, (seq % 5) as u8)));
    model.log.extend([event(21, 6), event(22, 6)]);
    (0..20).for_each(|_| model.read());
    while let Some(attempt) = model.attempts.pop() {
        model.end(attempt, AttemptResult::Delivered);
        model.commit_all();
    }
    assert_eq!(model.catch_ups.len(), limits().catch_ups_max, "the others wait");
    (0..2).for_each(|_| model.read());
    assert!(model.detached.contains_key(&uid(0)) && !model.lanes.reads_on(uid(0)), "its reader waits, too");
    model.catch_up_all();
    assert!(model.lanes.reads_on(uid(0)));
    model.heal();
    assert!(!model.detached.contains_key(&uid(0)));
}

/// Pausing costs no memory for each workflow there is, and what waits in the log is known to be late.
#[test]
fn a_paused_subscription_reads_on_when_it_goes_on() {
    let mut model = model_with(0);
    model.pause(0, true);
    model.log.extend((1..=30).map(|seq| event(seq, (seq % 3) as u8)));
    (0..30).for_each(|_| model.read());
    assert_eq!(model.lanes.state.lanes_in_memory(uid(0)), limits().still_lanes_max);
    assert_eq!(model.detached.get(&uid(0)), Some(&2), "the third workflow's first event waits in the log");
    assert!(!model.backfill(), "until it resumes");
    model.pause(0, true);
    assert!(model.backfill(), "or until it is changed: it may take other events now");
    assert_eq!((model.backfill(), model.detached.get(&uid(0))), (false, Some(&2)));
    let late = |model: &Model, seq| {
        let mut count = LateCount::below(StreamSeq(seq));
        while !model.lanes.count_late(&mut count) {}
        count.lanes.get(&uid(0)).copied()
    };
    assert_eq!((late(&model, 2), late(&model, 3)), (Some(2), Some(3)));
    model.commit_all();
    model.crash(false);
    while model.backfill() {}
    assert_eq!(late(&model, 3), Some(3), "who takes over finds it where it stands");

    model.heal();
    assert!(!model.detached.contains_key(&uid(0)), "it has met the shared reader");
}

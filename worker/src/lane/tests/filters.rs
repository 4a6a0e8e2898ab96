//! Filters that change, and owners that see it at different moments.

use super::{script::model_with, *};

/// The catalog has the wide filter of the first subscription, and no owner has seen it yet.
fn widen_unseen(model: &mut Model) {
    model.narrow.remove(&0);
    model.revision += 1;
    model.revisions.insert(0, model.revision);
}

/// A world whose first subscription takes every third event only, which is committed.
fn narrow_model(events: u64) -> Model {
    let mut model = model_with(events);
    model.refilter(0, true);
    model.commit_all();
    model
}

/// P3: the owner before has delivered event 3 by the narrow filter, and nothing of that is committed. Events 1 and 2 are not
/// delivered after it by the wide filter.
#[test]
fn a_wider_filter_counts_after_the_events_that_an_earlier_owner_may_have_read() {
    let mut model = narrow_model(5);
    (0..3).for_each(|_| model.read());
    let attempt = model.attempts.pop().unwrap();
    assert_eq!(attempt.work.seq, StreamSeq(3));
    model.end(attempt, AttemptResult::Delivered);
    widen_unseen(&mut model);
    model.crash(false);
    assert!(model.lanes.is_filter_deferred(uid(0)));
    (0..4).for_each(|_| model.read());
    assert_eq!(model.attempted(), [3]);
    model.run(Step::LearnEnd);
    assert!(model.lanes.is_filter_deferred(uid(0)));
    model.read();
    assert!(!model.lanes.is_filter_deferred(uid(0)), "everything is read that an earlier owner may have read");
    model.log.extend([event(6, 0), event(7, 0), event(8, 0)]);
    model.heal();
    let delivered = model.record.outcomes.keys().filter(|(of, ..)| *of == uid(0).to_vec()).map(|(_, seq, _)| *seq);
    assert_eq!(delivered.collect::<Vec<_>>(), [3, 6, 8]);
}

/// Nothing that it takes was ignored by an earlier owner, so it counts at once.
#[test]
fn a_narrower_filter_counts_where_a_new_owner_begins() {
    let mut model = model_with(3);
    model.read();
    model.narrow.insert(0);
    model.revision += 1;
    model.revisions.insert(0, model.revision);
    model.crash(false);
    assert!(!model.lanes.is_filter_deferred(uid(0)));
    model.commit_all();
    (0..3).for_each(|_| model.read());
    assert_eq!(model.attempted(), [3]);
}

/// P3: the next owner would begin by the wide filter, which is in the catalog again, and deliver event 1 after event 3.
#[test]
fn nothing_is_attempted_by_a_filter_that_is_not_committed() {
    let mut model = model_with(3);
    model.refilter(0, true);
    (0..3).for_each(|_| model.read());
    assert!(model.attempted().is_empty());
    model.commit_all();
    model.catch_up_all();
    assert_eq!(model.attempted(), [3]);
    // A change of anything else waits for no commit.
    model.pause(0, false);
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Delivered);
    model.log.extend([event(4, 0), event(5, 0), event(6, 0)]);
    (0..3).for_each(|_| model.read());
    assert_eq!(model.attempted(), [6]);
}

/// A receiver that is gone is asked nothing more, also where its answer comes while a filter awaits its commit.
#[test]
fn an_endpoint_that_retires_while_a_filter_awaits_its_commit_is_paused() {
    let mut model = narrow_model(4);
    widen_unseen(&mut model);
    model.crash(false);
    (0..4).for_each(|_| model.read());
    let attempt = model.attempts.pop().unwrap();
    assert!(model.lanes.is_filter_deferred(uid(0)), "it is not known how far an earlier owner may have read");
    model.run(Step::LearnEnd);
    assert!(!model.lanes.is_filter_deferred(uid(0)));
    model.end(attempt, AttemptResult::EndpointRetired);
    assert_eq!(model.pauses.len(), 1);
    model.commit_all();
    assert!(model.attempted().is_empty());
}

/// A lane reads past events that the filter in force ignored, and the record still has it before them: the filter is kept until
/// the record has the lane past them too, or the next owner would take them by another one.
#[test]
fn a_filter_is_kept_until_no_lane_of_the_record_reads_by_it() {
    let mut model = narrow_model(6);
    model.pause(0, true);
    (0..5).for_each(|_| model.read());
    model.refilter(0, false);
    model.read();
    model.commit_all();
    model.pause(0, false);
    model.catch_up(0, true);
    let attempt = model.attempts.pop().unwrap();
    assert_eq!(attempt.work.seq, StreamSeq(3));
    model.end(attempt, AttemptResult::Delivered);
    model.commit_all();
    let lane = model.record.lanes.values().find(|lane| lane.subscription == uid(0).to_vec()).unwrap();
    assert_eq!((lane.next, lane.last), (4, 6));
    model.catch_up(0, false);
    assert_eq!(model.attempted(), [6]);
    // Event 4 is one of the wide filter's.
    model.refilter(0, true);
    model.commit_all();
    model.crash(false);
    model.catch_up_all();
    assert_eq!(model.attempted(), [6]);
    model.heal();
}

/// P5: an opening that was never committed took nothing, though the operator has removed the subscription again.
#[test]
fn a_subscription_that_opens_again_and_ends_without_a_commit_has_taken_nothing() {
    let mut model = Model::new(1);
    model.remove(UNORDERED);
    model.log.extend([event(1, 0), event(2, 0)]);
    (0..2).for_each(|_| model.read());
    model.bring_back(UNORDERED);
    while model.backfill() {}
    assert!(model.attempts.iter().all(|attempt| attempt.work.lane.subscription != uid(UNORDERED)));
    model.remove(UNORDERED);
    model.run(Step::TakeCommit);
    // The draft with the first end only.
    model.crash(true);
    assert_eq!(model.record.closed[&uid(UNORDERED).to_vec()], 0);
    model.heal();
    assert!(model.record.outcomes.keys().all(|(of, ..)| *of != uid(UNORDERED).to_vec()));
}

/// P3: an expression is a part of the filter: nothing is attempted by one that is not committed.
#[test]
fn an_expression_is_a_part_of_the_filter() {
    let mut model = model_with(1);
    let with = |expression: &str, revision: u64| SubscriptionPolicy {
        expression: expression.into(),
        ..policy(0, false, revision)
    };
    model.commit_all();
    model.subscribed(with("event.sequenceNumber > 0", 100));
    model.read();
    assert!(model.attempted().is_empty());
    model.commit_all();
    model.catch_up_all();
    assert_eq!(model.attempted(), [1]);
    let filters = &model.record.subscriptions[&uid(0).to_vec()].filters;
    assert_eq!(filters.last().map(|filter| filter.expression.as_str()), Some("event.sequenceNumber > 0"));
}

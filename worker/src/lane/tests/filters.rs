//! Filters that change, and owners that see it at different moments.

use super::{
    script::{attempted, catch_up_all, commit_all, world_with},
    *,
};

/// The catalog has the wide filter of the first subscription, and no owner has seen it yet.
fn widen_unseen(world: &mut World) {
    world.narrow.remove(&0);
    world.revision += 1;
    world.revisions.insert(0, world.revision);
}

/// A world whose first subscription takes every third event only, which is committed.
fn narrow_world(events: u64) -> World {
    let mut world = world_with(events);
    world.refilter(0, true);
    commit_all(&mut world);
    world
}

/// P3: the owner before has delivered event 3 by the narrow filter, and nothing of that is committed. Events 1 and 2 are not
/// delivered after it by the wide filter.
#[test]
fn a_wider_filter_counts_behind_what_an_earlier_owner_may_have_read() {
    let mut world = narrow_world(5);
    (0..3).for_each(|_| world.read());
    let attempt = world.attempts.pop().unwrap();
    assert_eq!(attempt.work.seq, StreamSeq(3));
    world.end(attempt, Verdict::Delivered);
    widen_unseen(&mut world);
    world.crash(false);
    assert!(world.lanes.is_filter_deferred(uid(0)));
    (0..4).for_each(|_| world.read());
    assert_eq!(attempted(&world), [3]);
    world.run(Step::LearnEnd);
    assert!(world.lanes.is_filter_deferred(uid(0)));
    world.read();
    assert!(!world.lanes.is_filter_deferred(uid(0)), "everything is read that an earlier owner may have read");
    world.log.extend([event(6, 0), event(7, 0), event(8, 0)]);
    world.heal();
    let delivered = world.record.outcomes.keys().filter(|(of, ..)| *of == uid(0).to_vec()).map(|(_, seq, _)| *seq);
    assert_eq!(delivered.collect::<Vec<_>>(), [3, 6, 8]);
}

/// Nothing that it takes was ignored by an earlier owner, so it counts at once.
#[test]
fn a_narrower_filter_counts_where_a_new_owner_begins() {
    let mut world = world_with(3);
    world.read();
    world.narrow.insert(0);
    world.revision += 1;
    world.revisions.insert(0, world.revision);
    world.crash(false);
    assert!(!world.lanes.is_filter_deferred(uid(0)));
    commit_all(&mut world);
    (0..3).for_each(|_| world.read());
    assert_eq!(attempted(&world), [3]);
}

/// P3: the next owner would begin by the wide filter, which is in the catalog again, and deliver event 1 after event 3.
#[test]
fn nothing_is_attempted_by_a_filter_that_is_not_committed() {
    let mut world = world_with(3);
    world.refilter(0, true);
    (0..3).for_each(|_| world.read());
    assert!(attempted(&world).is_empty());
    commit_all(&mut world);
    while !world.catch_ups.is_empty() {
        world.catch_up(0, false);
    }
    assert_eq!(attempted(&world), [3]);
    // A change of anything else waits for no commit.
    world.pause(0, false);
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Delivered);
    world.log.extend([event(4, 0), event(5, 0), event(6, 0)]);
    (0..3).for_each(|_| world.read());
    assert_eq!(attempted(&world), [6]);
}

/// A receiver that is gone is asked nothing more, also where its answer comes while a filter awaits its commit.
#[test]
fn a_receiver_that_is_gone_while_a_filter_awaits_its_commit_is_paused() {
    let mut world = narrow_world(4);
    widen_unseen(&mut world);
    world.crash(false);
    (0..4).for_each(|_| world.read());
    let attempt = world.attempts.pop().unwrap();
    assert!(world.lanes.is_filter_deferred(uid(0)), "it is not known how far an earlier owner may have read");
    world.run(Step::LearnEnd);
    assert!(!world.lanes.is_filter_deferred(uid(0)));
    world.end(attempt, Verdict::Gone);
    assert_eq!(world.pauses.len(), 1);
    commit_all(&mut world);
    assert!(attempted(&world).is_empty());
}

/// A lane reads past events that the filter in force ignored, and the record still has it before them: the filter is kept until
/// the record has the lane behind them too, or the next owner would take them by another one.
#[test]
fn a_filter_is_kept_until_no_lane_of_the_record_reads_by_it() {
    let mut world = narrow_world(6);
    world.pause(0, true);
    (0..5).for_each(|_| world.read());
    world.refilter(0, false);
    world.read();
    commit_all(&mut world);
    world.pause(0, false);
    world.catch_up(0, true);
    let attempt = world.attempts.pop().unwrap();
    assert_eq!(attempt.work.seq, StreamSeq(3));
    world.end(attempt, Verdict::Delivered);
    commit_all(&mut world);
    let lane = world.record.lanes.values().find(|lane| lane.subscription == uid(0).to_vec()).unwrap();
    assert_eq!((lane.next, lane.last), (4, 6));
    world.catch_up(0, false);
    assert_eq!(attempted(&world), [6]);
    // Event 4 is one of the wide filter's.
    world.refilter(0, true);
    commit_all(&mut world);
    world.crash(false);
    catch_up_all(&mut world);
    assert_eq!(attempted(&world), [6]);
    world.heal();
}

/// P5: an opening that was never committed took nothing, though the operator has removed the subscription again.
#[test]
fn a_subscription_that_opens_again_and_ends_without_a_commit_has_taken_nothing() {
    let mut world = World::new(1);
    world.remove(UNORDERED);
    world.log.extend([event(1, 0), event(2, 0)]);
    (0..2).for_each(|_| world.read());
    world.bring_back(UNORDERED);
    while world.backfill() {}
    assert!(world.attempts.iter().all(|attempt| attempt.work.lane.subscription != uid(UNORDERED)));
    world.remove(UNORDERED);
    world.run(Step::TakeDraft);
    // The draft with the first end only.
    world.crash(true);
    assert_eq!(world.record.closed[&uid(UNORDERED).to_vec()], 0);
    world.heal();
    assert!(world.record.outcomes.keys().all(|(of, ..)| *of != uid(UNORDERED).to_vec()));
}

//! Single rules, one script each.

use super::*;

pub(super) fn world_with(events: u64) -> World {
    let mut world = World::new(1);
    // Events of one workflow that only subscription 0 takes.
    while (world.log.len() as u64) < events {
        world.log.push(event(world.log.len() as u64 + 1, 0));
    }
    world.pause(1, true);
    world.pause(UNORDERED, true);
    world
}

pub(super) fn attempted(world: &World) -> Vec<u64> {
    world.attempts.iter().map(|attempt| attempt.work.seq.0).collect()
}

#[test]
fn a_success_lets_the_lane_run_ahead_of_the_commit() {
    let mut world = world_with(3);
    (0..3).for_each(|_| world.read());
    assert_eq!(attempted(&world), [1]);
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Delivered);
    assert_eq!(attempted(&world), [2], "no commit was needed");
}

#[test]
fn a_dead_letter_is_committed_before_the_next_attempt() {
    let mut world = world_with(3);
    (0..3).for_each(|_| world.read());
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Rejected);
    assert!(attempted(&world).is_empty(), "nothing starts before the commit");
    let draft = world.lanes.take_draft().unwrap();
    assert_eq!(draft.dead.len(), 1, "its event is handed on for the copy");
    world.drafts_taken.push_back(draft);
    world.commit();
    assert_eq!(attempted(&world), [2]);
}

#[test]
fn a_retry_waits_and_survives_a_crash() {
    let mut world = world_with(1);
    world.read();
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Failed);
    let due = world.lanes.next_deadline().unwrap();
    world.run(Step::TakeDraft);
    world.commit();
    world.crash(false);
    assert!(attempted(&world).is_empty());
    assert_eq!(world.lanes.next_deadline(), Some(due), "the same moment as before the crash");
}

#[test]
fn a_long_wait_gives_the_memory_back() {
    let mut world = world_with(2);
    (0..2).for_each(|_| world.read());
    for _ in 0..2 {
        let attempt = world.attempts.pop().unwrap();
        world.end(attempt, Verdict::Failed);
        world.now = world.lanes.next_deadline().unwrap_or(world.now);
        world.handle(Input::TimerFired);
        if world.lanes.buffered_bytes() == 0 {
            assert_eq!(world.catch_ups.len(), 1, "parked, and read again when it is due");
            world.catch_up(0, false);
        }
    }
    assert_eq!(attempted(&world), [1], "the second wait was longer than the parking time, and the head is back");
}

#[test]
fn a_deleted_subscription_frees_its_lanes_and_its_late_answer_is_harmless() {
    let mut world = world_with(2);
    (0..2).for_each(|_| world.read());
    world.handle(Input::Unsubscribed {
        uid: uid(0),
        operator: "ann".into(),
        reason: "moved".into(),
        catalog: v1::CatalogPosition::default(),
    });
    assert_eq!(world.lanes.buffered_bytes(), 0);
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Delivered);
    assert_eq!(world.lanes.attempts_in_flight(), 0);
    let draft = world.lanes.take_draft().unwrap();
    assert!(draft.commit.subscriptions.iter().any(|change| {
        matches!(&change.change, Some(v1::subscription_change::Change::Closed(closed))
            if closed.up_to == 2 && closed.operator == "ann" && closed.reason == "moved")
    }));
}

#[test]
fn a_blocking_subscription_stands_still_with_its_event_unsettled() {
    let mut world = world_with(2);
    let mut blocking = rules(0, false, 2);
    blocking.on_exhausted = OnExhausted::Block;
    world.handle(Input::Subscribed(blocking));
    (0..2).for_each(|_| world.read());
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Rejected);
    world.run(Step::TakeDraft);
    world.commit();
    assert!(attempted(&world).is_empty());
    let lane = world.record.lanes.values().next().unwrap();
    assert_eq!((lane.next, lane.last, lane.state()), (1, 2, v1::LaneState::Blocked));
}

#[test]
fn an_earlier_start_reads_on_its_own_and_joins() {
    let mut world = world_with(4);
    (0..4).for_each(|_| world.read());
    let late = Rules { uid: uid(9), name: "late".into(), ..rules(9, false, 5) };
    world.handle(Input::Subscribed(late));
    for event in world.log.clone() {
        world.handle(Input::Backfilled { uid: uid(9), seq: event.seq, event: None });
    }
    world.handle(Input::Joined { uid: uid(9) });
    let draft = world.lanes.take_draft().unwrap();
    let joined = v1::subscription_change::Change::Detached(v1::Detached { next: 0 });
    assert!(draft.commit.subscriptions.iter().any(|change| change.change.as_ref() == Some(&joined)));
}

/// Otherwise each of its lanes would look for its events in the log.
#[test]
fn a_subscription_that_fills_the_memory_reads_on_its_own() {
    let mut world = world_with(0);
    world.log.extend((1..=30).map(|seq| event(seq, (seq % 3) as u8)));
    (0..30).for_each(|_| world.read());
    assert!(world.detached.contains_key(&uid(0)), "it waits for room");
    while let Some(attempt) = world.attempts.pop() {
        world.end(attempt, Verdict::Delivered);
        while world.backfill() {}
        commit_all(&mut world);
        assert!(world.catch_ups.is_empty());
    }
    assert!(!world.detached.contains_key(&uid(0)), "it has met the shared reader");
    let taken = (1..=30).filter(|seq| takes(0, StreamSeq(*seq))).count();
    assert_eq!(world.delivered.iter().filter(|(lane, _)| lane.subscription == uid(0)).count(), taken);
}

/// Pausing costs no memory for each workflow there is, and what waits in the log is known to be late.
#[test]
fn a_paused_subscription_reads_on_when_it_goes_on() {
    let mut world = world_with(0);
    world.pause(0, true);
    world.log.extend((1..=30).map(|seq| event(seq, (seq % 3) as u8)));
    (0..30).for_each(|_| world.read());
    assert_eq!(world.lanes.world.lanes_in_memory(uid(0)), limits().still_lanes_max);
    assert_eq!(world.detached.get(&uid(0)), Some(&2), "the third workflow's first event waits in the log");
    assert!(!world.backfill(), "until it goes on");
    world.pause(0, true);
    assert!(world.backfill(), "or until it is changed: it may take other events now");
    assert_eq!((world.backfill(), world.detached.get(&uid(0))), (false, Some(&2)));
    let late = |world: &World, seq| {
        let mut count = LateCount::below(StreamSeq(seq));
        while !world.lanes.count_late(&mut count) {}
        count.lanes.get(&uid(0)).copied()
    };
    assert_eq!((late(&world, 2), late(&world, 3)), (Some(2), Some(3)));
    commit_all(&mut world);
    world.crash(false);
    while world.backfill() {}
    assert_eq!(late(&world, 3), Some(3), "who takes over finds it where it stands");

    world.heal();
    assert!(!world.detached.contains_key(&uid(0)), "it has met the shared reader");
}

/// A world whose first event is quarantined, and whose second is not.
fn world_with_a_quarantined_head() -> World {
    let mut world = world_with(0);
    world.log.push(quarantined_event(1, 0, Some(QUARANTINE)));
    world.log.push(event(2, 0));
    world
}

#[test]
fn a_quarantined_event_is_a_dead_letter_without_an_attempt() {
    let mut world = world_with_a_quarantined_head();
    (0..2).for_each(|_| world.read());
    assert!(attempted(&world).is_empty(), "the event behind it waits for the commit");
    let draft = world.lanes.take_draft().unwrap();
    assert!(draft.commit.attempts.is_empty());
    let outcome = &draft.commit.outcomes[0];
    assert_eq!(
        (outcome.kind(), outcome.reason()),
        (v1::OutcomeKind::DeadLettered, v1::DeadLetterReason::SchemaInvalid)
    );
    assert_eq!((outcome.attempts, outcome.last_error.as_str()), (0, "/total: value is not a number"));
    assert_eq!(draft.dead.len(), 1, "its event is handed on for the copy");
    world.drafts_taken.push_back(draft);
    world.commit();
    assert_eq!(attempted(&world), [2]);
}

#[test]
fn a_redrive_releases_a_quarantined_event() {
    let mut world = world_with_a_quarantined_head();
    world.read();
    world.run(Step::TakeDraft);
    world.commit();
    world.redrive(0);
    world.run(Step::TakeDraft);
    world.commit();
    world.run(Step::Load { which: 0 });
    assert_eq!(attempted(&world), [1]);
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Delivered);
    world.run(Step::TakeDraft);
    world.commit();
    assert!(world.record.open_dead.is_empty());
}

/// A quarantined event waits like any other: for its turn, behind what is unsettled, and while nobody may be attempted.
#[test]
fn a_quarantined_event_keeps_its_place() {
    let mut world = world_with(1);
    world.log.push(quarantined_event(2, 0, Some(QUARANTINE)));
    (0..2).for_each(|_| world.read());
    assert_eq!(attempted(&world), [1]);
    world.pause(0, true);
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Delivered);
    let outcomes = |world: &World| world.record.outcomes.len();
    world.run(Step::TakeDraft);
    world.commit();
    assert_eq!(outcomes(&world), 1, "the backlog of a paused subscription stays");
    world.pause(0, false);
    while !world.catch_ups.is_empty() {
        world.catch_up(0, false);
    }
    world.run(Step::TakeDraft);
    world.commit();
    assert_eq!(outcomes(&world), 2);
}

/// Blocking is for what may go better later.
#[test]
fn a_blocking_subscription_dead_letters_what_is_quarantined() {
    let mut world = world_with_a_quarantined_head();
    world.handle(Input::Subscribed(Rules { on_exhausted: OnExhausted::Block, ..rules(0, false, 2) }));
    (0..2).for_each(|_| world.read());
    world.run(Step::TakeDraft);
    world.commit();
    assert_eq!(attempted(&world), [2]);
}

/// A world whose lane is blocked at its first event, of two.
pub(super) fn world_with_a_blocked_lane() -> World {
    let mut world = world_with(2);
    world.handle(Input::Subscribed(Rules { on_exhausted: OnExhausted::Block, ..rules(0, false, 2) }));
    (0..2).for_each(|_| world.read());
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Rejected);
    commit_all(&mut world);
    assert!(attempted(&world).is_empty());
    world
}

pub(super) fn commit_all(world: &mut World) {
    while world.lanes.has_draft() {
        world.run(Step::TakeDraft);
        world.commit();
    }
}

pub(super) fn catch_up_all(world: &mut World) {
    while !world.catch_ups.is_empty() {
        world.catch_up(0, false);
    }
}

/// What the newest commit in the hands of the driver says of its only command's only item.
fn status(draft: &Draft) -> v1::CommandStatus {
    draft.commit.results[0].items[0].status()
}

#[test]
fn a_retry_follows_its_commit_and_begins_the_policy_anew() {
    let mut world = world_with_a_blocked_lane();
    world.run(Step::RetryLane { which: 0 });
    catch_up_all(&mut world);
    assert!(attempted(&world).is_empty(), "not before the commit");
    commit_all(&mut world);
    catch_up_all(&mut world);
    assert_eq!(attempted(&world), [1]);
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Failed);
    assert!(world.lanes.next_deadline().is_some(), "it has its retries again");
    commit_all(&mut world);
    let lane = world.record.lanes.values().next().unwrap();
    assert_eq!((lane.attempts, lane.uncounted, lane.state()), (2, 1, v1::LaneState::Open));
}

#[test]
fn a_retry_does_not_wait_for_the_backoff() {
    let mut world = world_with(1);
    world.read();
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Failed);
    commit_all(&mut world);
    world.run(Step::RetryLane { which: 0 });
    commit_all(&mut world);
    catch_up_all(&mut world);
    assert_eq!(attempted(&world), [1]);
}

/// Also from the log only: the lane holds positions while it is blocked.
#[test]
fn a_skip_makes_the_head_a_dead_letter_and_the_lane_goes_on() {
    let mut world = world_with_a_blocked_lane();
    world.run(Step::SkipLane { which: 0 });
    catch_up_all(&mut world);
    assert!(attempted(&world).is_empty(), "not before the commit");
    let draft = world.lanes.take_draft().unwrap();
    assert_eq!(status(&draft), v1::CommandStatus::Taken);
    let outcome = &draft.commit.outcomes[0];
    assert_eq!((outcome.kind(), outcome.reason()), (v1::OutcomeKind::DeadLettered, v1::DeadLetterReason::Skipped));
    assert_eq!((outcome.attempts, outcome.last_error.as_str()), (1, "skipped by ann"));
    world.drafts_taken.push_back(draft);
    world.commit();
    catch_up_all(&mut world);
    assert_eq!(attempted(&world), [2]);
}

/// However its attempt ends: it is in the history, and the event stays settled.
#[test]
fn a_skipped_head_in_flight_is_settled_and_the_lane_waits_for_its_attempt() {
    let mut world = world_with(2);
    (0..2).for_each(|_| world.read());
    let head = Head { seq: StreamSeq(1), next: StreamSeq(1) };
    let event = world.log[0].event.id;
    world.command(Order::Lane { lane: lane(0, 0), order: LaneOrder::Skip { head, event } });
    commit_all(&mut world);
    assert_eq!(attempted(&world), [1], "L2: nothing starts beside it");
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Delivered);
    let draft = world.lanes.take_draft().unwrap();
    assert_eq!((draft.commit.attempts.len(), draft.commit.outcomes.len()), (1, 0));
    assert_eq!(attempted(&world), [2]);
}

/// A command is about the state that it names.
#[test]
fn a_command_about_what_is_no_longer_so_changes_nothing() {
    let mut world = world_with_a_blocked_lane();
    let event = world.log[1].event.id;
    let head = Head { seq: StreamSeq(2), next: StreamSeq(2) };
    let dead = item(0, &world.log[0].clone(), Run::LIVE);
    for order in [
        Order::Lane { lane: lane(0, 0), order: LaneOrder::Skip { head, event } },
        Order::Lane { lane: lane(0, 0), order: LaneOrder::Retry { head } },
        Order::Lane { lane: lane(0, 0), order: LaneOrder::Resume },
        Order::Replay(vec![dead.clone()]),
        Order::Redrive(vec![RedriveItem { applicable: false, ..dead.clone() }]),
        Order::Close { kind: v1::OutcomeKind::Discarded, items: vec![RedriveItem { applicable: false, ..dead }] },
    ] {
        world.command(order.clone());
        let draft = world.lanes.take_draft().unwrap();
        assert_eq!(status(&draft), v1::CommandStatus::NotApplicable, "{order:?}");
        assert!(draft.commit.outcomes.is_empty() && draft.commit.runs.is_empty(), "{order:?}");
        world.drafts_taken.push_back(draft);
        world.commit();
    }
    let lane = world.record.lanes.values().next().unwrap();
    assert_eq!((lane.next, lane.state()), (1, v1::LaneState::Blocked));
}

#[test]
fn a_paused_lane_survives_a_crash_and_holds_no_memory() {
    let mut world = world_with(3);
    world.run(Step::PauseLane { subscription: 0, workflow: 0 });
    commit_all(&mut world);
    world.crash(false);
    (0..3).for_each(|_| world.read());
    assert!(attempted(&world).is_empty() && world.catch_ups.is_empty());
    assert_eq!(world.lanes.buffered_bytes(), 0);
    world.run(Step::ResumeLane { subscription: 0, workflow: 0 });
    assert!(world.catch_ups.is_empty(), "not before the commit");
    commit_all(&mut world);
    catch_up_all(&mut world);
    assert_eq!(attempted(&world), [1]);
}

/// Nothing else may come to be committed, and an operator skips what the lane's record names as its head.
#[test]
fn what_comes_to_what_is_paused_is_told_of_without_another_commit() {
    for pause in [Step::PauseLane { subscription: 0, workflow: 0 }, Step::Pause { subscription: 0 }] {
        let mut world = world_with(3);
        world.run(pause);
        commit_all(&mut world);
        world.read();
        commit_all(&mut world);
        let lane = world.record.lanes.values().next().unwrap();
        assert_eq!((lane.next, lane.last), (1, 1));
        // Others take the second.
        world.read();
        commit_all(&mut world);
        world.read();
        assert!(world.lanes.take_draft().is_none(), "its head is known");
    }
}

/// Its dead letter has come to an end by the first command, though nothing is committed when the second comes.
#[test]
fn a_discarded_dead_letter_is_not_redriven() {
    let mut world = world_with_a_quarantined_head();
    world.read();
    commit_all(&mut world);
    let dead = world.dead_letter(0).unwrap();
    world.command(Order::Close { kind: v1::OutcomeKind::Discarded, items: vec![dead.clone()] });
    world.command(Order::Redrive(vec![dead]));
    let draft = world.lanes.take_draft().unwrap();
    let statuses: Vec<_> = draft.commit.results.iter().map(|result| result.items[0].status()).collect();
    assert_eq!(statuses, [v1::CommandStatus::Taken, v1::CommandStatus::NotApplicable]);
    assert_eq!((draft.commit.outcomes[0].operator.as_str(), draft.commit.outcomes[0].run), ("ann", 1));
}

/// Several of one workflow go in the order of their events; paused ones wait, cancelled ones are discarded.
#[test]
fn a_replay_goes_in_order_waits_and_ends() {
    let mut world = world_with(3);
    (0..3).for_each(|_| world.read());
    for _ in 0..3 {
        let attempt = world.attempts.pop().unwrap();
        world.end(attempt, Verdict::Delivered);
        catch_up_all(&mut world);
    }
    commit_all(&mut world);
    let items = world.log.iter().rev().map(|event| item(0, event, Run::LIVE)).collect();
    world.command(Order::Replay(items));
    assert!(world.loads.is_empty(), "not before the commit");
    commit_all(&mut world);
    world.run(Step::Load { which: 0 });
    assert_eq!(attempted(&world), [1]);
    world.command(Order::ReplayOrder { run: Run(1), order: ReplayOrder::Pause });
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Delivered);
    commit_all(&mut world);
    assert!(world.loads.is_empty() && attempted(&world).is_empty());
    world.command(Order::ReplayOrder { run: Run(1), order: ReplayOrder::Resume });
    commit_all(&mut world);
    world.run(Step::Load { which: 0 });
    assert_eq!(attempted(&world), [2]);
    world.command(Order::ReplayOrder { run: Run(1), order: ReplayOrder::Cancel });
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Failed);
    commit_all(&mut world);
    let kinds: Vec<_> = (1..=3).map(|seq| world.record.outcomes[&(uid(0).to_vec(), seq, 1)].1).collect();
    let [delivered, discarded] = [v1::OutcomeKind::Delivered, v1::OutcomeKind::Discarded].map(i32::from);
    assert_eq!(kinds, [delivered, discarded, discarded]);
    assert!(world.record.runs.is_empty() && world.lanes.next_deadline().is_none());
}

/// 410 of one event stops the whole subscription, and no event of it is lost or used up by it.
#[test]
fn a_receiver_that_is_gone_pauses_its_subscription_and_keeps_everything() {
    let mut world = world_with(2);
    world.log[1] = event(2, 1);
    (0..2).for_each(|_| world.read());
    assert_eq!(attempted(&world), [1, 2]);
    let (first, second) = (world.attempts.remove(0), world.attempts.remove(0));
    world.end(first, Verdict::Gone);
    assert_eq!(world.pauses, [(uid(0), 1)]);
    world.end(second, Verdict::Gone);
    assert_eq!(world.pauses.len(), 1, "it is asked for once");
    world.run(Step::TakeDraft);
    world.commit();
    assert!(world.record.outcomes.is_empty());
    let lanes = world.record.lanes.iter().filter(|((subscription, ..), _)| *subscription == uid(0).to_vec());
    assert_eq!(lanes.map(|(_, lane)| (lane.attempts, lane.uncounted)).collect::<Vec<_>>(), [(1, 1); 2]);
    world.crash(false);
    while !world.catch_ups.is_empty() {
        world.catch_up(0, false);
    }
    assert_eq!(attempted(&world), [1], "a crash before the catalog has it asks the receiver again, once");
}

/// An operator who has given the subscription another receiver is not answered for by the one before.
#[test]
fn what_an_earlier_receiver_says_of_itself_is_of_no_account() {
    let mut world = world_with(1);
    world.read();
    world.revision += 1;
    world.revisions.insert(0, world.revision);
    world.handle(Input::Subscribed(rules(0, false, world.revision)));
    let attempt = world.attempts.pop().unwrap();
    world.end(attempt, Verdict::Gone);
    assert!(world.pauses.is_empty());
    assert_eq!(attempted(&world), [1], "it is attempted by the new rules at once");
}

/// The only workflow's receiver answers 503 for so long. How many attempts were made, and how late it was found to be back.
fn outage(retry: RetryPolicy, away: SignedDuration) -> (World, u32, SignedDuration) {
    let mut world = world_with(1);
    world.revision += 1;
    world.revisions.insert(0, world.revision);
    world.handle(Input::Subscribed(Rules { retry, ..rules(0, false, world.revision) }));
    world.read();
    let back = world.now.checked_add(away).unwrap();
    let mut attempts = 0;
    while let Some(attempt) = world.attempts.pop() {
        attempts += 1;
        let up = world.now >= back;
        // The model's bound for the retry is of its own policy.
        world.retry_at.clear();
        world.end_with(attempt, if up { Verdict::Delivered } else { Verdict::Unavailable }, if up { 200 } else { 503 });
        world.retry_at.clear();
        world.run(Step::TakeDraft);
        world.commit();
        while world.attempts.is_empty()
            && let Some(at) = world.lanes.next_deadline()
        {
            world.now = world.now.max(at);
            world.handle(Input::TimerFired);
            world.retry_at.clear();
            while !world.catch_ups.is_empty() {
                world.catch_up(0, false);
            }
        }
    }
    let late = world.now.duration_since(back);
    (world, attempts, late)
}

fn exponential(max_retries: u32, base_ms: u64, factor: f64, max_ms: u64) -> RetryPolicy {
    let [base, max] = [base_ms, max_ms].map(std::time::Duration::from_millis);
    RetryPolicy::Exponential { max_retries, base, factor, max, jitter: 0.0 }
}

/// A deploy of the only receiver of the only workflow: with the usual retries it would be a dead letter after seven
/// seconds.
#[test]
fn an_outage_of_ten_seconds_makes_no_dead_letter() {
    let (world, attempts, late) = outage(exponential(3, 1000, 2.0, 3_600_000), SignedDuration::from_secs(10));
    assert!((3..=8).contains(&attempts), "{attempts} attempts");
    assert!(late <= SignedDuration::from_secs(12), "found {late:?} after it is back");
    let kinds: Vec<_> = world.record.outcomes.values().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, [i32::from(v1::OutcomeKind::Delivered)]);
    assert!(world.record.receivers.is_empty(), "a single workflow does not open the circuit");
}

/// However few and quick the retries are: an outage that is over before it is one for the circuit uses up none.
#[test]
fn an_outage_too_short_for_the_circuit_makes_no_dead_letter() {
    let none = exponential(0, 1000, 1.0, 1000);
    for retry in [exponential(3, 100, 1.5, 500), none, RetryPolicy::Schedule(vec![]), exponential(1, 1, 1.0, 1)] {
        for away_ms in [50, 450, 5000] {
            let (world, attempts, late) = outage(retry.clone(), SignedDuration::from_millis(away_ms));
            let kinds: Vec<_> = world.record.outcomes.values().map(|(_, kind)| *kind).collect();
            assert_eq!(kinds, [i32::from(v1::OutcomeKind::Delivered)], "{retry:?}, {away_ms} ms");
            assert!(attempts <= 16, "{retry:?}: {attempts} attempts");
            assert!(late <= SignedDuration::from_secs(5), "{retry:?}: found {late:?} after it is back");
        }
    }
}

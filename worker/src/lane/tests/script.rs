//! Single rules, one script each.

use super::*;

pub(super) fn model_with(events: u64) -> Model {
    let mut model = Model::new(1);
    // Events of one workflow that only subscription 0 takes.
    while (model.log.len() as u64) < events {
        model.log.push(event(model.log.len() as u64 + 1, 0));
    }
    model.pause(1, true);
    model.pause(UNORDERED, true);
    model
}

pub(super) fn attempted(model: &Model) -> Vec<u64> {
    model.attempts.iter().map(|attempt| attempt.work.seq.0).collect()
}

#[test]
fn a_success_lets_the_lane_run_ahead_of_the_commit() {
    let mut model = model_with(3);
    (0..3).for_each(|_| model.read());
    assert_eq!(attempted(&model), [1]);
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Delivered);
    assert_eq!(attempted(&model), [2], "no commit was needed");
}

#[test]
fn a_dead_letter_is_committed_before_the_next_attempt() {
    let mut model = model_with(3);
    (0..3).for_each(|_| model.read());
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Rejected);
    assert!(attempted(&model).is_empty(), "nothing starts before the commit");
    let pending = model.lanes.take_commit().unwrap();
    assert_eq!(pending.dead.len(), 1, "its event is handed on for the copy");
    model.commits_taken.push_back(pending);
    model.commit();
    assert_eq!(attempted(&model), [2]);
}

#[test]
fn a_retry_waits_and_survives_a_crash() {
    let mut model = model_with(1);
    model.read();
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Failed);
    let due = model.lanes.next_deadline().unwrap();
    model.run(Step::TakeCommit);
    model.commit();
    model.crash(false);
    assert!(attempted(&model).is_empty());
    assert_eq!(model.lanes.next_deadline(), Some(due), "the same moment as before the crash");
}

#[test]
fn a_long_wait_gives_the_memory_back() {
    let mut model = model_with(2);
    (0..2).for_each(|_| model.read());
    for _ in 0..2 {
        let attempt = model.attempts.pop().unwrap();
        model.end(attempt, AttemptResult::Failed);
        model.now = model.lanes.next_deadline().unwrap_or(model.now);
        model.handle(Input::TimerFired);
        if model.lanes.buffered_bytes() == 0 {
            assert_eq!(model.catch_ups.len(), 1, "parked, and read again when it is due");
            model.catch_up(0, false);
        }
    }
    assert_eq!(attempted(&model), [1], "the second wait was longer than the parking time, and the head is back");
}

#[test]
fn a_deleted_subscription_frees_its_lanes_and_its_late_answer_is_harmless() {
    let mut model = model_with(2);
    (0..2).for_each(|_| model.read());
    model.handle(Input::Unsubscribed {
        uid: uid(0),
        operator: "ann".into(),
        reason: "moved".into(),
        catalog: v1::CatalogPosition::default(),
    });
    assert_eq!(model.lanes.buffered_bytes(), 0);
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Delivered);
    assert_eq!(model.lanes.attempts_in_flight(), 0);
    let pending = model.lanes.take_commit().unwrap();
    assert!(pending.commit.subscriptions.iter().any(|change| {
        matches!(&change.change, Some(v1::subscription_change::Change::Closed(closed))
            if closed.up_to == 2 && closed.operator == "ann" && closed.reason == "moved")
    }));
}

#[test]
fn a_blocking_subscription_stands_still_with_its_event_unsettled() {
    let mut model = model_with(2);
    let mut blocking = policy(0, false, 2);
    blocking.on_exhausted = OnExhausted::Block;
    model.handle(Input::Subscribed(blocking));
    (0..2).for_each(|_| model.read());
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Rejected);
    model.run(Step::TakeCommit);
    model.commit();
    assert!(attempted(&model).is_empty());
    let lane = model.record.lanes.values().next().unwrap();
    assert_eq!((lane.next, lane.last, lane.state()), (1, 2, v1::LaneState::Blocked));
}

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
    let joined = v1::subscription_change::Change::Detached(v1::Detached { next: 0 });
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
        commit_all(&mut model);
        assert!(model.catch_ups.is_empty());
    }
    assert!(!model.detached.contains_key(&uid(0)), "it has met the shared reader");
    let taken = (1..=30).filter(|seq| takes(0, StreamSeq(*seq))).count();
    assert_eq!(model.delivered.iter().filter(|(lane, _)| lane.subscription == uid(0)).count(), taken);
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
    assert!(!model.backfill(), "until it goes on");
    model.pause(0, true);
    assert!(model.backfill(), "or until it is changed: it may take other events now");
    assert_eq!((model.backfill(), model.detached.get(&uid(0))), (false, Some(&2)));
    let late = |model: &Model, seq| {
        let mut count = LateCount::below(StreamSeq(seq));
        while !model.lanes.count_late(&mut count) {}
        count.lanes.get(&uid(0)).copied()
    };
    assert_eq!((late(&model, 2), late(&model, 3)), (Some(2), Some(3)));
    commit_all(&mut model);
    model.crash(false);
    while model.backfill() {}
    assert_eq!(late(&model, 3), Some(3), "who takes over finds it where it stands");

    model.heal();
    assert!(!model.detached.contains_key(&uid(0)), "it has met the shared reader");
}

/// A world whose first event is quarantined, and whose second is not.
fn model_with_a_quarantined_head() -> Model {
    let mut model = model_with(0);
    model.log.push(quarantined_event(1, 0, Some(QUARANTINE)));
    model.log.push(event(2, 0));
    model
}

#[test]
fn a_quarantined_event_is_a_dead_letter_without_an_attempt() {
    let mut model = model_with_a_quarantined_head();
    (0..2).for_each(|_| model.read());
    assert!(attempted(&model).is_empty(), "the event behind it waits for the commit");
    let pending = model.lanes.take_commit().unwrap();
    assert!(pending.commit.attempts.is_empty());
    let outcome = &pending.commit.outcomes[0];
    assert_eq!(
        (outcome.kind(), outcome.reason()),
        (v1::OutcomeKind::DeadLettered, v1::DeadLetterReason::SchemaInvalid)
    );
    assert_eq!((outcome.attempts, outcome.last_error.as_str()), (0, "/total: value is not a number"));
    assert_eq!(pending.dead.len(), 1, "its event is handed on for the copy");
    model.commits_taken.push_back(pending);
    model.commit();
    assert_eq!(attempted(&model), [2]);
}

#[test]
fn a_redrive_releases_a_quarantined_event() {
    let mut model = model_with_a_quarantined_head();
    model.read();
    model.run(Step::TakeCommit);
    model.commit();
    model.redrive(0);
    model.run(Step::TakeCommit);
    model.commit();
    model.run(Step::Load { which: 0 });
    assert_eq!(attempted(&model), [1]);
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Delivered);
    model.run(Step::TakeCommit);
    model.commit();
    assert!(model.record.open_dead.is_empty());
}

/// A quarantined event waits like any other: for its turn, behind what is unsettled, and while nobody may be attempted.
#[test]
fn a_quarantined_event_keeps_its_place() {
    let mut model = model_with(1);
    model.log.push(quarantined_event(2, 0, Some(QUARANTINE)));
    (0..2).for_each(|_| model.read());
    assert_eq!(attempted(&model), [1]);
    model.pause(0, true);
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Delivered);
    let outcomes = |model: &Model| model.record.outcomes.len();
    model.run(Step::TakeCommit);
    model.commit();
    assert_eq!(outcomes(&model), 1, "the backlog of a paused subscription stays");
    model.pause(0, false);
    while !model.catch_ups.is_empty() {
        model.catch_up(0, false);
    }
    model.run(Step::TakeCommit);
    model.commit();
    assert_eq!(outcomes(&model), 2);
}

/// Blocking is for what may go better later.
#[test]
fn a_blocking_subscription_dead_letters_what_is_quarantined() {
    let mut model = model_with_a_quarantined_head();
    model.handle(Input::Subscribed(SubscriptionPolicy { on_exhausted: OnExhausted::Block, ..policy(0, false, 2) }));
    (0..2).for_each(|_| model.read());
    model.run(Step::TakeCommit);
    model.commit();
    assert_eq!(attempted(&model), [2]);
}

/// A world whose lane is blocked at its first event, of two.
pub(super) fn model_with_a_blocked_lane() -> Model {
    let mut model = model_with(2);
    model.handle(Input::Subscribed(SubscriptionPolicy { on_exhausted: OnExhausted::Block, ..policy(0, false, 2) }));
    (0..2).for_each(|_| model.read());
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Rejected);
    commit_all(&mut model);
    assert!(attempted(&model).is_empty());
    model
}

pub(super) fn commit_all(model: &mut Model) {
    while model.lanes.has_commit() {
        model.run(Step::TakeCommit);
        model.commit();
    }
}

pub(super) fn catch_up_all(model: &mut Model) {
    while !model.catch_ups.is_empty() {
        model.catch_up(0, false);
    }
}

/// What the newest commit in the hands of the driver says of its only command's only item.
fn status(pending: &PendingCommit) -> v1::CommandStatus {
    pending.commit.results[0].items[0].status()
}

#[test]
fn a_retry_follows_its_commit_and_begins_the_policy_anew() {
    let mut model = model_with_a_blocked_lane();
    model.run(Step::RetryLane { which: 0 });
    catch_up_all(&mut model);
    assert!(attempted(&model).is_empty(), "not before the commit");
    commit_all(&mut model);
    catch_up_all(&mut model);
    assert_eq!(attempted(&model), [1]);
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Failed);
    assert!(model.lanes.next_deadline().is_some(), "it has its retries again");
    commit_all(&mut model);
    let lane = model.record.lanes.values().next().unwrap();
    assert_eq!((lane.attempts, lane.uncounted, lane.state()), (2, 1, v1::LaneState::Open));
}

#[test]
fn a_retry_does_not_wait_for_the_backoff() {
    let mut model = model_with(1);
    model.read();
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Failed);
    commit_all(&mut model);
    model.run(Step::RetryLane { which: 0 });
    commit_all(&mut model);
    catch_up_all(&mut model);
    assert_eq!(attempted(&model), [1]);
}

/// Also from the log only: the lane holds positions while it is blocked.
#[test]
fn a_skip_makes_the_head_a_dead_letter_and_the_lane_goes_on() {
    let mut model = model_with_a_blocked_lane();
    model.run(Step::SkipLane { which: 0 });
    catch_up_all(&mut model);
    assert!(attempted(&model).is_empty(), "not before the commit");
    let pending = model.lanes.take_commit().unwrap();
    assert_eq!(status(&pending), v1::CommandStatus::Taken);
    let outcome = &pending.commit.outcomes[0];
    assert_eq!((outcome.kind(), outcome.reason()), (v1::OutcomeKind::DeadLettered, v1::DeadLetterReason::Skipped));
    assert_eq!((outcome.attempts, outcome.last_error.as_str()), (1, "skipped by ann"));
    assert_eq!(outcome.operator, "ann");
    model.commits_taken.push_back(pending);
    model.commit();
    catch_up_all(&mut model);
    assert_eq!(attempted(&model), [2]);
}

/// However its attempt ends: it is in the history, and the event stays settled.
#[test]
fn a_skipped_head_in_flight_is_settled_and_the_lane_waits_for_its_attempt() {
    let mut model = model_with(2);
    (0..2).for_each(|_| model.read());
    let head = HeadRef { seq: StreamSeq(1), next: StreamSeq(1) };
    let event = model.log[0].event.id;
    model.command(CommandAction::Lane { lane: lane(0, 0), command: LaneCommand::Skip { head, event } });
    commit_all(&mut model);
    assert_eq!(attempted(&model), [1], "L2: nothing starts beside it");
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Delivered);
    let pending = model.lanes.take_commit().unwrap();
    assert_eq!((pending.commit.attempts.len(), pending.commit.outcomes.len()), (1, 0));
    assert_eq!(attempted(&model), [2]);
}

/// A command is about the state that it names.
#[test]
fn a_command_about_what_is_no_longer_so_changes_nothing() {
    let mut model = model_with_a_blocked_lane();
    let event = model.log[1].event.id;
    let head = HeadRef { seq: StreamSeq(2), next: StreamSeq(2) };
    let dead = item(0, &model.log[0].clone(), Run::LIVE);
    for order in [
        CommandAction::Lane { lane: lane(0, 0), command: LaneCommand::Skip { head, event } },
        CommandAction::Lane { lane: lane(0, 0), command: LaneCommand::Retry { head } },
        CommandAction::Lane { lane: lane(0, 0), command: LaneCommand::Resume },
        CommandAction::Replay(vec![dead.clone()]),
        CommandAction::Redrive(vec![RedriveItem { applicable: false, ..dead.clone() }]),
        CommandAction::Close {
            kind: v1::OutcomeKind::Discarded,
            items: vec![RedriveItem { applicable: false, ..dead }],
        },
    ] {
        model.command(order.clone());
        let pending = model.lanes.take_commit().unwrap();
        assert_eq!(status(&pending), v1::CommandStatus::NotApplicable, "{order:?}");
        assert!(pending.commit.outcomes.is_empty() && pending.commit.runs.is_empty(), "{order:?}");
        model.commits_taken.push_back(pending);
        model.commit();
    }
    let lane = model.record.lanes.values().next().unwrap();
    assert_eq!((lane.next, lane.state()), (1, v1::LaneState::Blocked));
}

#[test]
fn a_paused_lane_survives_a_crash_and_holds_no_memory() {
    let mut model = model_with(3);
    model.run(Step::PauseLane { subscription: 0, workflow: 0 });
    commit_all(&mut model);
    model.crash(false);
    (0..3).for_each(|_| model.read());
    assert!(attempted(&model).is_empty() && model.catch_ups.is_empty());
    assert_eq!(model.lanes.buffered_bytes(), 0);
    model.run(Step::ResumeLane { subscription: 0, workflow: 0 });
    assert!(model.catch_ups.is_empty(), "not before the commit");
    commit_all(&mut model);
    catch_up_all(&mut model);
    assert_eq!(attempted(&model), [1]);
}

/// Nothing else may come to be committed, and an operator skips what the lane's record names as its head.
#[test]
fn what_comes_to_what_is_paused_is_told_of_without_another_commit() {
    for pause in [Step::PauseLane { subscription: 0, workflow: 0 }, Step::Pause { subscription: 0 }] {
        let mut model = model_with(3);
        model.run(pause);
        commit_all(&mut model);
        model.read();
        commit_all(&mut model);
        let lane = model.record.lanes.values().next().unwrap();
        assert_eq!((lane.next, lane.last), (1, 1));
        // Others take the second.
        model.read();
        commit_all(&mut model);
        model.read();
        assert!(model.lanes.take_commit().is_none(), "its head is known");
    }
}

/// Its dead letter has come to an end by the first command, though nothing is committed when the second comes.
#[test]
fn a_discarded_dead_letter_is_not_redriven() {
    let mut model = model_with_a_quarantined_head();
    model.read();
    commit_all(&mut model);
    let dead = model.dead_letter(0).unwrap();
    model.command(CommandAction::Close { kind: v1::OutcomeKind::Discarded, items: vec![dead.clone()] });
    model.command(CommandAction::Redrive(vec![dead]));
    let pending = model.lanes.take_commit().unwrap();
    let statuses: Vec<_> = pending.commit.results.iter().map(|result| result.items[0].status()).collect();
    assert_eq!(statuses, [v1::CommandStatus::Taken, v1::CommandStatus::NotApplicable]);
    assert_eq!((pending.commit.outcomes[0].operator.as_str(), pending.commit.outcomes[0].run), ("ann", 1));
}

/// Several of one workflow go in the order of their events; paused ones wait, cancelled ones are discarded.
#[test]
fn a_replay_goes_in_order_waits_and_ends() {
    let mut model = model_with(3);
    (0..3).for_each(|_| model.read());
    for _ in 0..3 {
        let attempt = model.attempts.pop().unwrap();
        model.end(attempt, AttemptResult::Delivered);
        catch_up_all(&mut model);
    }
    commit_all(&mut model);
    let items = model.log.iter().rev().map(|event| item(0, event, Run::LIVE)).collect();
    model.command(CommandAction::Replay(items));
    assert!(model.loads.is_empty(), "not before the commit");
    commit_all(&mut model);
    model.run(Step::Load { which: 0 });
    assert_eq!(attempted(&model), [1]);
    model.command(CommandAction::Runs { run: Run(1), command: ReplayCommand::Pause });
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Delivered);
    commit_all(&mut model);
    assert!(model.loads.is_empty() && attempted(&model).is_empty());
    model.command(CommandAction::Runs { run: Run(1), command: ReplayCommand::Resume });
    commit_all(&mut model);
    model.run(Step::Load { which: 0 });
    assert_eq!(attempted(&model), [2]);
    model.command(CommandAction::Runs { run: Run(1), command: ReplayCommand::Cancel });
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Failed);
    commit_all(&mut model);
    let kinds: Vec<_> = (1..=3).map(|seq| model.record.outcomes[&(uid(0).to_vec(), seq, 1)].1).collect();
    let [delivered, discarded] = [v1::OutcomeKind::Delivered, v1::OutcomeKind::Discarded].map(i32::from);
    assert_eq!(kinds, [delivered, discarded, discarded]);
    assert!(model.record.runs.is_empty() && model.lanes.next_deadline().is_none());
}

/// 410 of one event stops the whole subscription, and no event of it is lost or used up by it.
#[test]
fn a_receiver_that_is_gone_pauses_its_subscription_and_keeps_everything() {
    let mut model = model_with(2);
    model.log[1] = event(2, 1);
    (0..2).for_each(|_| model.read());
    assert_eq!(attempted(&model), [1, 2]);
    let (first, second) = (model.attempts.remove(0), model.attempts.remove(0));
    model.end(first, AttemptResult::EndpointRetired);
    assert_eq!(model.pauses, [(uid(0), 1)]);
    model.end(second, AttemptResult::EndpointRetired);
    assert_eq!(model.pauses.len(), 1, "it is asked for once");
    model.run(Step::TakeCommit);
    model.commit();
    assert!(model.record.outcomes.is_empty());
    let lanes = model.record.lanes.iter().filter(|((subscription, ..), _)| *subscription == uid(0).to_vec());
    assert_eq!(lanes.map(|(_, lane)| (lane.attempts, lane.uncounted)).collect::<Vec<_>>(), [(1, 1); 2]);
    model.crash(false);
    while !model.catch_ups.is_empty() {
        model.catch_up(0, false);
    }
    assert_eq!(attempted(&model), [1], "a crash before the catalog has it asks the receiver again, once");
}

/// An operator who has given the subscription another receiver is not answered for by the one before.
#[test]
fn what_an_earlier_receiver_says_of_itself_is_of_no_account() {
    let mut model = model_with(1);
    model.read();
    model.revision += 1;
    model.revisions.insert(0, model.revision);
    model.handle(Input::Subscribed(policy(0, false, model.revision)));
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::EndpointRetired);
    assert!(model.pauses.is_empty());
    assert_eq!(attempted(&model), [1], "it is attempted by the new rules at once");
}

/// The only workflow's receiver answers 503 for so long. How many attempts were made, and how late it was found to be back.
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
        // The model's bound for the retry is of its own policy.
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
    assert_eq!(kinds, [i32::from(v1::OutcomeKind::Delivered)]);
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
            assert_eq!(kinds, [i32::from(v1::OutcomeKind::Delivered)], "{retry:?}, {away_ms} ms");
            assert!(attempts <= 16, "{retry:?}: {attempts} attempts");
            assert!(late <= SignedDuration::from_secs(5), "{retry:?}: found {late:?} after it is back");
        }
    }
}

//! Scripts: single rules, each as the steps of a history with the actions that follow.
//!
//! A line has steps, separated by `|`, and after `=>` the actions and committed outcomes that they cause. The events are those of
//! workflow 0 unless `@` names another one; `!` is a quarantined one. The other subscriptions are paused.

use super::*;

/// The model with events of one workflow in the log, and only subscription 0 active.
pub(super) fn model_with(events: u64) -> Model {
    let mut model = Model::new(1);
    while (model.log.len() as u64) < events {
        model.log.push(event(model.log.len() as u64 + 1, 0));
    }
    model.pause(1, true);
    model.pause(UNORDERED, true);
    model
}

/// Performs a script, and compares what follows.
pub(super) fn check(script: &str) {
    let mut model = model_with(0);
    model.commit_all();
    model.shown = Some(Shown::default());
    let mut found = String::new();
    let lines: Vec<&str> = script.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    for line in &lines {
        let steps = line.split("=>").next().unwrap().trim();
        for step in steps.split('|') {
            perform(&mut model, &step.split_whitespace().collect::<Vec<_>>());
        }
        let log = std::mem::take(&mut model.shown.as_mut().unwrap().log);
        found += &if log.is_empty() { format!("{steps}\n") } else { format!("{steps} => {}\n", log.join(", ")) };
    }
    let expected: String =
        lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect();
    let found: String =
        found.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect();
    assert_eq!(found, expected, "found:\n{found}");
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is not a number"))
}

/// Performs one step of a script.
fn perform(model: &mut Model, words: &[&str]) {
    let key = lane(0, 0);
    let head = |seq: &str| HeadRef { seq: StreamSeq(number(seq)), next: StreamSeq(number(seq)) };
    let of = |model: &Model, seq: &str| model.log[number(seq) as usize - 1].clone();
    let on_lane = |model: &mut Model, command| model.command(CommandAction::Lane { lane: key.clone(), command });
    match words {
        ["arrive", events @ ..] => events.iter().for_each(|text| {
            let quarantine = text.ends_with('!').then_some(QUARANTINE);
            let (seq, workflow) =
                text.trim_end_matches('!').split_once('@').unwrap_or((text.trim_end_matches('!'), "0"));
            model.log.push(quarantined_event(number(seq), number(workflow) as u8, quarantine));
            model.read();
        }),
        ["end", seq, result, how @ ..] => {
            let at = model.attempts.iter().position(|attempt| attempt.work.seq.0 == number(seq));
            let attempt = model.attempts.remove(at.unwrap_or_else(|| panic!("{seq} is not in flight")));
            let (result, status) = match *result {
                "delivered" => (AttemptResult::Delivered, 200),
                "failed" => (AttemptResult::Failed, 500),
                "unreachable" => (AttemptResult::Unreachable, 0),
                "rejected" => (AttemptResult::Rejected, 400),
                "retired" => (AttemptResult::EndpointRetired, 410),
                other => panic!("no result {other}"),
            };
            let (accepted, attributed) = match how {
                [] => (0, false),
                ["alone"] => (0, true),
                ["after", accepted] => (number(accepted) as usize, false),
                other => panic!("no end {other:?}"),
            };
            model.end_after(attempt, accepted, attributed, result, status);
        }
        ["batch", events] => {
            model.batch = number(events) as usize;
            model.renew(0);
        }
        ["commit"] => model.commit_all(),
        ["read"] => model.catch_up_all(),
        ["load"] => model.run(Step::Load { which: 0 }),
        ["wait"] => {
            model.now = model.lanes.next_deadline().expect("a timer is set").max(model.now);
            model.handle(Input::TimerFired);
        }
        ["expire", through] => model.age(number(through)),
        ["erase", seq] => {
            model.erase(number(seq) as usize - 1);
        }
        ["crash"] => model.crash(false),
        ["pause"] => model.pause(0, true),
        ["resume"] => model.pause(0, false),
        ["block"] => {
            let (on_exhausted, max_events) = (OnExhausted::Block, model.batch);
            let blocking = SubscriptionPolicy { on_exhausted, max_events, ..policy(0, false, 2) };
            model.handle(Input::Subscribed(blocking));
        }
        ["remove"] => model.remove(0),
        ["pause", "lane"] => on_lane(model, LaneCommand::Pause),
        ["resume", "lane"] => on_lane(model, LaneCommand::Resume),
        ["retry", seq] => {
            model.retry_at.clear();
            on_lane(model, LaneCommand::Retry { head: head(seq) });
        }
        ["skip", seq] => {
            let event = of(model, seq).event.id;
            on_lane(model, LaneCommand::Skip { head: head(seq), event });
        }
        ["redrive", seqs @ ..] => {
            let items = seqs.iter().map(|seq| item(0, &of(model, seq), Run::LIVE)).collect();
            model.command(CommandAction::Redrive(items));
        }
        ["replay", seqs @ ..] => {
            let items = seqs.iter().map(|seq| item(0, &of(model, seq), Run::LIVE)).collect();
            model.command(CommandAction::Replay { items, min_interval: None });
        }
        ["slowly", "replay", seqs @ ..] => {
            let items = seqs.iter().map(|seq| item(0, &of(model, seq), Run::LIVE)).collect();
            model.command(CommandAction::Replay { items, min_interval: Some(std::time::Duration::from_secs(10)) });
        }
        ["discard", seq] => {
            let items = vec![item(0, &of(model, seq), Run::LIVE)];
            model.command(CommandAction::Close { kind: internal::OutcomeKind::Discarded, items });
        }
        [command, "run", run] => {
            let command = match *command {
                "pause" => ReplayCommand::Pause,
                "resume" => ReplayCommand::Resume,
                "cancel" => ReplayCommand::Cancel,
                "reopen" => ReplayCommand::Reopen,
                other => panic!("no command {other}"),
            };
            model.command(CommandAction::Runs { run: Run(number(run)), command });
        }
        ["memory"] => {
            let events = model.lanes.buffered_bytes() / event_bytes(&event(1, 0));
            model.shown.as_mut().unwrap().log.push(format!("{events} events"));
        }
        ["record"] => {
            let lanes = model.record.lanes.values().filter(|lane| lane.subscription == uid(0).to_vec());
            let lanes = lanes.map(|lane| {
                let state = if lane.state() == internal::LaneState::Blocked { " blocked" } else { "" };
                format!("{}..={} attempts {} uncounted {}{state}", lane.next, lane.last, lane.attempts, lane.uncounted)
            });
            model.shown.as_mut().unwrap().log.extend(lanes.collect::<Vec<_>>());
        }
        other => panic!("no step {other:?}"),
    }
}

/// Actions and outcomes of subscription 0, in the words of the scripts.
#[derive(Default)]
pub struct Shown {
    log: Vec<String>,
}

fn of_run(run: u64) -> String {
    if run == 0 { String::new() } else { format!(" of run {run}") }
}

impl Shown {
    pub fn action(&mut self, action: &Action) {
        let (of, text) = match action {
            Action::Attempt { work, events, number, .. } => {
                let number = if *number > 1 { format!(" #{number}") } else { String::new() };
                let seqs: Vec<_> = events.iter().map(|event| event.seq.to_string()).collect();
                (work.lane.subscription, format!("attempt {}{number}{}", seqs.join("+"), of_run(work.run.0)))
            }
            Action::CatchUp { lane, from, through, .. } => (lane.subscription, format!("read {from}..={through}")),
            Action::Load { work, .. } => (work.lane.subscription, format!("load {}{}", work.seq, of_run(work.run.0))),
            Action::Detach { uid } => (*uid, "detach".into()),
            Action::Pause { uid, .. } => (*uid, "pause".into()),
            Action::Receiver { uid, condition: Some(_) } => (*uid, "open".into()),
            Action::Receiver { uid, condition: None } => (*uid, "close".into()),
            Action::Lost { lane, from, through } => (lane.subscription, format!("lost {from}..={through}")),
        };
        if of == uid(0) {
            self.log.push(text);
        }
    }

    pub fn commit(&mut self, pending: &PendingCommit) {
        let subject = uid(0).to_vec();
        for outcome in pending.commit.outcomes.iter().filter(|outcome| outcome.subscription == subject) {
            let kind = match outcome.kind() {
                internal::OutcomeKind::DeadLettered => format!("dead ({:?})", outcome.reason()).to_lowercase(),
                kind => format!("{kind:?}").to_lowercase(),
            };
            let copied = pending.dead.iter().any(|event| event.seq.0 == outcome.sequence);
            let copied = if copied { " with its event" } else { "" };
            let by = if outcome.operator.is_empty() { String::new() } else { format!(" by {}", outcome.operator) };
            self.log.push(format!("{kind} {}{}{by}{copied}", outcome.sequence, of_run(outcome.run)));
        }
        for item in pending.commit.results.iter().flat_map(|result| &result.items) {
            let taken = item.status() == internal::CommandStatus::Taken;
            self.log.push(if taken { "taken" } else { "not applicable" }.into());
        }
        for change in pending.commit.subscriptions.iter().filter(|change| change.subscription == subject) {
            if let Some(internal::subscription_change::Change::Closed(closed)) = &change.change {
                self.log.push(format!("closed through {} by {}", closed.up_to, closed.operator));
            }
        }
    }
}

#[test]
fn a_success_lets_the_lane_run_ahead_of_the_commit() {
    check(
        "arrive 1 2 3    => attempt 1
         end 1 delivered => attempt 2",
    );
}

#[test]
fn a_dead_letter_is_committed_before_the_next_attempt() {
    check(
        "arrive 1 2 3   => attempt 1
         end 1 rejected
         commit         => dead (permanent) 1 with its event, attempt 2",
    );
}

#[test]
fn a_retry_waits_and_survives_a_crash() {
    let mut model = model_with(1);
    model.read();
    let attempt = model.attempts.pop().unwrap();
    model.end(attempt, AttemptResult::Failed);
    let due = model.lanes.next_deadline().unwrap();
    model.commit_all();
    model.crash(false);
    assert!(model.attempted().is_empty());
    assert_eq!(model.lanes.next_deadline(), Some(due), "the same moment as before the crash");
}

/// The second wait is longer than the parking time.
#[test]
fn a_long_wait_gives_the_memory_back() {
    check(
        "arrive 1 2    => attempt 1
         end 1 failed
         wait          => attempt 1 #2
         end 1 failed
         memory        => 0 events
         wait          => read 1..=2
         read          => attempt 1 #3",
    );
}

#[test]
fn a_closed_subscription_frees_its_lanes_and_its_late_answer_is_harmless() {
    check(
        "arrive 1 2      => attempt 1
         remove
         memory          => 0 events
         end 1 delivered
         commit          => closed through 2 by ann",
    );
}

#[test]
fn a_blocking_subscription_stops_with_its_event_unsettled() {
    check(
        "block
         arrive 1 2 => attempt 1
         end 1 rejected
         commit
         record     => 1..=2 attempts 1 uncounted 0 blocked",
    );
}

#[test]
fn a_quarantined_event_is_a_dead_letter_without_an_attempt() {
    check(
        "arrive 1! 2
         commit => dead (schemainvalid) 1 with its event, attempt 2",
    );
}

/// A quarantined event waits like any other: for its turn, after what is unsettled, and while its subscription is paused.
#[test]
fn a_quarantined_event_keeps_its_place() {
    check(
        "arrive 1 2!     => attempt 1
         pause
         end 1 delivered
         commit          => delivered 1
         resume          => read 2..=2
         read
         commit          => dead (schemainvalid) 2 with its event",
    );
}

/// Blocking is for events that may succeed later.
#[test]
fn a_blocking_subscription_dead_letters_a_quarantined_event() {
    check(
        "block
         arrive 1! 2
         commit => dead (schemainvalid) 1 with its event, attempt 2",
    );
}

#[test]
fn a_retry_follows_its_commit_and_has_all_retries() {
    check(
        "block
         arrive 1 2 => attempt 1
         end 1 rejected | commit
         retry 1
         commit     => taken, read 1..=2
         read       => attempt 1 #2
         end 1 failed | commit
         record     => 1..=2 attempts 2 uncounted 1",
    );
}

#[test]
fn a_retry_does_not_wait_for_the_backoff() {
    check(
        "arrive 1     => attempt 1
         end 1 failed | commit
         retry 1
         commit       => taken, attempt 1 #2",
    );
}

/// Also of a lane that holds positions only, while it is blocked.
#[test]
fn a_skip_makes_the_head_a_dead_letter_and_the_lane_continues() {
    check(
        "block
         arrive 1 2 => attempt 1
         end 1 rejected | commit
         skip 1
         commit     => dead (skipped) 1 by ann, taken, read 2..=2
         read       => attempt 2",
    );
}

/// However its attempt ends: it is in the history, and the event stays settled.
#[test]
fn a_skipped_head_in_flight_is_settled_and_the_lane_waits_for_its_attempt() {
    check(
        "arrive 1 2      => attempt 1
         skip 1
         commit          => dead (skipped) 1 by ann with its event, taken
         end 1 delivered => attempt 2
         commit",
    );
}

/// A command is conditional on the state that it names.
#[test]
fn a_command_about_an_earlier_state_changes_nothing() {
    check(
        "block
         arrive 1 2 => attempt 1
         end 1 rejected | commit
         skip 2 | commit      => not applicable
         retry 2 | commit     => not applicable
         resume lane | commit => not applicable
         replay 1 | commit    => not applicable
         record               => 1..=2 attempts 1 uncounted 0 blocked",
    );
}

#[test]
fn a_paused_lane_survives_a_crash_and_holds_no_memory() {
    check(
        "pause lane | commit => taken
         crash
         arrive 1 2 3
         memory      => 0 events
         resume lane
         commit      => taken, read 1..=3
         read        => attempt 1",
    );
}

/// Operators skip the head that the record has, so an arrival that becomes one is committed. The third event needs no commit.
#[test]
fn the_first_event_of_a_paused_lane_is_recorded() {
    for pause in ["pause lane | commit => taken", "pause | commit"] {
        check(&format!(
            "{pause}
             arrive 1 | commit
             record            => 1..=1 attempts 0 uncounted 0
             arrive 2 | commit
             arrive 3 | commit
             record            => 1..=2 attempts 0 uncounted 0"
        ));
    }
}

/// 410 of one event pauses the subscription, and no event of it is lost or uses up a retry. After a crash before the catalog has
/// the pause, the receiver is called again, once.
#[test]
fn a_retired_endpoint_pauses_its_subscription_and_keeps_everything() {
    check(
        "arrive 1 2@1  => attempt 1, attempt 2
         end 1 retired => pause
         end 2 retired
         commit
         record        => 1..=1 attempts 1 uncounted 1, 2..=2 attempts 1 uncounted 1
         crash         => read 1..=1, read 2..=2
         read          => attempt 1 #2",
    );
}

/// An answer of the endpoint of an earlier revision pauses nothing: the event is attempted by the new policy at once.
#[test]
fn a_retired_endpoint_of_an_earlier_revision_is_of_no_account() {
    check(
        "arrive 1      => attempt 1
         resume
         end 1 retired => attempt 1 #2",
    );
}

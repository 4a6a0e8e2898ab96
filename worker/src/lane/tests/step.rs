//! Steps of the model, in random order.

use super::*;

#[derive(Debug, Clone)]
pub enum Step {
    Append {
        workflow: u8,
        quarantined: bool,
    },
    Read,
    Backfill,
    End {
        which: u8,
        result: u8,
        /// Of a batch.
        accepted: u8,
    },
    /// The catalog takes a pause that was asked for.
    TakePause,
    TakeCommit,
    Commit,
    CatchUp {
        which: u8,
        few: bool,
    },
    Load {
        which: u8,
    },
    Wait {
        seconds: u8,
    },
    Pause {
        subscription: u8,
    },
    Resume {
        subscription: u8,
    },
    Redrive {
        which: u8,
    },
    Crash {
        committed: bool,
    },
    Resolve {
        which: u8,
    },
    Replay {
        subscription: u8,
        which: u8,
    },
    OrderReplay {
        which: u8,
        order: u8,
    },
    RetryLane {
        which: u8,
    },
    SkipLane {
        which: u8,
    },
    PauseLane {
        subscription: u8,
        workflow: u8,
    },
    ResumeLane {
        subscription: u8,
        workflow: u8,
    },
    /// The wall clocks step: this owner's lanes do not notice, the next owner's clock is another.
    SetClock {
        hours: i16,
    },
    /// Another part of the log leaves it soon.
    Age {
        events: u8,
    },
    /// An event's payload is erased: settled, waiting, under way, or not read yet.
    Erase {
        which: u8,
    },
    /// The owner learns how far the one before may have read.
    LearnEnd,
    /// Another filter.
    Refilter {
        subscription: u8,
        narrow: bool,
    },
    /// The catalog loses a subscription.
    Lose {
        subscription: u8,
    },
    Adopt {
        subscription: u8,
    },
    /// An operator removes a subscription.
    Remove {
        subscription: u8,
    },
    /// An operator discards a subscription that was lost.
    Discard {
        subscription: u8,
    },
    /// A subscription that has ended is in the catalog again, with its uid.
    BringBack {
        subscription: u8,
    },
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        7 => (0..WORKFLOWS).prop_map(|workflow| Step::Append { workflow, quarantined: false }),
        1 => (0..WORKFLOWS).prop_map(|workflow| Step::Append { workflow, quarantined: true }),
        8 => Just(Step::Read),
        4 => Just(Step::Backfill),
        10 => (any::<u8>(), 0u8..24, 0u8..8)
            .prop_map(|(which, result, accepted)| Step::End { which, result, accepted }),
        6 => Just(Step::TakeCommit),
        6 => Just(Step::Commit),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(which, few)| Step::CatchUp { which, few }),
        2 => any::<u8>().prop_map(|which| Step::Load { which }),
        2 => Just(Step::TakePause),
        4 => (1u8..20).prop_map(|seconds| Step::Wait { seconds }),
        1 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Pause { subscription }),
        2 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Resume { subscription }),
        2 => any::<u8>().prop_map(|which| Step::Redrive { which }),
        1 => any::<u8>().prop_map(|which| Step::Resolve { which }),
        1 => (0..SUBSCRIPTIONS, any::<u8>()).prop_map(|(subscription, which)| Step::Replay { subscription, which }),
        1 => (any::<u8>(), 0u8..4).prop_map(|(which, order)| Step::OrderReplay { which, order }),
        1 => any::<u8>().prop_map(|which| Step::RetryLane { which }),
        1 => any::<u8>().prop_map(|which| Step::SkipLane { which }),
        1 => (0..SUBSCRIPTIONS, 0..WORKFLOWS)
            .prop_map(|(subscription, workflow)| Step::PauseLane { subscription, workflow }),
        2 => (0..SUBSCRIPTIONS, 0..WORKFLOWS)
            .prop_map(|(subscription, workflow)| Step::ResumeLane { subscription, workflow }),
        1 => (1u8..6).prop_map(|events| Step::Age { events }),
        1 => (-170i16..=170).prop_map(|hours| Step::SetClock { hours }),
        1 => any::<bool>().prop_map(|committed| Step::Crash { committed }),
        2 => any::<u8>().prop_map(|which| Step::Erase { which }),
        2 => Just(Step::LearnEnd),
        2 => (0..SUBSCRIPTIONS, any::<bool>())
            .prop_map(|(subscription, narrow)| Step::Refilter { subscription, narrow }),
        1 => ending(),
    ]
}

/// How subscriptions come to be missing, and to be there again.
fn ending() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Lose { subscription }),
        4 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Adopt { subscription }),
        1 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Remove { subscription }),
        1 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Discard { subscription }),
        3 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::BringBack { subscription }),
    ]
}

impl Model {
    /// Performs a step, if it is possible now.
    pub fn run(&mut self, step: Step) {
        match step {
            Step::Append { workflow, quarantined } => {
                let reason = quarantined.then_some(QUARANTINE);
                self.log.push(quarantined_event(self.log.len() as u64 + 1, workflow, reason));
            }
            Step::Read => self.read(),
            Step::Backfill => drop(self.backfill()),
            Step::End { which, result, accepted } if !self.attempts.is_empty() => {
                let attempt = self.attempts.swap_remove(usize::from(which) % self.attempts.len());
                let (result, status) = match result {
                    0..9 => (AttemptResult::Delivered, 200),
                    9..14 => (AttemptResult::Failed, 500),
                    14..17 => (AttemptResult::Unavailable, 503),
                    17..19 => (AttemptResult::Unreachable, 0),
                    19..21 => (AttemptResult::Rejected, 400),
                    21..22 => (AttemptResult::EndpointRetired, 410),
                    _ => (AttemptResult::Held, 0),
                };
                // More often than not as a whole.
                let attributed = accepted == 0;
                let accepted = usize::from(accepted.saturating_sub(4)).min(attempt.seqs.len() - 1);
                self.end_after(attempt, accepted, attributed, result, status);
            }
            Step::TakeCommit => self.commits_taken.extend(self.lanes.take_commit()),
            Step::Commit => self.commit(),
            Step::CatchUp { which, few } if !self.catch_ups.is_empty() => {
                let which = usize::from(which) % self.catch_ups.len();
                self.catch_up(which, few);
            }
            Step::Load { which } if !self.loads.is_empty() => {
                let work = self.loads.swap_remove(usize::from(which) % self.loads.len());
                let event = self.log[work.seq.0 as usize - 1].clone();
                self.handle(Input::Loaded { work, event: Some(event) });
            }
            Step::TakePause => {
                if let Some((uid, revision)) = self.pauses.pop() {
                    let subscription = uid.as_bytes()[0] - 1;
                    let is_there = !self.missing.contains(&subscription) && !self.removed.contains(&subscription);
                    let is_current = self.revisions[&subscription] == revision;
                    if is_there && is_current && !self.paused.contains(&subscription) {
                        self.pause(subscription, true);
                    }
                }
            }
            Step::Wait { seconds } => {
                self.now = self.now.checked_add(SignedDuration::from_secs(i64::from(seconds))).unwrap();
                self.handle(Input::TimerFired);
            }
            Step::Pause { subscription } => self.pause(subscription, true),
            Step::Resume { subscription } => self.pause(subscription, false),
            Step::Redrive { which } => {
                if let Some(item) = self.dead_letter(which) {
                    self.command(CommandAction::Redrive(vec![item]));
                }
            }
            Step::Resolve { which } => {
                if let Some(item) = self.dead_letter(which) {
                    self.command(CommandAction::Close { kind: internal::OutcomeKind::Resolved, items: vec![item] });
                }
            }
            Step::Replay { subscription, which } if !self.log.is_empty() => {
                let event = &self.log[usize::from(which) % self.log.len()];
                let item = item(subscription, event, Run::LIVE);
                self.command(CommandAction::Replay { items: vec![item], min_interval: None });
            }
            Step::OrderReplay { which, order } if !self.record.runs.is_empty() => {
                let runs: Vec<u64> = self.record.runs.keys().map(|(_, _, run)| *run).collect();
                let run = Run(runs[usize::from(which) % runs.len()]);
                let orders =
                    [ReplayCommand::Pause, ReplayCommand::Resume, ReplayCommand::Cancel, ReplayCommand::Reopen];
                self.command(CommandAction::Runs { run, command: orders[usize::from(order)] });
            }
            Step::RetryLane { which } => {
                if let Some((lane, head, _)) = self.head(which) {
                    let key = if lane.subscription == uid(UNORDERED) { lane.of_event(head.seq) } else { lane.clone() };
                    self.retry_at.remove(&(key, head.seq, Run::LIVE));
                    self.command(CommandAction::Lane { lane, command: LaneCommand::Retry { head } });
                }
            }
            Step::SkipLane { which } => {
                if let Some((lane, head, event)) = self.head(which) {
                    self.command(CommandAction::Lane { lane, command: LaneCommand::Skip { head, event } });
                }
            }
            Step::PauseLane { subscription, workflow } => {
                self.command(CommandAction::Lane { lane: lane(subscription, workflow), command: LaneCommand::Pause });
            }
            Step::ResumeLane { subscription, workflow } => {
                self.command(CommandAction::Lane { lane: lane(subscription, workflow), command: LaneCommand::Resume });
            }
            Step::SetClock { hours } => self.skew = SignedDuration::from_hours(i64::from(hours)),
            Step::Age { events } => self.age((self.record.aged + u64::from(events)).min(self.log.len() as u64)),
            Step::Refilter { subscription, narrow } => self.refilter(subscription, narrow),
            Step::Erase { which } if !self.log.is_empty() => self.erase(usize::from(which) % self.log.len()),
            Step::Lose { subscription } => self.lose(subscription),
            Step::Adopt { subscription } => self.adopt(subscription),
            Step::Remove { subscription } => self.remove(subscription),
            Step::Discard { subscription } => self.discard(subscription),
            Step::BringBack { subscription } => self.bring_back(subscription),
            Step::LearnEnd => {
                self.earlier_end = Some(self.log_at_crash);
                self.handle(Input::EarlierEnd { through: StreamSeq(self.log_at_crash as u64) });
            }
            Step::Crash { committed } => self.crash(committed),
            Step::End { .. }
            | Step::CatchUp { .. }
            | Step::Erase { .. }
            | Step::Load { .. }
            | Step::Replay { .. }
            | Step::OrderReplay { .. } => {}
        }
    }
}

//! The end of a process, and of a run: the promises that can only be judged then.

use super::{model::new_lanes, *};

impl Model {
    pub fn crash(&mut self, committed: bool) {
        if committed {
            // A commit whose ack was lost: the next owner reads it.
            if let Some(pending) = self.commits_taken.pop_front() {
                self.record.apply(&pending.commit);
            }
        }
        self.commits_taken.clear();
        self.record.excused.clear();
        self.catch_ups.clear();
        self.loads.clear();
        for attempt in std::mem::take(&mut self.attempts) {
            // What was under way may have arrived.
            let arrived = attempt.id.0 as usize % (attempt.seqs.len() + 1);
            attempt.works().take(arrived).for_each(|work| self.receive(&work));
        }
        self.delivered.clear();
        self.gone.clear();
        self.pauses.clear();
        self.detached = self.record.detached();
        self.held.clear();
        self.failing.clear();
        self.record.receivers.clear();
        self.retry_at = self
            .record
            .not_before
            .iter()
            .filter(|(_, at)| **at > 0)
            .map(|((subscription, seq, run), at)| {
                let workflow = self.log[*seq as usize - 1].event.workflow.clone();
                let lane = LaneKey::of_workflow(SubscriptionUid::from_slice(subscription).unwrap(), workflow);
                let unordered = *subscription == uid(UNORDERED).to_vec();
                let lane = if unordered { lane.of_event(StreamSeq(*seq)) } else { lane };
                ((lane, StreamSeq(*seq), Run(*run)), Timestamp::from_millisecond(*at).unwrap())
            })
            .collect();
        let skew = std::mem::take(&mut self.skew);
        self.now = self.now.checked_add(skew).unwrap();
        if !skew.is_zero() {
            // By this clock the moments of the record mean nothing; what bounds the waits is checked below.
            self.retry_at.clear();
            self.record.not_before.clear();
        }
        self.log_at_crash = self.log.len();
        self.earlier_end = None;
        self.deferred.clear();
        self.lanes = new_lanes(self.seed, self.mutant, self.record.restored(), self.now);
        self.read = self.record.cursor as usize;
        // What a subscription took that was opened without a commit, it has not taken.
        let (record, cursor) = (&self.record, self.record.cursor);
        let through = |number| record.ended_through(uid(number)).map_or(cursor, |ended| ended.min(cursor));
        self.taken.retain(|(number, seq), _| *seq <= through(*number));
        self.unrouted.retain(|seq| *seq <= self.record.cursor);
        let closed = self.record.closed.iter().map(|(uid, through)| (uid[0] - 1, *through));
        self.closed = closed.collect();
        for subscription in 0..SUBSCRIPTIONS {
            let state = self.record.subscriptions.get(&uid(subscription).to_vec());
            let newest = state.and_then(|state| state.filters.last());
            let narrow = newest.is_some_and(|filter| filter.types == policy_of(subscription, false, 1, true).types);
            self.force(subscription, narrow);
        }
        self.subscribe();
        self.age(self.record.aged);
        self.check_waits();
    }

    /// L9: no wait is longer than the policy's, for any clock of the previous owner.
    fn check_waits(&self) {
        if let Some(at) = self.lanes.schedule.timers().last() {
            let wait = at.duration_since(self.now);
            assert!(wait <= WAIT_MAX, "L9: a wait of {wait:?}");
        }
    }

    /// No more faults: everything comes to its end.
    pub fn heal(&mut self) {
        self.run(Step::LearnEnd);
        for subscription in 0..SUBSCRIPTIONS {
            self.adopt(subscription);
            self.pause(subscription, false);
        }
        for _ in 0..100_000 {
            if self.read < self.log.len() {
                self.read();
            } else if self.backfill() {
            } else if let Some(attempt) = self.attempts.pop() {
                self.end(attempt, AttemptResult::Delivered);
            } else if !self.catch_ups.is_empty() {
                self.catch_up(0, false);
            } else if let Some(work) = self.loads.pop() {
                let event = self.log[work.seq.0 as usize - 1].clone();
                self.handle(Input::Loaded { work, event: Some(event) });
            } else if let Some(pending) = self.lanes.take_commit() {
                self.commits_taken.push_back(pending);
                while !self.commits_taken.is_empty() {
                    self.commit();
                }
            } else if !self.commits_taken.is_empty() {
                self.commit();
            } else if let Some(at) = self.lanes.next_deadline() {
                self.check_waits();
                self.now = self.now.max(at);
                self.handle(Input::TimerFired);
            } else if let Some(order) = self.paused_by_operators() {
                self.command(order);
            } else {
                return self.check_end();
            }
        }
        panic!("L4: it does not come to an end");
    }

    /// A command that resumes a paused lane or run.
    fn paused_by_operators(&self) -> Option<CommandAction> {
        let lane = self.record.lanes.values().find(|lane| lane.paused).map(|lane| {
            let subscription = SubscriptionUid::from_slice(&lane.subscription).unwrap();
            let workflow = WorkflowId::new(lane.workflow_id.as_str()).unwrap();
            CommandAction::Lane { lane: LaneKey::of_workflow(subscription, workflow), command: LaneCommand::Resume }
        });
        let run = || self.record.runs.values().find(|run| run.paused);
        lane.or_else(|| run().map(|run| CommandAction::Runs { run: Run(run.run), command: ReplayCommand::Resume }))
    }

    fn check_end(&self) {
        for subscription in 0..SUBSCRIPTIONS {
            let ended = self.closed.get(&subscription).copied().unwrap_or_default();
            for event in self.log.iter().filter(|event| self.takes(subscription, event.seq)) {
                let outcomes = self.record.outcomes.get(&(uid(subscription).to_vec(), event.seq.0, 0));
                if event.seq.0 <= ended {
                    assert!(outcomes.is_none_or(|(count, _)| *count == 1), "L3: event {} ends once", event.seq);
                    continue;
                }
                assert_eq!(outcomes.map(|(count, _)| *count), Some(1), "L3, L4: event {} of {subscription}", event.seq);
                let dead = outcomes.is_some_and(|(_, kind)| *kind == i32::from(internal::OutcomeKind::DeadLettered));
                // An erased one may have been delivered before.
                let is_quarantined = event.event.quarantine.is_some() && !event.event.is_erased();
                assert!(dead || !is_quarantined, "L6: event {} of {subscription}", event.seq);
            }
        }
        for seq in &self.unrouted {
            let unrouted = self.record.outcomes.get(&(vec![], *seq, 0)).map(|(_, kind)| *kind);
            assert_eq!(unrouted, Some(internal::OutcomeKind::Unrouted.into()), "P5: event {seq} is unrouted");
        }
        for ((uid, seq, run), _) in self.record.outcomes.iter().filter(|((uid, ..), _)| !uid.is_empty()) {
            assert!(*run > 0 || self.takes(uid[0] - 1, StreamSeq(*seq)), "L10: {seq} was not taken");
        }
        let available = i32::from(v1::ReceiverCondition::Available);
        assert!(self.record.receivers.values().all(|state| *state == available), "the record knows that all are back");
        assert!(self.lost.is_empty(), "L4: the log has lost nothing");
        assert!(self.record.runs.is_empty(), "L4: every redrive settles");
        assert_eq!(self.lanes.buffered_bytes(), 0, "no event is left in memory");
        // Lanes that only await a commit that nothing forces may linger; they hold no event.
        assert_eq!(self.lanes.attempts_in_flight(), 0);
    }
}

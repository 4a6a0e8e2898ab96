//! Attempts of the model: what is checked as one begins, and what becomes of its events as it ends.

use super::*;

impl Model {
    pub fn attempt(&mut self, id: AttemptId, work: Work, events: &[Arc<StoredEvent>], number: u32) {
        assert_eq!(events[0].seq, work.seq);
        assert!(number >= 1);
        let is_batch = work.lane.event.is_none() && work.run == Run::LIVE;
        let batch_max = if is_batch { self.batch } else { 1 };
        assert!(events.len() <= batch_max, "L11: a batch of {}", events.len());
        assert!(self.attempts.iter().all(|other| other.work.lane != work.lane), "L2: one attempt of a lane in flight");
        assert!(self.attempts.len() < limits().attempts_max, "L5: attempts in flight");
        // What is quarantined settles at its turn without an attempt: at most one a lane until that is committed.
        let uncommitted_max = limits().uncommitted_max + usize::from(SUBSCRIPTIONS * WORKFLOWS);
        assert!(self.lanes.pending.uncommitted_outcomes() < uncommitted_max, "L5: outcomes that wait for their commit");
        let of_subscription = |attempt: &&Attempt| attempt.work.lane.subscription == work.lane.subscription;
        assert!(self.attempts.iter().filter(of_subscription).count() < 2, "L5: concurrency of the subscription");
        let subscription = work.lane.subscription.as_bytes()[0] - 1;
        assert!(!self.paused.contains(&subscription), "L5: paused");
        assert!(!self.missing.contains(&subscription), "L10: missing from the catalog");
        let lane = recorded_lane(&work.lane.workflow_lane());
        assert!(!self.record.lanes.get(&lane).is_some_and(|lane| lane.paused), "L5: paused lane");
        assert_eq!(work.lane.event, (subscription == UNORDERED).then_some(work.seq), "lanes of one event");
        let fresh = number == 1 && !self.failing.contains(&(work.lane.subscription, work.lane.workflow.clone()));
        if let Some(open) = self.held.get_mut(&work.lane.subscription)
            && (!fresh || open.cause == Cause::Held)
        {
            assert_eq!(open.probe.replace(id), None, "L5: an open circuit lets one probe through");
        }
        let revision = self.revisions[&subscription];
        assert!(!self.gone.contains(&(subscription, revision)), "L5: gone");
        let retry_at = self.retry_at.get(&(work.lane.clone(), work.seq, work.run));
        assert!(retry_at.is_none_or(|at| *at <= self.now), "L5: before its time");
        if work.run == Run::LIVE {
            for (index, event) in events.iter().enumerate() {
                self.check_live(&work.lane, event, &events[..index]);
            }
        } else {
            let key = (work.lane.subscription.to_vec(), work.seq.0, work.run.0);
            assert!(self.record.runs.contains_key(&key), "a redrive is attempted only when committed");
        }
        let seqs = events.iter().map(|event| event.seq).collect();
        self.attempts.push(Attempt { id, work, seqs, number, revision });
    }

    /// A live event is attempted, in a batch behind these.
    fn check_live(&self, lane: &LaneKey, event: &StoredEvent, batch: &[Arc<StoredEvent>]) {
        let (uid, seq) = (lane.subscription, event.seq);
        let subscription = uid.as_bytes()[0] - 1;
        assert!(self.takes(subscription, seq), "L10: not taken at its place");
        assert_eq!(event.event.quarantine, None, "L6: what is quarantined is not attempted");
        assert_eq!(event.event.workflow, lane.workflow, "L11: a batch is of one lane");
        for earlier in self.log.iter().take_while(|earlier| earlier.seq < seq && lane.event.is_none()) {
            if earlier.event.workflow == lane.workflow && self.takes(subscription, earlier.seq) {
                let ended = self.closed.get(&subscription).is_some_and(|closed| earlier.seq.0 <= *closed);
                let settled = ended
                    || batch.iter().any(|before| before.seq == earlier.seq)
                    || self.delivered.contains(&(lane.clone(), earlier.seq))
                    || self.record.outcomes.contains_key(&(uid.to_vec(), earlier.seq.0, 0));
                assert!(settled, "L1: {seq} is attempted before {} is settled", earlier.seq);
            }
        }
        let in_order = batch.last().is_none_or(|before| before.seq < seq);
        assert!(in_order, "L11: a batch is in order");
        let settled = (uid.to_vec(), seq.0, 0);
        assert!(!self.record.outcomes.contains_key(&settled), "L3: settled events are not attempted");
    }

    pub fn end(&mut self, attempt: Attempt, result: AttemptResult) {
        self.end_with(attempt, result, if result == AttemptResult::EndpointRetired { 410 } else { 500 });
    }

    /// All its events end with this result: where it is a failure, the first is as little known to be at fault as the others.
    pub fn end_with(&mut self, attempt: Attempt, result: AttemptResult, status: u16) {
        self.end_after(attempt, 0, false, result, status);
    }

    /// The first events, of which there is a next one unless all are delivered, are accepted. `attributed`: a failure is known
    /// to be of the next one.
    pub fn end_after(
        &mut self,
        attempt: Attempt,
        accepted: usize,
        attributed: bool,
        result: AttemptResult,
        status: u16,
    ) {
        let events = attempt.seqs.len();
        let accepted = if result == AttemptResult::Delivered { events } else { accepted };
        for work in attempt.works().take(accepted) {
            self.receive(&work);
            self.record.accepted.insert((work.lane.subscription.to_vec(), work.seq.0, work.run.0));
            if work.run == Run::LIVE {
                self.delivered.insert((work.lane.clone(), work.seq));
            }
        }
        let number = if accepted == 0 { attempt.number } else { 1 };
        // Where all are accepted, the last stands for them.
        let work = attempt.works().nth(accepted).or(attempt.works().last()).unwrap();
        let is_attributed = attributed || accepted > 0 || events == 1;
        if is_attributed && result != AttemptResult::Delivered {
            self.record.at_fault.insert((work.lane.subscription.to_vec(), work.seq.0, work.run.0));
        }
        let uid = work.lane.subscription;
        if let Some(open) = self.held.get_mut(&uid)
            && open.probe == Some(attempt.id)
        {
            open.probe = None;
        }
        // For as long as a receiver is believed to be away that answers with failures.
        let believed = |open: &Open| self.now.duration_since(open.since) < circuit::BELIEVED;
        // An accepted event closes the circuit.
        let is_away = accepted == 0 && self.held.get(&uid).is_some_and(believed);
        let excused = result == AttemptResult::Unreachable || is_away;
        if result.is_transient() && result != AttemptResult::Held && excused {
            self.record.excused.insert((uid.to_vec(), work.seq.0, work.run.0, number));
        }
        let named = (uid, work.lane.workflow.clone());
        if matches!(result, AttemptResult::Failed | AttemptResult::Unavailable) {
            self.failing.insert(named);
        } else if !result.is_transient() {
            self.failing.remove(&named);
        }
        let end = AttemptEnd {
            result,
            is_attributed,
            class: match result {
                AttemptResult::Delivered => v1::AttemptClass::Delivered,
                AttemptResult::Unreachable => v1::AttemptClass::Connect,
                AttemptResult::Held => v1::AttemptClass::RefusedAddress,
                _ => v1::AttemptClass::HttpStatus,
            },
            status,
            error: "status 500".into(),
            response: Bytes::new(),
            retry_after: None,
            started_at: self.now,
            ended_at: self.now,
            connected_ms: None,
            answered_ms: None,
        };
        let subscription = work.lane.subscription.as_bytes()[0] - 1;
        if result == AttemptResult::EndpointRetired && self.revisions[&subscription] == attempt.revision {
            self.gone.insert((subscription, attempt.revision));
        }
        if result.is_transient() && result != AttemptResult::Held {
            // The shortest wait that the policy allows.
            let at = self.now.checked_add(SignedDuration::from_millis(2400)).unwrap();
            self.retry_at.insert((work.lane, work.seq, work.run), at);
        }
        let delivered = AttemptEnd {
            result: AttemptResult::Delivered,
            class: v1::AttemptClass::Delivered,
            status: 200,
            ..end.clone()
        };
        let mut ends = vec![delivered; accepted];
        if result != AttemptResult::Delivered {
            ends.push(end);
        }
        self.handle(Input::AttemptFinished { attempt: attempt.id, ends });
    }

    pub fn receive(&mut self, work: &Work) {
        if work.run == Run::LIVE {
            let received = self.received.entry(work.lane.clone()).or_default();
            if !received.contains(&work.seq) {
                assert!(received.last().is_none_or(|last| *last < work.seq), "P3: first arrivals are in order");
                received.push(work.seq);
            }
        }
    }
}

//! The model: a log, a receiver, a committed record, and a driver that answers at chosen times.

use std::collections::VecDeque;

use weft_catalog::{Filters, Match};

use super::{script::Shown, *};

pub struct Attempt {
    pub id: AttemptId,
    /// Of the first event.
    pub work: Work,
    pub seqs: Vec<StreamSeq>,
    pub number: u32,
    pub revision: u64,
}

impl Attempt {
    /// The delivery of each of its events.
    pub fn works(&self) -> impl Iterator<Item = Work> {
        self.seqs.iter().map(|seq| Work { seq: *seq, ..self.work.clone() })
    }
}

/// An open circuit.
#[derive(Debug)]
pub struct Open {
    pub cause: Cause,
    pub since: Timestamp,
    /// The attempts of lanes that are not fresh, started since.
    pub probe: Option<AttemptId>,
}

pub struct Model {
    pub lanes: Lanes,
    pub now: Timestamp,
    pub log: Vec<Arc<StoredEvent>>,
    pub read: usize,
    pub record: Record,
    pub commits_taken: VecDeque<PendingCommit>,
    pub attempts: Vec<Attempt>,
    pub catch_ups: Vec<(LaneKey, StreamSeq, StreamSeq, usize)>,
    pub loads: Vec<Work>,
    pub pauses: Vec<(SubscriptionUid, u64)>,
    /// How far subscriptions have come that read on their own.
    pub detached: BTreeMap<SubscriptionUid, usize>,
    pub lost: Vec<(u64, u64)>,
    /// Subscriptions whose circuit is open.
    pub held: BTreeMap<SubscriptionUid, Open>,
    /// Workflows whose newest attempt failed.
    pub failing: BTreeSet<(SubscriptionUid, WorkflowId)>,
    pub paused: BTreeSet<u8>,
    /// Subscriptions that have their narrow filter in the catalog.
    pub narrow: BTreeSet<u8>,
    /// Subscriptions that events are matched for by their narrow filter.
    pub narrow_in_force: BTreeSet<u8>,
    /// Subscriptions that the catalog has lost.
    pub missing: BTreeSet<u8>,
    /// Subscriptions that have been removed from the catalog.
    pub removed: BTreeSet<u8>,
    /// Which events each subscription takes, of those that have been read.
    pub taken: BTreeMap<(u8, u64), bool>,
    /// Events that an earlier owner may have read: all that there were at its end, and what this owner knows of that.
    pub log_at_crash: usize,
    pub earlier_end: Option<usize>,
    /// Subscriptions whose filter in the catalog is wider than the recorded one, which counts for those events.
    pub deferred: BTreeSet<u8>,
    /// Events that no subscription took when they were read.
    pub unrouted: BTreeSet<u64>,
    /// Up to where everything of a subscription has ended with it.
    pub closed: BTreeMap<u8, u64>,
    pub revision: u64,
    pub revisions: BTreeMap<u8, u64>,
    /// Revisions whose receiver is gone, as far as this process knows.
    pub gone: BTreeSet<(u8, u64)>,
    /// Deliveries that this process has seen.
    pub delivered: BTreeSet<(LaneKey, StreamSeq)>,
    /// Live events that the receiver saw, in order of first arrival.
    pub received: BTreeMap<LaneKey, Vec<StreamSeq>>,
    pub retry_at: BTreeMap<(LaneKey, StreamSeq, Run), Timestamp>,
    /// How far the clock of the next owner is ahead of this one's.
    pub skew: SignedDuration,
    pub seed: u64,
    /// Events of a batch of ordered subscriptions.
    pub batch: usize,
    pub mutant: Option<Mutant>,
    /// The actions and outcomes of a script's subscription, in its words.
    pub shown: Option<Shown>,
}

/// One that has had no owner.
fn new_shard() -> Restored {
    Restored { earlier_end: Some(StreamSeq(0)), ..Restored::default() }
}

pub fn new_lanes(seed: u64, mutant: Option<Mutant>, restored: Restored, now: Timestamp) -> Lanes {
    let (mut limits, mut restored) = (limits_of(seed), restored);
    if let Some(mutant) = mutant {
        (limits, restored) = (mutant.limits(limits), mutant.restored(restored));
    }
    Lanes::new(limits, restored, now, StdRng::seed_from_u64(seed))
}

fn lanes_of_number(lanes: &Lanes, number: u8) -> usize {
    lanes.state.lanes_of(uid(number)).count()
}

impl Model {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, None)
    }

    pub fn with(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut model = Self {
            lanes: new_lanes(seed, mutant, new_shard(), Timestamp::UNIX_EPOCH),
            now: Timestamp::from_second(1_000_000).unwrap(),
            log: vec![],
            read: 0,
            record: Record::default(),
            commits_taken: Default::default(),
            attempts: vec![],
            catch_ups: vec![],
            loads: vec![],
            pauses: vec![],
            detached: BTreeMap::new(),
            lost: vec![],
            held: BTreeMap::new(),
            failing: BTreeSet::new(),
            paused: BTreeSet::new(),
            narrow: BTreeSet::new(),
            narrow_in_force: BTreeSet::new(),
            missing: BTreeSet::new(),
            removed: BTreeSet::new(),
            taken: BTreeMap::new(),
            log_at_crash: 0,
            earlier_end: Some(0),
            deferred: BTreeSet::new(),
            unrouted: BTreeSet::new(),
            closed: BTreeMap::new(),
            revision: 1,
            revisions: BTreeMap::new(),
            gone: BTreeSet::new(),
            delivered: BTreeSet::new(),
            received: BTreeMap::new(),
            retry_at: BTreeMap::new(),
            skew: SignedDuration::ZERO,
            seed,
            batch: batch_of(seed),
            mutant,
            shown: None,
        };
        model.subscribe();
        model.commit_all();
        model
    }

    fn filters(&self, uid: SubscriptionUid) -> Option<Arc<Filters>> {
        let filters = self.lanes.filters(uid);
        self.mutant.map_or(filters.clone(), |mutant| mutant.filters(filters))
    }

    /// Commits everything that has been decided.
    pub fn commit_all(&mut self) {
        while let Some(pending) = self.lanes.take_commit() {
            self.commits_taken.push_back(pending);
            while !self.commits_taken.is_empty() {
                self.commit();
            }
        }
    }

    /// Answers all reads of lanes.
    pub fn catch_up_all(&mut self) {
        while !self.catch_ups.is_empty() {
            self.catch_up(0, false);
        }
    }

    /// The sequences of the events in flight.
    pub fn attempted(&self) -> Vec<u64> {
        self.attempts.iter().flat_map(|attempt| &attempt.seqs).map(|seq| seq.0).collect()
    }

    pub fn handle(&mut self, input: Input) {
        let mut actions = vec![];
        let still: Vec<_> = self.paused.iter().map(|number| uid(*number)).collect();
        let all: Vec<_> = (0..UNORDERED).map(|number| lanes_of_number(&self.lanes, number)).collect();
        let lanes_of = |lanes: &Lanes, uid| lanes.state.lanes_of(uid).count();
        let before: Vec<_> = still.iter().map(|uid| lanes_of(&self.lanes, *uid)).collect();
        let arrival = matches!(input, Input::Arrived { .. });
        match self.mutant {
            Some(mutant) => mutant.handle(&mut self.lanes, input, self.now, &mut actions),
            None => self.lanes.handle(input, self.now, &mut actions),
        }
        for (uid, before) in still.into_iter().zip(before).filter(|_| arrival) {
            let lanes = lanes_of(&self.lanes, uid);
            assert!(lanes <= before.max(limits().still_lanes_max), "bound of lanes of a paused subscription");
        }
        // Event lanes have a separate bound.
        for (number, before) in (0..UNORDERED).zip(all).filter(|_| arrival) {
            let lanes = lanes_of_number(&self.lanes, number);
            assert!(lanes <= before.max(limits_of(self.seed).lanes_max), "bound of lanes");
        }
        if let Some(shown) = &mut self.shown {
            actions.iter().for_each(|action| shown.action(action));
        }
        for action in actions {
            match action {
                Action::Attempt { id, work, events, number, .. } => self.attempt(id, work, &events, number),
                Action::CatchUp { lane, from, through, limit } => self.catch_ups.push((lane, from, through, limit)),
                Action::Load { work, .. } => self.loads.push(work),
                Action::Detach { uid } => {
                    let after = self.lanes.detached_through(uid).unwrap();
                    assert!(self.detached.insert(uid, after.0 as usize).is_none(), "P3: detached once");
                }
                Action::Pause { uid, revision, .. } => self.pauses.push((uid, revision)),
                Action::Receiver { uid, condition } => self.receiver_changed(uid, condition),
                Action::Lost { from, through, .. } => self.lost.push((from.0, through.0)),
            }
        }
        let lane_events_max = limits().lane_events_max.max(2 * self.batch);
        let slack = lane_events_max * limits().catch_ups_max * event_bytes(&event(1, 0));
        assert!(self.lanes.buffered_bytes() <= limits().buffered_bytes_max + slack, "memory bound");
        // Lanes with runs, and those of expiring events, are not bounded.
        let waits = |key: &LaneKey, lane: &lane::Lane| {
            key.event.is_some() && !lane.is_settled() && lane.first().0 > self.record.aged && lane.runs.is_empty()
        };
        let event_lanes = self.lanes.state.lanes.iter().filter(|(key, lane)| waits(key, lane)).count();
        assert!(event_lanes <= limits().event_lanes_max, "bound of lanes of events");
    }

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

    pub fn receiver_changed(&mut self, uid: SubscriptionUid, condition: Option<Condition>) {
        let Some(Condition { cause, since, .. }) = condition else {
            assert!(self.held.remove(&uid).is_some(), "a circuit turns from one state to the other");
            return;
        };
        match self.held.get(&uid) {
            Some(open) if open.cause == cause => assert_eq!(open.since, since),
            _ => drop(self.held.insert(uid, Open { cause, since, probe: None })),
        }
    }

    pub fn age(&mut self, through: u64) {
        self.record.aged = through;
        self.handle(Input::Expiring { through: StreamSeq(through) });
    }

    pub fn read(&mut self) {
        let Some(event) = self.log.get(self.read).cloned() else { return };
        if !self.is_among_earlier() {
            for subscription in std::mem::take(&mut self.deferred) {
                self.force(subscription, false);
            }
        }
        self.read += 1;
        let seq = event.seq;
        let mut matching = vec![];
        let known: Vec<u8> =
            (0..SUBSCRIPTIONS).filter(|number| self.lanes.subscription(uid(*number)).is_some()).collect();
        for number in known {
            let taken = filter_takes(number, self.narrow_in_force.contains(&number), seq.0);
            self.taken.insert((number, seq.0), taken);
            if taken && !self.missing.contains(&number) {
                matching.push(uid(number));
            }
        }
        let (detached, matching): (Vec<_>, Vec<_>) =
            matching.into_iter().partition(|uid| self.detached.contains_key(uid));
        let later = matching.is_empty() && (!detached.is_empty() || self.lanes.waits_for_owner(&event));
        if matching.is_empty() && !later {
            self.unrouted.insert(seq.0);
        }
        self.handle(if later { Input::Skipped { seq } } else { Input::Arrived { event, matching } });
    }

    /// A detached subscription reads one event, or joins. Whether one could.
    pub fn backfill(&mut self) -> bool {
        for (uid, cursor) in self.detached.clone() {
            if cursor == self.read {
                if !self.lanes.may_join(uid) {
                    continue;
                }
                self.detached.remove(&uid);
                self.handle(Input::Joined { uid });
                return true;
            }
            if self.lanes.reads_on(uid) {
                let event = self.log[cursor].clone();
                let filters = self.filters(uid).unwrap();
                let (seq, taken) = (event.seq, (filters.judge(&event) == Match::Taken).then_some(event));
                self.handle(Input::Backfilled { uid, seq, event: taken });
                self.detached.insert(uid, self.lanes.detached_through(uid).unwrap().0 as usize);
                return true;
            }
        }
        false
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

    pub fn commit(&mut self) {
        if let Some(pending) = self.commits_taken.pop_front() {
            if let Some(shown) = &mut self.shown {
                shown.commit(&pending);
            }
            self.record.apply(&pending.commit);
            self.handle(Input::CommitStored { number: pending.number });
        }
    }

    pub fn catch_up(&mut self, which: usize, few: bool) {
        let (lane, from, through, limit) = self.catch_ups.swap_remove(which);
        let filters = self.filters(lane.subscription);
        let takes = |event: &StoredEvent| filters.as_ref().is_none_or(|known| known.judge(event) != Match::Ignored);
        let limit = if few { 1 } else { limit };
        let mut events: Vec<_> = self
            .log
            .iter()
            .filter(|event| event.seq >= from && event.seq <= through)
            .filter(|event| event.event.workflow == lane.workflow && takes(event))
            .cloned()
            .collect();
        let through = if events.len() > limit {
            events.truncate(limit);
            events.last().unwrap().seq
        } else {
            through
        };
        self.handle(Input::CaughtUp { lane, events, through, gone: StreamSeq(0) });
    }

    pub fn pause(&mut self, subscription: u8, paused: bool) {
        if paused {
            self.paused.insert(subscription);
        } else {
            self.paused.remove(&subscription);
        }
        self.renew(subscription);
    }

    /// An open dead letter, as the committed record knows it.
    pub fn dead_letter(&self, which: u8) -> Option<RedriveItem> {
        let which = usize::from(which).checked_rem(self.record.open_dead.len())?;
        let ((subscription, seq), (run, _)) = self.record.open_dead.iter().nth(which)?;
        Some(item(subscription[0] - 1, &self.log[*seq as usize - 1], Run(*run)))
    }

    /// An unsettled lane and its head, from the committed record and the log.
    pub fn head(&self, which: u8) -> Option<(LaneKey, HeadRef, EventId)> {
        let which = usize::from(which).checked_rem(self.record.lanes.len())?;
        let ((subscription, workflow, _), state) = self.record.lanes.iter().nth(which)?;
        let subscription = subscription[0] - 1;
        let is_of_lane = |event: &&Arc<StoredEvent>| {
            event.event.workflow.as_str() == workflow
                && self.takes(subscription, event.seq)
                && event.seq.0 >= state.next
        };
        let event = self.log.iter().find(is_of_lane)?;
        let lane = LaneKey::of_workflow(uid(subscription), event.event.workflow.clone());
        Some((lane, HeadRef { seq: event.seq, next: StreamSeq(state.next) }, event.event.id))
    }

    /// A command comes from COMMANDS, which is read in order: it lies behind every one that was handed over.
    pub fn command(&mut self, order: CommandAction) {
        let command = Run(self.record.commands_cursor.max(self.lanes.commands_cursor()) + 1);
        let (operator, reason) = ("ann".into(), String::new());
        if matches!(&order, CommandAction::Lane { command: LaneCommand::Retry { .. }, .. }) {
            self.record.retries.insert(command.0);
        } else {
            // The number of a command that was lost with its owner, and is another's now.
            self.record.retries.remove(&command.0);
        }
        let request_id = format!("r{command}");
        let command = Command { run: command, request_id, operator, reason, action: order };
        self.handle(Input::CommandReceived(command));
    }
}

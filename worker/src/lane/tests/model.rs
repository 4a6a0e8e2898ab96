//! The model: a log, a receiver, a committed record, and a driver that answers at chosen times.

use std::collections::VecDeque;

use weft_catalog::{Filters, Match};

use super::{script::Shown, *};

mod attempts;

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
        // Reads under way come on top; and while the memory is full and nothing else can happen, one event at a time is read up
        // to twice the limit, of which the last may exceed it.
        let lane_events_max = limits().lane_events_max.max(2 * self.batch);
        let (max, one) = (limits().buffered_bytes_max, event_bytes(&event(1, 0)));
        let most = (max + lane_events_max * limits().catch_ups_max * one).max(2 * max + one);
        let bytes = self.lanes.buffered_bytes();
        assert!(bytes <= most, "memory bound: {bytes} bytes, of {most}");
        // Lanes with runs, and those of expiring events, are not bounded.
        let waits = |key: &LaneKey, lane: &lane::Lane| {
            key.event.is_some() && !lane.is_settled() && lane.first().0 > self.record.aged && lane.runs.is_empty()
        };
        let event_lanes = self.lanes.state.lanes.iter().filter(|(key, lane)| waits(key, lane)).count();
        assert!(event_lanes <= limits().event_lanes_max, "bound of lanes of events");
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

    /// The event at `index` of the log is erased. What is read from now on, also by the shared reader and by backfills, is
    /// what is left of it; the record comes after it.
    pub fn erase(&mut self, index: usize) {
        let stored = &self.log[index];
        let event = stored.event.clone().erased("by ann");
        let event = Arc::new(StoredEvent { event, ..StoredEvent::clone(stored) });
        self.log[index] = Arc::clone(&event);
        if index < self.read {
            self.handle(Input::Erased { event });
        }
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

//! The backlog of copies to be made: their order, and the events that must be kept for them. Pure.
//!
//! Copies wait only for those of the same subscription. A bounded number is in memory; of the others the commit is known from
//! which on they are missing, and they are read from OUTCOMES again when there is room. So a copy that cannot be made delays
//! neither the shard nor other subscriptions, and uses bounded memory.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use weft_nats::{backoff::Backoff, event::StoredEvent};
use weft_proto::{
    ids::{Run, StreamSeq, SubscriptionUid},
    internal, v1,
};

/// Copies of one subscription in memory: some seconds of work while the log is available.
const QUEUE_MAX: usize = 256;
/// Copies in memory, of all subscriptions: one or two megabytes of outcomes.
const COPIES_MAX: usize = 4096;
/// A subscription's copies in memory stay below this multiple of the free ones, so that another subscription finds room.
const SHARE: usize = 8;
/// Bytes of events in memory; above that, events are read again.
const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Shortest and longest pause of a subscription whose copy has failed.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
/// Refusals after which a copy is recorded as refused and the next one is made: the refusing server may be about to be
/// replaced.
const REFUSALS_MAX: u32 = 3;
/// Pause before a refused copy is tried again: an operator may have raised the limit.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Refused copies of one shard. Further ones stay missing, and their subscription's other copies wait.
const REFUSED_MAX: usize = 1000;
/// Consecutive failures after which a condition is shown.
const FAILURES_SHOWN: u32 = 3;

/// A copy that is to be made.
#[derive(Debug, Clone)]
pub struct PendingCopy {
    /// The OUTCOMES sequence of the commit that made the dead letter.
    pub position: u64,
    pub outcome: internal::Outcome,
    /// `None`: it is read from the log.
    pub event: Option<Arc<StoredEvent>>,
    /// How often it has been refused.
    pub refusals: u32,
}

/// Identity of a dead letter.
pub type DeadLetterId = (SubscriptionUid, StreamSeq, Run);

/// A copy that DLQ refuses, such as for its size.
#[derive(Debug, Clone)]
struct Refused {
    state: internal::CopyState,
    outcome: internal::Outcome,
    try_at: Instant,
}

/// Result of making a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyResult {
    /// It is stored.
    Stored,
    /// Its event is no longer in the log.
    Lost,
    /// DLQ refuses it, and would again.
    Refused(String),
    /// It failed, and may succeed later.
    Failed(String),
}

/// The next job.
#[derive(Debug)]
pub enum CopyJob {
    /// Make a copy, the only one of its subscription under way.
    Copy(SubscriptionUid, PendingCopy),
    /// Try a refused copy again.
    Retry(DeadLetterId, internal::Outcome),
    /// Read commits of OUTCOMES with missing copies.
    Read { from: u64, through: u64 },
    /// Wait until this time, or until another job ends or a commit is added.
    Wait(Option<Instant>),
}

/// Copies that were skipped for lack of room.
#[derive(Debug, Clone, Copy)]
struct Skipped {
    /// They are in commits from here on.
    from: u64,
    /// The lowest sequence of their events.
    lowest: u64,
}

#[derive(Debug, Default)]
struct Queue {
    copies: VecDeque<PendingCopy>,
    skipped: Option<Skipped>,
    under_way: bool,
    not_before: Option<Instant>,
    failures: u32,
    problem: String,
}

impl PendingCopy {
    /// Whether another refusal is the last one.
    pub fn is_last_try(&self) -> bool {
        self.refusals + 1 >= REFUSALS_MAX
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.copies.is_empty() && self.skipped.is_none()
    }
}

/// The events that must stay in EVENTS for copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon {
    /// According to the commits up to here.
    pub outcomes: StreamSeq,
    /// From this sequence on; `None`: nothing.
    pub keep_from: Option<StreamSeq>,
}

/// Problems with copies, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopyProblems {
    /// Number of waiting copies in memory.
    pub waiting: usize,
    /// Subscriptions whose copies fail, and the error.
    pub failing: Vec<(SubscriptionUid, String)>,
    /// Refused copies.
    pub refused: Vec<internal::CopyState>,
}

/// The copies of one shard.
#[derive(Debug)]
pub struct Backlog {
    queues: BTreeMap<SubscriptionUid, Queue>,
    count: usize,
    event_bytes: usize,
    /// Commits from here on have not been read: those of earlier owners, and those stored while these are read.
    unread: Option<u64>,
    /// The newest commit.
    end: u64,
    refused: BTreeMap<DeadLetterId, Refused>,
    /// Copies that the next commit records.
    news: Vec<internal::CopyState>,
    reading: bool,
    retrying: bool,
    /// The subscription that had the last turn.
    last: Option<SubscriptionUid>,
}

impl Backlog {
    /// A backlog at `end` of OUTCOMES: copies are made up to `copied`, but for those that are recorded as refused.
    pub fn new(copied: u64, end: u64, refused: Vec<internal::CopyState>, now: Instant) -> Self {
        let refused = refused.into_iter().filter_map(|state| {
            let outcome = state.outcome.clone()?;
            Some((dead_letter_id(&outcome)?, Refused { state, outcome, try_at: now }))
        });
        Self {
            queues: BTreeMap::new(),
            count: 0,
            event_bytes: 0,
            unread: (copied < end).then_some(copied + 1),
            end,
            refused: refused.collect(),
            news: Vec::new(),
            reading: false,
            retrying: false,
            last: None,
        }
    }

    /// A commit is stored; `events` are those of its dead letters that are in memory.
    pub fn add(&mut self, position: u64, commit: &internal::Commit, events: Vec<Arc<StoredEvent>>) {
        self.end = self.end.max(position);
        self.close(commit);
        if self.unread.is_some() {
            return;
        }
        let events: HashMap<u64, Arc<StoredEvent>> = events.into_iter().map(|event| (event.seq.0, event)).collect();
        self.take(position, &commit.outcomes, &events, |queue| queue.skipped.is_none());
    }

    /// Commits of `from..=known`, read for a [`CopyJob::Read`].
    pub fn read(&mut self, from: u64, known: u64, commits: &[(u64, internal::Commit)]) {
        self.reading = false;
        let unread = self.unread;
        let wanted: BTreeMap<SubscriptionUid, u64> =
            self.queues.iter().filter_map(|(uid, queue)| Some((*uid, queue.skipped?.from))).collect();
        // They are missing from here on; those that find no room are skipped again.
        for uid in wanted.keys() {
            if let Some(queue) = self.queues.get_mut(uid)
                && let Some(skipped) = &mut queue.skipped
                && skipped.from >= from
            {
                skipped.from = skipped.from.max(known + 1);
            }
        }
        for (position, commit) in commits.iter().filter(|(position, _)| *position <= known) {
            let is_unread = unread.is_some_and(|first| first <= *position);
            let is_wanted = |uid: &SubscriptionUid| match wanted.get(uid) {
                Some(from) => from <= position,
                None => is_unread,
            };
            let outcomes: Vec<internal::Outcome> = commit
                .outcomes
                .iter()
                .filter(|outcome| SubscriptionUid::from_slice(&outcome.subscription).is_some_and(|uid| is_wanted(&uid)))
                .cloned()
                .collect();
            self.take(*position, &outcomes, &HashMap::new(), |queue| {
                queue.skipped.is_none_or(|skipped| skipped.from > *position)
            });
        }
        let end = self.end;
        self.unread = unread.map(|first| first.max(known + 1)).filter(|first| *first <= end);
        for queue in self.queues.values_mut() {
            queue.skipped = queue.skipped.filter(|skipped| skipped.from <= end);
        }
        self.queues.retain(|_, queue| !queue.is_empty() || queue.under_way);
    }

    fn take(
        &mut self,
        position: u64,
        outcomes: &[internal::Outcome],
        events: &HashMap<u64, Arc<StoredEvent>>,
        may_take: impl Fn(&Queue) -> bool,
    ) {
        // Decided for a whole commit, so that the copies of a commit are all in memory or all skipped.
        let mut takes: HashMap<SubscriptionUid, bool> = HashMap::new();
        for outcome in outcomes.iter().filter(|outcome| has_copy(outcome)) {
            let Some(uid) = SubscriptionUid::from_slice(&outcome.subscription) else { continue };
            let free = COPIES_MAX.saturating_sub(self.count);
            let queue = self.queues.entry(uid).or_default();
            let room = queue.copies.len() < QUEUE_MAX.min(SHARE * free);
            if !*takes.entry(uid).or_insert_with(|| room && may_take(queue)) {
                let skipped = queue.skipped.get_or_insert(Skipped { from: position, lowest: outcome.sequence });
                skipped.from = skipped.from.min(position);
                skipped.lowest = skipped.lowest.min(outcome.sequence);
                continue;
            }
            let event = events.get(&outcome.sequence).filter(|event| {
                let bytes = event.event.payload.len();
                let fits = self.event_bytes + bytes <= EVENT_BYTES_MAX;
                self.event_bytes += if fits { bytes } else { 0 };
                fits
            });
            queue.copies.push_back(PendingCopy {
                position,
                outcome: outcome.clone(),
                event: event.cloned(),
                refusals: 0,
            });
            self.count += 1;
        }
    }

    /// Dead letters that a commit has closed need no copy any more; those that it makes again get another one.
    fn close(&mut self, commit: &internal::Commit) {
        use internal::subscription_change::Change;
        if self.refused.is_empty() {
            return;
        }
        for outcome in &commit.outcomes {
            let Some(uid) = SubscriptionUid::from_slice(&outcome.subscription) else { continue };
            let closes = outcome.run != 0 && outcome.kind() != internal::OutcomeKind::Cancelled;
            if closes || outcome.kind() == internal::OutcomeKind::DeadLettered {
                let seq = StreamSeq(outcome.sequence);
                self.refused.retain(|(of, at, _), _| (*of, *at) != (uid, seq));
            }
        }
        for change in &commit.subscriptions {
            if let (Some(uid), Some(Change::Closed(_))) =
                (SubscriptionUid::from_slice(&change.subscription), &change.change)
            {
                self.refused.retain(|(of, ..), _| *of != uid);
            }
        }
    }

    /// The next job at `now`. It is under way until its result is reported.
    pub fn next(&mut self, now: Instant) -> CopyJob {
        if let Some(job) = self.read_next() {
            return job;
        }
        let ready =
            |queue: &Queue| !queue.under_way && !queue.copies.is_empty() && queue.not_before.is_none_or(|at| at <= now);
        let after = self.last.and_then(|last| {
            let mut later = self.queues.range(last..).filter(|(uid, _)| **uid != last);
            later.find(|(_, queue)| ready(queue)).map(|(uid, _)| *uid)
        });
        let uid = after.or_else(|| self.queues.iter().find(|(_, queue)| ready(queue)).map(|(uid, _)| *uid));
        if let Some(uid) = uid
            && let Some(queue) = self.queues.get_mut(&uid)
            && let Some(missing) = queue.copies.front().cloned()
        {
            queue.under_way = true;
            self.last = Some(uid);
            return CopyJob::Copy(uid, missing);
        }
        if !self.retrying
            && let Some((place, refused)) = self.refused.iter().find(|(_, refused)| refused.try_at <= now)
        {
            self.retrying = true;
            return CopyJob::Retry(*place, refused.outcome.clone());
        }
        let copies = self.queues.values().filter(|queue| !queue.under_way && !queue.copies.is_empty());
        let retries = self.refused.values().filter(|_| !self.retrying).map(|refused| refused.try_at);
        CopyJob::Wait(copies.filter_map(|queue| queue.not_before).chain(retries).min())
    }

    fn read_next(&mut self) -> Option<CopyJob> {
        if self.reading {
            return None;
        }
        let free = COPIES_MAX.saturating_sub(self.count);
        let has_room = |queue: &&Queue| queue.copies.len() < QUEUE_MAX.min(SHARE * free) / 2 + 1;
        let skipped = self.queues.values().filter(|queue| queue.skipped.is_some()).filter(has_room);
        let skipped = skipped.filter_map(|queue| queue.skipped).map(|skipped| skipped.from).min();
        let from = self.unread.into_iter().chain(skipped.filter(|_| free > 0)).min()?;
        self.reading = true;
        Some(CopyJob::Read { from, through: self.end })
    }

    /// The result of making a subscription's copy, at `now`. Returns the record of a copy that was refused too often.
    pub fn made(&mut self, uid: SubscriptionUid, made: CopyResult, now: Instant) -> Option<internal::CopyState> {
        let refused_max = self.refused.len() >= REFUSED_MAX;
        let queue = self.queues.get_mut(&uid)?;
        queue.under_way = false;
        let front = queue.copies.front_mut()?;
        let given_up = match made {
            CopyResult::Stored | CopyResult::Lost => None,
            CopyResult::Refused(problem) => {
                front.refusals += 1;
                if front.refusals < REFUSALS_MAX || refused_max {
                    queue.fail(problem, now);
                    return None;
                }
                Some(problem)
            }
            CopyResult::Failed(problem) => {
                queue.fail(problem, now);
                return None;
            }
        };
        (queue.failures, queue.not_before) = (0, None);
        let PendingCopy { outcome, event, .. } = queue.copies.pop_front()?;
        self.count -= 1;
        self.event_bytes -= event.map_or(0, |event| event.event.payload.len());
        if queue.is_empty() {
            self.queues.remove(&uid);
        }
        let problem = given_up?;
        let state = internal::CopyState {
            outcome: Some(outcome.clone()),
            kind: internal::CopyStateKind::Refused.into(),
            problem,
        };
        let refused = Refused { state: state.clone(), outcome, try_at: now + REFUSED_PAUSE };
        self.refused.insert(dead_letter_id(&refused.outcome)?, refused);
        self.news.push(state.clone());
        Some(state)
    }

    /// The result of trying a refused copy again, at `now`.
    pub fn retried(&mut self, place: DeadLetterId, made: CopyResult, now: Instant) {
        self.retrying = false;
        let Some(refused) = self.refused.get_mut(&place) else { return };
        let kind = match made {
            CopyResult::Stored => internal::CopyStateKind::Stored,
            CopyResult::Lost => internal::CopyStateKind::Lost,
            CopyResult::Refused(_) | CopyResult::Failed(_) => {
                refused.try_at = now + REFUSED_PAUSE;
                return;
            }
        };
        let state = internal::CopyState { kind: kind.into(), problem: String::new(), ..refused.state.clone() };
        self.refused.remove(&place);
        self.news.push(state);
    }

    /// The sequence of [`copied`](Self::copied), and the copies that the commit with it must record: the two belong together.
    pub fn progress(&mut self) -> (u64, Vec<internal::CopyState>) {
        (self.copied(), std::mem::take(&mut self.news))
    }

    /// OUTCOMES sequence up to which every dead letter has its copy or is recorded as refused.
    pub fn copied(&self) -> u64 {
        let queues = self.queues.values().flat_map(|queue| {
            let front = queue.copies.front().map(|missing| missing.position);
            front.into_iter().chain(queue.skipped.map(|skipped| skipped.from))
        });
        let oldest = queues.chain(self.unread).min();
        oldest.map_or(self.end, |oldest| oldest.saturating_sub(1))
    }

    /// The events that must stay in EVENTS.
    pub fn horizon(&self) -> Horizon {
        let queues = self.queues.values().flat_map(|queue| {
            let copies = queue.copies.iter().map(|missing| missing.outcome.sequence);
            copies.chain(queue.skipped.map(|skipped| skipped.lowest))
        });
        let refused = self.refused.keys().map(|(_, seq, _)| seq.0);
        let keep_from = queues.chain(refused).chain(self.unread.map(|_| 0)).min().map(StreamSeq);
        Horizon { outcomes: StreamSeq(self.end), keep_from }
    }

    /// Number of missing copies of events up to `seq`, as far as they are in memory.
    pub fn missing_through(&self, seq: StreamSeq) -> usize {
        let copies = self.queues.values().flat_map(|queue| &queue.copies);
        let waiting = copies.filter(|missing| missing.outcome.sequence <= seq.0).count();
        waiting + self.refused.keys().filter(|(_, at, _)| *at <= seq).count()
    }

    /// Whether the next commit records copies.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// Whether no copy is missing but those that fail.
    pub fn is_done(&self) -> bool {
        let fails = |queue: &Queue| queue.failures > 0 && !queue.under_way;
        self.unread.is_none() && self.queues.values().all(fails)
    }

    /// Problems with copies, for operators.
    pub fn problems(&self) -> CopyProblems {
        let failing = self.queues.iter().filter(|(_, queue)| queue.failures >= FAILURES_SHOWN);
        CopyProblems {
            waiting: self.count,
            failing: failing.map(|(uid, queue)| (*uid, queue.problem.clone())).collect(),
            refused: self.refused.values().map(|refused| refused.state.clone()).collect(),
        }
    }
}

impl Queue {
    fn fail(&mut self, problem: String, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + RETRY.after(self.failures));
        self.problem = problem;
    }
}

/// Whether a dead letter has a copy: lost ranges of events, and runs whose payload is no longer kept, have none.
fn has_copy(outcome: &internal::Outcome) -> bool {
    let is_gone = outcome.reason() == v1::DeadLetterReason::Expired && outcome.run != Run::LIVE.0;
    outcome.kind() == internal::OutcomeKind::DeadLettered && outcome.from == 0 && !is_gone
}

/// The identity of a dead letter; `None` when its outcome names no subscription.
fn dead_letter_id(outcome: &internal::Outcome) -> Option<DeadLetterId> {
    let uid = SubscriptionUid::from_slice(&outcome.subscription)?;
    Some((uid, StreamSeq(outcome.sequence), Run(outcome.run)))
}

#[cfg(test)]
mod tests;

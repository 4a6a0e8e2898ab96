//! One lane: what of it is unsettled, what of that is in memory, and what it may do next.
//!
//! The unsettled events lie in `next..=last`. Of them the buffer holds every one up to `complete_to`, in order; a lane
//! whose buffer ends before `last` is *parked* there and reads on from the log when the buffer is empty. So an arrival
//! is pushed only while the buffer reaches to `last`: no gap and no repeat is possible between arrivals and catching up.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{EventId, Run, StreamSeq},
    v1,
};

use super::{
    AttemptId,
    flaw::{Flaw, has},
};

/// What an event in memory costs besides its payload: its fields, their texts, the allocations, its part of a lane.
pub const EVENT_OVERHEAD_BYTES: usize = 1024;

/// What an event in memory counts, in bytes.
pub(super) fn event_bytes(event: &StoredEvent) -> usize {
    event.event.payload.len() + EVENT_OVERHEAD_BYTES
}

/// How far the attempts of one event in one run have come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AttemptState {
    /// Attempts that have ended.
    pub ended: u32,
    /// Of them, those that said something of the receiver and not of the event, or that an operator has forgiven.
    pub uncounted: u32,
    /// No attempt before this.
    pub not_before: Option<Timestamp>,
    /// How long that was from the moment at which it was decided, in milliseconds: the next owner, whose clock may be
    /// another, waits no longer. 0: not known.
    pub wait_ms: u64,
    /// When the first attempt failed.
    pub first_failed_at: Option<Timestamp>,
}

impl AttemptState {
    /// Attempts that use up retries.
    pub fn counted(&self) -> u32 {
        self.ended.saturating_sub(self.uncounted)
    }
}

/// A redrive or replay of one event.
#[derive(Debug, Clone)]
pub(super) struct PendingRun {
    pub event_id: EventId,
    /// Where the payload is kept: the run that ended in the dead letter, and the subscription's name then.
    pub dead_run: Run,
    pub subscription_name: String,
    /// The event, once loaded.
    pub event: Option<Arc<StoredEvent>>,
    /// It has been asked for.
    pub loading: bool,
    /// Its replay is paused.
    pub paused: bool,
    pub attempts: AttemptState,
}

/// How a lane stands with the catching up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CatchUp {
    No,
    /// Waits for a place among the lanes that catch up.
    Queued,
    /// Asked for.
    Running,
}

/// What a lane attempts: its head, or a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Head,
    Run(StreamSeq, Run),
    /// Of what is in flight only: an operator has settled it meanwhile. Its event, and the attempt's number.
    Cancelled {
        event: EventId,
        number: u32,
    },
}

/// What a lane needs to go on.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum NextStep {
    /// Nothing: it is settled, or waits for an attempt, a commit or an operator.
    Nothing,
    /// An attempt of this.
    Attempt(Target),
    /// The passing of time.
    Time(Timestamp),
    /// Its next events from the log.
    CatchUp,
    /// The event of a run.
    Load(StreamSeq, Run),
}

impl NextStep {
    /// What it wants to attempt.
    pub fn target(self) -> Option<Target> {
        match self {
            Self::Attempt(target) => Some(target),
            Self::Nothing | Self::Time(_) | Self::CatchUp | Self::Load(..) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    pub next: StreamSeq,
    /// `next` as the newest draft that tells of the lane has it. What lies between them the lane has read, and it is not of its
    /// subscription; an owner that takes over reads it again.
    pub recorded_next: StreamSeq,
    pub last: StreamSeq,
    pub complete_to: StreamSeq,
    pub buffer: VecDeque<Arc<StoredEvent>>,
    pub head: AttemptState,
    pub runs: BTreeMap<(StreamSeq, Run), PendingRun>,
    pub in_flight: Option<(AttemptId, Target)>,
    pub catch_up: CatchUp,
    /// No attempt before this draft is committed.
    pub hold: Option<u64>,
    pub blocked: bool,
    /// An operator has stopped it.
    pub paused: bool,
    /// What it delivered last since it came into memory.
    pub delivered: Option<EventId>,
    /// The newest draft that tells of it: it may leave memory once that is committed.
    pub touched: u64,
    /// It is counted among its subscription's lanes of single events.
    pub has_slot: bool,
    /// It stands in its subscription's ready queue.
    pub ready: bool,
    /// Its entry among the timers.
    pub timer: Option<Timestamp>,
}

impl Lane {
    /// A lane with nothing unsettled.
    pub fn settled() -> Self {
        Self {
            next: StreamSeq(1),
            recorded_next: StreamSeq(1),
            last: StreamSeq(0),
            complete_to: StreamSeq(0),
            buffer: VecDeque::new(),
            head: AttemptState::default(),
            runs: BTreeMap::new(),
            in_flight: None,
            catch_up: CatchUp::No,
            hold: None,
            blocked: false,
            paused: false,
            delivered: None,
            touched: 0,
            has_slot: false,
            ready: false,
            timer: None,
        }
    }

    /// A lane as the ledger left it: parked, with nothing in memory.
    pub fn restored(lane: &v1::Lane, now: Timestamp) -> Self {
        Self {
            next: StreamSeq(lane.next),
            recorded_next: StreamSeq(lane.next),
            last: StreamSeq(lane.last),
            complete_to: StreamSeq(lane.next.saturating_sub(1)),
            head: AttemptState {
                ended: lane.attempts,
                uncounted: lane.uncounted,
                not_before: restored_wait(lane.next_attempt_at_ms, lane.wait_ms, now),
                wait_ms: lane.wait_ms,
                first_failed_at: instant(lane.first_failed_at_ms),
            },
            blocked: lane.state() == v1::LaneState::Blocked,
            paused: lane.paused,
            ..Self::settled()
        }
    }

    /// Whether no live event is unsettled.
    pub fn is_settled(&self) -> bool {
        self.next > self.last
    }

    /// Whether nothing at all is to be done, so that it need not be in memory.
    pub fn is_idle(&self) -> bool {
        self.is_settled() && self.runs.is_empty() && self.in_flight.is_none() && self.hold.is_none() && !self.paused
    }

    /// Whether an operator has stopped it.
    pub fn is_stopped(&self) -> bool {
        self.paused && !has(Flaw::PausedLane)
    }

    /// Where the oldest unsettled event stands: exactly, once it has been in memory.
    pub fn first(&self) -> StreamSeq {
        self.buffer.front().map_or(self.next, |event| event.seq)
    }

    /// Takes an event that has arrived. Whether it is kept in memory: it is when the buffer reaches to it and has `room`.
    pub fn arrive(&mut self, event: Arc<StoredEvent>, room: bool) -> bool {
        let seq = event.seq;
        debug_assert!(seq > self.last, "P3: events of a lane arrive in order");
        if self.is_settled() {
            self.next = seq;
            self.recorded_next = seq;
            self.complete_to = self.last.max(StreamSeq(seq.0 - 1));
            self.head = AttemptState::default();
        }
        let reaches = self.complete_to >= self.last.max(StreamSeq(self.next.0 - 1));
        let keep = room && (reaches || has(Flaw::Gap));
        self.last = seq;
        if keep {
            self.complete_to = seq;
            self.buffer.push_back(event);
        }
        keep
    }

    /// Settles the head: the lane goes on behind `seq`. Returns the event's bytes in memory.
    pub fn settle_head(&mut self, seq: StreamSeq) -> usize {
        let event = self.buffer.pop_front();
        debug_assert!(
            event.as_ref().is_some_and(|event| event.seq == seq && seq >= self.next && seq <= self.last),
            "P3: only the head settles"
        );
        self.next = seq.next();
        self.recorded_next = self.next;
        self.head = AttemptState::default();
        self.blocked = false;
        event.map_or(0, |event| event_bytes(&event))
    }

    /// Settles the head without having it in memory, as [`settle_head`](Self::settle_head) does.
    pub fn settle_unread(&mut self, seq: StreamSeq) {
        debug_assert!(self.buffer.is_empty() && seq >= self.next && seq <= self.last, "P3: only the head settles");
        self.next = seq.next();
        self.recorded_next = self.next;
        self.complete_to = self.complete_to.max(seq);
        self.head = AttemptState::default();
        self.blocked = false;
    }

    /// Puts the events in memory back to the log: only positions stay. Returns their bytes. The head of an attempt in
    /// flight stays.
    pub fn park(&mut self) -> usize {
        if matches!(self.in_flight, Some((_, Target::Head))) || self.catch_up == CatchUp::Running {
            return 0;
        }
        self.next = self.first();
        self.complete_to = StreamSeq(self.next.0.saturating_sub(1));
        // With its allocation: a lane may wait for days.
        std::mem::take(&mut self.buffer).iter().map(|event| event_bytes(event)).sum()
    }

    /// What it needs at `now`, given that its subscription may deliver.
    ///
    /// A run goes before the head while none of its kind waits before it; the head does not wait for a run's backoff.
    pub fn next_step(&self, now: Timestamp) -> NextStep {
        let busy = self.in_flight.is_some() && !has(Flaw::SecondAttempt);
        let held = self.hold.is_some() && !has(Flaw::AheadOfCommit);
        if busy || held || self.is_stopped() {
            return NextStep::Nothing;
        }
        let mut wake: Option<Timestamp> = None;
        if let Some((&(seq, run), pending)) = self.runs.iter().find(|(_, pending)| !pending.paused) {
            match pending.attempts.not_before {
                Some(at) if at > now && !has(Flaw::EarlyRetry) => wake = Some(at),
                _ if pending.event.is_some() => return NextStep::Attempt(Target::Run(seq, run)),
                _ if !pending.loading => return NextStep::Load(seq, run),
                _ => {}
            }
        }
        if !self.is_settled() && !self.blocked {
            match self.head.not_before {
                Some(at) if at > now && !has(Flaw::EarlyRetry) => wake = Some(wake.map_or(at, |other| other.min(at))),
                _ if !self.buffer.is_empty() => return NextStep::Attempt(Target::Head),
                _ if self.catch_up == CatchUp::No => return NextStep::CatchUp,
                _ => {}
            }
        }
        wake.map_or(NextStep::Nothing, NextStep::Time)
    }

    /// The event of a target.
    pub fn event(&self, target: Target) -> Option<&Arc<StoredEvent>> {
        match target {
            Target::Head if has(Flaw::NotTheHead) => self.buffer.back(),
            Target::Head => self.buffer.front(),
            Target::Run(seq, run) => self.runs.get(&(seq, run))?.event.as_ref(),
            Target::Cancelled { .. } => None,
        }
    }

    /// When the event in flight failed first, if it has.
    pub fn first_failed_at(&mut self) -> Option<Timestamp> {
        let (_, target) = self.in_flight?;
        self.attempt_state(target)?.first_failed_at
    }

    /// The tries of a target.
    pub fn attempt_state(&mut self, target: Target) -> Option<&mut AttemptState> {
        match target {
            Target::Head => Some(&mut self.head),
            Target::Run(seq, run) => self.runs.get_mut(&(seq, run)).map(|pending| &mut pending.attempts),
            Target::Cancelled { .. } => None,
        }
    }
}

/// Unix milliseconds of a log record; 0 stands for none.
pub(super) fn instant(ms: i64) -> Option<Timestamp> {
    if ms == 0 { None } else { Timestamp::from_millisecond(ms).ok() }
}

/// The longest wait of a record that does not say how long it was: what a receiver may ask for at the most.
const UNKNOWN_WAIT_MAX: SignedDuration = SignedDuration::from_hours(24);

/// The moment before which an owner that takes over at `now` makes no attempt. The record's moment is by its writer's
/// clock, the wait is not: where the clocks differ, an attempt may come early, and never later than the whole wait.
pub(super) fn restored_wait(not_before_ms: i64, wait_ms: u64, now: Timestamp) -> Option<Timestamp> {
    if has(Flaw::ForeignClock) {
        return instant(not_before_ms);
    }
    let longest = i64::try_from(wait_ms).ok().filter(|wait| *wait > 0);
    let longest = longest.map_or(UNKNOWN_WAIT_MAX, SignedDuration::from_millis);
    Some(instant(not_before_ms)?.min(now.checked_add(longest).unwrap_or(Timestamp::MAX)))
}

/// The wait from `now` to `at`, in milliseconds, rounded up.
pub(super) fn wait_ms(at: Timestamp, now: Timestamp) -> u64 {
    let wait = at.duration_since(now).as_nanos();
    u64::try_from(wait).unwrap_or(0).div_ceil(1_000_000)
}

/// The other way.
pub(super) fn millis(at: Option<Timestamp>) -> i64 {
    at.map_or(0, Timestamp::as_millisecond)
}

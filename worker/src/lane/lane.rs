//! One lane: its unsettled events, which of them are in memory, and its next step.
//!
//! The unsettled events lie in `next..=last`. The buffer holds all of them up to `complete_to`, in order. A lane whose buffer
//! ends before `last` is *parked*: it reads on from EVENTS once its buffer is empty. An arrival is buffered only while
//! the buffer reaches up to `last`, so between arrivals and catching up there is neither a gap nor a repeat.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{EventId, Run, StreamSeq},
    internal,
};

use super::AttemptId;

/// Bytes of the events of one batch, with their overhead: what a gRPC server accepts as one message unless it is configured
/// otherwise. A single larger event is attempted alone.
pub(crate) const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Memory of an event besides its payload: its fields, their texts, the allocations, its part of a lane.
pub const EVENT_OVERHEAD_BYTES: usize = 1024;

/// Bytes that an event in memory counts as.
pub(super) fn event_bytes(event: &StoredEvent) -> usize {
    event.event.payload.len() + EVENT_OVERHEAD_BYTES
}

/// The attempts of one event in one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AttemptState {
    /// Attempts that have ended.
    pub ended: u32,
    /// Those of them that use up no retry: failures of the receiver, and all before an operator's retry.
    pub uncounted: u32,
    /// No attempt before this.
    pub not_before: Option<Timestamp>,
    /// Length of that wait when it was decided, in milliseconds: the next owner, whose clock may differ, waits no longer.
    /// 0: unknown.
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
    /// Names the copy on DLQ: the run that ended in the dead letter, and the subscription's name then.
    pub dead_run: Run,
    pub subscription_name: String,
    /// The event, once loaded.
    pub event: Option<Arc<StoredEvent>>,
    /// The event is being loaded.
    pub loading: bool,
    /// Its replay is paused.
    pub paused: bool,
    /// The operator who cancelled its redrive while it was being attempted; empty: no operator did.
    pub cancelled_by: String,
    /// Average time between two attempts of its replay; `None`: unlimited.
    pub min_interval: Option<Duration>,
    /// The time that its next attempt has at that rate.
    pub slot: Option<Timestamp>,
    pub attempts: AttemptState,
}

/// Whether a lane reads on from EVENTS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum CatchUp {
    #[default]
    No,
    /// It waits for its turn.
    Queued,
    /// The read is under way.
    Running,
}

/// The target of an attempt: the lane's head, in a batch with the events after it, or the event of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Head,
    Run(StreamSeq, Run),
}

/// An attempt in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InFlight {
    pub attempt: AttemptId,
    pub target: Target,
    /// The last of its events.
    pub last: StreamSeq,
}

/// The next step of a lane.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum NextStep {
    /// None: it is settled, or waits for an attempt, a commit or an operator.
    Nothing,
    /// An attempt.
    Attempt(Target),
    /// A wait until then.
    Time(Timestamp),
    /// A read of its next events from EVENTS.
    CatchUp,
    /// A read of the event of a run.
    Load(StreamSeq, Run),
}

impl NextStep {
    /// The target of an attempt.
    pub fn target(self) -> Option<Target> {
        match self {
            Self::Attempt(target) => Some(target),
            Self::Nothing | Self::Time(_) | Self::CatchUp | Self::Load(..) => None,
        }
    }
}

/// The state of a lane.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub next: StreamSeq,
    /// `next` in the newest commit that records the lane. The lane has read the events between them, which its subscription
    /// does not take; an owner that takes over reads them again.
    pub recorded_next: StreamSeq,
    pub last: StreamSeq,
    pub complete_to: StreamSeq,
    pub buffer: VecDeque<Arc<StoredEvent>>,
    pub head: AttemptState,
    pub runs: BTreeMap<(StreamSeq, Run), PendingRun>,
    pub in_flight: Option<InFlight>,
    /// The last event that may be at fault in a failed batch; 0: no search is in progress.
    pub suspect_through: StreamSeq,
    pub catch_up: CatchUp,
    /// No attempt before the commit of this number is stored.
    pub hold: Option<u64>,
    pub blocked: bool,
    /// An operator has paused it.
    pub paused: bool,
    /// The event that it delivered last while in memory.
    pub delivered: Option<EventId>,
    /// Number of the newest commit that records it: it may leave memory once that is stored.
    pub touched: u64,
    /// It occupies a slot of its subscription's event lanes.
    pub has_slot: bool,
    /// It is in its subscription's ready queue.
    pub ready: bool,
    /// When its timer fires.
    pub timer: Option<Timestamp>,
}

impl Lane {
    /// A lane with nothing unsettled.
    pub fn settled() -> Self {
        Self { next: StreamSeq(1), recorded_next: StreamSeq(1), ..Self::default() }
    }

    /// A lane of the ledger: parked, with nothing in memory.
    pub fn restored(lane: &internal::Lane, now: Timestamp) -> Self {
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
            blocked: lane.state() == internal::LaneState::Blocked,
            paused: lane.paused,
            ..Self::settled()
        }
    }

    /// Whether no live event is unsettled.
    pub fn is_settled(&self) -> bool {
        self.next > self.last
    }

    /// Whether it has nothing to do, so that it need not be in memory.
    pub fn is_idle(&self) -> bool {
        self.is_settled() && self.runs.is_empty() && self.in_flight.is_none() && self.hold.is_none() && !self.paused
    }

    /// Whether its head is being attempted. Of a batch in flight an operator may have settled the first events, and the head
    /// is the next one.
    pub fn is_attempting_head(&self) -> bool {
        let is_held = |in_flight: InFlight| in_flight.target == Target::Head && self.first() <= in_flight.last;
        self.in_flight.is_some_and(is_held)
    }

    /// Whether the event at fault in a batch is being searched.
    pub fn is_searching(&self) -> bool {
        self.first() <= self.suspect_through
    }

    /// How many of the buffered events the next batch may hold, at most `max`. While an event at fault is searched: half of
    /// those that it is among, so that after a few batches it is alone.
    pub fn batch_len(&self, max: usize) -> usize {
        let suspects = self.buffer.iter().take(max).take_while(|event| event.seq <= self.suspect_through).count();
        if suspects > 0 { suspects.div_ceil(2) } else { max }
    }

    /// The sequence of the oldest unsettled event; of one that has not been read, a lower bound.
    pub fn first(&self) -> StreamSeq {
        self.buffer.front().map_or(self.next, |event| event.seq)
    }

    /// Takes an arrival. Returns whether it is buffered: the buffer reaches up to it and there is `room`.
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
        let keep = room && reaches;
        self.last = seq;
        if keep {
            self.complete_to = seq;
            self.buffer.push_back(event);
        }
        keep
    }

    /// Settles the head at `seq`. Returns the event's bytes in memory.
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

    /// As [`settle_head`](Self::settle_head), of a head that is not in memory.
    pub fn settle_unread(&mut self, seq: StreamSeq) {
        debug_assert!(self.buffer.is_empty() && seq >= self.next && seq <= self.last, "P3: only the head settles");
        self.next = seq.next();
        self.recorded_next = self.next;
        self.complete_to = self.complete_to.max(seq);
        self.head = AttemptState::default();
        self.blocked = false;
    }

    /// Drops the buffered events and keeps positions only. Returns their bytes. A lane whose head is in flight, or that is
    /// reading, keeps its buffer.
    pub fn park(&mut self) -> usize {
        if self.is_attempting_head() || self.catch_up == CatchUp::Running {
            return 0;
        }
        self.next = self.first();
        self.complete_to = StreamSeq(self.next.0.saturating_sub(1));
        // Drops the allocation as well: a lane may wait for days.
        std::mem::take(&mut self.buffer).iter().map(|event| event_bytes(event)).sum()
    }

    /// Its next step at `now`, while its subscription may deliver.
    ///
    /// The first run that is not paused goes before the head; the head does not wait for a run's backoff.
    pub fn next_step(&self, now: Timestamp) -> NextStep {
        if self.in_flight.is_some() || self.hold.is_some() || self.paused {
            return NextStep::Nothing;
        }
        let mut wake: Option<Timestamp> = None;
        if let Some((&(seq, run), pending)) = self.runs.iter().find(|(_, pending)| !pending.paused) {
            match pending.attempts.not_before {
                Some(at) if at > now => wake = Some(at),
                _ if pending.event.is_some() => return NextStep::Attempt(Target::Run(seq, run)),
                _ if !pending.loading => return NextStep::Load(seq, run),
                _ => {}
            }
        }
        if !self.is_settled() && !self.blocked {
            match self.head.not_before {
                Some(at) if at > now => wake = Some(wake.map_or(at, |other| other.min(at))),
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
            Target::Head => self.buffer.front(),
            Target::Run(seq, run) => self.runs.get(&(seq, run))?.event.as_ref(),
        }
    }

    /// The attempts of the event at `seq`, which was attempted as a part of `target`; `None`: an operator has settled it
    /// meanwhile.
    pub fn attempted(&mut self, target: Target, seq: StreamSeq) -> Option<&mut AttemptState> {
        if target == Target::Head && self.buffer.front().is_none_or(|head| head.seq != seq) {
            return None;
        }
        self.attempt_state(target)
    }

    /// The attempts of a target.
    pub fn attempt_state(&mut self, target: Target) -> Option<&mut AttemptState> {
        match target {
            Target::Head => Some(&mut self.head),
            Target::Run(seq, run) => self.runs.get_mut(&(seq, run)).map(|pending| &mut pending.attempts),
        }
    }
}

/// The time between two attempts of a record, in microseconds; 0 stands for no limit.
pub(crate) fn interval(us: u64) -> Option<Duration> {
    (us > 0).then(|| Duration::from_micros(us))
}

/// Unix milliseconds of a log record; 0 stands for none.
pub(super) fn instant(ms: i64) -> Option<Timestamp> {
    if ms == 0 { None } else { Timestamp::from_millisecond(ms).ok() }
}

/// The longest wait of a record without its length: the longest that a receiver may ask for.
const UNKNOWN_WAIT_MAX: SignedDuration = SignedDuration::from_hours(24);

/// When an owner that takes over at `now` may make the next attempt. The recorded time is by the writer's clock, the length
/// of the wait is not: where the clocks differ, the attempt may be early, but no later than the whole wait from `now`.
pub(super) fn restored_wait(not_before_ms: i64, wait_ms: u64, now: Timestamp) -> Option<Timestamp> {
    let longest = i64::try_from(wait_ms).ok().filter(|wait| *wait > 0);
    let longest = longest.map_or(UNKNOWN_WAIT_MAX, SignedDuration::from_millis);
    Some(instant(not_before_ms)?.min(now.checked_add(longest).unwrap_or(Timestamp::MAX)))
}

/// The wait from `now` to `at`, in milliseconds, rounded up.
pub(super) fn wait_ms(at: Timestamp, now: Timestamp) -> u64 {
    let wait = at.duration_since(now).as_nanos();
    u64::try_from(wait).unwrap_or(0).div_ceil(1_000_000)
}

/// Unix milliseconds for a log record; 0 stands for none.
pub(super) fn millis(at: Option<Timestamp>) -> i64 {
    at.map_or(0, Timestamp::as_millisecond)
}

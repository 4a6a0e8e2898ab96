//! Reading: events by filters, the newest or the oldest first.
//!
//! Each shard is walked segment by segment: the sets of the index are intersected, and what remains is read row by row. The
//! shards are merged by the time at which their events were stored. A page does a bounded amount of work, so it may be short, even
//! empty, before the end; its cursor names the place up to which each shard has been walked, so pages survive insertions.

use weft_nats::{cursor::Cursor, pattern::pattern_matches, subject::Layout};
use weft_proto::ids::{EventId, ShardId, StreamSeq};

use super::{
    EventHistory,
    bits::{Bits, SEGMENT_SEQUENCES, place},
    events::{self, CLOCK_SKEW_MS},
    names::Subscriptions,
    postings::Segment,
    tables::{EventRow, SWEPT, View, get},
    with_status::{Status, Wanted},
};

/// Bound of the work of one page, in rows read: about ten milliseconds.
const WORK_MAX: usize = 4_000;
/// Work of reading the sets of a segment, in rows.
const SEGMENT_WORK: usize = 8;
/// Work of reading the status of an event, in rows.
const STATUS_WORK: usize = 20;

/// Which events are wanted. The default wants all.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    /// Only events with one of these ids.
    pub ids: Option<Vec<EventId>>,
    /// Only events with an id from the first to the second one.
    pub id_range: Option<(EventId, EventId)>,
    /// Only this workflow's.
    pub workflow: Option<String>,
    /// Only types that this pattern takes; `*` is any run of characters.
    pub event_type: Option<String>,
    /// Only this source's.
    pub source: Option<String>,
    /// Only those that this subscription, by name, has taken or will take.
    pub subscription: Option<String>,
    /// Only in one of these statuses: of the delivery to `subscription` if one is named, else of the event. Empty: in any.
    pub statuses: Vec<Status>,
    /// Only those stored at or after this, in unix milliseconds.
    pub since_ms: Option<i64>,
    /// Only those stored before this, in unix milliseconds.
    pub until_ms: Option<i64>,
    /// Only these sources'; empty: all.
    pub sources: Vec<String>,
    /// Only workflows whose id begins with one of these; empty: all.
    pub workflow_prefixes: Vec<String>,
    /// The oldest first.
    pub oldest_first: bool,
}

/// An event of a page.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedEvent {
    /// Shard of its workflow.
    pub shard: ShardId,
    /// Its place in the shard's EVENTS.
    pub seq: StreamSeq,
    /// Id of the event.
    pub id: EventId,
    /// Workflow that it is of.
    pub workflow: String,
    /// Its number in the workflow.
    pub sequence_number: u64,
    /// The event before it in its workflow.
    pub previous: Option<EventId>,
    /// Type of the event.
    pub event_type: String,
    /// Source that sent it.
    pub source: String,
    /// The sender's id of the delivery; empty: none.
    pub delivery_id: String,
    /// Media type of its payload.
    pub content_type: String,
    /// When it happened, in unix nanoseconds.
    pub time_ns: i64,
    /// When the gateway accepted it, in unix nanoseconds.
    pub received_at_ns: i64,
    /// When the log stored it, in unix milliseconds.
    pub stored_at_ms: i64,
}

impl ListedEvent {
    fn of(shard: ShardId, seq: u64, row: EventRow) -> Option<Self> {
        Some(Self {
            shard,
            seq: StreamSeq(seq),
            id: EventId::from_slice(&row.id)?,
            workflow: row.workflow,
            sequence_number: row.sequence_number,
            previous: EventId::from_slice(&row.previous),
            event_type: row.event_type,
            source: row.source,
            delivery_id: row.delivery_id,
            content_type: if row.content_type.is_empty() { weft_nats::event::JSON.into() } else { row.content_type },
            time_ns: if row.time_ns == 0 { row.received_at_ns } else { row.time_ns },
            received_at_ns: row.received_at_ns,
            stored_at_ms: row.stored_at_ms,
        })
    }
}

/// A page of events.
#[derive(Debug, Clone, PartialEq)]
pub struct EventPage {
    /// In the requested order.
    pub events: Vec<ListedEvent>,
    /// The next page; `None` at the end. Further events may match none of it.
    pub next: Option<Cursor>,
}

/// The events of a page with their deliveries, in the order given.
pub(super) fn histories(
    view: &View,
    subscriptions: &Subscriptions,
    places: &[(ShardId, StreamSeq)],
) -> Result<Vec<Option<EventHistory>>, redb::Error> {
    places.iter().map(|(shard, seq)| events::event(view, subscriptions, *shard, *seq)).collect()
}

/// A page after `after`, at most `limit` events.
pub(super) fn page(
    view: &View,
    subscriptions: &Subscriptions,
    layout: Layout,
    query: &EventQuery,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<EventPage, redb::Error> {
    let places = named(view, query)?;
    let workflow = query.workflow.as_ref().map(|workflow| weft_proto::ids::WorkflowId::new(workflow.as_str()));
    let shards: Vec<ShardId> = match workflow {
        Some(Ok(workflow)) => vec![layout.shard_of(&workflow)],
        Some(Err(_)) => Vec::new(),
        None => layout.all().collect(),
    };
    let mut cursor = after.cloned().unwrap_or_else(|| Cursor::new(layout, []));
    let mut walks = Vec::new();
    for shard in shards {
        let wanted = Wanted::of(view, subscriptions, &query.statuses, query.subscription.as_deref(), shard)?;
        let here = places
            .as_ref()
            .map(|places| places.iter().filter(|(of, _)| *of == shard).map(|(_, seq)| seq.0).collect::<Vec<_>>());
        let walk =
            Walk { view, subscriptions, query, wanted, places: here, shard, low: 1, high: 0, set: None, found: None };
        walks.push(walk.start(cursor.position(shard).0)?);
    }
    let mut page = EventPage { events: Vec::new(), next: None };
    let mut work = WORK_MAX;
    'page: loop {
        for walk in &mut walks {
            if !walk.advance(&mut work)? {
                break 'page;
            }
        }
        let found = walks.iter_mut().filter(|walk| walk.found.is_some());
        let by_age = |walk: &&mut Walk<'_>| (walk.found.as_ref().map(|event| event.stored_at_ms), walk.shard.0);
        let next = if query.oldest_first { found.min_by_key(by_age) } else { found.max_by_key(by_age) };
        let Some(walk) = next else { return Ok(page) };
        if page.events.len() >= limit.max(1) {
            break;
        }
        page.events.extend(walk.found.take());
    }
    for walk in &walks {
        cursor.set(walk.shard, StreamSeq(walk.position()));
    }
    page.next = Some(cursor);
    Ok(page)
}

/// The places of the events that a query names by their ids; `None`: it names none.
fn named(view: &View, query: &EventQuery) -> Result<Option<Vec<(ShardId, StreamSeq)>>, redb::Error> {
    if let Some(ids) = &query.ids {
        let in_range = |id: &&EventId| query.id_range.is_none_or(|(first, last)| (first..=last).contains(*id));
        let places = ids.iter().filter(in_range).map(|id| events::places(view, *id)).collect::<Result<Vec<_>, _>>()?;
        return Ok(Some(places.into_iter().flatten().collect()));
    }
    let Some((first, last)) = query.id_range else { return Ok(None) };
    let found = events::ids_between(view, first.as_bytes(), last.as_bytes(), usize::MAX)?;
    Ok(Some(found.into_iter().map(|(shard, seq, _)| (shard, seq)).collect()))
}

/// A walk through a shard.
struct Walk<'v> {
    view: &'v View,
    subscriptions: &'v Subscriptions,
    query: &'v EventQuery,
    wanted: Wanted,
    /// Only these places.
    places: Option<Vec<u64>>,
    shard: ShardId,
    /// The rest of the walk, `low..=high`.
    low: u64,
    high: u64,
    /// The candidates of the segment that is walked.
    set: Option<(u64, Bits)>,
    found: Option<ListedEvent>,
}

impl Walk<'_> {
    /// The bounds: what EVENTS keeps, the query's times, and the part before `position`; 0: from the start.
    fn start(mut self, position: u64) -> Result<Self, redb::Error> {
        let shard = self.shard.0;
        self.low = self.view.marks.get((SWEPT, shard))?.map_or(0, |swept| swept.value()) + 1;
        let newest = self.view.events.range((shard, self.low)..=(shard, u64::MAX))?.next_back().transpose()?;
        self.high = newest.map_or(0, |(key, _)| key.value().1);
        let (low, high) = (self.low, self.high);
        if let Some(since) = self.query.since_ms {
            self.low = self.first_since(since.saturating_sub(CLOCK_SKEW_MS), low, high)?;
        }
        if let Some(until) = self.query.until_ms {
            let after = self.first_since(until.saturating_add(CLOCK_SKEW_MS), low, high)?;
            self.high = self.high.min(after.saturating_sub(1));
        }
        if let Some(places) = &self.places {
            self.low = self.low.max(places.iter().min().copied().unwrap_or(u64::MAX));
            self.high = self.high.min(places.iter().max().copied().unwrap_or(0));
        }
        if position > 0 && self.query.oldest_first {
            self.low = self.low.max(position.saturating_add(1));
        } else if position > 0 {
            self.high = self.high.min(position - 1);
        }
        Ok(self)
    }

    /// The first event in `low..=high` that was stored at `at_ms` or later, as far as the clock of the log was never set back.
    fn first_since(&self, at_ms: i64, mut low: u64, high: u64) -> Result<u64, redb::Error> {
        let mut high = high.saturating_add(1);
        while low < high {
            let middle = low + (high - low) / 2;
            let row = self.view.events.range((self.shard.0, middle)..(self.shard.0, high))?.next().transpose()?;
            let stored = match row {
                Some((key, row)) => Some((key.value().1, super::tables::decode::<EventRow>(row.value())?.stored_at_ms)),
                None => None,
            };
            match stored {
                Some((seq, stored_at_ms)) if stored_at_ms < at_ms => low = seq + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The place after which the next page continues.
    fn position(&self) -> u64 {
        match (&self.found, self.query.oldest_first) {
            (Some(found), true) => found.seq.0.saturating_sub(1),
            (Some(found), false) => found.seq.0.saturating_add(1),
            (None, true) => self.low.saturating_sub(1),
            (None, false) => self.high.saturating_add(1),
        }
    }

    /// Looks for the next event, unless one has been found. Returns `false` when the page's work is done before.
    fn advance(&mut self, work: &mut usize) -> Result<bool, redb::Error> {
        while self.found.is_none() && self.low <= self.high {
            if *work == 0 {
                return Ok(false);
            }
            let at = if self.query.oldest_first { self.low } else { self.high };
            let (segment, from) = place(at);
            let set = match self.set.take() {
                Some((known, set)) if known == segment => set,
                _ => {
                    *work = work.saturating_sub(SEGMENT_WORK);
                    self.candidates(segment)?
                }
            };
            let next = if self.query.oldest_first { set.next(from) } else { set.previous(from) };
            let first = segment * SEGMENT_SEQUENCES;
            self.set = Some((segment, set));
            let Some(seq) =
                next.map(|place| first + u64::from(place)).filter(|seq| (self.low..=self.high).contains(seq))
            else {
                self.pass(if self.query.oldest_first { first + SEGMENT_SEQUENCES - 1 } else { first });
                continue;
            };
            self.pass(seq);
            self.found = self.examine(seq, work)?;
        }
        Ok(true)
    }

    /// Continues after a place.
    fn pass(&mut self, seq: u64) {
        if self.query.oldest_first {
            self.low = seq.saturating_add(1);
        } else if let Some(high) = seq.checked_sub(1) {
            self.high = high;
        } else {
            self.low = u64::MAX;
        }
    }

    /// The events of a segment that may be wanted.
    fn candidates(&self, segment: u64) -> Result<Bits, redb::Error> {
        let segment = Segment { view: self.view, shard: self.shard, segment };
        let query = self.query;
        let mut set = None;
        let mut keep = |with: Bits| match &mut set {
            None => set = Some(with),
            Some(set) => set.keep(&with),
        };
        if let Some(places) = &self.places {
            let mut named = Bits::none();
            for (of, place) in places.iter().map(|seq| place(*seq)) {
                if of == segment.segment {
                    named.set(place, true);
                }
            }
            keep(named);
        }
        if let Some(workflow) = &query.workflow {
            keep(segment.workflow(workflow)?);
        }
        if let Some(pattern) = &query.event_type {
            keep(segment.types(pattern)?);
        }
        if let Some(source) = &query.source {
            keep(segment.source(source)?);
        }
        match &mut set {
            // What became of the events is the largest part of the index.
            Some(set) if set.is_empty() => {}
            _ => {
                if let Some(by_status) = self.wanted.candidates(&segment)? {
                    match &mut set {
                        None => set = Some(by_status),
                        Some(set) => set.keep(&by_status),
                    }
                }
            }
        }
        set.map_or_else(|| segment.all(), Ok)
    }

    /// The event at a place, if it is wanted.
    fn examine(&self, seq: u64, work: &mut usize) -> Result<Option<ListedEvent>, redb::Error> {
        *work = work.saturating_sub(1);
        let row: Option<EventRow> = get(&self.view.events, (self.shard.0, seq))?;
        let Some(row) = row.filter(|row| self.takes(row)) else { return Ok(None) };
        if self.wanted.is_any() {
            return Ok(ListedEvent::of(self.shard, seq, row));
        }
        *work = work.saturating_sub(STATUS_WORK);
        let history = events::event(self.view, self.subscriptions, self.shard, StreamSeq(seq))?;
        Ok(history.filter(|history| self.wanted.takes(history)).and_then(|_| ListedEvent::of(self.shard, seq, row)))
    }

    fn takes(&self, row: &EventRow) -> bool {
        let query = self.query;
        let prefixes = &query.workflow_prefixes;
        query.workflow.as_ref().is_none_or(|workflow| *workflow == row.workflow)
            && query.event_type.as_ref().is_none_or(|pattern| pattern_matches(pattern, &row.event_type))
            && query.source.as_ref().is_none_or(|source| *source == row.source)
            && query.since_ms.is_none_or(|since| row.stored_at_ms >= since)
            && query.until_ms.is_none_or(|until| row.stored_at_ms < until)
            && (query.sources.is_empty() || query.sources.contains(&row.source))
            && (prefixes.is_empty() || prefixes.iter().any(|prefix| row.workflow.starts_with(prefix)))
    }
}

//! Selection of the events of a replay, and of their subscriptions.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tonic::Status;
use weft_catalog::{Matcher, Snapshot, keys::Grant};
use weft_index::history::{CommandItem, EventRef};
use weft_nats::{
    cursor::Cursor,
    event::StoredEvent,
    scan::{self, CLOCK_SLACK, Filter},
};
use weft_proto::{
    ids::{Run, ShardId, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, OutcomeKind},
    v1,
};

use crate::{
    auth, convert,
    error::{Code, of_history, of_scan, refuse, unknown},
    service::state::LogState,
};

/// Maximum number of deliveries of one replay: they are held in memory while it is commanded and while it runs, some 20 MB.
const SELECTED_MAX: usize = 100_000;
/// Maximum number of events that are named by id.
const IDS_MAX: usize = 1_000;
/// Events of one read of the log.
const PAGE: usize = 1_000;
/// Maximum number of reads of the log of one selection, each of up to 10,000 entries: 5 million entries that nothing is
/// selected of, within a minute.
const PAGES_MAX: usize = 500;

/// The selected deliveries.
#[derive(Debug, Default)]
pub(super) struct Selected {
    /// The items of the commands, sorted by shard and in the order of their events, so that each lane keeps its order.
    pub items: Vec<(ShardId, internal::RedriveItem)>,
    /// Deliveries that are left out because an operator has discarded them.
    pub discarded: usize,
    /// The same of resolved ones.
    pub resolved: usize,
}

impl Selected {
    /// Reason why there is nothing to replay.
    pub fn nothing(&self) -> String {
        let Self { discarded, resolved, .. } = self;
        if discarded + resolved == 0 {
            return "no event that a subscription takes is selected".into();
        }
        format!(
            "nothing is left: of the selected deliveries {discarded} were discarded and {resolved} resolved by an \
             operator; name events by id, or use --include discarded,resolved"
        )
    }
}

/// Decisions of operators that a replay disregards.
#[derive(Debug, Clone, Copy, Default)]
struct Included {
    discarded: bool,
    resolved: bool,
}

impl Included {
    fn of(statuses: &[i32]) -> Result<Self, Status> {
        let mut included = Self::default();
        for status in statuses {
            match v1::DeliveryStatus::try_from(*status) {
                Ok(v1::DeliveryStatus::Discarded) => included.discarded = true,
                Ok(v1::DeliveryStatus::Resolved) => included.resolved = true,
                _ => return Err(refuse(Code::BadQuery, "include: one is not DISCARDED or RESOLVED")),
            }
        }
        Ok(included)
    }
}

/// Selects. Events that an operator has resolved or discarded are left out, unless they are named by id or by `include`.
///
/// # Errors
///
/// BAD_QUERY, NOT_FOUND for an unknown id or subscription, LOG_UNAVAILABLE.
pub(super) async fn select(log: &LogState, grant: &Grant, selection: v1::ReplaySelection) -> Result<Selected, Status> {
    let included = Included::of(&selection.include)?;
    let snapshot = log.snapshot().await?;
    let mut chosen =
        Chosen { receivers: Receivers::of(log, &snapshot, &selection.subscription)?, items: BTreeMap::new() };
    match (selection.event_ids.is_empty(), selection.filter, selection.all) {
        (false, None, false) => by_id(log, grant, &selection.event_ids, &mut chosen).await?,
        (true, Some(filter), false) => by_filter(log, grant, filter, &mut chosen).await?,
        (true, None, true) => by_filter(log, grant, v1::ReplayFilter::default(), &mut chosen).await?,
        _ => return Err(refuse(Code::BadQuery, "give event_ids, or a filter, or all; exactly one of them")),
    }
    let by_id = !selection.event_ids.is_empty();
    if by_id {
        let items = chosen.items.into_iter().map(|((shard, ..), item)| (shard, item)).collect();
        return Ok(Selected { items, ..Selected::default() });
    }
    without_decided(log, chosen, included).await
}

async fn without_decided(log: &LogState, chosen: Chosen, included: Included) -> Result<Selected, Status> {
    log.catch_up().await?;
    let place = |(shard, seq, uid): &(ShardId, StreamSeq, SubscriptionUid)| CommandItem {
        shard: *shard,
        seq: *seq,
        uid: *uid,
        run: Run::LIVE,
    };
    let places = chosen.items.keys().map(place).collect();
    let decisions = log.history.decisions(places).await.map_err(of_history)?;
    let mut selected = Selected::default();
    for (((shard, ..), item), decision) in chosen.items.into_iter().zip(decisions) {
        match decision {
            Some(OutcomeKind::Discarded) if !included.discarded => selected.discarded += 1,
            Some(OutcomeKind::Resolved) if !included.resolved => selected.resolved += 1,
            _ => selected.items.push((shard, item)),
        }
    }
    Ok(selected)
}

/// The present subscriptions, with a matcher for each shard. Their starts do not matter: a replay may deliver earlier
/// events.
struct Receivers(Vec<(SubscriptionUid, String, Vec<Matcher>)>);

impl Receivers {
    fn of(log: &LogState, snapshot: &Snapshot, only: &str) -> Result<Self, Status> {
        if !only.is_empty() && !snapshot.subscriptions.contains_key(only) {
            return Err(refuse(Code::NotFound, format!("no subscription {only}")));
        }
        let wanted = snapshot.subscriptions.values().filter(|found| only.is_empty() || found.value.name == only);
        let receivers = wanted.filter_map(|found| {
            let from_the_beginning = v1::Subscription { starts: Vec::new(), ..v1::Subscription::clone(&found.value) };
            let matchers: Vec<_> =
                log.layout.all().filter_map(|shard| Matcher::new(&from_the_beginning, shard)).collect();
            Some((SubscriptionUid::from_slice(&found.value.uid)?, found.value.name.clone(), matchers))
        });
        Ok(Self(receivers.collect()))
    }
}

struct Chosen {
    receivers: Receivers,
    items: BTreeMap<(ShardId, StreamSeq, SubscriptionUid), internal::RedriveItem>,
}

impl Chosen {
    fn take(&mut self, shard: ShardId, stored: &StoredEvent) -> Result<(), Status> {
        let takes = |matchers: &[Matcher]| matchers.get(shard.0 as usize).is_some_and(|matcher| matcher.takes(stored));
        for (uid, name, _) in self.receivers.0.iter().filter(|(_, _, matchers)| takes(matchers)) {
            let item = internal::RedriveItem {
                subscription: uid.to_vec(),
                subscription_name: name.clone(),
                sequence: stored.seq.0,
                workflow_id: stored.event.workflow.as_str().to_owned(),
                event_id: stored.event.id.to_vec(),
                run: 0,
                dead_letter_id: String::new(),
            };
            self.items.insert((shard, stored.seq, *uid), item);
        }
        if self.items.len() > SELECTED_MAX {
            let problem = format!("more than {SELECTED_MAX} deliveries are selected; replay them in narrower parts");
            return Err(refuse(Code::BadQuery, problem));
        }
        Ok(())
    }
}

async fn by_id(log: &LogState, grant: &Grant, ids: &[String], chosen: &mut Chosen) -> Result<(), Status> {
    if ids.len() > IDS_MAX {
        return Err(refuse(Code::BadQuery, format!("more than {IDS_MAX} event_ids; use a filter")));
    }
    log.catch_up().await?;
    for text in ids {
        let named: EventRef =
            text.parse().map_err(|problem| refuse(Code::BadQuery, format!("event_ids: {text:?} {problem}")))?;
        let unknown = || unknown(Code::UnknownEvent, format!("no event {named} is kept; nothing was replayed"));
        let places = log.history.places_of(named.event).await.map_err(of_history)?;
        let (shard, seq) = places.into_iter().rfind(|(_, seq)| named.is_at(*seq)).ok_or_else(unknown)?;
        let event = log.event(named.event, shard, seq, None).await?.ok_or_else(unknown)?;
        grant.check(&event.source, &event.workflow).map_err(|_| unknown())?;
        chosen.take(shard, &StoredEvent { seq, stored_at: event.received_at, event })?;
    }
    Ok(())
}

async fn by_filter(log: &LogState, grant: &Grant, asked: v1::ReplayFilter, chosen: &mut Chosen) -> Result<(), Status> {
    let (since, until) = (time(asked.since, "since")?, time(asked.until, "until")?);
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let workflow = given(asked.workflow_id).map(|text| {
        WorkflowId::new(text).map_err(|problem| refuse(Code::InvalidWorkflow, format!("filter.workflow_id: {problem}")))
    });
    let (workflow, event_type, source) = (workflow.transpose()?, given(asked.r#type), given(asked.source));
    let filter = auth::limited(grant, Filter { workflow, event_type, source, ..Filter::default() });
    let end = end(log, &filter, until).await?;
    let mut cursor = begin(log, &filter, since).await?;
    for _ in 0..PAGES_MAX {
        let page = scan::scan(&log.connection, log.layout, Some(&cursor), &filter, PAGE).await.map_err(of_scan)?;
        for stored in &page.events {
            let shard = log.layout.shard_of(&stored.event.workflow);
            let at = stored.event.received_at;
            let in_time = since.is_none_or(|since| at >= since) && until.is_none_or(|until| at < until);
            if in_time && stored.seq <= end.position(shard) {
                chosen.take(shard, stored)?;
            }
        }
        cursor = page.next;
        let read = filter.shards(log.layout).iter().all(|shard| cursor.position(*shard) >= end.position(*shard));
        if !page.has_more || read {
            return Ok(());
        }
    }
    let problem = format!(
        "the selection reads more than {PAGES_MAX} pages of the log; narrow it with since and until, or name a workflow"
    );
    Err(refuse(Code::BadQuery, problem))
}

/// The cursor after the last event that may match: later events than the present ones are delivered anyway.
async fn end(log: &LogState, filter: &Filter, until: Option<Timestamp>) -> Result<Cursor, Status> {
    let mut end = scan::newest(&log.connection, log.layout).await.map_err(of_scan)?;
    if let Some(until) = until.and_then(|until| until.checked_add(CLOCK_SLACK).ok()) {
        for shard in filter.shards(log.layout) {
            let stream = log.layout.events_stream(shard);
            let before = scan::before_time(&log.connection, &stream, until).await.map_err(of_scan)?;
            end.set(shard, before.min(end.position(shard)));
        }
    }
    Ok(end)
}

/// The cursor before the first event that may match.
async fn begin(log: &LogState, filter: &Filter, since: Option<Timestamp>) -> Result<Cursor, Status> {
    let mut cursor = scan::oldest(&log.connection, log.layout).await.map_err(of_scan)?;
    if let Some(since) = since {
        let since = since.checked_sub(CLOCK_SLACK).unwrap_or(Timestamp::MIN);
        for shard in filter.shards(log.layout) {
            let stream = log.layout.events_stream(shard);
            let before = scan::before_time(&log.connection, &stream, since).await.map_err(of_scan)?;
            cursor.set(shard, before.max(cursor.position(shard)));
        }
    }
    Ok(cursor)
}

fn time(time: Option<prost_types::Timestamp>, field: &str) -> Result<Option<Timestamp>, Status> {
    let refused = || refuse(Code::BadQuery, format!("filter.{field} is not a time within years 1 to 9999"));
    let read = |time: prost_types::Timestamp| {
        convert::to_milliseconds(&time).and_then(|ms| Timestamp::from_millisecond(ms).ok()).ok_or_else(refused)
    };
    time.map(read).transpose()
}

//! `weft bench history`: the admin's history of many events: how fast it follows the log, how long each look-up takes, and how soon a
//! restarted one answers.
//!
//! The log is filled as gateways and a worker would have filled it: events of ten types and three sources, of which most are
//! delivered, some are dead letters and some wait. The history then reads it from its beginning, in this process. Each look-up
//! asks for a page of 100 with one filter.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_catalog::Snapshot;
use weft_index::history::{
    AsOf, EventQuery, History, HistoryOptions,
    status::{DeliveryStatus, EventStatus},
};
use weft_nats::{
    append::{Appender, BATCH_MESSAGES_MAX},
    connect::Connection,
    event::Event,
    records, streams,
    subject::Layout,
};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, OutcomeKind, outcome_record::Record, subscription_change::Change},
    v1,
};

use super::{
    append::body,
    args::EventArgs,
    disk::Disk,
    latency::{Latencies, Percentiles},
    preload::Preload,
};
use weft_services::{
    command::output::{self, Row},
    failure::Failure,
    mesh::{Nats, weft_program},
};

const SHARD: ShardId = ShardId(0);
const BILLING: SubscriptionUid = SubscriptionUid::from_bytes([7; 16]);
const SOURCES: [&str; 3] = ["shop", "bank", "github"];
/// Entries of one page.
const PAGE: usize = 100;
/// One of this number of events is a dead letter, and one has failed and waits.
const ONE_OF: u64 = 1_000;
/// How long the history may take to read what the log holds.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// `weft bench history`.
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// Events in the log
    #[arg(long, default_value_t = 500_000)]
    events: u64,
    /// Workflows that they are spread over
    #[arg(long, default_value_t = 10_000)]
    workflows: u64,
    /// Look-ups by each filter
    #[arg(long, default_value_t = 200)]
    lookups: u64,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    events: u64,
    /// Events that the history has read a second, with their outcomes and attempts.
    events_per_second: f64,
    file_bytes: u64,
    /// From the start of a second history on the same file to its first answer.
    restart_ms: f64,
    filters: Vec<Filter>,
}

/// Look-ups by one filter.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    name: &'static str,
    /// Mean number of events of a page.
    found: f64,
    #[serde(flatten)]
    latency: Percentiles,
}

impl Row for Filter {
    const HEADINGS: &'static [&'static str] = &["FILTER", "FOUND", "P50 MS", "P99 MS", "MAX MS"];

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.name.to_owned(), format!("{:.0}", self.found)];
        cells.extend([self.latency.p50_ms, self.latency.p99_ms, self.latency.max_ms].map(|ms| format!("{ms:.2}")));
        cells
    }
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: no server, no disk, or a history that does not follow.
pub async fn run(args: HistoryArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let stop = CancellationToken::new();
    let nats = Nats::start(&weft_program()?, folder.path(), stop.clone()).await?;
    let measured = measure(&nats, &args, folder.path(), disk).await;
    stop.cancel();
    nats.stopped().await;
    let report = measured?;
    args.event.output.print(&report, || {
        let table = output::table(Filter::HEADINGS, report.filters.iter().map(Row::cells));
        let Report { events, events_per_second, file_bytes, restart_ms, .. } = &report;
        let megabytes = file_bytes / (1 << 20);
        let read = format!(
            "{events} events, read at {events_per_second:.0} a second into {megabytes} MiB; a restart answers after \
             {restart_ms:.0} ms"
        );
        format!("{}\n{read}\n{table}", report.disk.line(folder.path()))
    })
}

async fn measure(nats: &Nats, args: &HistoryArgs, folder: &Path, disk: Disk) -> anyhow::Result<Report> {
    let layout = streams::ensure(&nats.connection("admin", "weft-bench-streams").await?, nats.spec()).await?;
    fill(nats, layout, args).await?;
    let folder = folder.join("history");
    let started = Instant::now();
    let first = Follower::start(nats, layout, &folder).await?;
    let events_per_second = args.events as f64 / started.elapsed().as_secs_f64();
    let filters = look_up(&first.history, args).await?;
    first.stop().await;
    let file_bytes = std::fs::metadata(folder.join("history.redb"))?.len();
    let started = Instant::now();
    let second = Follower::start(nats, layout, &folder).await?;
    second.history.list(EventQuery::default(), None, PAGE).await?;
    let restart_ms = started.elapsed().as_secs_f64() * 1000.0;
    second.stop().await;
    Ok(Report { disk, events: args.events, events_per_second, file_bytes, restart_ms, filters })
}

/// A history that has read the whole log.
struct Follower {
    history: History,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Follower {
    async fn start(nats: &Nats, layout: Layout, folder: &Path) -> anyhow::Result<Self> {
        let connection: Connection = nats.connection("admin", "weft-bench-history").await?;
        let options = HistoryOptions {
            folder: folder.to_owned(),
            dead_letter_retention: Duration::from_secs(30 * 86_400),
            sweep_interval: Duration::from_secs(60),
        };
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let catalog = watch::Sender::new(Arc::new(Snapshot::default())).subscribe();
        let history = History::start(connection, layout, options, catalog, cancel.clone(), &tasks).await?;
        if history.catch_up(&[SHARD], PATIENCE).await? != AsOf::Current {
            bail!("the history has not read the log within {} s", PATIENCE.as_secs());
        }
        Ok(Self { history, cancel, tasks })
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The source, the delivery id and with them the id of an event.
fn identity(number: u64) -> (&'static str, String, EventId) {
    let source = SOURCES[(number % SOURCES.len() as u64) as usize];
    let delivery_id = format!("bench-{number}");
    let id = EventId::of_delivery(source, &delivery_id);
    (source, delivery_id, id)
}

fn event(preload: Preload, number: u64, payload: &Bytes) -> anyhow::Result<Event> {
    let (source, delivery_id, id) = identity(number);
    Ok(Event {
        id,
        source: source.into(),
        delivery_id: Some(delivery_id),
        previous: number.checked_sub(preload.workflows).map(|number| identity(number).2),
        event_type: format!("order.kind-{}", number / 3 % 10),
        ..preload.event(number, payload)?
    })
}

/// Fills EVENTS and OUTCOMES.
async fn fill(nats: &Nats, layout: Layout, args: &HistoryArgs) -> anyhow::Result<()> {
    let preload = Preload { workflows: args.workflows.max(1), payload: args.event.payload };
    let mut events = Appender::new(nats.connection("gateway", "weft-bench-events").await?);
    let mut outcomes = Appender::new(nats.connection("worker", "weft-bench-outcomes").await?);
    let style = ProgressStyle::with_template("fill {bar:40} {human_pos}/{human_len} events, {eta}")?;
    let progress = ProgressBar::new(args.events).with_style(style);
    let payload = body(args.event.payload);
    let (mut last, mut last_outcome) = (StreamSeq(0), StreamSeq(0));
    let mut group = Vec::with_capacity(BATCH_MESSAGES_MAX);
    let mut commit = opening();
    for number in 0..args.events {
        let event = event(preload, number, &payload)?;
        settle(&mut commit, number, &event.workflow, event.id);
        group.push(event.encode(layout));
        if group.len() == BATCH_MESSAGES_MAX || number + 1 == args.events {
            last = events.append(last, &group).await.context("events")?;
            commit.cursor = last.0;
            let record = internal::OutcomeRecord { record: Some(Record::Commit(std::mem::take(&mut commit))) };
            let message = records::encode(layout.outcomes_subject(SHARD), &record);
            last_outcome = outcomes.append(last_outcome, &[message]).await.context("outcomes")?;
            progress.inc(group.len() as u64);
            group.clear();
        }
    }
    progress.finish_and_clear();
    Ok(())
}

fn opening() -> internal::Commit {
    let opened = internal::Opened {
        name: "billing".into(),
        from: 1,
        revision: 1,
        types: vec!["*".into()],
        ..Default::default()
    };
    let change = Some(Change::Opened(opened));
    let opened = internal::SubscriptionChange { subscription: BILLING.to_vec(), change, catalog: None };
    internal::Commit { epoch: 1, subscriptions: vec![opened], ..Default::default() }
}

/// The end of the event at sequence `number + 1`.
fn settle(commit: &mut internal::Commit, number: u64, workflow: &WorkflowId, id: EventId) {
    let (sequence, at_ms) = (number + 1, Timestamp::now().as_millisecond());
    let (is_dead, waits) = (number % ONE_OF == 1, number % ONE_OF == 2);
    let class = if is_dead || waits { v1::AttemptClass::HttpStatus } else { v1::AttemptClass::Delivered };
    commit.attempts.push(internal::Attempt {
        subscription: BILLING.to_vec(),
        sequence,
        number: 1,
        started_at_ms: at_ms,
        ended_at_ms: at_ms,
        class: class.into(),
        status: if is_dead || waits { 500 } else { 204 },
        event_id: id.to_vec(),
        workflow_id: workflow.as_str().to_owned(),
        ..Default::default()
    });
    if waits {
        return;
    }
    let kind = if is_dead { OutcomeKind::DeadLettered } else { OutcomeKind::Delivered };
    commit.outcomes.push(internal::Outcome {
        subscription: BILLING.to_vec(),
        sequence,
        kind: kind.into(),
        workflow_id: workflow.as_str().to_owned(),
        event_id: id.to_vec(),
        attempts: 1,
        at_ms,
        ..Default::default()
    });
}

/// Look-ups by each filter, of events all over the log.
async fn look_up(history: &History, args: &HistoryArgs) -> anyhow::Result<Vec<Filter>> {
    let newest = history.list(EventQuery::default(), None, 1).await?.events;
    let oldest = history.list(EventQuery { oldest_first: true, ..EventQuery::default() }, None, 1).await?.events;
    let at = |events: &[weft_index::history::ListedEvent]| events.first().map_or(0, |event| event.stored_at_ms);
    let (from_ms, to_ms) = (at(&oldest), at(&newest));
    let any = EventQuery::default;
    let of_number = |lookup: u64| lookup * 7_919 % args.events.max(1);
    let mut filters = Vec::new();
    let mut add = async |name, query: &dyn Fn(u64) -> EventQuery| -> anyhow::Result<()> {
        filters.push(timed(history, args.lookups, name, query).await?);
        Ok(())
    };
    add("none, newest first", &|_| any()).await?;
    add("none, oldest first", &|_| EventQuery { oldest_first: true, ..any() }).await?;
    add("event id", &|lookup| EventQuery { ids: Some(vec![identity(of_number(lookup)).2]), ..any() }).await?;
    add("unknown event id", &|_| EventQuery { ids: Some(vec![EventId::unique()]), ..any() }).await?;
    add("workflow", &|lookup| {
        let workflow = format!("w-{}", of_number(lookup) % args.workflows.max(1));
        EventQuery { workflow: Some(workflow), ..any() }
    })
    .await?;
    add("type", &|lookup| EventQuery { event_type: Some(format!("order.kind-{}", lookup % 10)), ..any() }).await?;
    add("type pattern", &|_| EventQuery { event_type: Some("*.kind-7".into()), ..any() }).await?;
    add("absent type", &|_| EventQuery { event_type: Some("refund.*".into()), ..any() }).await?;
    add("source", &|_| EventQuery { source: Some("bank".into()), ..any() }).await?;
    add("subscription", &|_| EventQuery { subscription: Some("billing".into()), ..any() }).await?;
    add("time range", &|lookup| {
        let since = from_ms + (to_ms - from_ms) * i64::try_from(lookup % 100).unwrap_or(0) / 100;
        EventQuery { since_ms: Some(since), until_ms: Some(since + 1_000), ..any() }
    })
    .await?;
    for (name, status) in [
        ("status delivered", DeliveryStatus::Delivered),
        ("status dead_lettered", DeliveryStatus::DeadLettered),
        ("status retrying", DeliveryStatus::Retrying),
        ("status pending", DeliveryStatus::Pending),
        ("status blocked", DeliveryStatus::Blocked),
        ("status discarded", DeliveryStatus::Discarded),
    ] {
        add(name, &|_| EventQuery { statuses: vec![EventStatus::Worst(status)], ..any() }).await?;
    }
    Ok(filters)
}

async fn timed(
    history: &History,
    lookups: u64,
    name: &'static str,
    query: &dyn Fn(u64) -> EventQuery,
) -> anyhow::Result<Filter> {
    let (mut latencies, mut found) = (Latencies::new(), 0);
    for lookup in 0..lookups.max(1) {
        let started = Instant::now();
        let page = history.list(query(lookup), None, PAGE).await?;
        let places = page.events.iter().map(|event| (event.shard, event.seq)).collect();
        // As `ListEvents` does, with the deliveries of each.
        let events = history.events_at(places).await?;
        latencies.record(started.elapsed());
        found += events.len();
    }
    Ok(Filter { name, found: found as f64 / lookups.max(1) as f64, latency: latencies.percentiles() })
}

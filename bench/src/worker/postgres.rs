//! Deliveries into PostgreSQL in batches, from a filled log until each event has its outcome, against a bare client that inserts the
//! same rows in as large batches, without `COPY`.

use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, Statement, types::ToSql};
use weft_nats::{envelope, event::Event};

use super::{
    Aim, Bench,
    delivered::{Phase, by_worker},
    lines,
};
use crate::{append::body, args::EventArgs, cpu, disk::Disk, preload::Preload};
use weft_services::{command::output, failure::Failure};

/// Minimum number of events a second, unless the share is reached.
const RATE_MIN: f64 = 15_000.0;
/// Minimum share of the bare client's rate.
const SHARE_MIN: f64 = 0.7;
/// Columns of a row that the bare client inserts.
const COLUMNS: usize = 9;
/// Table of the bare client.
const TABLE: &str = "weft_bench_bare";

/// `weft bench worker postgres`.
#[derive(Debug, clap::Args)]
pub struct PostgresArgs {
    /// A database to write to; its tables weft_events, weft_fence and weft_bench_bare are dropped
    #[arg(long, value_name = "DSN")]
    dsn: String,
    /// Events of each phase
    #[arg(long, default_value_t = 200_000)]
    events: u64,
    /// Workflows that they are spread over
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    workflows: u64,
    /// Events of a batch
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    batch: u64,
    /// Connections of each
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=16))]
    connections: u64,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: Disk,
    connections: u64,
    batch: u64,
    payload_bytes: usize,
    phases: Vec<Phase>,
    aims: Vec<Aim>,
}

/// Measures and prints.
///
/// # Errors
///
/// [`Failure`]: something does not start, or an event has no outcome.
pub async fn run(args: PostgresArgs) -> Result<(), Failure> {
    let folder = args.event.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let bench = Bench::start(folder.path()).await?;
    let phases =
        async { anyhow::Ok(vec![bare(&args).await?, delivered(&bench, &args).await?, bare(&args).await?]) }.await;
    bench.end().await;
    let phases = phases?;
    let share = phases[1].per_second / ((phases[0].per_second + phases[2].per_second) / 2.0);
    let aims = vec![
        Aim::at_least("events a second", RATE_MIN, phases[1].per_second),
        Aim::at_least("or events a second ÷ those of the bare client", SHARE_MIN, share),
    ];
    let PostgresArgs { connections, batch, event: EventArgs { payload: payload_bytes, output }, .. } = args;
    let report = Report { disk, connections, batch, payload_bytes, phases, aims };
    output.print(&report, || {
        let table = output::table(&["PHASE", "EVENTS/S", "CLIENT CPU US"], report.phases.iter().map(Phase::cells));
        format!("{}\n{table}\n{}", report.disk.line(folder.path()), lines(&report.aims))
    })
}

async fn connect(dsn: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.context("--dsn")?;
    // Ends with its client.
    tokio::spawn(connection);
    Ok(client)
}

async fn delivered(bench: &Bench, args: &PostgresArgs) -> anyhow::Result<Phase> {
    let database = connect(&args.dsn).await?;
    database.batch_execute("DROP TABLE IF EXISTS weft_events, weft_fence").await?;
    Preload { workflows: args.workflows, payload: args.event.payload }.fill(&bench.nats, args.events).await?;
    let destination = format!("{{ type = \"postgres\", shards = [\"{}\"], create = true }}", args.dsn);
    bench.subscribe_in_batches(&destination, args.connections as usize, args.batch).await?;
    let phase = by_worker(bench, "delivered by the worker", args.events).await?;
    let rows: i64 = database.query_one("SELECT count(*) FROM weft_events", &[]).await?.try_get(0)?;
    anyhow::ensure!(rows as u64 == args.events, "{rows} rows of {} events", args.events);
    Ok(phase)
}

async fn bare(args: &PostgresArgs) -> anyhow::Result<Phase> {
    let database = connect(&args.dsn).await?;
    let definition = "position bigserial, event_id uuid PRIMARY KEY, workflow_id text, sequence_number bigint, \
                      previous_event_id uuid, type text, source text, time timestamptz, received_at timestamptz, data jsonb";
    database.batch_execute(&format!("DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} ({definition})")).await?;
    let (cpu_before, started) = (cpu::seconds(std::process::id())?, Instant::now());
    let mut tasks = JoinSet::new();
    for connection in 0..args.connections {
        let (client, payload) = (connect(&args.dsn).await?, body(args.event.payload));
        let (batch, connections, events) = (args.batch, args.connections, args.events);
        let preload = Preload { workflows: args.workflows, payload: args.event.payload };
        tasks.spawn(async move {
            let (batches, statement) = (events / batch, client.prepare(&statement(batch)).await?);
            for number in (0..batches).filter(|number| number % connections == connection) {
                let events = (number * batch..(number + 1) * batch).map(|event| preload.event(event, &payload));
                insert(&client, &statement, &events.collect::<anyhow::Result<Vec<_>>>()?).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let (elapsed, used) = (started.elapsed(), cpu::seconds(std::process::id())? - cpu_before);
    Ok(Phase::new("inserted by the bare client", args.events / args.batch * args.batch, elapsed, used))
}

/// One statement for all rows of a batch.
fn statement(rows: u64) -> String {
    let casts = ["uuid", "text", "bigint", "uuid", "text", "text", "timestamptz", "timestamptz", "jsonb"];
    let mut number = 0;
    let mut row = || {
        let places = casts.map(|cast| {
            number += 1;
            format!("${number}::text::{cast}")
        });
        format!("({})", places.join(","))
    };
    let rows: Vec<_> = (0..rows).map(|_| row()).collect();
    format!(
        "INSERT INTO {TABLE} (event_id, workflow_id, sequence_number, previous_event_id, type, source, time, received_at, \
         data) VALUES {} ON CONFLICT (event_id) DO NOTHING",
        rows.join(",")
    )
}

async fn insert(client: &Client, statement: &Statement, events: &[Event]) -> anyhow::Result<()> {
    let mut texts = Vec::with_capacity(events.len() * COLUMNS);
    for event in events {
        let data = envelope::data_of(event).context("data")?;
        texts.extend([
            Some(event.id.to_string()),
            Some(event.workflow.as_str().to_owned()),
            Some(event.sequence_number.to_string()),
            event.previous.map(|previous| previous.to_string()),
            Some(event.event_type.clone()),
            Some(event.source.clone()),
            Some(event.time.to_string()),
            Some(event.received_at.to_string()),
            Some(String::from_utf8(data.to_vec())?),
        ]);
    }
    let parameters: Vec<&(dyn ToSql + Sync)> = texts.iter().map(|text| text as _).collect();
    client.execute(statement, &parameters).await?;
    Ok(())
}

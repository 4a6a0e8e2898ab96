//! Exactly once into PostgreSQL: a worker, nats-server and the databases are killed under load.
//!
//! `WEFT_SOAK_KILLS` says how often, `WEFT_SOAK_SEED` by which dice; the seed is printed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use weft_catalog::Catalog;
use weft_nats::subject::Layout;
use weft_services::{
    apply::apply,
    config::Config,
    mesh::{SOURCE, Up, Wiring},
    receiver::Answer,
};
use weft_testkit::{eventually, master_key};
use weft_worker::testing::TestPostgres;

use crate::{
    commands::Operator,
    load::Load,
    mesh::{Mesh, PATIENCE, program, provide_tls},
};

const SHARDS: u32 = 2;
const WORKFLOWS: usize = 40;
/// Between two events of a workflow: some hundred a second in all.
const PAUSE: Duration = Duration::from_millis(200);
/// Kills in the ordinary run: one of each.
const KILLS: usize = 3;
/// Events that are accepted between two kills.
const BETWEEN: usize = 150;

/// Victims of the kills, in turn.
#[derive(Debug, Clone, Copy)]
enum Target {
    Worker,
    Database,
    Server,
}

const TARGETS: [Target; 3] = [Target::Worker, Target::Database, Target::Server];

async fn subscribe(mesh: &Mesh, databases: &[TestPostgres]) {
    let dsns: Vec<String> = databases.iter().map(|database| format!("\"{}\"", database.dsn())).collect();
    let text = format!(
        "[[subscription]]\nname = \"ledger\"\nstart = \"beginning\"\nbatch = {{ max_events = 20 }}\n\
         destination = {{ type = \"postgres\", shards = [{}], create = true }}\n",
        dsns.join(", ")
    );
    let config = Config::parse(Path::new("weft.toml"), text, [], None).unwrap();
    let connection = mesh.server.connection("test").await;
    apply(&Catalog::new(connection, master_key()), Layout::new(SHARDS), &config.catalog, "test").await.unwrap();
}

/// The rows of all databases: of each workflow the numbers, in the order of the serial column.
async fn rows(databases: &[TestPostgres]) -> BTreeMap<String, Vec<u64>> {
    let mut found = BTreeMap::<String, Vec<u64>>::new();
    for database in databases {
        let rows = database.query("SELECT workflow_id, sequence_number FROM weft_events ORDER BY position").await;
        let here: BTreeSet<String> = rows.iter().map(|row| row[0].clone()).collect();
        assert!(here.iter().all(|workflow| !found.contains_key(workflow)), "a workflow is in two databases");
        for row in rows {
            found.entry(row[0].clone()).or_default().push(row[1].parse().unwrap());
        }
    }
    found
}

/// Every event is one row, in the order of its workflow, regardless of kills.
#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_one_row_in_order_despite_kills() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let kills = number("WEFT_SOAK_KILLS").map_or(KILLS, |kills| kills as usize);
    let seed = number("WEFT_SOAK_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    eprintln!("{kills} kills, WEFT_SOAK_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut databases = [TestPostgres::start().await, TestPostgres::start().await];
    let mut mesh = Mesh::sharded(SHARDS, Wiring::new(), |_| Answer::OK).await;
    subscribe(&mesh, &databases).await;
    let mut load = Load::steady(&mesh, WORKFLOWS, PAUSE);
    for target in TARGETS.into_iter().cycle().take(kills) {
        load.until_accepted(load.accepted() + BETWEEN + rng.random_range(0..BETWEEN)).await;
        eprintln!("{target:?} is killed after {} events", load.accepted());
        match target {
            Target::Worker => mesh.worker.restart().await.unwrap(),
            Target::Database => {
                let database = &mut databases[rng.random_range(0..2)];
                database.kill();
                load.until_accepted(load.accepted() + 10).await;
                database.restart().await;
            }
            Target::Server => {
                mesh.server.kill();
                mesh.server.restart().await;
            }
        }
    }
    load.stop();
    let events = load.finish().await;
    let all = events.values().sum::<u64>();
    let stored = async || rows(&databases).await.values().map(Vec::len).sum::<usize>() as u64;
    assert!(eventually(4 * PATIENCE, async || stored().await >= all).await, "{} of {all}", stored().await);
    let expected: BTreeMap<String, Vec<u64>> =
        events.iter().map(|(workflow, count)| (workflow.clone(), (1..=*count).collect())).collect();
    assert_eq!(rows(&databases).await, expected, "{all} events");
    eprintln!("{all} events, {all} rows");
}

/// The tables of a destination without `create` are created by `weft subscription migrate`; until then its events are held.
#[tokio::test]
async fn tables_are_created_by_the_command() {
    provide_tls();
    let (folder, database) = (tempfile::tempdir().unwrap(), TestPostgres::start().await);
    let wiring = Wiring::new();
    let config = format!(
        "[worker]\nallow_networks = [\"127.0.0.0/8\"]\n{}[[subscription]]\nname = \"ledger\"\n\
         destination = {{ type = \"postgres\", shards = [\"{}\"], table = \"ledger\" }}\n",
        wiring.config(None),
        database.dsn()
    );
    let mut up = Up::start(&program(), folder.path(), &config).await.unwrap();
    let operator = Operator {
        data: &folder.path().join("data"),
        gateway: up.endpoints.get("gateway").unwrap().to_owned(),
        secret: &wiring.sender_secret,
    };
    let send = ["event", "send", "--source", SOURCE, "--workflow", "order-1", "--type", "order.paid"];
    operator.lines(&send).await;
    let held = async || {
        let found = operator.lines(&["subscription", "get", "ledger"]).await;
        let text = found[0].to_string();
        assert!(!text.contains("postgres://"), "a connection string is a secret: {text}");
        text.contains("42P01")
    };
    assert!(eventually(PATIENCE, held).await);
    let migrate = ["subscription", "migrate", "ledger", "--reason", "first use"];
    let planned = operator.lines(&[&migrate[..], &["--dry-run"]].concat()).await;
    assert_eq!(planned[0]["databases"].as_array().map(Vec::len), Some(0));
    assert!(planned[0]["statements"][0].as_str().unwrap().starts_with("CREATE TABLE IF NOT EXISTS \"ledger\""));
    let done = operator.lines(&migrate).await;
    assert_eq!(
        (&done[0]["statements"], done[0]["databases"].as_array().map(Vec::len)),
        (&planned[0]["statements"], Some(1))
    );
    // A held destination is tried every 30 s.
    let stored = async || database.query("SELECT count(*) FROM ledger").await == [["1"]];
    assert!(eventually(2 * PATIENCE, stored).await);
    assert_eq!(operator.code(&["subscription", "migrate", "missing"]).await, Some(3));
    up.stop().await.unwrap();
}

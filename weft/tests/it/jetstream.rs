//! Events into a JetStream stream, through kills of the worker and of nats-server.
//!
//! `WEFT_SOAK_KILLS` says how many kills, `WEFT_SOAK_SEED` by which dice; the seed is printed.

use std::{collections::BTreeMap, path::Path, time::Duration};

use futures_util::StreamExt as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use weft_catalog::Catalog;
use weft_nats::{
    async_nats::jetstream::{consumer, stream},
    connect::Connection,
    options::LogOptions,
    streams::{self, LogSpec},
};
use weft_services::{apply::apply, config::Config, mesh::Wiring, receiver::Answer};
use weft_testkit::{eventually, master_key};

use crate::{
    load::Load,
    mesh::{Mesh, PATIENCE},
};

const WORKFLOWS: usize = 50;
/// Time between two events of a workflow.
const PAUSE: Duration = Duration::from_millis(200);
/// Kills in the ordinary run.
const KILLS: usize = 3;
/// Events that are accepted between two kills.
const BETWEEN: usize = 300;
/// Shorter than any take-over, so that the server's memory of message ids is of no help.
const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);
/// Without `url`: on the mesh's own server, through the worker's connection.
const SUBSCRIPTION: &str = r#"
[[subscription]]
name = "orders"
timeout = "5s"
retry = { max_retries = 50, base = "20ms", factor = 2.0, max = "500ms" }
destination = { type = "nats", subject = "orders.{workflow}", stream = "ORDERS" }
"#;

#[derive(Debug, Clone, Copy)]
enum Fault {
    Worker,
    Server,
    Both,
}

/// Each is injected in turn, in an order of the dice.
const FAULTS: [Fault; 3] = [Fault::Worker, Fault::Server, Fault::Both];

async fn inject(mesh: &mut Mesh, fault: Fault) {
    if !matches!(fault, Fault::Server) {
        mesh.worker.kill().await.unwrap();
    }
    if !matches!(fault, Fault::Worker) {
        mesh.server.kill();
        mesh.server.restart().await;
    }
    if !matches!(fault, Fault::Server) {
        mesh.worker.restart().await.unwrap();
    }
}

/// The numbers of the stored events by workflow, in the order of the stream.
async fn stored(connection: &Connection) -> BTreeMap<String, Vec<u64>> {
    let stream = connection.jetstream().get_stream("ORDERS").await.unwrap();
    let count = stream.get_info().await.unwrap().state.messages as usize;
    let consumer = stream.create_consumer(consumer::pull::OrderedConfig::default()).await.unwrap();
    let mut messages = consumer.messages().await.unwrap().take(count);
    let mut stored = BTreeMap::<String, Vec<u64>>::new();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let workflow = message.subject.strip_prefix("orders.").unwrap().to_owned();
        let number = message.headers.as_ref().unwrap().get("ce-sequence").unwrap().as_str().parse().unwrap();
        stored.entry(workflow).or_default().push(number);
    }
    stored
}

/// Guards: exactly once into a stream. As many messages as events, in order for each workflow, although workers and
/// nats-server are killed with -9 and the server remembers no message id for long.
#[tokio::test(flavor = "multi_thread")]
async fn events_are_stored_once_and_in_order_through_kills() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let kills = number("WEFT_SOAK_KILLS").map_or(KILLS, |kills| kills as usize);
    let seed = number("WEFT_SOAK_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    eprintln!("{kills} kills, WEFT_SOAK_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let variables = |role: &str| match role {
        "worker" => vec![("WEFT_NATS__PUBLISH".to_owned(), "orders.>".to_owned())],
        _ => Vec::new(),
    };
    let ok = |_: &_| Answer { status: 200, delay: Duration::ZERO };
    let mut mesh = Mesh::with_variables(LogOptions::default(), variables, Wiring::new(), ok).await;
    let connection = mesh.server.connection("judge").await;
    let orders = stream::Config {
        name: "ORDERS".into(),
        subjects: vec!["orders.>".into()],
        duplicate_window: DUPLICATE_WINDOW,
        ..Default::default()
    };
    connection.jetstream().create_stream(orders).await.unwrap();
    let text = mesh.wiring.config(None) + SUBSCRIPTION;
    let config = Config::parse(Path::new("weft.toml"), text, [], None).unwrap();
    let layout =
        streams::ensure(&connection, &LogSpec { body_bytes_max: 1024 * 1024, ..LogSpec::default() }).await.unwrap();
    apply(&Catalog::new(connection.clone(), master_key()), layout, &config.catalog, "jetstream").await.unwrap();

    let mut load = Load::steady(&mesh, WORKFLOWS, PAUSE);
    for kill in 0..kills {
        let wait = rng.random_range(BETWEEN / 2..BETWEEN);
        load.until_accepted(load.accepted() + wait).await;
        let fault = FAULTS[(kill + seed as usize) % FAULTS.len()];
        eprintln!("kill {kill}: {fault:?} after {} events", load.accepted());
        inject(&mut mesh, fault).await;
    }
    load.stop();
    let events = load.finish().await;
    let total = events.values().sum::<u64>();
    connection.connected().await;
    let mut orders = connection.jetstream().get_stream("ORDERS").await.unwrap();
    let all = async || orders.info().await.is_ok_and(|info| info.state.messages >= total);
    assert!(eventually(2 * PATIENCE, all).await, "not every event is stored");
    // What is under way ends before the stream is counted.
    assert_eq!(mesh.worker.stop().await.unwrap().code(), Some(0));
    let expected: BTreeMap<_, Vec<u64>> =
        events.iter().map(|(workflow, count)| (workflow.clone(), (1..=*count).collect())).collect();
    let stored = stored(&connection).await;
    eprintln!("{total} events, {} messages", stored.values().map(Vec::len).sum::<usize>());
    assert_eq!(stored, expected);
}

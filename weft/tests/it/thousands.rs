//! Thousands of subscriptions: what each costs a worker.
//!
//! The short form of `weft bench worker subscriptions`, in figures that depend little on how busy the machine is: memory and CPU
//! time.

use std::{fs, path::Path};

use prost::Message as _;
use weft_catalog::Catalog;
use weft_nats::{
    connect::Connection,
    reader::{OrderedReader, ReaderOptions},
    streams::{self, LogSpec},
};
use weft_proto::{
    ids::StreamSeq,
    internal::{self, outcome_record::Record, subscription_change::Change},
};
use weft_services::{apply::apply, config::Config, mesh::RoleProcess};
use weft_testkit::{TestServer, master_key};

use crate::mesh::{PATIENCE, role};

/// Few, and many.
const COUNTS: [usize; 2] = [200, 2200];
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Memory of a subscription in a worker: ten thousand of them have 150 MiB.
const BYTES_MAX: f64 = 15.0 * 1024.0;
/// CPU time of a subscription from the start of a worker until it is open, in seconds, without optimisation. Ten thousand of
/// them are to start within five seconds in a release build, which is about ten times as fast.
const CPU_SECONDS_MAX: f64 = 0.005;

fn config(from: usize, to: usize) -> String {
    let subscription = |number: usize| {
        format!(
            "[[subscription]]\nname = \"s{number}\"\ntypes = [\"never.s{number}.*\"]\nstart = \"beginning\"\n\
             destination = {{ type = \"http\", url = \"http://127.0.0.1:9/s{number}\", secret = \"{SECRET}\" }}\n"
        )
    };
    (from..to).map(subscription).collect()
}

/// Resident memory in bytes, and CPU time in seconds.
fn usage(process: &RoleProcess) -> (f64, f64) {
    let pid = process.pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: f64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum();
    (kib * 1024.0, ticks / 100.0)
}

/// Waits until owners have opened this number of subscriptions.
async fn until_open(connection: &Connection, count: usize) {
    let options = ReaderOptions {
        stream: "OUTCOMES".into(),
        name: "test".into(),
        from: StreamSeq(1),
        filter: None,
        batch_messages_max: 500,
        known: None,
        pages: false,
    };
    let (mut reader, mut open) = (OrderedReader::new(connection.clone(), options), 0);
    while open < count {
        let batch = tokio::time::timeout(PATIENCE, reader.next()).await.expect("all are opened").unwrap();
        for message in batch.messages {
            let record = internal::OutcomeRecord::decode(message.payload).unwrap().record;
            let Some(Record::Commit(commit)) = record else { continue };
            open += commit.subscriptions.iter().filter(|one| matches!(one.change, Some(Change::Opened(_)))).count();
        }
    }
}

/// 10,000 subscriptions cost under 150 MiB and 5 s at the start of a worker, in proportion to their number.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_costs_a_worker_little_however_many_there_are() {
    let (server, folder) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let connection = server.connection("test").await;
    let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
    let layout = streams::ensure(&connection, &spec).await.unwrap();
    let catalog = Catalog::new(connection.clone(), master_key());
    let mut used = Vec::new();
    for (from, count) in [0, COUNTS[0]].into_iter().zip(COUNTS) {
        let config = Config::parse(Path::new("weft.toml"), config(from, count), [], None).unwrap();
        let applied = apply(&catalog, layout, &config.catalog, &format!("up to {count}")).await.unwrap();
        assert_eq!(applied.created, count - from);
        let mut worker = role("worker", &format!("worker-{count}"), &server, folder.path());
        until_open(&connection, count).await;
        used.push(usage(&worker));
        worker.stop().await.unwrap();
    }
    let more = (COUNTS[1] - COUNTS[0]) as f64;
    let (bytes, seconds) = ((used[1].0 - used[0].0) / more, (used[1].1 - used[0].1) / more);
    eprintln!("a subscription has {bytes:.0} bytes and {:.2} ms of CPU time", seconds * 1000.0);
    assert!(bytes <= BYTES_MAX, "{bytes:.0} bytes each");
    assert!(seconds <= CPU_SECONDS_MAX, "{:.2} ms of CPU time each", seconds * 1000.0);
}

//! Wall clocks that step while a process runs: by a week either way, by an hour, as a host with a broken clock does and as
//! its correction does.
//!
//! The clock is a preloaded library (`tests/shim/clock.c`); the processes and the log server are the real ones, and the
//! server keeps the right time.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use jiff::SignedDuration;
use tempfile::TempDir;
use weft_nats::{direct, options::LogOptions, streams};
use weft_proto::{ids::StreamSeq, internal};
use weft_services::{
    mesh::{RoleProcess, SOURCE, SUBSCRIPTION, Wiring},
    receiver::Answer,
    sender::{Receipt, Sender},
};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{Mesh, PATIENCE, sender_to},
};

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Just beyond nine tenths of the default retention of eight days.
const NEARLY_RETENTION: SignedDuration = SignedDuration::from_mins(73 * 24 * 6);

/// The wall clock of a process.
pub struct WallClock {
    folder: TempDir,
}

impl WallClock {
    /// A clock that shows the machine's time.
    pub fn new() -> Self {
        let clock = Self { folder: tempfile::tempdir().unwrap() };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/clock.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .arg(clock.library())
            .arg(&source)
            .output()
            .expect("a C compiler, which building weft needs, too");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        clock.set(SignedDuration::ZERO);
        clock
    }

    /// From now on the clock is so far ahead of the machine's, or behind.
    pub fn set(&self, offset: SignedDuration) {
        let nanoseconds = i64::try_from(offset.as_nanos()).unwrap();
        // Written in place: the process has mapped the file.
        let file = fs::File::options().create(true).truncate(false).write(true).open(self.offset()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &nanoseconds.to_ne_bytes(), 0).unwrap();
    }

    /// Variables of a process that has this clock.
    pub fn variables(&self) -> Vec<(String, String)> {
        [("LD_PRELOAD", self.library()), ("WEFT_TEST_CLOCK", self.offset())]
            .map(|(name, path)| (name.to_owned(), path.to_str().unwrap().to_owned()))
            .into()
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("clock.so")
    }

    fn offset(&self) -> PathBuf {
        self.folder.path().join("offset")
    }
}

/// A mesh of which one role has a separate clock.
async fn mesh(
    role: &'static str,
    clock: &WallClock,
    wiring: Wiring,
    rule: impl Fn(&weft_services::receiver::Arrival) -> Answer + Send + Sync + 'static,
) -> Mesh {
    let variables = clock.variables();
    let of = move |name: &str| if name == role { variables.clone() } else { Vec::new() };
    Mesh::with_variables(LogOptions::default(), of, wiring, rule).await
}

/// The value of a metric; `None` while the process does not show it.
async fn metric(process: &RoleProcess, name: &str) -> Option<f64> {
    let ops = process.variable("WEFT_OPS__LISTEN").unwrap();
    let text = reqwest::get(format!("http://{ops}/metrics")).await.ok()?.text().await.ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Every outcome in the log.
async fn outcomes(mesh: &Mesh) -> Vec<internal::Outcome> {
    use prost::Message as _;
    let connection = mesh.server.connection("judge").await;
    let last = streams::state(&connection, "OUTCOMES").await.unwrap().last;
    let mut outcomes = Vec::new();
    let mut from = StreamSeq(1);
    while from <= last {
        let messages = direct::range(&connection, "OUTCOMES", from, ">", 500, 8 << 20).await.unwrap();
        let Some(newest) = messages.last() else { break };
        from = newest.seq.next();
        for message in &messages {
            let record = internal::OutcomeRecord::decode(message.payload.clone()).unwrap().record;
            if let Some(internal::outcome_record::Record::Commit(commit)) = record {
                outcomes.extend(commit.outcomes);
            }
        }
    }
    outcomes
}

/// P5: what waits for a receiver that is away does not expire because the worker's clock says so. Before the ages were taken
/// by the server's clock, everything that waited became a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_a_week_ahead_expires_nothing() {
    let clock = WallClock::new();
    let back = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&back);
    let retry = r#"{ max_retries = 1000, base = "200ms", factor = 1.0, max = "200ms" }"#;
    let wiring = Wiring { retry: retry.into(), ..Wiring::new() };
    let rule = move |_: &_| Answer::now(if answer.load(Ordering::SeqCst) { 200 } else { 503 });
    let mut mesh = mesh("worker", &clock, wiring, rule).await;
    let mut sent = BTreeMap::new();
    for number in 0..20 {
        let workflow = format!("w{number}");
        mesh.send(&workflow, &format!("d{number}")).await;
        sent.insert(workflow, 1);
    }
    for offset in [NEARLY_RETENTION, WEEK, -WEEK] {
        clock.set(offset);
        // A worker that starts asks for the age of the log at once, and shows the gauge when it has dealt with the answer.
        mesh.worker.restart().await.unwrap();
        mesh.worker.ready().await.unwrap();
        let late = eventually(PATIENCE, async || metric(&mesh.worker, "weft_worker_late_lanes").await == Some(0.0));
        assert!(late.await, "at {offset:?} nothing is late");
    }
    back.store(true, Ordering::SeqCst);
    mesh.assert_delivered(&sent).await;
    mesh.worker.stop().await.unwrap();
    let outcomes = outcomes(&mesh).await;
    assert!(outcomes.iter().all(|outcome| outcome.kind() == internal::OutcomeKind::Delivered), "{outcomes:?}");
}

/// P4: waits are by a clock that does not step. Before, an hour back stalled every waiting lane for an hour, and a wait that
/// another clock had written was believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_steps_stalls_no_lane_and_ends_no_wait_early() {
    let clock = WallClock::new();
    let retry = r#"{ schedule = ["2s", "2s", "2s", "2s", "2s"] }"#;
    let wiring = Wiring { retry: retry.into(), ..Wiring::new() };
    // Each workflow fails once.
    let rule = |arrival: &weft_services::receiver::Arrival| Answer::now(if arrival.attempt == 1 { 500 } else { 200 });
    let mut mesh = mesh("worker", &clock, wiring, rule).await;
    let mut sent = BTreeMap::new();
    for (step, offset) in [-HOUR, NEARLY_RETENTION, -WEEK, SignedDuration::ZERO].into_iter().enumerate() {
        let workflows: Vec<String> = (0..3).map(|number| format!("w{step}-{number}")).collect();
        for workflow in &workflows {
            mesh.send(workflow, workflow).await;
            sent.insert(workflow.clone(), 1);
        }
        let failed = |arrivals: &[weft_services::receiver::Arrival]| {
            workflows.iter().all(|workflow| arrivals.iter().any(|arrival| arrival.workflow_id == *workflow))
        };
        mesh.receiver.until(PATIENCE, failed).await;
        clock.set(offset);
        if step % 2 == 1 {
            // The next owner reads the waits that the one before has written, and its clock is another.
            mesh.worker.restart().await.unwrap();
        }
        mesh.assert_delivered(&sent).await;
        for workflow in &workflows {
            let arrivals = mesh.receiver.arrivals();
            let at: Vec<_> =
                arrivals.iter().filter(|arrival| arrival.workflow_id == *workflow).map(|arrival| arrival.at).collect();
            let waited = at.last().unwrap().duration_since(at[0]);
            assert!(waited >= SignedDuration::from_millis(1_900), "{workflow} waited {waited:?}");
        }
    }
}

/// Posts one event, signed with the time that the gateway's clock shows, until it is accepted. Its receipt, and how many
/// requests had none before.
async fn accepted_at(
    sender: &Sender,
    wiring: &Wiring,
    workflow: &str,
    id: &str,
    offset: SignedDuration,
) -> (Receipt, usize) {
    let body = Bytes::from(format!(r#"{{"type":"order.changed","data":{{"id":"{id}"}}}}"#));
    let (mut receipt, mut refused) = (None, 0);
    let is_accepted = eventually(PATIENCE, async || {
        let at = jiff::Timestamp::now().checked_add(offset).unwrap().as_second();
        let answer =
            sender.send_at(SOURCE, Some(workflow), &wiring.signing(), id, None, body.clone(), at).await.unwrap();
        assert!(answer.receipt().is_some() || answer.status == 503, "{:?}", answer.detail());
        receipt = answer.receipt();
        refused += usize::from(receipt.is_none());
        receipt.is_some()
    });
    assert!(is_accepted.await, "{id} is accepted");
    (receipt.unwrap(), refused)
}

/// P2, P3: a gateway forgets no delivery and no number because of its clock. Signatures are fresh by the wall clock, so
/// senders here have the gateway's.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_a_wrong_clock_forgets_no_id_and_no_number() {
    let clock = WallClock::new();
    let mut mesh = mesh("gateway", &clock, Wiring::new(), |_| Answer::OK).await;
    let first = mesh.send("w", "d0").await;
    for (step, offset) in [WEEK, NEARLY_RETENTION, -HOUR, -WEEK].into_iter().enumerate() {
        clock.set(offset);
        for restarts in [false, true] {
            if restarts {
                mesh.gateway.restart().await.unwrap();
                mesh.gateway.ready().await.unwrap();
            }
            let sender = sender_to(&mesh.gateway);
            let (repeat, _) = accepted_at(&sender, &mesh.wiring, "w", "d0", offset).await;
            assert_eq!((repeat.duplicate, repeat.event_id.as_str()), (true, first.event_id.as_str()));
            let number = 2 + 2 * step as u64 + u64::from(restarts);
            let (next, refused) = accepted_at(&sender, &mesh.wiring, "w", &format!("d{number}"), offset).await;
            assert_eq!(next.sequence_number, number);
            assert!(!next.duplicate || refused > 0, "{next:?}");
        }
    }
    let connection = mesh.server.connection("judge").await;
    let last = streams::state(&connection, "EVENTS").await.unwrap().last;
    assert_eq!(last, StreamSeq(9), "no head was due, and none was carried forward");
    mesh.assert_delivered(&BTreeMap::from([("w".to_owned(), 9)])).await;
}

/// Rows of the history are kept by the server's clock.
#[tokio::test(flavor = "multi_thread")]
async fn an_admin_a_week_ahead_forgets_no_dead_letter() {
    // Longer than from one sweep of the history to the next.
    const SWEEPS: Duration = Duration::from_secs(40);
    const LOOKS: u32 = 10;
    let clock = WallClock::new();
    let mut variables = clock.variables();
    variables.push(("WEFT_DEAD_LETTERS__RETENTION".into(), "5d".into()));
    let of = move |name: &str| if name == "admin" { variables.clone() } else { Vec::new() };
    let mesh = Mesh::with_variables(LogOptions::default(), of, Wiring::new(), |_| Answer::now(422)).await;
    let receipt = mesh.send("w", "d0").await;
    let id = format!("{SUBSCRIPTION}:{}", receipt.event_id);
    let data = mesh.folder().join("admin/data");
    let operator = Operator { data: &data, gateway: String::new(), secret: &mesh.wiring.sender_secret };
    let listed = async || operator.lines(&["dlq", "list"]).await.iter().any(|letter| letter["id"] == id);
    assert!(eventually(PATIENCE, &listed).await, "the dead letter is listed");
    clock.set(WEEK);
    let mut looks = tokio::time::interval(SWEEPS / LOOKS);
    for _ in 0..=LOOKS {
        looks.tick().await;
        assert!(listed().await, "it stays listed while the history is swept");
    }
}

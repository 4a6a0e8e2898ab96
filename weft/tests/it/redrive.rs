//! Redrives of many dead letters: cancelled in the middle, and through kills of everything that takes part.
//!
//! `WEFT_SOAK_DEAD_LETTERS` says how many, twenty to a workflow.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use prost::Message as _;
use serde_json::Value;
use tokio::process::{Child, Command};
use weft_nats::{
    connect::Connection,
    direct, streams,
    subject::{DLQ_STREAM, Layout},
};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq},
    internal::{self, OutcomeKind, outcome_record::Record},
};
use weft_services::{
    mesh::Wiring,
    receiver::{Answer, Arrival},
};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{Mesh, PATIENCE, program},
    outage::append,
};

const LAYOUT: Layout = Layout::new(1);
/// Dead letters of the ordinary run: more than one command holds.
const DEAD_LETTERS: u64 = 2_000;
const EACH: u64 = 20;

/// A mesh with dead letters, whose receiver has been repaired: it takes redrives, each after this time.
struct Night {
    mesh: Mesh,
    connection: Connection,
    patience: Duration,
}

impl Night {
    async fn fall(dead_letters: u64, answer_after: Duration) -> Self {
        let rule = move |arrival: &Arrival| match arrival.replay {
            true => Answer { status: 200, delay: answer_after },
            false => Answer::now(422),
        };
        let mesh = Mesh::with(Wiring::new(), rule).await;
        let connection = mesh.server.connection("judge").await;
        append(&connection, dead_letters).await;
        // Twice as long as the longest that was seen on two busy cores.
        let patience = PATIENCE + Duration::from_millis(5 * dead_letters);
        let night = Self { mesh, connection, patience };
        let copied = async || {
            let copies = streams::state(&night.connection, DLQ_STREAM).await;
            copies.is_ok_and(|copies| copies.last.0 >= dead_letters)
        };
        assert!(eventually(patience, copied).await, "all are dead letters");
        let shown = async || night.open().await == dead_letters;
        assert!(eventually(patience, shown).await, "the admin knows all of them");
        night
    }

    fn data(&self) -> PathBuf {
        self.mesh.folder().join("admin/data")
    }

    async fn lines(&self, args: &[&str]) -> Vec<Value> {
        let data = self.data();
        Operator { data: &data, gateway: String::new(), secret: "" }.lines(args).await
    }

    /// How many dead letters are open or being redriven.
    async fn open(&self) -> u64 {
        let counts = self.lines(&["dlq", "stats", "--by", "status"]).await;
        let is_open = |count: &&Value| ["open", "redriving"].contains(&count["status"].as_str().unwrap());
        counts.iter().filter(is_open).map(|count| count["count"].as_u64().unwrap()).sum()
    }

    /// A client that redrives by a filter, as a separate process.
    fn client(&self) -> Child {
        let mut command = Command::new(program());
        command.args(["dlq", "redrive", "--type", "order.*", "--reason", "repaired"]).env("WEFT_DATA", self.data());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.kill_on_drop(true).spawn().unwrap()
    }

    /// Waits until the receiver has got this number of redrives.
    async fn until_redriven(&self, count: usize) {
        let redriven = |arrivals: &[Arrival]| arrivals.iter().filter(|arrival| arrival.replay).count() >= count;
        assert!(self.mesh.receiver.until(self.patience, redriven).await, "{count} redrives arrive");
    }

    async fn until_none_is_open(&self) {
        assert!(eventually(self.patience, async || self.open().await == 0).await, "{} are open", self.open().await);
    }

    /// The redrives that the receiver has got, in the order of their arrival.
    fn redriven(&self) -> Vec<Arrival> {
        self.mesh.receiver.arrivals().into_iter().filter(|arrival| arrival.replay).collect()
    }

    /// The redrives with their counts, and what else operators have done.
    async fn audit(&self) -> (Vec<Value>, Vec<Value>) {
        let entries = self.lines(&["audit", "list"]).await;
        entries.into_iter().partition(|entry| entry["action"] == "RedriveDeadLetters")
    }
}

fn counted(entry: &Value, count: &str) -> u64 {
    entry["counts"][count].as_u64().unwrap()
}

/// The outcomes of redrives by event: P5.
async fn outcomes(connection: &Connection) -> BTreeMap<String, Vec<OutcomeKind>> {
    let (stream, subject) = (LAYOUT.outcomes_stream(ShardId(0)), LAYOUT.outcomes_subject(ShardId(0)));
    let (mut outcomes, mut from) = (BTreeMap::<String, Vec<OutcomeKind>>::new(), StreamSeq(1));
    loop {
        let page = direct::range(connection, &stream, from, &subject, 500, 8 << 20).await.unwrap();
        let Some(last) = page.last() else { return outcomes };
        from = last.seq.next();
        for message in &page {
            let record = internal::OutcomeRecord::decode(message.payload.clone()).unwrap().record;
            let Some(Record::Commit(commit)) = record else { continue };
            for outcome in commit.outcomes.iter().filter(|outcome| outcome.run != 0) {
                let event = EventId::from_slice(&outcome.event_id).unwrap().to_string();
                outcomes.entry(event).or_default().push(outcome.kind());
            }
        }
    }
}

/// Each workflow's redriven events came first in their order, all of them; one came again only from a later owner.
fn assert_in_order(arrivals: &[Arrival], workflows: usize) {
    let mut seen = BTreeMap::<&str, Vec<&Arrival>>::new();
    for arrival in arrivals {
        let of_workflow = seen.entry(&arrival.workflow_id).or_default();
        let before = of_workflow.iter().find(|before| before.event_id == arrival.event_id);
        match before {
            None => of_workflow.push(arrival),
            Some(before) => assert!(arrival.epoch > before.epoch, "twice: {before:?} and {arrival:?}"),
        }
    }
    assert_eq!(seen.len(), workflows);
    for (workflow, arrivals) in seen {
        let numbers = arrivals.iter().map(|arrival| arrival.sequence_number);
        assert!(numbers.eq(1..=EACH), "{workflow}: {arrivals:?}");
    }
}

/// A redrive of 10,000 dead letters by a filter, in which client, admin and worker are killed in turn, and which is resumed by
/// the same command: each is delivered once by the log, in order within its workflow, and the audit log has all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_goes_on_through_kills_of_client_admin_and_worker() {
    let count = std::env::var("WEFT_SOAK_DEAD_LETTERS").map_or(DEAD_LETTERS, |text| text.parse().expect("a number"));
    let started = std::time::Instant::now();
    let mut night = Night::fall(count, Duration::from_millis(2)).await;
    eprintln!("{count} dead letters after {:?}", started.elapsed());
    let share = |tenths: u64| usize::try_from(count * tenths / 10).unwrap();

    let mut client = night.client();
    night.until_redriven(1).await;
    client.kill().await.unwrap();
    let mut client = night.client();
    night.until_redriven(share(2)).await;
    night.mesh.admin.kill().await.unwrap();
    assert!(!client.wait().await.unwrap().success(), "its admin was killed");
    night.mesh.admin.restart().await.unwrap();
    night.mesh.admin.ready().await.unwrap();
    let mut client = night.client();
    night.until_redriven(share(5)).await;
    night.mesh.worker.kill().await.unwrap();
    night.mesh.worker.restart().await.unwrap();
    night.mesh.worker.ready().await.unwrap();
    // It has nothing to do if the calls before had named all of them.
    client.wait().await.unwrap();
    while night.lines(&["dlq", "list", "--status", "open", "--limit", "1"]).await.len() == 1 {
        night.client().wait().await.unwrap();
    }
    night.until_none_is_open().await;
    eprintln!("redriven after {:?}", started.elapsed());

    assert_in_order(&night.redriven(), usize::try_from(count / EACH).unwrap());
    let outcomes = outcomes(&night.connection).await;
    assert_eq!(outcomes.len() as u64, count);
    let twice = outcomes.iter().find(|(_, kinds)| **kinds != [OutcomeKind::Delivered]);
    assert_eq!(twice, None, "each is delivered once");
    let (redrives, _) = night.audit().await;
    let sum = |of: &str| redrives.iter().map(|entry| counted(entry, of)).sum::<u64>();
    assert_eq!((sum("done"), sum("failed"), sum("discarded"), sum("pending")), (count, 0, 0, 0), "{redrives:?}");
    assert_eq!(sum("selected"), count + sum("notApplicable"));
    assert!(redrives.iter().all(|entry| entry["reason"] == "repaired" && entry["operator"] != ""), "{redrives:?}");
    assert_eq!(night.mesh.worker.stop().await.unwrap().code(), Some(0));
}

/// A cancelled redrive stops and says how many were done; another one delivers the rest, and none is delivered twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_redrive_stops_and_another_one_delivers_the_rest() {
    const COUNT: u64 = 200;
    let night = Night::fall(COUNT, Duration::from_millis(100)).await;
    let started = night.lines(&["dlq", "redrive", "--type", "order.*", "--no-wait"]).await.remove(0);
    let id = started["requestId"].as_str().unwrap();
    night.until_redriven(20).await;
    let cancelled = night.lines(&["dlq", "cancel", id, "--reason", "too fast"]).await.remove(0);
    let number = |of: &str| cancelled[of].as_u64().unwrap();
    assert_eq!((cancelled["kind"].as_str(), number("selected")), (Some("redrive"), COUNT));
    assert!(number("done") > 0 && number("cancelled") > 0, "{cancelled}");
    assert!(number("pending") <= COUNT / EACH, "what is being attempted, one a workflow: {cancelled}");
    assert_eq!(number("done") + number("cancelled") + number("pending"), COUNT, "{cancelled}");
    let redriving = ["dlq", "list", "--status", "redriving"];
    assert!(eventually(PATIENCE, async || night.lines(&redriving).await.is_empty()).await, "it has stopped");
    let first = night.redriven();
    let open = night.open().await;
    assert_eq!(first.len() as u64 + open, COUNT, "what is not delivered is open");

    let again = night.lines(&["dlq", "redrive", "--type", "order.*"]).await.remove(0);
    assert_eq!((again["selected"].as_u64(), again["delivered"].as_u64()), (Some(open), Some(open)));
    let all = night.redriven();
    let events: BTreeSet<_> = all.iter().map(|arrival| &arrival.event_id).collect();
    assert_eq!((all.len() as u64, events.len() as u64), (COUNT, COUNT), "none is delivered twice");
    assert_in_order(&all, usize::try_from(COUNT / EACH).unwrap());
    let (redrives, others) = night.audit().await;
    let counts: Vec<_> = redrives
        .iter()
        .map(|entry| ["selected", "done", "cancelled", "pending"].map(|of| counted(entry, of)))
        .collect();
    let delivered = first.len() as u64;
    assert_eq!(counts, [[open, open, 0, 0], [COUNT, delivered, open, 0]]);
    let cancels: Vec<_> = others.iter().filter(|entry| entry["action"] == "CancelDeadLetterOperation").collect();
    assert_eq!(cancels.len(), 1, "{others:?}");
    assert_eq!(
        (cancels[0]["reason"].as_str(), cancels[0]["targets"][0]["name"].as_str()),
        (Some("too fast"), Some(id))
    );
    let data = night.data();
    let operator = Operator { data: &data, gateway: String::new(), secret: "" };
    assert_eq!(operator.code(&["dlq", "cancel", id]).await, Some(1), "there is nothing to cancel any more");
    assert_eq!(operator.code(&["dlq", "cancel", "unknown"]).await, Some(3));
}

//! `weft demo`: a whole mesh, signed traffic with failures, and the proof of what became of it.
//!
//! The mesh is a real `weft up` in a fresh folder; sender, receiver and operator are here. What they saw becomes
//! [`check::Evidence`], and nothing else is judged: a step that does not come to its end in time leaves a hole in the
//! evidence, which the checker finds.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::anyhow;
use bytes::Bytes;
use tokio::task::JoinSet;
use weft_proto::{v1, words::Word as _};

use crate::{
    command::{admin::AdminClient, dlq, output},
    failure::Failure,
    mesh::{self, SOURCE, Up, Wiring, weft_program},
    receiver::{Answer, Arrival, Receiver},
    sender::{self, Sender, Signing},
};

pub mod check;

use check::{Attempt, DeadLetter, Evidence, Kind, Post, Receipt, Verdict};

/// Workflows that are sent to.
const WORKFLOWS: [&str; 4] = ["order-1", "order-2", "order-3", "order-4"];
/// Events of each workflow.
const EVENTS: usize = 6;
/// The event that the receiver does not take until it is redriven.
const POISON: &str = "order-3-4";
/// How long any one step may take. Each takes a second or two; together they stay below half a minute.
const PATIENCE: Duration = Duration::from_secs(12);
/// How far a request is signed in the past to be stale: beyond the source's tolerance of five minutes.
const STALE_SECS: i64 = 3600;
/// Dead letters that are looked at: there should be one.
const LETTERS_MAX: usize = 100;
/// Between two looks at the dead letters.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// `weft demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Keep the mesh's folder, with its log, and say where it is
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
///
/// # Errors
///
/// [`Failure`]: the mesh does not start, or a check does not hold.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let folder = tempfile::Builder::new().prefix("weft-demo-").tempdir();
    let mut folder = folder.map_err(|error| Failure::Failed(format!("no temporary folder: {error}")))?;
    folder.disable_cleanup(args.keep);
    let wiring = Wiring::new();
    let listen = ([127, 0, 0, 1], 0).into();
    let receiver = Receiver::start(listen, &wiring.receiver_secret, answer).await.map_err(Failure::Failed)?;
    output::text("starting gateway, worker, admin and nats-server …")?;
    let program: PathBuf = weft_program()?;
    let mut up = Up::start(&program, folder.path(), &wiring.config(Some(&receiver.url()))).await?;

    let total = WORKFLOWS.len() * EVENTS;
    output::text(&format!("sending {total} signed webhooks of {} workflows …", WORKFLOWS.len()))?;
    let mut evidence = Evidence { poison: POISON.into(), ..Evidence::default() };
    evidence.posts = send(&up.sender()?, &wiring).await?;
    output::text("waiting for retries and the dead letter, then redriving it …")?;
    let admin = up.admin().await?;
    evidence.dead_letters = settle(&admin, &receiver).await?;
    evidence.attempts = receiver.arrivals().into_iter().map(attempt).collect();

    let mut verdicts = check::verdicts(&evidence);
    verdicts.push(ended(&mut up).await);
    if args.keep {
        output::text(&format!("kept: {}", folder.path().display()))?;
    }
    report(&verdicts)
}

/// The receiver: fails every third event once, every seventh twice, and one for good.
fn answer(arrival: &Arrival) -> Answer {
    let id = arrival.delivery_id.as_deref().unwrap_or_default();
    let index = (0..WORKFLOWS.len() * EVENTS).find(|index| delivery_id(*index) == id).unwrap_or_default();
    let failures = match index {
        _ if arrival.replay => 0,
        _ if id == POISON => u32::MAX,
        index if index % 7 == 6 => 2,
        index if index % 3 == 2 => 1,
        _ => 0,
    };
    if arrival.attempt <= failures { Answer::now(500) } else { Answer::OK }
}

fn workflow(index: usize) -> &'static str {
    WORKFLOWS[index / EVENTS % WORKFLOWS.len()]
}

fn delivery_id(index: usize) -> String {
    format!("{}-{}", workflow(index), index % EVENTS + 1)
}

/// Sends everything: the workflows at the same time, the events of each one after the other, every fourth twice, and
/// two requests that must be refused.
async fn send(sender: &Sender, wiring: &Wiring) -> anyhow::Result<Vec<Post>> {
    let posting = Arc::new(Posting { sender: sender.clone(), signing: wiring.signing() });
    let mut lanes = JoinSet::new();
    for lane in 0..WORKFLOWS.len() {
        let posting = posting.clone();
        lanes.spawn(async move {
            let mut posts = Vec::new();
            for index in lane * EVENTS..(lane + 1) * EVENTS {
                posts.push(posting.post(Kind::Fresh, index, 0).await?);
                if index % 4 == 1 {
                    posts.push(posting.post(Kind::Repeat, index, 0).await?);
                }
            }
            anyhow::Ok(posts)
        });
    }
    let mut posts = Vec::new();
    while let Some(lane) = lanes.join_next().await {
        posts.extend(lane??);
    }
    let forger = Signing { secret: mesh::secret(), ..wiring.signing() };
    let forger = Posting { sender: sender.clone(), signing: forger };
    posts.push(forger.post(Kind::Refusable("signature_invalid"), 0, 0).await?);
    posts.push(posting.post(Kind::Refusable("timestamp_out_of_window"), 1, STALE_SECS).await?);
    Ok(posts)
}

struct Posting {
    sender: Sender,
    signing: Signing,
}

impl Posting {
    /// Posts one event, signed `age_secs` ago.
    async fn post(&self, kind: Kind, index: usize, age_secs: i64) -> anyhow::Result<Post> {
        let (workflow, id) = (workflow(index), delivery_id(index));
        // A request that must be refused has a separate id; the rest of it is valid.
        let id = match kind {
            Kind::Refusable(code) => format!("{id}-{code}"),
            _ => id,
        };
        let body =
            format!(r#"{{"type":"order.changed","data":{{"orderId":"{workflow}","step":{}}}}}"#, index % EVENTS + 1);
        let body = Bytes::from(body);
        let timestamp = jiff::Timestamp::now().as_second() - age_secs;
        let headers = self.signing.headers(&id, timestamp, None, &body).map_err(|problem| anyhow!(problem))?;
        let answer = self.sender.post(SOURCE, Some(workflow), &headers, body).await?;
        Ok(Post {
            kind,
            delivery_id: id,
            workflow_id: workflow.to_owned(),
            status: answer.status,
            receipt: answer.receipt().map(receipt),
            replayed: answer.replayed,
            code: answer.code(),
        })
    }
}

fn receipt(receipt: sender::Receipt) -> Receipt {
    Receipt {
        event_id: receipt.event_id,
        sequence_number: receipt.sequence_number,
        workflow_id: receipt.workflow_id,
        previous_event_id: receipt.previous_event_id,
    }
}

fn attempt(arrival: Arrival) -> Attempt {
    Attempt {
        event_id: arrival.event_id,
        workflow_id: arrival.workflow_id,
        sequence: arrival.sequence_number,
        previous_event_id: arrival.previous_event_id,
        lane_previous_event_id: arrival.lane_previous_event_id,
        number: arrival.attempt,
        replay: arrival.replay,
        signed: arrival.signed,
        status: arrival.status,
    }
}

/// Waits until everything is settled, redrives what is dead, and waits for that; the dead letters as they were before,
/// with their status after.
async fn settle(admin: &AdminClient, receiver: &Receiver) -> anyhow::Result<Vec<DeadLetter>> {
    let taken = |arrivals: &[Arrival]| arrivals.iter().filter(|arrival| arrival.status == 200).count();
    let live = WORKFLOWS.len() * EVENTS - 1;
    receiver.until(PATIENCE, |arrivals| taken(arrivals) >= live).await;
    let before = until_letters(admin, |letters| !letters.is_empty()).await?;

    let request = v1::RedriveDeadLettersRequest { all: true, reason: "demo".into(), ..Default::default() };
    let progress = admin.dead_letters().redrive_dead_letters(admin.request(request)).await;
    let mut progress = progress.map_err(failed)?.into_inner();
    let ended = async {
        while progress.message().await?.is_some() {}
        Ok::<(), tonic::Status>(())
    };
    if let Ok(ended) = tokio::time::timeout(PATIENCE, ended).await {
        ended.map_err(failed)?;
    }
    receiver.until(PATIENCE, |arrivals| taken(arrivals) > live).await;
    let after =
        until_letters(admin, |letters| letters.iter().all(|letter| letter.status() == v1::DeadLetterStatus::Redriven))
            .await?;
    Ok(before
        .into_iter()
        .map(|letter| DeadLetter {
            status: after
                .iter()
                .find(|after| after.id == letter.id)
                .map_or("gone", |after| after.status().word())
                .to_owned(),
            reason: letter.reason().word().to_owned(),
            event_id: letter.event_id,
            attempts: letter.attempts,
        })
        .collect())
}

fn failed(status: tonic::Status) -> anyhow::Error {
    anyhow!("admin: {}", status.message())
}

/// The dead letters of every status, once they are as wanted, or as they are when patience ends.
async fn until_letters(
    admin: &AdminClient,
    wanted: impl Fn(&[v1::DeadLetter]) -> bool,
) -> anyhow::Result<Vec<v1::DeadLetter>> {
    let statuses = v1::DeadLetterStatus::ALL.iter().map(|status| (*status).into()).collect();
    let filter = v1::DeadLetterFilter { statuses, ..Default::default() };
    let started = std::time::Instant::now();
    loop {
        let letters = dlq::pages(admin, filter.clone(), LETTERS_MAX).await.map_err(|failure| anyhow!("{failure}"))?;
        let letters = letters.entries;
        if wanted(&letters) || started.elapsed() > PATIENCE {
            return Ok(letters);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// The mesh drains when it is asked to.
async fn ended(up: &mut Up) -> Verdict {
    let finding = match up.stop().await {
        Ok(status) if status.success() => Ok("SIGTERM, drained, exit code 0".to_owned()),
        Ok(status) => Err(format!("it ended with {status}")),
        Err(error) => Err(error.to_string()),
    };
    Verdict { claim: "shutdown".into(), finding }
}

/// Prints the proof; whether it is one.
fn report(verdicts: &[Verdict]) -> Result<(), Failure> {
    let rows = verdicts.iter().map(|verdict| {
        let (mark, text) = match &verdict.finding {
            Ok(text) => ("ok", text),
            Err(text) => ("FAILED", text),
        };
        vec![verdict.claim.clone(), mark.to_owned(), text.clone()]
    });
    output::text(&format!("\n{}", output::table(&["WHAT", "", "FOUND"], rows)))?;
    output::text("\nr: a retry, x: the attempt after which it became a dead letter")?;
    match verdicts.iter().filter(|verdict| verdict.finding.is_err()).count() {
        0 => output::text("everything held"),
        count => Err(Failure::Failed(format!("{count} of {} checks did not hold", verdicts.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traffic_has_what_it_shows() {
        let ids: Vec<_> = (0..WORKFLOWS.len() * EVENTS).map(delivery_id).collect();
        assert!(ids.contains(&POISON.to_owned()));
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
        assert_eq!(ids.iter().filter(|id| id.starts_with(WORKFLOWS[3])).count(), EVENTS);
    }
}

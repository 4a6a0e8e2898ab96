//! `weft bench hundred`: 100 senders at once, each with 100 signed events; a fifth is sent twice at the same moment, a
//! fifth fails at its first delivery. What comes out is counted against the promises.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use bytes::Bytes;
use tokio::task::JoinSet;
use weft_proto::v1;

use super::{args::OutputArgs, disk::Disk};
use weft_services::{
    command::{
        admin::AdminClient,
        dlq,
        output::{self, Format, Row as _},
    },
    failure::Failure,
    mesh::{SOURCE, Up, Wiring, weft_program},
    receiver::{Answer, Arrival, Receiver},
    sender::{Sender, Signing},
};

mod counts;
pub mod judge;

use judge::{Acknowledged, Delivered, Finding, judge};

/// Senders, each with a separate workflow.
const SENDERS: usize = 100;
/// Events of each sender.
const EVENTS: usize = 100;
/// One event in this number is sent twice, and one in this number fails at first.
const ONE_OF: usize = 5;
/// Maximum number of posts of one event: a 503 asks for a retry.
const POSTS_MAX: u32 = 10;
/// Between a 503 and the next post.
const POST_PAUSE: Duration = Duration::from_millis(200);
/// How long the last delivery may take after the last event was sent.
const PATIENCE: Duration = Duration::from_secs(120);

/// `weft bench hundred`.
#[derive(Debug, clap::Args)]
pub struct PromisesArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Measures, judges, prints.
///
/// # Errors
///
/// [`Failure`]: the mesh does not start, or a promise did not hold.
pub async fn run(args: PromisesArgs) -> Result<(), Failure> {
    let folder = args.output.folder()?;
    let disk = Disk::measure(folder.path())?;
    let wiring = Wiring::new();
    let listen = ([127, 0, 0, 1], 0).into();
    let receiver = Receiver::start(listen, &wiring.receiver_secret, answer).await.map_err(Failure::Failed)?;
    let mut up = Up::start(&weft_program()?, folder.path(), &wiring.config(Some(&receiver.url()))).await?;

    let started = Instant::now();
    let acknowledged = send_all(&up, &wiring).await?;
    let sent = started.elapsed();
    let admin = up.admin().await?;
    let dead = wait_for_all(&acknowledged, &receiver, &admin).await?;
    let took = started.elapsed();
    let arrivals = receiver.arrivals();
    let delivered: Vec<_> = arrivals.iter().map(delivered).collect();
    let mut findings = judge(SENDERS * EVENTS, &acknowledged, &delivered, &dead);
    let witnessed = counts::witnessed(&acknowledged, &arrivals);
    findings.push(counts::compare(&witnessed, up.endpoints.get("ops")?, &admin).await?);
    up.stop().await?;

    match args.output.format() {
        Format::Table => {
            let events = (SENDERS * EVENTS) as f64;
            output::text(&format!(
                "{SENDERS} senders x {EVENTS} events in {:.1} s ({:.0}/s), settled after {:.1} s ({:.0}/s)\n{}",
                sent.as_secs_f64(),
                events / sent.as_secs_f64(),
                took.as_secs_f64(),
                events / took.as_secs_f64(),
                disk.line(folder.path()),
            ))?;
            output::text(&output::table(Finding::HEADINGS, findings.iter().map(Finding::cells)))?;
        }
        format => output::list(format, &findings)?,
    }
    match findings.iter().filter(|finding| !finding.held).count() {
        0 => Ok(()),
        count => Err(Failure::Failed(format!("{count} of {} promises did not hold", findings.len()))),
    }
}

/// The receiver: a fifth of the events fails at its first attempt.
fn answer(arrival: &Arrival) -> Answer {
    let index = arrival.delivery_id.as_deref().and_then(|id| id.rsplit('-').next()?.parse::<usize>().ok());
    let fails = index.is_some_and(|index| index % ONE_OF == 3) && arrival.attempt == 1 && !arrival.replay;
    if fails { Answer::now(503) } else { Answer::OK }
}

fn delivered(arrival: &Arrival) -> Delivered {
    Delivered {
        event_id: arrival.event_id.clone(),
        workflow_id: arrival.workflow_id.clone(),
        sequence: arrival.sequence_number,
        succeeded: (200..300).contains(&arrival.status),
        signed: arrival.signed,
    }
}

async fn send_all(up: &Up, wiring: &Wiring) -> anyhow::Result<Vec<Acknowledged>> {
    let signing = Arc::new(wiring.signing());
    let mut senders = JoinSet::new();
    for number in 0..SENDERS {
        // A separate connection for each.
        let (sender, signing) = (up.sender()?, signing.clone());
        senders.spawn(async move {
            let mut acknowledged = Vec::new();
            for index in 0..EVENTS {
                let first = acknowledge(&sender, &signing, number, index);
                if index % ONE_OF == 1 {
                    let (first, second) = tokio::join!(first, acknowledge(&sender, &signing, number, index));
                    acknowledged.extend([first?, second?].into_iter().flatten());
                } else {
                    acknowledged.extend(first.await?);
                }
            }
            anyhow::Ok(acknowledged)
        });
    }
    let mut acknowledged = Vec::new();
    while let Some(sender) = senders.join_next().await {
        acknowledged.extend(sender??);
    }
    Ok(acknowledged)
}

/// Posts one event until it is acknowledged; `None` when it never is.
async fn acknowledge(
    sender: &Sender,
    signing: &Signing,
    number: usize,
    index: usize,
) -> anyhow::Result<Option<Acknowledged>> {
    let workflow = format!("sender-{number}");
    let id = format!("evt-{number}-{index}");
    let body = format!(r#"{{"type":"bench.hundred","data":{{"sender":{number},"index":{index}}}}}"#);
    let body = Bytes::from(body);
    let started = Instant::now();
    for _ in 0..POSTS_MAX {
        let now = jiff::Timestamp::now().as_second();
        let headers = signing.headers(&id, now, None, &body).map_err(|problem| anyhow!(problem))?;
        let answer = sender.post(SOURCE, Some(&workflow), &headers, body.clone()).await;
        if let Some(receipt) = answer.ok().and_then(|answer| answer.receipt()) {
            return Ok(Some(Acknowledged {
                event_id: receipt.event_id,
                duplicate: receipt.duplicate,
                after: started.elapsed(),
            }));
        }
        tokio::time::sleep(POST_PAUSE).await;
    }
    Ok(None)
}

/// Waits until every acknowledged event is delivered or a dead letter; the events of the dead letters.
async fn wait_for_all(
    acknowledged: &[Acknowledged],
    receiver: &Receiver,
    admin: &AdminClient,
) -> anyhow::Result<HashSet<String>> {
    let mut missing: HashSet<&str> = acknowledged.iter().map(|one| one.event_id.as_str()).collect();
    let mut seen = 0;
    receiver
        .until(PATIENCE, |arrivals| {
            for arrival in arrivals.get(seen..).unwrap_or_default() {
                if (200..300).contains(&arrival.status) {
                    missing.remove(arrival.event_id.as_str());
                }
            }
            seen = arrivals.len();
            missing.is_empty()
        })
        .await;
    let letters = dlq::pages(admin, v1::DeadLetterFilter::default(), SENDERS * EVENTS).await;
    let letters = letters.map_err(|failure| anyhow!("{failure}"))?;
    Ok(letters.entries.into_iter().map(|letter| letter.event_id).collect())
}

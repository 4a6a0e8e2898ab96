//! `weft listen`: a receiver to try things with.

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use rand::RngExt as _;
use weft_nats::options::Span;

use super::{output::Format, sign::secret};
use crate::{
    exit::Failure,
    receiver::{Answer, Arrival, Receiver},
};

/// `weft listen`.
#[derive(Debug, clap::Args)]
pub struct ListenArgs {
    /// The port on loopback
    #[arg(long, default_value_t = 9999)]
    port: u16,
    /// The subscription's secret: env:NAME, file:PATH, or the secret itself
    #[arg(long)]
    secret: String,
    /// Answer 500 to so many of the attempts
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = parse_percent)]
    fail: f64,
    /// Answer after so long
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    slow: Span,
    /// End after so many deliveries that were taken
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<u64>,
    /// How to print [default: table on a terminal, jsonl in a pipe]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// Receives until it is interrupted, or has taken `limit` deliveries.
///
/// # Errors
///
/// [`Failure`]: the port is taken, or the secret is not of its form.
pub async fn run(args: ListenArgs) -> Result<(), Failure> {
    let (fail, delay) = (args.fail, args.slow.0);
    let rule = move |_: &Arrival| {
        let status = if fail > 0.0 && rand::rng().random_bool(fail) { 500 } else { 200 };
        Answer { status, delay }
    };
    let listen = SocketAddr::from(([127, 0, 0, 1], args.port));
    let receiver = Receiver::start(listen, &secret(&args.secret)?, rule).await.map_err(Failure::Failed)?;
    let terminal = std::io::stdout().is_terminal();
    let table = args.output.map_or(terminal, |output| output == Format::Table);
    eprintln!("listening at {}", receiver.url());
    let mut arrived = receiver.arrived();
    let (mut seen, mut taken) = (0, 0);
    loop {
        arrived.mark_unchanged();
        for arrival in receiver.arrivals_behind(seen) {
            seen += 1;
            taken += u64::from((200..300).contains(&arrival.status));
            print(&arrival, table).map_err(|error| Failure::Failed(error.to_string()))?;
        }
        if args.limit.is_some_and(|limit| taken >= limit) {
            // The last answer is on its way: a moment lets it arrive.
            tokio::time::sleep(Duration::from_millis(100)).await;
            return Ok(());
        }
        tokio::select! {
            changed = arrived.changed() => if changed.is_err() { return Ok(()) },
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

fn print(arrival: &Arrival, table: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if !table {
        serde_json::to_writer(&mut out, arrival)?;
        return writeln!(out);
    }
    let signature = if arrival.signed { "signed" } else { "BAD SIGNATURE" };
    let order = match (arrival.replay, arrival.in_order) {
        (true, _) => "replay",
        (_, Some(true)) => "in order",
        (_, Some(false)) => "GAP",
        (_, None) => "again",
    };
    writeln!(
        out,
        "{}  {:<24} #{:<6} {:<24} attempt {}  {}  {signature}  {order}",
        arrival.at.strftime("%H:%M:%S%.3f"),
        arrival.workflow_id,
        arrival.sequence_number,
        arrival.event_type,
        arrival.attempt,
        arrival.status,
    )
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number: f64 = text
        .strip_suffix('%')
        .unwrap_or(text)
        .parse()
        .map_err(|_| format!("{text:?} is not a percentage such as 20%"))?;
    if (0.0..=100.0).contains(&number) {
        Ok(number / 100.0)
    } else {
        Err(format!("{text:?} is not within 0% and 100%"))
    }
}

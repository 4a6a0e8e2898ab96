//! `weft listen`: a receiver to try things with.

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
};

use rand::RngExt as _;
use weft_nats::options::{Secret, Span};

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
    /// The subscription's secret: env:NAME, file:PATH, or the secret itself; several while they are rotated
    #[arg(long = "secret", value_name = "SECRET", required = true)]
    secrets: Vec<Secret>,
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
    let secrets = args.secrets.iter().map(|text| secret(text.expose())).collect::<Result<Vec<_>, _>>()?;
    let receiver = Receiver::start_with(listen, &secrets, rule).await.map_err(Failure::Failed)?;
    let terminal = std::io::stdout().is_terminal();
    let table = args.output.map_or(terminal, |output| output == Format::Table);
    eprintln!("listening at {}", receiver.url());
    let mut arrived = receiver.arrived();
    let mut taken = 0;
    loop {
        arrived.mark_unchanged();
        for arrival in receiver.take_arrivals() {
            taken += u64::from((200..300).contains(&arrival.status));
            print(&arrival, table).map_err(|error| Failure::Failed(error.to_string()))?;
        }
        if args.limit.is_some_and(|limit| taken >= limit) {
            // The last answer may be under way.
            receiver.stop().await;
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
    if table {
        return writeln!(out, "{}", line(arrival));
    }
    serde_json::to_writer(&mut out, arrival)?;
    writeln!(out)
}

/// An arrival for people.
fn line(arrival: &Arrival) -> String {
    let signature = if arrival.signed { "signed" } else { "BAD SIGNATURE" };
    let order = match (arrival.replay, arrival.in_order) {
        (true, _) => "replay",
        (_, Some(true)) => "in order",
        (_, Some(false)) => "GAP",
        (_, None) => "again",
    };
    format!(
        "{}  {:<24} #{:<6} {:<24} attempt {}  {}  {signature}  {order}",
        arrival.at.strftime("%H:%M:%S%.3f"),
        printable(&arrival.workflow_id),
        arrival.sequence_number,
        printable(&arrival.event_type),
        arrival.attempt,
        arrival.status,
    )
}

/// What a stranger has sent must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char }).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_within_their_bounds() {
        assert_eq!(parse_percent("20%"), Ok(0.2));
        assert_eq!(parse_percent("100"), Ok(1.0));
        for text in ["", "%", "-1%", "101%", "NaN", "a fifth"] {
            assert!(parse_percent(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_line_says_what_is_wrong() {
        let arrival = Arrival {
            at: "2026-11-21T02:00:00.123Z".parse().unwrap(),
            event_id: "id-2".into(),
            workflow_id: "order\u{1b}[2J".into(),
            sequence_number: 2,
            previous_event_id: None,
            lane_previous_event_id: None,
            event_type: "order.paid".into(),
            delivery_id: None,
            attempt: 3,
            replay: false,
            epoch: 1,
            signed: false,
            in_order: Some(false),
            status: 500,
        };
        let words: Vec<_> = line(&arrival).split_whitespace().map(str::to_owned).collect();
        let wanted = "02:00:00.123 order\u{fffd}[2J #2 order.paid attempt 3 500 BAD SIGNATURE GAP";
        assert_eq!(words.join(" "), wanted);
        let fine = Arrival { signed: true, in_order: Some(true), ..arrival };
        assert!(line(&fine).ends_with("signed  in order"));
        assert!(line(&Arrival { replay: true, in_order: None, ..fine }).ends_with("replay"));
    }
}

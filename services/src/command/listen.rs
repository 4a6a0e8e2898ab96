//! `weft listen`: a receiver to try things with.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    time::Duration,
};

use rand::RngExt as _;
use weft_nats::options::{Secret, Span};

use super::{
    json,
    output::{self, Format},
    sign::secret,
    terminal,
};
use crate::{
    failure::Failure,
    receiver::{Answer, Arrival, Keep, Receiver},
    signal,
};

/// The answer to attempts that are to fail, where none is named.
const STATUS_DEFAULT: u16 = 500;

/// `weft listen`.
#[derive(Debug, clap::Args)]
pub struct ListenArgs {
    /// The address to listen on; 0.0.0.0 is every address of the machine
    #[arg(long, value_name = "ADDR", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// The port; 0 is a free one
    #[arg(long, default_value_t = 9999)]
    port: u16,
    /// The subscription's secret: env:NAME, file:PATH, or the secret itself; several while they are rotated
    #[arg(long = "secret", value_name = "SECRET", required = true)]
    secrets: Vec<Secret>,
    /// Show the payload of each delivery: its data, or the whole envelope
    #[arg(long, value_name = "PART", num_args = 0..=1, default_missing_value = "data", default_value = "nothing", hide_default_value = true)]
    show: Keep,
    /// Fail this share of the attempts, chosen at random [default: 0%, or 100% with --status alone]
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    fail: Option<f64>,
    /// Fail every attempt of this workflow; once for each
    #[arg(long, value_name = "ID")]
    fail_workflow: Vec<String>,
    /// The status of attempts that fail [default: 500]
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(u16).range(300..=599))]
    status: Option<u16>,
    /// Wait this long before each answer
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    slow: Span,
    /// End after this many deliveries were taken
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<u64>,
    /// The output format [default: table on a terminal, jsonl in a pipe]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// Which attempts fail, and how.
#[derive(Debug)]
struct Rule {
    /// Of the attempts of other workflows, from 0 to 1.
    share: f64,
    workflows: BTreeSet<String>,
    status: u16,
    delay: Duration,
}

impl Rule {
    fn new(args: &ListenArgs) -> Self {
        let alone = args.status.is_some() && args.fail_workflow.is_empty();
        Self {
            share: args.fail.unwrap_or(if alone { 1.0 } else { 0.0 }),
            workflows: args.fail_workflow.iter().cloned().collect(),
            status: args.status.unwrap_or(STATUS_DEFAULT),
            delay: args.slow.0,
        }
    }

    /// `roll`: a random number from 0 up to, but not including, 1.
    fn answer(&self, workflow: &str, roll: f64) -> Answer {
        let fails = roll < self.share || self.workflows.contains(workflow);
        Answer { status: if fails { self.status } else { 200 }, delay: self.delay }
    }
}

/// Receives until SIGINT or SIGTERM, or until `limit` deliveries were taken.
///
/// # Errors
///
/// [`Failure`]: the address cannot be bound, or the secret is not of its form.
pub async fn run(args: ListenArgs) -> Result<(), Failure> {
    // Before anything is printed: process 1 of a container is not ended by a signal that it does not handle.
    let interrupted = signal::drain_token().map_err(|error| Failure::of(&error))?;
    let rule = Rule::new(&args);
    let rule = move |arrival: &Arrival| rule.answer(&arrival.workflow_id, rand::rng().random());
    let listen = SocketAddr::new(args.host, args.port);
    let secrets = args.secrets.iter().map(|text| secret(text.expose())).collect::<Result<Vec<_>, _>>()?;
    let receiver = Receiver::start_with(listen, &secrets, args.show, rule).await.map_err(Failure::Failed)?;
    let format = Format::or_default(args.output);
    output::say(&format!("listening at {}", receiver.url()));
    let mut arrived = receiver.arrived();
    let mut closed = pin!(output::closed());
    let mut taken = 0;
    while args.limit.is_none_or(|limit| taken < limit) {
        arrived.mark_unchanged();
        for arrival in receiver.take_arrivals() {
            taken += u64::from((200..300).contains(&arrival.status));
            output::next(format, &arrival, || lines(&arrival))?;
        }
        if args.limit.is_some_and(|limit| taken >= limit) {
            break;
        }
        tokio::select! {
            changed = arrived.changed() => if changed.is_err() { break },
            () = interrupted.cancelled() => break,
            () = &mut closed => break,
        }
    }
    // The last answers may be under way.
    receiver.stop().await;
    Ok(())
}

/// An arrival for people: a line, and its payload below where it is shown.
fn lines(arrival: &Arrival) -> String {
    let signature = if arrival.signed { "signed" } else { "BAD SIGNATURE" };
    let order = match (arrival.replay, arrival.in_order) {
        (true, _) => "replay",
        (_, Some(true)) => "in order",
        (_, Some(false)) => "GAP",
        (_, None) => "again",
    };
    let line = format!(
        "{}  {:<24} #{:<6} {:<24} attempt {}  {}  {signature}  {order}",
        arrival.at.strftime("%H:%M:%S%.3f"),
        terminal::line(&arrival.workflow_id),
        arrival.sequence_number,
        terminal::line(&arrival.event_type),
        arrival.attempt,
        arrival.status,
    );
    let payload = &arrival.payload;
    let json = payload.data.as_ref().or(payload.envelope.as_ref());
    let shown = match (json, &payload.data_base64) {
        (Some(json), _) => json::compact(json.get()).into_owned(),
        (None, Some(base64)) => format!("{} {base64}", payload.data_content_type.as_deref().unwrap_or_default()),
        (None, None) => return line,
    };
    format!("{line}\n  {}", terminal::line(&shown))
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
    use clap::Parser as _;

    use super::*;
    use crate::receiver::Payload;

    #[test]
    fn percentages_are_within_their_bounds() {
        assert_eq!(parse_percent("20%"), Ok(0.2));
        assert_eq!(parse_percent("100"), Ok(1.0));
        for text in ["", "%", "-1%", "101%", "NaN", "a fifth"] {
            assert!(parse_percent(text).is_err(), "{text:?}");
        }
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: ListenArgs,
    }

    fn args(line: &str) -> ListenArgs {
        Line::try_parse_from(format!("listen --secret s {line}").split_whitespace()).unwrap().args
    }

    #[test]
    fn attempts_fail_by_share_by_workflow_and_with_the_status_that_is_asked_for() {
        let status = |line: &str, workflow: &str, roll: f64| Rule::new(&args(line)).answer(workflow, roll).status;
        assert_eq!(status("", "w", 0.0), 200);
        assert_eq!((status("--fail 20%", "w", 0.19), status("--fail 20%", "w", 0.2)), (500, 200));
        assert_eq!((status("--fail 0%", "w", 0.0), status("--fail 100%", "w", 0.999)), (200, 500));
        assert_eq!(status("--status 503", "w", 0.999), 503);
        assert_eq!(status("--status 503 --fail 0%", "w", 0.0), 200);
        let sick = "--fail-workflow sick --fail-workflow ill --status 410";
        assert_eq!(
            (status(sick, "sick", 0.999), status(sick, "ill", 0.999), status(sick, "well", 0.0)),
            (410, 410, 200)
        );
    }

    #[test]
    fn show_stands_alone_or_names_the_part() {
        assert_eq!(args("").show, Keep::Nothing);
        assert_eq!(args("--show --fail 1%").show, Keep::Data);
        assert_eq!(args("--show envelope").show, Keep::Envelope);
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
            batch_size: None,
            signed: false,
            in_order: Some(false),
            status: 500,
            payload: Payload::default(),
        };
        let words: Vec<_> = lines(&arrival).split_whitespace().map(str::to_owned).collect();
        let wanted = r"02:00:00.123 order\u001b[2J #2 order.paid attempt 3 500 BAD SIGNATURE GAP";
        assert_eq!(words.join(" "), wanted);
        let fine = Arrival { signed: true, in_order: Some(true), ..arrival };
        assert!(lines(&fine).ends_with("signed  in order"));
        let data = serde_json::from_str("{\n \"total\": 1.50,\n \"a\": \"\u{202e}\"}").unwrap();
        let payload = Payload { data: Some(data), ..Payload::default() };
        let shown = lines(&Arrival { payload, ..fine.clone() });
        assert!(shown.ends_with("in order\n  {\"total\":1.50,\"a\":\"\\u202e\"}"), "{shown}");
        assert!(lines(&Arrival { replay: true, in_order: None, ..fine }).ends_with("replay"));
    }
}

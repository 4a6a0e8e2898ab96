//! Events of a list, and the stages of one as a waterfall.

use serde::Serialize;
use weft_proto::{v1, words::word};

use super::{Attempt, Delivery, Event, RESPONSE_CHARS, Time, beginning, text_or_dash, when};
use crate::command::{
    json,
    output::{self, Row},
};

/// An event of a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedEvent {
    #[serde(flatten)]
    event: Event,
    status: &'static str,
    stored_at: Option<Time>,
    deliveries: Vec<Delivery>,
}

impl ListedEvent {
    /// From the admin's answer; `None` when it holds no event.
    pub fn new(listed: v1::ListedEvent) -> Option<Self> {
        Some(Self {
            event: listed.event?.into(),
            status: word::<v1::EventStatus>(listed.status),
            stored_at: Time::of(listed.stored_at.as_ref()),
            deliveries: listed.deliveries.into_iter().map(Delivery::from).collect(),
        })
    }
}

impl Row for ListedEvent {
    const HEADINGS: &'static [&'static str] =
        &["EVENT", "STATUS", "WORKFLOW", "SEQ", "TYPE", "SOURCE", "DELIVERY ID", "RECEIVED", "ATTEMPTS", "LAST"];

    fn cells(&self) -> Vec<String> {
        let Event { event_id, workflow_id, sequence_number, r#type, source, delivery_id, received_at, .. } =
            &self.event;
        let attempts: u32 = self.deliveries.iter().map(|delivery| delivery.attempt_count).sum();
        let failed = self.deliveries.iter().rev().filter_map(|delivery| delivery.attempts.last());
        let last = failed.filter(|attempt| attempt.error.is_some()).map(Attempt::said).next();
        vec![
            event_id.clone(),
            self.status.to_owned(),
            workflow_id.clone(),
            sequence_number.to_string(),
            r#type.clone(),
            source.clone(),
            text_or_dash(delivery_id.as_ref()),
            when(received_at.as_ref()),
            attempts.to_string(),
            text_or_dash(last.as_ref()),
        ]
    }
}

impl Attempt {
    /// How it ended, in the receiver's words where there are any.
    pub(super) fn said(&self) -> String {
        said(self.error.as_deref().unwrap_or(self.outcome), self.response.as_deref().unwrap_or_default())
    }
}

/// An error with the beginning of what the receiver answered.
pub(super) fn said(error: &str, response: &str) -> String {
    if response.trim().is_empty() {
        return error.to_owned();
    }
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(response).is_ok();
    let line = match is_json {
        true => json::compact(response).into_owned(),
        false => response.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    format!("{error}: {}", beginning(&line, RESPONSE_CHARS))
}

/// Width of the bars of a waterfall.
const BAR: usize = 24;

/// A stage of an event: its name, and its start and end in milliseconds from the first one's start.
#[derive(Debug, PartialEq)]
struct Stage {
    name: String,
    at: Time,
    start: i64,
    end: i64,
}

/// The stages of an event, in order of their start: when it was received and stored, each attempt, and how it was settled. `None`
/// where only the time of its receipt is known.
pub(super) fn waterfall(event: &Event, stored_at: Option<Time>, deliveries: &[Delivery]) -> Option<String> {
    let stages = stages(event, stored_at, deliveries);
    if stages.len() < 2 {
        return None;
    }
    let total = stages.iter().map(|stage| stage.end).max().unwrap_or(0).max(1);
    let rows = stages.iter().map(|stage| {
        let took = stage.end - stage.start;
        vec![
            stage.name.clone(),
            stage.at.to_string(),
            format!("+{}", milliseconds(stage.start)),
            if took > 0 { milliseconds(took) } else { String::new() },
            bar(stage, total),
        ]
    });
    Some(output::table(&["STAGE", "AT", "AFTER", "TOOK", ""], rows))
}

fn stages(event: &Event, stored_at: Option<Time>, deliveries: &[Delivery]) -> Vec<Stage> {
    let Some(first) = event.received_at else { return Vec::new() };
    let after = |time: Time| time.0.as_millisecond() - first.0.as_millisecond();
    let span = |name: String, from: Time, to: Time| Stage { name, at: from, start: after(from), end: after(to) };
    let mut stages = vec![span("received".into(), first, first)];
    stages.extend(stored_at.map(|stored| span("stored".into(), stored, stored)));
    for delivery in deliveries {
        let name = &delivery.subscription;
        let run = if delivery.run == 0 { "" } else { " (replay)" };
        for attempt in &delivery.attempts {
            let (Some(from), Some(to)) = (attempt.started_at, attempt.ended_at) else { continue };
            stages.push(span(format!("{name}: attempt {}{run}", attempt.number), from, to));
            let sent = attempt.connected_at.map(|at| span("  connected, request sent".into(), at, at));
            let answered = attempt.answered_at.map(|at| span("  answer begins".into(), at, at));
            stages.extend(sent.into_iter().chain(answered));
        }
        stages.extend(delivery.settled_at.map(|at| span(format!("{name}: {}{run}", delivery.status), at, at)));
    }
    stages
}

/// The time of a stage as a bar, on the scale of all.
fn bar(stage: &Stage, total: i64) -> String {
    let column = |at: i64| usize::try_from(at.clamp(0, total) * (BAR as i64 - 1) / total).unwrap_or(0);
    let (from, to) = (column(stage.start), column(stage.end));
    format!("{}{}", " ".repeat(from), "━".repeat(to - from + 1))
}

/// A span of time in the unit that gives it few digits.
fn milliseconds(ms: i64) -> String {
    match ms {
        ..10_000 => format!("{ms} ms"),
        10_000..600_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min", ms / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds: ms / 1000, nanos: i32::try_from(ms % 1000).unwrap() * 1_000_000 })
    }

    fn event() -> v1::Event {
        v1::Event { event_id: "e".into(), received_at: at(100), ..Default::default() }
    }

    fn delivery() -> v1::EventDelivery {
        let attempt = v1::DeliveryAttempt {
            number: 1,
            started_at: at(120),
            connected_at: at(125),
            answered_at: at(190),
            ended_at: at(200),
            outcome: v1::AttemptClass::HttpStatus.into(),
            error: "answered 500".into(),
            response: b"{\"error\":\n \"locked\"}".to_vec(),
            ..Default::default()
        };
        v1::EventDelivery {
            subscription: "billing".into(),
            status: v1::DeliveryStatus::Delivered.into(),
            attempt_count: 1,
            attempts: vec![attempt],
            settled_at: at(200),
            ..Default::default()
        }
    }

    #[test]
    fn a_waterfall_shows_each_stage_on_one_scale() {
        let text = waterfall(&event().into(), Time::of(at(110).as_ref()), &[delivery().into()]).unwrap();
        let lines: Vec<_> =
            text.lines().skip(2).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "received 1970-01-01T00:00:00.100Z +0 ms ━",
                "stored 1970-01-01T00:00:00.110Z +10 ms ━",
                "billing: attempt 1 1970-01-01T00:00:00.120Z +20 ms 80 ms ━━━━━━━━━━━━━━━━━━━━",
                "connected, request sent 1970-01-01T00:00:00.125Z +25 ms ━",
                "answer begins 1970-01-01T00:00:00.190Z +90 ms ━",
                "billing: delivered 1970-01-01T00:00:00.200Z +100 ms ━",
            ],
            "{text}"
        );
        assert!(waterfall(&event().into(), None, &[]).is_none());
    }

    #[test]
    fn a_row_has_the_words_of_the_receiver_in_one_line() {
        let listed = v1::ListedEvent { event: Some(event()), deliveries: vec![delivery()], ..Default::default() };
        let cells = ListedEvent::new(listed).unwrap().cells();
        assert_eq!(cells.len(), ListedEvent::HEADINGS.len());
        assert_eq!(cells.last().unwrap(), r#"answered 500: {"error":"locked"}"#);
    }

    #[test]
    fn spans_are_short() {
        for (ms, text) in
            [(0, "0 ms"), (9_999, "9999 ms"), (10_000, "10.0 s"), (599_999, "599.9 s"), (7_200_000, "120 min")]
        {
            assert_eq!(milliseconds(ms), text);
        }
    }
}

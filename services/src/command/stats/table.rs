//! Stats as tables.

use super::{Counts, Group, Percentiles, Stats, Stream, Subscription};
use crate::command::{output::table, view::Time};

/// Sources and types that people get; the other formats have all of them.
const GROUPS_SHOWN: usize = 10;

impl Stats {
    /// For people.
    pub fn human(&self) -> String {
        let mut parts = vec![self.summary(), self.stages(), self.subscriptions_table()];
        parts.extend(self.groups("SOURCE", &self.sources));
        parts.extend(self.groups("TYPE", &self.types));
        if !self.rejected.is_empty() {
            let rows = self.rejected.iter().map(|rejected| vec![rejected.code.clone(), rejected.count.to_string()]);
            parts.push(table(&["REFUSED WITH", "REQUESTS"], rows));
        }
        parts.push(table(&["STREAM", "SIZE", "LIMIT", "FULL", "LAST", "NOT MATCHED"], self.streams.iter().map(stream)));
        parts.join("\n\n")
    }

    /// Length of the period, in seconds.
    pub fn length(&self) -> f64 {
        match (self.since, self.until) {
            (Some(since), Some(until)) => until.0.duration_since(since.0).as_secs_f64().max(1.0),
            _ => 1.0,
        }
    }

    fn summary(&self) -> String {
        let time = |time: Option<Time>| time.map(|time| time.to_string()).unwrap_or_default();
        let Counts { accepted, rejected, delivered, dead_lettered, unrouted, retried, failed, attempts, .. } =
            self.total;
        let counts = [accepted, rejected, delivered, dead_lettered, unrouted, attempts, retried, failed];
        let length = self.length();
        let rates = counts.iter().map(|count| format!("{:.2}", *count as f64 / length));
        let row = |name: &str, cells: Vec<String>| [vec![name.to_owned()], cells].concat();
        let rows = [row("all", counts.iter().map(ToString::to_string).collect()), row("per second", rates.collect())];
        let headings = ["", "ACCEPTED", "REFUSED", "DELIVERED", "DEAD", "UNROUTED", "ATTEMPTS", "RETRIES", "FAILED"];
        format!("{} to {}\n{}", time(self.since), time(self.until), table(&headings, rows))
    }

    fn stages(&self) -> String {
        let latencies = self.latencies;
        let stages = [
            ("accept", latencies.accept),
            ("wait", latencies.wait),
            ("deliver", latencies.deliver),
            ("total", latencies.total),
        ];
        let rows = stages.into_iter().map(|(name, durations)| {
            let Percentiles { count, p50_seconds, p90_seconds, p99_seconds, max_seconds, mean_seconds } = durations;
            let spans = [p50_seconds, p90_seconds, p99_seconds, max_seconds, mean_seconds];
            let spans = spans.map(|span| if count == 0 { "-".to_owned() } else { seconds(span) });
            [vec![name.to_owned()], spans.to_vec(), vec![count.to_string()]].concat()
        });
        table(&["STAGE", "P50", "P90", "P99", "MAX", "MEAN", "COUNT"], rows)
    }

    fn subscriptions_table(&self) -> String {
        let headings = [
            "SUBSCRIPTION",
            "STATE",
            "DELIVERED",
            "DEAD",
            "RETRIES",
            "P50",
            "P99",
            "BACKLOG",
            "OLDEST",
            "RETRYING",
            "BLOCKED",
            "PAUSED",
            "WHY",
        ];
        table(&headings, self.subscriptions.iter().map(|subscription| self.subscription(subscription)))
    }

    fn subscription(&self, of: &Subscription) -> Vec<String> {
        let total = of.latencies.total;
        let span = |span: f64| if total.count == 0 { "-".to_owned() } else { seconds(span) };
        vec![
            of.subscription.clone(),
            of.condition.to_owned(),
            of.counts.delivered.to_string(),
            of.counts.dead_lettered.to_string(),
            of.counts.retried.to_string(),
            span(total.p50_seconds),
            span(total.p99_seconds),
            of.backlog(),
            self.oldest(of),
            of.retrying_lanes.to_string(),
            of.blocked_lanes.to_string(),
            of.paused_lanes.to_string(),
            of.reason.clone(),
        ]
    }

    /// Age of the oldest event that a subscription has not settled.
    pub fn oldest(&self, of: &Subscription) -> String {
        match (of.oldest_pending_at, self.observed_at) {
            (Some(oldest), Some(now)) => seconds(now.0.duration_since(oldest.0).as_secs_f64().max(0.0)),
            _ => "-".to_owned(),
        }
    }

    fn groups(&self, heading: &str, groups: &[Group]) -> Option<String> {
        if groups.is_empty() {
            return None;
        }
        let row = |group: &Group| {
            let Counts { accepted, rejected, delivered, dead_lettered, retried, .. } = group.counts;
            let counts = [accepted, rejected, delivered, dead_lettered, retried].map(|count| count.to_string());
            [vec![group.label.clone()], counts.to_vec()].concat()
        };
        let shown = groups.iter().take(GROUPS_SHOWN).map(row);
        let mut text = table(&[heading, "ACCEPTED", "REFUSED", "DELIVERED", "DEAD", "RETRIES"], shown);
        if let Some(more) = groups.len().checked_sub(GROUPS_SHOWN).filter(|more| *more > 0) {
            text.push_str(&format!("\n… {more} more; -o json has them"));
        }
        Some(text)
    }
}

impl Subscription {
    /// The backlog; with a `≤` where it is a bound.
    pub fn backlog(&self) -> String {
        if self.backlog_is_bound { format!("≤{}", self.backlog) } else { self.backlog.to_string() }
    }
}

fn stream(stream: &Stream) -> Vec<String> {
    let full = stream.bytes_max.map(|max| format!("{:.0} %", stream.bytes as f64 * 100.0 / max as f64));
    let unmatched = stream.last_sequence.saturating_sub(stream.matched_sequence);
    vec![
        stream.stream.clone(),
        bytes(stream.bytes),
        stream.bytes_max.map_or_else(|| "-".to_owned(), bytes),
        full.unwrap_or_else(|| "-".to_owned()),
        stream.last_sequence.to_string(),
        if stream.matched_sequence > 0 { unmatched.to_string() } else { "-".to_owned() },
    ]
}

/// A size with a unit.
pub fn bytes(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// A duration with a unit, by three digits.
pub fn seconds(seconds: f64) -> String {
    const UNITS: [(f64, f64, &str); 5] = [
        (1e-3, 1e6, "µs"),
        (1.0, 1e3, "ms"),
        (120.0, 1.0, "s"),
        (7200.0, 1.0 / 60.0, "m"),
        (172_800.0, 1.0 / 3600.0, "h"),
    ];
    let found = UNITS.iter().find(|(below, ..)| seconds < *below);
    let (factor, unit) = found.map_or((1.0 / 86_400.0, "d"), |(_, factor, unit)| (*factor, *unit));
    let value = seconds * factor;
    let digits = if value < 10.0 && value > 0.0 { 1 } else { 0 };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_that_fits() {
        for (span, text) in [
            (0.0, "0 µs"),
            (0.000_25, "250 µs"),
            (0.0123, "12 ms"),
            (1.5, "1.5 s"),
            (90.0, "90 s"),
            (600.0, "10 m"),
            (90_000.0, "25 h"),
            (864_000.0, "10 d"),
        ] {
            assert_eq!(seconds(span), text);
        }
    }

    #[test]
    fn people_see_counts_rates_backlogs_and_streams() {
        use weft_proto::v1;

        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let billing = v1::SubscriptionStats {
            subscription: "billing".into(),
            condition: v1::SubscriptionCondition::Away.into(),
            reason: "connection refused".into(),
            backlog: 12,
            backlog_is_bound: true,
            oldest_pending_at: at(1_000_000),
            ..Default::default()
        };
        let stream =
            v1::StreamUsage { stream: "EVENTS".into(), bytes: 1 << 20, bytes_max: 4 << 20, ..Default::default() };
        let stats = v1::Stats {
            since: at(1_000_000),
            until: at(1_000_060),
            observed_at: at(1_000_030),
            total: Some(v1::StatsCounts { accepted: 600, ..Default::default() }),
            subscriptions: vec![billing],
            streams: vec![stream],
            ..Default::default()
        };
        let text = Stats::from(stats).human();
        for part in ["600", "10.00", "billing", "away", "≤12", "30 s", "connection refused", "25 %", "1.0 MiB"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

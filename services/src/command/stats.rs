//! `weft stats`: how much the mesh carries, how fast, and what waits.

use jiff::Timestamp;
use serde::Serialize;
use weft_proto::{v1, words::word};

use super::{
    common::CommonArgs,
    output,
    select::{parse_moment, to_proto},
    view::Time,
};
use crate::failure::Failure;

mod table;

pub use table::{bytes, seconds};

/// `weft stats`.
#[derive(Debug, clap::Args)]
pub struct StatsArgs {
    /// From then on, by whole minutes: 1h, or 2026-11-21T02:00:00Z; counts are kept for 8 days [default: 1h]
    #[arg(long, value_name = "WHEN", value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// Until then [default: now]
    #[arg(long, value_name = "WHEN", value_parser = parse_moment)]
    until: Option<Timestamp>,
    /// Minutes of a point of the series [default: such that there are at most 120 points]
    #[arg(long, value_name = "MINUTES")]
    step: Option<u32>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Prints them.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(args: StatsArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = v1::GetStatsRequest {
        since: args.since.map(to_proto),
        until: args.until.map(to_proto),
        step_minutes: args.step.unwrap_or(0),
    };
    let answer = admin.stats().get_stats(admin.request(request)).await;
    let stats = answer.map_err(|status| admin.failure(&status))?.into_inner().stats.unwrap_or_default();
    let stats = Stats::from(stats);
    output::one(format, &stats, || stats.human())
}

/// Stats, as they are printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// The period.
    pub since: Option<Time>,
    /// End of the period.
    pub until: Option<Time>,
    /// Minutes of a point.
    pub step_minutes: u32,
    /// Of everything.
    pub total: Counts,
    /// Of everything.
    pub latencies: Latencies,
    /// The series.
    pub points: Vec<Point>,
    /// By source.
    pub sources: Vec<Group>,
    /// By type.
    pub types: Vec<Group>,
    /// By code.
    pub rejected: Vec<Rejected>,
    /// By subscription.
    pub subscriptions: Vec<Subscription>,
    /// The streams of the log.
    pub streams: Vec<Stream>,
    /// When the present state was read.
    pub observed_at: Option<Time>,
}

/// Counts, as they are printed.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in the message")]
pub struct Counts {
    pub accepted: u64,
    pub rejected: u64,
    pub delivered: u64,
    pub dead_lettered: u64,
    pub discarded: u64,
    pub resolved: u64,
    pub unrouted: u64,
    pub attempts: u64,
    pub retried: u64,
    pub failed: u64,
}

/// Durations by stage, as they are printed.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in the message")]
pub struct Latencies {
    pub accept: Percentiles,
    pub wait: Percentiles,
    pub deliver: Percentiles,
    pub total: Percentiles,
}

/// Durations in seconds, as they are printed.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in the message")]
pub struct Percentiles {
    pub count: u64,
    pub p50_seconds: f64,
    pub p90_seconds: f64,
    pub p99_seconds: f64,
    pub max_seconds: f64,
    pub mean_seconds: f64,
}

/// A point of the series, as it is printed.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "as in the message")]
pub struct Point {
    pub time: Option<Time>,
    pub counts: Counts,
    pub latencies: Latencies,
}

/// A source or type, as it is printed.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "as in the message")]
pub struct Group {
    pub label: String,
    pub counts: Counts,
}

/// Refused requests of a code, as they are printed.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "as in the message")]
pub struct Rejected {
    pub code: String,
    pub count: u64,
}

/// A subscription, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in the message")]
pub struct Subscription {
    pub subscription: String,
    pub condition: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    pub backlog: u64,
    pub backlog_is_bound: bool,
    pub oldest_pending_at: Option<Time>,
    pub retrying_lanes: u64,
    pub blocked_lanes: u64,
    pub paused_lanes: u64,
    pub counts: Counts,
    pub latencies: Latencies,
}

/// A stream, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in the message")]
pub struct Stream {
    pub stream: String,
    pub bytes: u64,
    /// `None`: no limit.
    pub bytes_max: Option<u64>,
    pub first_sequence: u64,
    pub last_sequence: u64,
    pub matched_sequence: u64,
}

impl From<v1::Stats> for Stats {
    fn from(stats: v1::Stats) -> Self {
        Self {
            since: Time::of(stats.since.as_ref()),
            until: Time::of(stats.until.as_ref()),
            step_minutes: stats.step_minutes,
            total: counts(stats.total),
            latencies: latencies(stats.latencies),
            points: stats.points.into_iter().map(Point::from).collect(),
            sources: stats.sources.into_iter().map(Group::from).collect(),
            types: stats.types.into_iter().map(Group::from).collect(),
            rejected: stats
                .rejected
                .into_iter()
                .map(|v1::RejectedCount { code, count }| Rejected { code, count })
                .collect(),
            subscriptions: stats.subscriptions.into_iter().map(Subscription::from).collect(),
            streams: stats.streams.into_iter().map(Stream::from).collect(),
            observed_at: Time::of(stats.observed_at.as_ref()),
        }
    }
}

fn counts(counts: Option<v1::StatsCounts>) -> Counts {
    let v1::StatsCounts {
        accepted,
        rejected,
        delivered,
        dead_lettered,
        discarded,
        resolved,
        unrouted,
        attempts,
        retried,
        failed,
    } = counts.unwrap_or_default();
    Counts { accepted, rejected, delivered, dead_lettered, discarded, resolved, unrouted, attempts, retried, failed }
}

fn latencies(latencies: Option<v1::StatsLatencies>) -> Latencies {
    let v1::StatsLatencies { accept, wait, deliver, total } = latencies.unwrap_or_default();
    Latencies {
        accept: percentiles(accept),
        wait: percentiles(wait),
        deliver: percentiles(deliver),
        total: percentiles(total),
    }
}

fn percentiles(percentiles: Option<v1::Percentiles>) -> Percentiles {
    let v1::Percentiles { count, p50_seconds, p90_seconds, p99_seconds, max_seconds, mean_seconds } =
        percentiles.unwrap_or_default();
    Percentiles { count, p50_seconds, p90_seconds, p99_seconds, max_seconds, mean_seconds }
}

impl From<v1::StatsPoint> for Point {
    fn from(point: v1::StatsPoint) -> Self {
        let time = Time::of(point.time.as_ref());
        Self { time, counts: counts(point.counts), latencies: latencies(point.latencies) }
    }
}

impl From<v1::StatsGroup> for Group {
    fn from(group: v1::StatsGroup) -> Self {
        Self { label: group.label, counts: counts(group.counts) }
    }
}

impl From<v1::SubscriptionStats> for Subscription {
    fn from(stats: v1::SubscriptionStats) -> Self {
        Self {
            condition: word::<v1::SubscriptionCondition>(stats.condition),
            since: Time::of(stats.since.as_ref()),
            oldest_pending_at: Time::of(stats.oldest_pending_at.as_ref()),
            counts: counts(stats.counts),
            latencies: latencies(stats.latencies),
            subscription: stats.subscription,
            reason: stats.reason,
            backlog: stats.backlog,
            backlog_is_bound: stats.backlog_is_bound,
            retrying_lanes: stats.retrying_lanes,
            blocked_lanes: stats.blocked_lanes,
            paused_lanes: stats.paused_lanes,
        }
    }
}

impl From<v1::StreamUsage> for Stream {
    fn from(usage: v1::StreamUsage) -> Self {
        Self {
            stream: usage.stream,
            bytes: usage.bytes,
            bytes_max: Some(usage.bytes_max).filter(|bytes| *bytes > 0),
            first_sequence: usage.first_sequence,
            last_sequence: usage.last_sequence,
            matched_sequence: usage.matched_sequence,
        }
    }
}

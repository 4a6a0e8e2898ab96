//! Stats as messages. Pure.

use std::collections::BTreeMap;

use weft_catalog::Snapshot;
use weft_index::history::stats::{Cell, Counts, Histogram, Latencies, StatsReport};
use weft_proto::{
    ids::SubscriptionUid,
    v1::{self, SubscriptionCondition},
};

use super::{
    Period,
    observe::{Observation, StreamState},
};
use crate::convert;

const MINUTE_MS: i64 = 60_000;

pub(super) fn stats(period: &Period, report: StatsReport, observed: &Observation, catalog: &Snapshot) -> v1::Stats {
    let query = period.query;
    let subscriptions = subscriptions(&report, observed, catalog);
    let StatsReport { total, mut points, sources, types, codes, .. } = report;
    let series = (query.from..query.until).step_by(usize::try_from(query.step).unwrap_or(usize::MAX)).map(|minute| {
        let cell = points.remove(&minute).unwrap_or_default();
        v1::StatsPoint { time: time(minute), counts: counts(&cell), latencies: latencies(&cell.latencies) }
    });
    let series = series.collect();
    v1::Stats {
        since: time(query.from),
        until: convert::milliseconds(period.until.as_millisecond()),
        step_minutes: u32::try_from(query.step).unwrap_or(u32::MAX),
        total: counts(&total),
        latencies: latencies(&total.latencies),
        points: series,
        sources: groups(sources),
        types: groups(types),
        rejected: rejected(codes),
        subscriptions,
        streams: observed.streams.iter().map(|stream| usage(stream, observed)).collect(),
        observed_at: convert::milliseconds(observed.at.as_millisecond()),
    }
}

fn time(minute: u64) -> Option<prost_types::Timestamp> {
    convert::milliseconds(i64::try_from(minute).unwrap_or(i64::MAX).saturating_mul(MINUTE_MS))
}

fn counts_of(counts: &Counts) -> v1::StatsCounts {
    let Counts {
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
    } = *counts;
    v1::StatsCounts {
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
    }
}

fn counts(cell: &Cell) -> Option<v1::StatsCounts> {
    Some(counts_of(&cell.counts))
}

fn latencies(latencies: &Latencies) -> Option<v1::StatsLatencies> {
    Some(v1::StatsLatencies {
        accept: percentiles(&latencies.accept),
        wait: percentiles(&latencies.wait),
        deliver: percentiles(&latencies.deliver),
        total: percentiles(&latencies.total),
    })
}

fn percentiles(histogram: &Histogram) -> Option<v1::Percentiles> {
    Some(v1::Percentiles {
        count: histogram.count(),
        p50_seconds: histogram.quantile_seconds(0.5),
        p90_seconds: histogram.quantile_seconds(0.9),
        p99_seconds: histogram.quantile_seconds(0.99),
        max_seconds: histogram.max_seconds(),
        mean_seconds: histogram.mean_seconds(),
    })
}

fn groups(groups: BTreeMap<String, Counts>) -> Vec<v1::StatsGroup> {
    let group = |(label, counts): (String, Counts)| v1::StatsGroup { label, counts: Some(counts_of(&counts)) };
    let mut groups: Vec<_> = groups.into_iter().map(group).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.counts.map_or(0, |counts| counts.accepted)));
    groups
}

fn rejected(codes: BTreeMap<String, u64>) -> Vec<v1::RejectedCount> {
    let mut counts: Vec<_> = codes.into_iter().map(|(code, count)| v1::RejectedCount { code, count }).collect();
    counts.sort_by_key(|rejected| std::cmp::Reverse(rejected.count));
    counts
}

fn usage(stream: &StreamState, observed: &Observation) -> v1::StreamUsage {
    let matched = stream.shard.and_then(|shard| observed.backlogs.matched.get(&shard));
    v1::StreamUsage {
        stream: stream.name.clone(),
        bytes: stream.usage.bytes,
        bytes_max: stream.usage.bytes_max.unwrap_or(0),
        first_sequence: stream.usage.first.0,
        last_sequence: stream.last.0,
        matched_sequence: matched.map_or(0, |matched| matched.0),
    }
}

/// Those of the catalog, then those that only the log knows, by name.
fn subscriptions(report: &StatsReport, observed: &Observation, catalog: &Snapshot) -> Vec<v1::SubscriptionStats> {
    let mut shown: BTreeMap<Option<SubscriptionUid>, v1::SubscriptionStats> = BTreeMap::new();
    for (uid, (name, cell)) in &report.subscriptions {
        let stats = v1::SubscriptionStats {
            subscription: name.clone(),
            counts: counts(cell),
            latencies: latencies(&cell.latencies),
            condition: SubscriptionCondition::Deleted.into(),
            ..Default::default()
        };
        shown.insert(*uid, stats);
    }
    for (_, state) in &observed.orphaned {
        let Some(uid) = SubscriptionUid::from_slice(&state.subscription) else { continue };
        let stats = shown.entry(Some(uid)).or_insert_with(|| empty(&state.name));
        stats.condition = SubscriptionCondition::Orphaned.into();
    }
    for (name, subscription) in &catalog.subscriptions {
        let Some(uid) = SubscriptionUid::from_slice(&subscription.value.uid) else { continue };
        let stats = shown.entry(Some(uid)).or_insert_with(|| empty(name));
        stats.condition = SubscriptionCondition::Active.into();
        if subscription.value.paused {
            stats.condition = SubscriptionCondition::Paused.into();
            stats.reason.clone_from(&subscription.value.pause_reason);
        } else if let Some(receiver) = observed.receivers.iter().find(|receiver| receiver.uid == uid) {
            let condition = match receiver.state.condition() {
                v1::ReceiverCondition::Held => SubscriptionCondition::Held,
                v1::ReceiverCondition::Away
                | v1::ReceiverCondition::Available
                | v1::ReceiverCondition::Paused
                | v1::ReceiverCondition::Unspecified => SubscriptionCondition::Away,
            };
            stats.condition = condition.into();
            stats.reason.clone_from(&receiver.state.reason);
            stats.since = convert::milliseconds(receiver.state.since_ms);
        }
    }
    for (uid, backlog) in &observed.backlogs.subscriptions {
        let Some(stats) = shown.get_mut(&Some(*uid)) else { continue };
        stats.backlog = backlog.events;
        stats.backlog_is_bound = backlog.is_bound;
        stats.oldest_pending_at = backlog.oldest_ms.and_then(convert::milliseconds);
        stats.retrying_lanes = backlog.retrying;
        stats.blocked_lanes = backlog.blocked;
        stats.paused_lanes = backlog.paused;
    }
    let mut shown: Vec<_> = shown.into_values().collect();
    shown.sort_by(|one, other| one.subscription.cmp(&other.subscription));
    shown
}

fn empty(name: &str) -> v1::SubscriptionStats {
    v1::SubscriptionStats {
        subscription: name.to_owned(),
        counts: counts(&Cell::default()),
        latencies: latencies(&Latencies::default()),
        ..Default::default()
    }
}

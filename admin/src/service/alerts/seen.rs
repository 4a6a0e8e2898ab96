//! Input of the alert decisions, from the observation of the mesh and the counts of the history.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use weft_catalog::Snapshot;
use weft_index::history::{AsOf, History, stats::Minutes};
use weft_nats::event::OWN_SOURCE;
use weft_proto::{ids::SubscriptionUid, v1, words::Word as _};

use super::{
    AlertOptions,
    decide::{DEAD_LETTER_MINUTES, Seen, Source, Stream, Subscription},
};
use crate::service::stats::observe::Observation;

const MINUTE_MS: i64 = 60_000;
/// Minutes by which a source is found to be silent: the last hour, and the 24 before.
const STEADY_MINUTES: u64 = 25 * 60;
/// Minutes in which refused requests are counted.
const REJECTING_MINUTES: u64 = 5;
/// Time after which the outcomes of a minute have been committed and read.
const COMMITTED_MS: i64 = 10_000;
/// Time-out for the history to reach the log's end.
const CATCH_UP: Duration = Duration::from_secs(2);

/// State between looks.
#[derive(Debug, Default)]
pub(super) struct Watch {
    behind_since_ms: Option<i64>,
    /// The minute for which the counts were read.
    minute: u64,
    minutes: Minutes,
    finished: u64,
}

impl Watch {
    pub async fn seen(
        &mut self,
        history: &History,
        observation: &Observation,
        catalog: &Snapshot,
        options: AlertOptions,
        now: Timestamp,
    ) -> Result<Seen, String> {
        let now_ms = now.as_millisecond();
        let shards: Vec<_> = observation.backlogs.matched.keys().copied().collect();
        let as_of = history.catch_up(&shards, CATCH_UP).await.map_err(|error| error.to_string())?;
        match as_of {
            AsOf::Current => self.behind_since_ms = None,
            AsOf::Behind { .. } => {
                self.behind_since_ms.get_or_insert(now_ms);
            }
        }
        let minute = u64::try_from((now_ms - COMMITTED_MS) / MINUTE_MS).unwrap_or(0);
        if minute != self.minute && as_of == AsOf::Current {
            let minutes = history.minutes(minute.saturating_sub(STEADY_MINUTES), minute).await;
            self.minutes = minutes.map_err(|error| error.to_string())?;
            (self.minute, self.finished) = (minute, minute);
        }
        let name_of = |uid: &SubscriptionUid| {
            let mut known = catalog.subscriptions.iter();
            known.find(|(_, known)| known.value.uid == uid.as_bytes()).map(|(name, _)| name.clone())
        };
        let recent = self.minutes.dead_letters.iter().filter(|(of, ..)| of + DEAD_LETTER_MINUTES >= self.finished);
        Ok(Seen {
            subscriptions: subscriptions(observation, catalog),
            sources: sources(&self.minutes, self.minute, catalog.sources.keys().map(String::as_str)),
            streams: streams(observation, options.full_from),
            behind_since_ms: self.behind_since_ms,
            retention_ms: i64::try_from(options.retention.as_millis()).unwrap_or(i64::MAX),
            dead_letters: recent.filter_map(|(of, uid, count)| Some((*of, name_of(uid)?, *count))).collect(),
            finished: self.finished,
        })
    }
}

fn subscriptions(observation: &Observation, catalog: &Snapshot) -> Vec<Subscription> {
    let subscription = |(name, found): (&String, &weft_catalog::Revised<std::sync::Arc<v1::Subscription>>)| {
        let of = &found.value;
        let uid = SubscriptionUid::from_slice(&of.uid);
        let backlog = uid.and_then(|uid| observation.backlogs.subscriptions.get(&uid));
        let receiver = observation.receivers.iter().find(|receiver| Some(receiver.uid) == uid);
        Subscription {
            name: name.clone(),
            takes_own_only: !of.sources.is_empty() && of.sources.iter().all(|source| source == OWN_SOURCE),
            paused: of.paused.then(|| of.pause_reason.clone()),
            receiver: receiver
                .map(|known| (known.state.condition().word(), known.state.since_ms, known.state.reason.clone())),
            blocked: backlog.map(|backlog| backlog.blocked_others.clone()).unwrap_or_default(),
            oldest_ms: backlog.and_then(|backlog| backlog.oldest_other_ms),
        }
    };
    catalog.subscriptions.iter().map(subscription).collect()
}

/// The sources of the catalog, and those that sent something.
fn sources<'a>(minutes: &'a Minutes, minute: u64, configured: impl Iterator<Item = &'a str>) -> Vec<Source> {
    let configured =
        configured.map(|name| (name, (Source { is_configured: true, ..Source::default() }, BTreeSet::new())));
    let mut sources: BTreeMap<&str, (Source, BTreeSet<u64>)> = configured.collect();
    for (of, name, counts) in &minutes.sources {
        let (source, hours) = sources.entry(name.as_str()).or_default();
        if of + REJECTING_MINUTES >= minute {
            source.accepted += counts.accepted;
            source.rejected += counts.rejected;
        }
        if counts.accepted > 0 {
            let at_ms = i64::try_from(*of).unwrap_or(0) * MINUTE_MS;
            source.last_ms = source.last_ms.max(Some(at_ms));
            // Hours before the last one, counted back from now.
            hours.extend(minute.saturating_sub(of + 1).checked_div(60).filter(|hour| *hour > 0));
        }
    }
    let source = |(name, (source, hours)): (&str, (Source, BTreeSet<u64>))| Source {
        name: name.to_owned(),
        hours: hours.len(),
        ..source
    };
    sources.into_iter().map(source).collect()
}

fn streams(observation: &Observation, alert_from: u64) -> Vec<Stream> {
    let events = observation.streams.iter().filter(|stream| stream.shard.is_some());
    let limited = events.filter_map(|stream| {
        let (name, bytes) = (stream.name.clone(), stream.usage.bytes);
        Some(Stream { name, bytes, bytes_max: stream.usage.bytes_max?, alert_from })
    });
    limited.collect()
}

#[cfg(test)]
mod tests {
    use weft_index::history::stats::Counts;

    use super::*;

    #[test]
    fn a_steady_source_is_known_by_its_hours() {
        let at = |minute, accepted, rejected| {
            (minute, "shop".to_owned(), Counts { accepted, rejected, ..Counts::default() })
        };
        let now = 10_000;
        let mut minutes = Minutes::default();
        minutes.sources.extend((1..=24).map(|hour| at(now - 60 * hour - 30, 1, 0)));
        minutes.sources.push(at(now - 5, 0, 7));
        minutes.sources.push(at(now - 6, 0, 100));
        let found = sources(&minutes, now, ["idle", "shop"].into_iter());
        let names: Vec<_> = found.iter().map(|source| (source.name.as_str(), source.is_configured)).collect();
        assert_eq!(names, [("idle", true), ("shop", true)]);
        assert_eq!((found[1].hours, found[1].rejected, found[1].accepted), (24, 7, 0));
        assert_eq!(found[1].last_ms, Some((10_000 - 90) * MINUTE_MS));
        assert!(!sources(&minutes, now, std::iter::empty())[0].is_configured);
    }
}

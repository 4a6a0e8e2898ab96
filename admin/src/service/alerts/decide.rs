//! Decision which alerts are due: a function of the state, of what is seen, and of the time. Pure.
//!
//! An alert says that a condition has begun or ended. Its delivery id is made of the condition and of when it began, so an
//! alert that is published twice is a repeat. Nothing is decided by deliveries of the mesh's own events.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use weft_nats::event::{OWN_SOURCE, OWN_WORKFLOWS};

/// Conditions at a time: a mesh with more of them needs no further alerts to be looked at, and all are kept in one record.
const ACTIVE_MAX: usize = 500;
/// Alerts that wait to be published.
const OUTBOX_MAX: usize = 200;
/// How far, in percentage points, a nearly full stream must fall below the threshold to count as recovered.
const FULL_SLACK: u64 = 3;
/// Share of the retention after which the oldest event of a subscription is late, as a divisor.
const LATE_DIVISOR: i64 = 2;
/// How long the history may be behind.
const LAGGING_MS: i64 = 60_000;
/// Refused requests of a source in five minutes from which it is reported, if they are more than its accepted events.
const REJECTED_MIN: u64 = 10;
/// Hours, of the 24 before the last one, in which a source must have sent for its silence to be reported.
const STEADY_HOURS: usize = 20;
const MINUTE_MS: i64 = 60_000;

/// Conditions about sources are known by the counts of minutes.
const OF_SOURCES: &str = "weft.source.";
/// Minutes whose dead letters are looked at: an admin that takes over misses none of an outage that long, and outcomes that
/// are committed late are counted in their minute.
pub(super) const DEAD_LETTER_MINUTES: u64 = 60;

/// The mesh, as it is seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub subscriptions: Vec<Subscription>,
    pub sources: Vec<Source>,
    pub streams: Vec<Stream>,
    /// Since when the history is behind the log.
    pub behind_since_ms: Option<i64>,
    /// How long EVENTS keeps an event; 0: for ever.
    pub retention_ms: i64,
    /// Dead letters of the last [`DEAD_LETTER_MINUTES`] finished minutes: minute, subscription, number.
    pub dead_letters: Vec<(u64, String, u64)>,
    /// The minutes before this one are finished and counted; 0: none is counted yet.
    pub finished: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Subscription {
    pub name: String,
    /// It takes the mesh's own events and nothing else.
    pub takes_own_only: bool,
    /// Why it is paused.
    pub paused: Option<String>,
    /// Its receiver is away or held: the state, since when, and why.
    pub receiver: Option<(&'static str, i64, String)>,
    /// Blocked lanes, and the first of their workflows.
    pub blocked: (u64, Vec<String>),
    /// When its oldest unsettled event was stored.
    pub oldest_ms: Option<i64>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    pub name: String,
    /// The catalog has it.
    pub is_configured: bool,
    /// Accepted and refused in the last five finished minutes.
    pub accepted: u64,
    pub rejected: u64,
    /// When the newest event was accepted, to the minute, within the last 25 hours.
    pub last_ms: Option<i64>,
    /// Hours with an event, of the 24 before the last one.
    pub hours: usize,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    pub name: String,
    pub bytes: u64,
    pub bytes_max: u64,
    /// In percent.
    pub alert_from: u64,
}

/// Conditions that have been reported, and alerts that are to be published.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    active: BTreeMap<String, Active>,
    /// Dead letters of the minutes before this one have been reported, as far as they were counted.
    dead_letters_from: u64,
    /// How many have been reported of each minute that is still looked at, by subscription. `None`: a record of an earlier
    /// version.
    reported: Option<BTreeMap<u64, BTreeMap<String, u64>>>,
    pub outbox: VecDeque<Alert>,
}

/// A condition that has been reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Active {
    since_ms: i64,
    data: Map<String, Value>,
}

/// An event of the mesh's own, in the form of the events API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Alert {
    pub id: String,
    pub r#type: String,
    pub source: String,
    pub workflow_id: String,
    pub time: String,
    pub data: Map<String, Value>,
}

/// A condition that holds.
struct Condition {
    /// Type of its events.
    kind: &'static str,
    /// Kind and name of what it is about.
    about: (&'static str, String),
    /// When it began, where the log says so.
    since_ms: Option<i64>,
    summary: String,
    details: Map<String, Value>,
}

/// Decides. The alerts are in the state's outbox.
pub(super) fn decide(state: &mut State, seen: &Seen, now_ms: i64) {
    let conditions = conditions(state, seen, now_ms);
    let is_judged = |key: &String| seen.finished > 0 || !key.starts_with(OF_SOURCES);
    let ended = state.active.keys().filter(|key| !conditions.contains_key(*key) && is_judged(key));
    let ended: Vec<_> = ended.cloned().collect();
    for key in ended {
        let Some(active) = state.active.remove(&key) else { continue };
        publish(state, &key, &active, "recovered", "", now_ms);
    }
    for (key, condition) in conditions {
        if state.active.contains_key(&key) || state.active.len() >= ACTIVE_MAX {
            continue;
        }
        let active = condition.active(&key, now_ms);
        publish(state, &key, &active, "raised", "", now_ms);
        state.active.insert(key, active);
    }
    report_dead_letters(state, seen);
}

/// Dead letters are no condition: one event for all of a minute. Outcomes that are committed later, after an outage, are
/// reported when they are counted.
fn report_dead_letters(state: &mut State, seen: &Seen) {
    if seen.finished == 0 {
        return;
    }
    if state.dead_letters_from == 0 {
        // The first one to look does not report what was before.
        state.dead_letters_from = seen.finished;
    }
    let mut reported = state.reported.take().unwrap_or_else(|| reported_before(state.dead_letters_from, seen));
    reported.retain(|minute, _| minute + DEAD_LETTER_MINUTES >= seen.finished);
    for (minute, name, total) in seen.dead_letters.iter().filter(|(minute, ..)| *minute < seen.finished) {
        let before = reported.get(minute).and_then(|minute| minute.get(name)).copied().unwrap_or_default();
        let count = total.saturating_sub(before);
        if count == 0 {
            continue;
        }
        reported.entry(*minute).or_default().insert(name.clone(), *total);
        let (since_ms, until_ms) = (minute_ms(*minute), minute_ms(minute + 1));
        let command =
            format!("weft dlq list --subscription {name} --since {} --until {}", time(since_ms), time(until_ms));
        let details = [
            ("count", json!(count)),
            ("until", json!(time(until_ms))),
            ("filter", json!({ "subscription": name, "since": time(since_ms), "until": time(until_ms) })),
            ("command", json!(command)),
        ];
        let condition = Condition {
            kind: "weft.dead_letter.created",
            about: ("subscription", name.clone()),
            since_ms: Some(since_ms),
            summary: match before {
                0 => format!("{count} dead letters of subscription {name} in a minute"),
                _ => format!("{count} more dead letters of subscription {name} in a minute: {total}"),
            },
            details: details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        };
        let key = condition.key();
        let active = condition.active(&key, since_ms);
        let more = if before == 0 { String::new() } else { format!("/{before}") };
        publish(state, &key, &active, "raised", &more, until_ms);
    }
    state.reported = Some(reported);
    state.dead_letters_from = state.dead_letters_from.max(seen.finished);
}

/// Counts of the minutes before `from`, which an earlier version has reported: as much as is seen.
fn reported_before(from: u64, seen: &Seen) -> BTreeMap<u64, BTreeMap<String, u64>> {
    let mut reported: BTreeMap<u64, BTreeMap<String, u64>> = BTreeMap::new();
    for (minute, name, count) in seen.dead_letters.iter().filter(|(minute, ..)| *minute < from) {
        reported.entry(*minute).or_default().insert(name.clone(), *count);
    }
    reported
}

/// `more` distinguishes alerts of the same kind that began at the same time.
fn publish(state: &mut State, key: &str, active: &Active, is: &str, more: &str, at_ms: i64) {
    let (kind, about) = key.split_once('/').unwrap_or((key, ""));
    let mut data = active.data.clone();
    data.insert("state".to_owned(), is.into());
    data.insert("at".to_owned(), time(at_ms).into());
    let alert = Alert {
        id: format!("{key}/{}/{is}{more}", active.since_ms),
        r#type: kind.to_owned(),
        source: OWN_SOURCE.to_owned(),
        workflow_id: format!("{OWN_WORKFLOWS}{}", about.replace('/', ":")),
        time: time(at_ms),
        data,
    };
    if state.outbox.len() >= OUTBOX_MAX {
        // No gateway takes them for a long time: the newest say most.
        state.outbox.pop_front();
    }
    state.outbox.push_back(alert);
}

impl Condition {
    fn key(&self) -> String {
        let (what, name) = &self.about;
        format!("{}/{what}/{name}", self.kind)
    }

    fn active(self, key: &str, now_ms: i64) -> Active {
        let since_ms = self.since_ms.unwrap_or(now_ms);
        let (what, name) = self.about;
        let mut data = self.details;
        data.insert("alert".to_owned(), key.into());
        data.insert("summary".to_owned(), self.summary.into());
        data.insert("since".to_owned(), time(since_ms).into());
        data.insert(what.to_owned(), name.into());
        Active { since_ms, data }
    }
}

fn conditions(state: &State, seen: &Seen, now_ms: i64) -> BTreeMap<String, Condition> {
    let mut found = Vec::new();
    seen.subscriptions
        .iter()
        .filter(|subscription| !subscription.takes_own_only)
        .for_each(|subscription| of_subscription(subscription, seen, now_ms, &mut found));
    found.extend(seen.sources.iter().filter(|source| source.name != OWN_SOURCE).filter_map(rejecting));
    found.extend(
        seen.sources
            .iter()
            .filter(|source| source.name != OWN_SOURCE && source.is_configured)
            .filter_map(|source| silent(source, state, now_ms)),
    );
    found.extend(seen.streams.iter().filter_map(|stream| near_full(stream, state)));
    found.extend(seen.behind_since_ms.filter(|since_ms| now_ms - since_ms >= LAGGING_MS).map(lagging));
    found.into_iter().map(|condition| (condition.key(), condition)).collect()
}

fn of_subscription(subscription: &Subscription, seen: &Seen, now_ms: i64, found: &mut Vec<Condition>) {
    let name = &subscription.name;
    let mut add = |kind: &'static str, since_ms: Option<i64>, summary: String, details: Value| {
        let details = details.as_object().cloned().unwrap_or_default();
        found.push(Condition { kind, about: ("subscription", name.clone()), since_ms, summary, details });
    };
    if let Some(reason) = &subscription.paused {
        let summary = format!("subscription {name} is paused: {reason}");
        let command = format!("weft subscription resume {name}");
        add("weft.subscription.paused", None, summary, json!({ "reason": reason, "command": command }));
    }
    if let Some((state, since_ms, reason)) = &subscription.receiver {
        let summary = match *state {
            "held" => format!("the configuration of a worker prevents deliveries of subscription {name}: {reason}"),
            _ => format!("the receiver of subscription {name} is away: {reason}"),
        };
        add("weft.circuit.opened", Some(*since_ms), summary, json!({ "receiver": state, "reason": reason }));
    }
    let (blocked, workflows) = &subscription.blocked;
    if *blocked > 0 {
        let summary =
            format!("{blocked} workflows of subscription {name} are blocked until an operator retries or skips them");
        let command = format!("weft workflow lanes --subscription {name} --state blocked");
        let details = json!({ "count": blocked, "workflows": workflows, "command": command });
        add("weft.lane.blocked", None, summary, details);
    }
    if let Some(oldest_ms) = subscription.oldest_ms.filter(|_| seen.retention_ms > 0)
        && now_ms - oldest_ms > seen.retention_ms / LATE_DIVISOR
    {
        let summary = format!(
            "subscription {name} has events that have waited for half of the retention; at nine tenths they become dead letters"
        );
        add("weft.lane.late", None, summary, json!({ "oldest": time(oldest_ms) }));
    }
}

fn rejecting(source: &Source) -> Option<Condition> {
    let Source { name, accepted, rejected, .. } = source;
    (*rejected >= REJECTED_MIN && rejected > accepted).then(|| Condition {
        kind: "weft.source.rejecting",
        about: ("source", name.clone()),
        since_ms: None,
        summary: format!("{rejected} requests of source {name} were refused in five minutes, {accepted} accepted"),
        details: [
            ("rejected".to_owned(), json!(rejected)),
            ("accepted".to_owned(), json!(accepted)),
            ("command".to_owned(), json!(format!("weft rejected list --source {name}"))),
        ]
        .into_iter()
        .collect(),
    })
}

/// It has begun by what the source sent before, and holds until an event comes: the hours before go by.
fn silent(source: &Source, state: &State, now_ms: i64) -> Option<Condition> {
    const HOUR_MS: i64 = 60 * MINUTE_MS;
    let name = &source.name;
    let condition = |since_ms| Condition {
        kind: "weft.source.silent",
        about: ("source", name.clone()),
        since_ms: Some(since_ms),
        summary: format!("nothing has come from source {name} for an hour, although it sends every hour"),
        details: Map::new(),
    };
    if let Some(Active { since_ms, .. }) = state.active.get(&condition(0).key()) {
        return source.last_ms.is_none_or(|last_ms| last_ms <= *since_ms).then(|| condition(*since_ms));
    }
    let last_ms = source.last_ms?;
    (now_ms - last_ms >= HOUR_MS && source.hours >= STEADY_HOURS).then(|| condition(last_ms))
}

fn near_full(stream: &Stream, state: &State) -> Option<Condition> {
    let Stream { name, bytes, bytes_max, alert_from } = stream;
    let mut condition = Condition {
        kind: "weft.log.near_full",
        about: ("stream", name.clone()),
        since_ms: None,
        summary: String::new(),
        details: Map::new(),
    };
    let from =
        if state.active.contains_key(&condition.key()) { alert_from.saturating_sub(FULL_SLACK) } else { *alert_from };
    let percent = bytes.saturating_mul(100).checked_div(*bytes_max)?;
    if percent < from {
        return None;
    }
    condition.summary = format!("stream {name} is {percent} % full");
    condition.details.insert("bytes".to_owned(), json!(bytes));
    condition.details.insert("bytesMax".to_owned(), json!(bytes_max));
    Some(condition)
}

fn lagging(since_ms: i64) -> Condition {
    Condition {
        kind: "weft.projection.lagging",
        about: ("projection", "history".to_owned()),
        since_ms: Some(since_ms),
        summary: "the history of an admin is behind the log: what it shows is old".to_owned(),
        details: Map::new(),
    }
}

fn minute_ms(minute: u64) -> i64 {
    i64::try_from(minute).unwrap_or(i64::MAX).saturating_mul(MINUTE_MS)
}

fn time(ms: i64) -> String {
    Timestamp::from_millisecond(ms).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests;

//! Configuration of each stream and bucket, and the changes that are allowed to one that exists already. Pure.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use weft_proto::ids::ShardId;

use super::{FORMAT_VERSION, LogSpec};
use crate::{
    options::{MaxBytes, Span},
    subject::{CATALOG_BUCKET, DLQ_STREAM, LEASES_BUCKET, Layout, REJECTED_STREAM, bucket_stream},
};

/// With `max_bytes = "auto"` a stream may always hold this part more than it holds: above nine tenths of its limit, room is
/// made in it.
const STORED_HEADROOM_PART: i64 = 4;

/// Metadata: the version of what is stored.
pub(super) const FORMAT: &str = "weft-format";
/// Metadata: the number of shards of the log.
pub(super) const SHARDS: &str = "weft-shards";
/// Metadata: which shard a stream belongs to.
const SHARD: &str = "weft-shard";
/// Metadata: how a workflow's shard is found.
const HASH: &str = "weft-hash";

/// The server's own duplicate window. It is held in memory, so it only covers what the client itself repeats.
const DUPLICATE_WINDOW_MAX: Duration = Duration::from_secs(2 * 60);
/// Consumers on one stream: below the server's default of 1000, which "unlimited" would mean.
const CONSUMERS_MAX: i32 = 900;
/// How long COMMANDS keeps a command: it is the audit log.
const COMMANDS_RETENTION: Span = Span::days(400);
/// Messages that the catalog keeps of each key, the last one among them.
pub const CATALOG_HISTORY: i64 = 5;

/// The first stream of events: its name distinguishes a log of one shard from one of several.
pub(super) fn first_events_stream(layout: Layout) -> String {
    layout.events_stream(ShardId(0))
}

/// Every stream of the log. The bucket of leases comes first and decides which log there is: it has the same name for
/// any number of shards, and of one name the server makes one stream only.
pub(super) fn all(layout: Layout, spec: &LogSpec) -> Vec<Config> {
    let mut streams = vec![leases(layout, spec)];
    streams.extend(layout.all().map(|shard| events(layout, shard, spec)));
    streams.extend(layout.all().map(|shard| outcomes(layout, shard, spec)));
    streams.extend(layout.all().map(|shard| checkpoints(layout, shard, spec)));
    streams.extend(layout.all().map(|shard| commands(layout, shard, spec)));
    streams.extend([dead_letters(spec), rejected(spec), catalog(spec)]);
    streams
}

/// Stream of events. Nothing in it may be replaced or removed by a message (rollup, TTL, schedules are off) or one by
/// one, except by an admin's erasure; a full stream refuses what is new, so that nothing is dropped that is not settled.
fn events(layout: Layout, shard: ShardId, spec: &LogSpec) -> Config {
    let max_bytes = match spec.log.max_bytes {
        MaxBytes::Bytes(bytes) => Some(bytes),
        MaxBytes::Auto => spec.auto_bytes_max,
    };
    Config {
        subjects: vec![layout.event_subjects(shard), layout.heads_subject(shard)],
        max_age: spec.log.retention.0,
        max_bytes: max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        max_message_size: i32::try_from(spec.message_bytes_max()).unwrap_or(i32::MAX),
        duplicate_window: DUPLICATE_WINDOW_MAX.min(spec.log.dedup_horizon.0),
        allow_atomic_publish: true,
        deny_delete: false,
        ..sharded(layout.events_stream(shard), layout, shard, spec)
    }
}

/// Stream of outcomes: commits, and the checkpoints of earlier versions. It has no limit of size, so that a full EVENTS
/// can still be settled.
fn outcomes(layout: Layout, shard: ShardId, spec: &LogSpec) -> Config {
    Config {
        subjects: vec![layout.outcomes_subject(shard), layout.chunk_subject(shard), layout.checkpoint_subject(shard)],
        max_age: spec.log.retention.0,
        allow_atomic_publish: true,
        ..sharded(layout.outcomes_stream(shard), layout, shard, spec)
    }
}

/// The state of a shard's owner. Without an age limit: a checkpoint is valid until the next one is complete, and the owner
/// then purges it.
fn checkpoints(layout: Layout, shard: ShardId, spec: &LogSpec) -> Config {
    Config {
        subjects: vec![layout.checkpoints_subject(shard)],
        ..sharded(layout.checkpoints_stream(shard), layout, shard, spec)
    }
}

/// Stream of operators' commands.
fn commands(layout: Layout, shard: ShardId, spec: &LogSpec) -> Config {
    Config {
        subjects: vec![layout.commands_subject(shard)],
        max_age: COMMANDS_RETENTION.0,
        ..sharded(layout.commands_stream(shard), layout, shard, spec)
    }
}

fn dead_letters(spec: &LogSpec) -> Config {
    Config {
        subjects: vec!["dlq.>".into()],
        max_age: spec.dead_letters.retention.0,
        deny_delete: false,
        ..plain(DLQ_STREAM.into(), spec)
    }
}

/// Refused requests, for an operator to look at; the oldest go when it is full.
fn rejected(spec: &LogSpec) -> Config {
    Config {
        subjects: vec!["rejected.>".into()],
        max_bytes: i64::try_from(spec.rejected.max_bytes.as_u64()).unwrap_or(i64::MAX),
        discard: DiscardPolicy::Old,
        deny_delete: false,
        ..plain(REJECTED_STREAM.into(), spec)
    }
}

/// A message with a rollup would remove the entry's earlier messages, from which readers derive its value.
fn catalog(spec: &LogSpec) -> Config {
    Config { max_messages_per_subject: CATALOG_HISTORY, allow_rollup: false, ..bucket(CATALOG_BUCKET, spec) }
}

/// Keys here expire by a TTL for each key. Without markers of that, which would need rollups.
fn leases(layout: Layout, spec: &LogSpec) -> Config {
    let mut config = Config { max_messages_per_subject: 1, allow_message_ttl: true, ..bucket(LEASES_BUCKET, spec) };
    config.metadata.insert(SHARDS.to_owned(), layout.shards().to_string());
    config
}

/// A KV bucket, without rollups: with them, any user that may write one key could remove all others.
fn bucket(name: &str, spec: &LogSpec) -> Config {
    Config { subjects: vec![format!("$KV.{name}.>")], ..plain(bucket_stream(name), spec) }
}

/// A stream of one shard.
fn sharded(name: String, layout: Layout, shard: ShardId, spec: &LogSpec) -> Config {
    let mut config = plain(name, spec);
    let own = [(SHARDS, layout.shards().to_string()), (SHARD, shard.to_string()), (HASH, "fnv1a32".into())];
    config.metadata.extend(own.map(|(key, value)| (key.to_owned(), value)));
    config
}

/// Common part of all streams: on disk, read directly, no message removed by hand. Except by an admin's erasure, of the
/// streams that hold what senders sent.
fn plain(name: String, spec: &LogSpec) -> Config {
    Config {
        name,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: CONSUMERS_MAX,
        discard: DiscardPolicy::New,
        num_replicas: spec.log.replicas,
        allow_direct: true,
        deny_delete: true,
        metadata: HashMap::from([(FORMAT.to_owned(), FORMAT_VERSION.to_string())]),
        ..Config::default()
    }
}

/// Action for a stream that exists.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// It is as it should be.
    Keep,
    /// It should look like this.
    Update(Box<Config>),
    /// It belongs to another log.
    Mismatch {
        /// The metadata key that differs.
        key: String,
        /// The stream's value; `None`: it has none.
        theirs: Option<String>,
        /// The value that this process is configured with.
        ours: String,
    },
}

/// Compares a stream with what it should be. What neither we decide nor the server lets change stays as it is:
/// placement, compression, the number of consumers. The stream holds `stored_bytes`.
pub(super) fn compare(existing: &Config, stored_bytes: u64, wanted: &Config, spec: &LogSpec) -> Verdict {
    let mut config = existing.clone();
    for key in [FORMAT, HASH, SHARDS, SHARD] {
        let (theirs, ours) = (existing.metadata.get(key), wanted.metadata.get(key));
        match ours {
            Some(ours) if theirs.is_none() && key == SHARDS => {
                // The bucket of leases of a log that was made when it did not say this yet.
                config.metadata.insert(key.to_owned(), ours.clone());
            }
            Some(ours) if theirs != Some(ours) => {
                return Verdict::Mismatch { key: key.into(), theirs: theirs.cloned(), ours: ours.clone() };
            }
            _ => {}
        }
    }
    config.subjects.clone_from(&wanted.subjects);
    config.max_age = wanted.max_age;
    config.discard = wanted.discard;
    config.num_replicas = wanted.num_replicas;
    config.max_messages_per_subject = wanted.max_messages_per_subject;
    config.allow_direct = wanted.allow_direct;
    config.allow_rollup = wanted.allow_rollup;
    config.allow_atomic_publish = wanted.allow_atomic_publish;
    config.allow_message_ttl = wanted.allow_message_ttl;
    // The server never takes it back.
    config.deny_delete = existing.deny_delete || wanted.deny_delete;
    config.allow_rollup = wanted.allow_rollup;
    config.subject_delete_marker_ttl = wanted.subject_delete_marker_ttl;
    if !wanted.duplicate_window.is_zero() {
        config.duplicate_window = wanted.duplicate_window;
    } else if !config.max_age.is_zero() {
        // The server's own choice, which must not be above the age.
        config.duplicate_window = config.duplicate_window.min(config.max_age);
    }
    // A process that does not know the disk leaves the size that one who knew it has set.
    if wanted.max_bytes > 0 || spec.log.max_bytes != MaxBytes::Auto {
        config.max_bytes = wanted.max_bytes;
    }
    let is_auto = spec.log.max_bytes == MaxBytes::Auto
        && spec.auto_bytes_max.is_some_and(|bytes| i64::try_from(bytes) == Ok(wanted.max_bytes));
    if is_auto && existing.max_bytes > wanted.max_bytes {
        // Disk space that other processes take must not make a log full that was not: the limit sinks with what is
        // stored.
        let stored = i64::try_from(stored_bytes).unwrap_or(i64::MAX);
        let kept = stored.saturating_add(stored / STORED_HEADROOM_PART);
        config.max_bytes = wanted.max_bytes.max(kept.min(existing.max_bytes));
    }
    // Only up: a process that is configured with less must not refuse another's events.
    config.max_message_size = config.max_message_size.max(wanted.max_message_size);
    if config == *existing { Verdict::Keep } else { Verdict::Update(Box::new(config)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::LogOptions;

    fn spec() -> LogSpec {
        LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() }
    }

    /// The hardening of EVENTS: with rollup, TTL or schedules on, any publisher could remove what is stored.
    #[test]
    fn no_message_can_remove_events() {
        for config in all(Layout::new(2), &spec()).iter().filter(|config| !config.name.starts_with("KV_")) {
            assert!(!config.allow_rollup && !config.allow_message_ttl, "{}", config.name);
            // Those that hold what senders sent, which an admin may have to erase.
            let erasable = ["EVENTS", DLQ_STREAM, REJECTED_STREAM].iter().any(|name| config.name.starts_with(name));
            assert_eq!(config.deny_delete, !erasable, "{}", config.name);
            assert!(!config.allow_message_schedules && config.subject_delete_marker_ttl.is_none(), "{}", config.name);
            assert_eq!(config.discard == DiscardPolicy::Old, config.name == REJECTED_STREAM, "{}", config.name);
        }
    }

    /// The first stream of events of a log.
    fn first_events(shards: u32, spec: &LogSpec) -> Config {
        events(Layout::new(shards), ShardId(0), spec)
    }

    /// Before streams of a log are made, one of a name that every log has says that it is there.
    #[test]
    fn the_first_stream_has_the_same_name_in_every_log() {
        let [one, two] = [1, 2].map(|shards| all(Layout::new(shards), &spec()).swap_remove(0));
        assert_eq!(one.name, two.name);
        let Verdict::Mismatch { theirs, ours, .. } = compare(&two, 0, &one, &spec()) else { panic!("a mismatch") };
        assert_eq!((theirs.as_deref(), ours.as_str()), (Some("2"), "1"));
        let mut older = one.clone();
        older.metadata.remove(SHARDS);
        assert!(matches!(compare(&older, 0, &one, &spec()), Verdict::Update(updated) if *updated == one));
    }

    #[test]
    fn a_stream_of_another_log_is_recognised() {
        let spec = spec();
        let [two, four] = [2, 4].map(|shards| first_events(shards, &spec));
        let Verdict::Mismatch { key, theirs, ours } = compare(&four, 0, &two, &spec) else { panic!("a mismatch") };
        assert_eq!((key.as_str(), theirs.as_deref(), ours.as_str()), (SHARDS, Some("4"), "2"));
        let foreign = Config { name: two.name.clone(), ..Config::default() };
        assert!(matches!(compare(&foreign, 0, &two, &spec), Verdict::Mismatch { theirs: None, .. }));
    }

    #[test]
    fn limits_are_updated_and_the_operators_own_settings_kept() {
        let spec = spec();
        let wanted = first_events(1, &spec);
        assert_eq!(compare(&wanted, 0, &wanted, &spec), Verdict::Keep);

        let longer = Config {
            max_age: Duration::from_secs(1),
            description: Some("ours".into()),
            max_consumers: 10,
            max_message_size: i32::MAX,
            ..wanted.clone()
        };
        let Verdict::Update(updated) = compare(&longer, 0, &wanted, &spec) else { panic!("an update") };
        assert_eq!(updated.max_age, wanted.max_age);
        assert_eq!((updated.description.as_deref(), updated.max_consumers), (Some("ours"), 10));
        assert_eq!(updated.max_message_size, i32::MAX);
    }

    /// With less disk than before, what is stored still fits, with headroom; the limit never grows by that.
    #[test]
    fn an_automatic_limit_is_never_below_the_stored_bytes() {
        let spec = LogSpec { auto_bytes_max: Some(10 << 20), ..spec() };
        let wanted = first_events(1, &spec);
        let before = Config { max_bytes: 100 << 20, ..wanted.clone() };
        let limit = |stored| match compare(&before, stored, &wanted, &spec) {
            Verdict::Update(config) => config.max_bytes,
            Verdict::Keep => before.max_bytes,
            Verdict::Mismatch { .. } => panic!("a limit is no mismatch"),
        };
        assert_eq!(limit(0), 10 << 20);
        assert_eq!(limit(40 << 20), 50 << 20);
        assert_eq!(limit(99 << 20), 100 << 20);
        let explicit =
            LogSpec { log: LogOptions { max_bytes: MaxBytes::Bytes(10 << 20), ..LogOptions::default() }, ..spec };
        let wanted = first_events(1, &explicit);
        let Verdict::Update(config) = compare(&before, 40 << 20, &wanted, &explicit) else { panic!("an update") };
        assert_eq!(config.max_bytes, 10 << 20, "an operator's word is taken");
    }

    #[test]
    fn only_who_knows_a_size_sets_it() {
        let known = LogSpec { auto_bytes_max: Some(1 << 30), ..spec() };
        let [sized, unsized_] = [&known, &spec()].map(|spec| first_events(1, spec));
        assert_eq!(compare(&sized, 0, &unsized_, &spec()), Verdict::Keep);
        assert!(
            matches!(compare(&unsized_, 0, &sized, &known), Verdict::Update(config) if config.max_bytes == 1 << 30)
        );
    }
}

use async_nats::HeaderMap;
use jiff::Timestamp;
use proptest::prelude::*;
use prost::Message as _;
use weft_proto::{
    ids::StreamSeq,
    v1::{Source, Subscription},
};

use super::{
    super::{apply::is_use, seal::Claims},
    *,
};

const PREFIX: &str = "$KV.b.";
const CREATED: i64 = 1_700_000_000_000_000_000;

fn key() -> MasterKey {
    MasterKey::parse(&MasterKey::generate()).unwrap()
}

fn message(seq: u64, key: &str, header: Option<(&str, &str)>, payload: Vec<u8>) -> Stored {
    let mut headers = HeaderMap::new();
    header.into_iter().for_each(|(name, value)| headers.insert(name, value));
    Stored {
        seq: StreamSeq(seq),
        stored_at: Timestamp::UNIX_EPOCH,
        subject: format!("{PREFIX}{key}"),
        headers,
        payload: payload.into(),
    }
}

fn source(key: &MasterKey, entry: &str, name: &str) -> Vec<u8> {
    key.seal_legacy(entry, &Source { name: name.into(), ..Source::default() }.encode_to_vec())
}

/// Result of reading these messages to the end.
fn read(key: &MasterKey, messages: &[Stored]) -> Reading {
    let mut reading = Reading::new(PREFIX, key, CREATED, u64::MAX);
    for message in messages {
        reading.apply(message);
    }
    reading.conclude();
    reading
}

fn revisions(reading: &Reading) -> Vec<(String, u64)> {
    reading.snapshot.sources.iter().map(|(name, source)| (name.clone(), source.revision)).collect()
}

#[test]
fn the_last_sound_value_of_a_key_counts() {
    let key = key();
    let named = |entry: &str, name: &str| source(&key, entry, name);
    let mut messages = vec![
        message(1, "source.a", None, named("source.a", "a")),
        message(2, "source.b", None, named("source.b", "b")),
        message(3, "source.a", None, named("source.a", "a")),
    ];
    let sound = [("a".to_owned(), 3), ("b".to_owned(), 2)];
    assert_eq!(revisions(&read(&key, &messages)), sound);
    messages.extend([
        message(4, "source.a", None, vec![0xff, 0xff]),
        message(5, "source.b", None, named("source.b", "a")),
        message(6, "source", None, named("source", "c")),
        message(7, "other.c", None, named("other.c", "c")),
        // Not sealed, and sealed as another entry.
        message(8, "source.a", None, Source { name: "a".into(), ..Source::default() }.encode_to_vec()),
        message(9, "source.a", None, named("source.b", "a")),
    ]);
    let reading = read(&key, &messages);
    assert_eq!(revisions(&reading), sound);
    assert!(reading.snapshot.complete);
}

/// An entry is removed only by a process with the master key, regardless of the markers that others write.
#[test]
fn only_a_sealed_removal_removes() {
    let key = key();
    let subscription = Subscription { uid: vec![1; 16], name: "b".into(), ..Subscription::default() };
    let mut messages = vec![
        message(1, "source.a", None, source(&key, "source.a", "a")),
        message(2, "subscription.b", None, key.seal_legacy("subscription.b", &subscription.encode_to_vec())),
    ];
    for (seq, header) in [
        (3, ("KV-Operation", "DEL")),
        (4, ("KV-Operation", "PURGE")),
        (5, ("Nats-Marker-Reason", "MaxAge")),
        (6, ("Nats-Marker-Reason", "Purge")),
    ] {
        messages.push(message(seq, "source.a", Some(header), Vec::new()));
        messages.push(message(seq, "subscription.b", Some(header), Vec::new()));
    }
    // A removal of another entry, put in this one's place.
    messages.push(message(7, "source.a", Some(("KV-Operation", "DEL")), key.seal_legacy("source.b", b"")));
    let reading = read(&key, &messages);
    assert_eq!((revisions(&reading), reading.snapshot.complete), (vec![("a".to_owned(), 1)], true));
    assert!(reading.snapshot.removals.is_empty() && reading.snapshot.subscriptions.len() == 1);

    messages.push(message(8, "source.a", None, key.seal_legacy("source.a", b"")));
    messages.push(message(
        9,
        "subscription.b",
        Some(("weft-operator", "ab12cd34")),
        key.seal_legacy("subscription.b", b""),
    ));
    let reading = read(&key, &messages);
    assert!(reading.snapshot.complete && reading.snapshot.sources.is_empty());
    assert_eq!(reading.snapshot.removals[&subscription.uid].operator, "ab12cd34");
}

/// A reader that starts late, and finds only what others have written, does not treat the entry as absent; unless so
/// little was written that nothing can have been pushed out.
#[test]
fn an_entry_that_was_written_over_leaves_the_catalog_incomplete() {
    let key = key();
    let forged = |seq: i64| message(seq.unsigned_abs(), "source.a", Some(("KV-Operation", "DEL")), Vec::new());
    let few: Vec<_> = (1..CATALOG_HISTORY).map(forged).collect();
    let snapshot = read(&key, &few).snapshot;
    assert!(snapshot.complete && snapshot.sources.is_empty());

    let many: Vec<_> = (2..2 + CATALOG_HISTORY).map(forged).collect();
    let lost = read(&key, &many);
    assert!(!lost.snapshot.complete && lost.base("source.a", 0).is_none() && lost.base("source.a", 1).is_none());
    let missing = lost.snapshot.missing().unwrap();
    assert!(missing.contains("source.a") && missing.contains("purge"), "{missing}");

    // A reader that has seen the value keeps it; and what this version cannot read was there, too.
    let first = message(1, "source.a", None, source(&key, "source.a", "a"));
    let seen = read(&key, &[&[first], many.as_slice()].concat());
    assert!(seen.snapshot.complete && revisions(&seen) == [("a".to_owned(), 1)]);
    let unsound = message(1, "source.a", None, key.seal_legacy("source.a", &[0xff]));
    assert!(!read(&key, &[unsound]).snapshot.complete);
}

/// A writer that knows an entry's revision writes after any foreign messages on its subject.
#[test]
fn an_entry_is_written_behind_what_others_have_left() {
    let key = key();
    let mut messages = vec![message(1, "source.a", None, source(&key, "source.a", "a"))];
    let bases = |messages: &[Stored]| {
        [0, 1, 2].map(|expected| read(&key, messages).base("source.a", expected).map(|base| base.last))
    };
    assert_eq!(bases(&[]), [Some(0), None, None]);
    assert_eq!(bases(&messages), [None, Some(1), None]);
    messages.push(message(2, "source.a", None, b"forged".to_vec()));
    assert_eq!(bases(&messages), [None, Some(2), None]);
    messages.push(message(3, "source.a", None, key.seal_legacy("source.a", b"")));
    messages.push(message(4, "source.a", None, b"forged".to_vec()));
    assert_eq!(bases(&messages), [Some(4), None, None]);
    assert_eq!(bases(&messages[1..2]), [Some(2), None, None]);
}

/// The latest use counts, regardless of which gateway writes last; nonsense is passed over.
#[test]
fn the_latest_use_of_a_key_counts() {
    let key = key();
    let uses = [(1, "120000"), (2, "60000"), (3, "x"), (4, "99999999999999999999")];
    let uses = uses.map(|(seq, text)| message(seq, "key-used.ab12cd34", None, text.as_bytes().to_vec()));
    let snapshot = read(&key, &uses).snapshot;
    assert_eq!(snapshot.keys_used["ab12cd34"].as_second(), 120);
    assert!(snapshot.complete && snapshot.keys.is_empty());
    assert!(is_use(PREFIX, &uses[0]));
    assert!(!is_use(PREFIX, &message(1, "key.ab12cd34", None, Vec::new())));
}

/// Nothing is decided by a catalog of which a part cannot be read, and the message for people states what to do.
#[test]
fn entries_of_another_key_leave_the_catalog_incomplete() {
    let (ours, theirs) = (key(), key());
    let other = message(2, "source.a", None, source(&theirs, "source.a", "a"));
    let snapshot = read(&ours, std::slice::from_ref(&other)).snapshot;
    assert!(!snapshot.complete && snapshot.sources.is_empty());
    let missing = snapshot.missing().unwrap();
    assert!(missing.contains(&theirs.id()) && missing.contains("WEFT_MASTER_KEY"), "{missing}");
    // No role writes over entries of another key: behind our own it is no role's.
    let snapshot = read(&ours, &[message(1, "source.a", None, source(&ours, "source.a", "a")), other]).snapshot;
    assert!(snapshot.complete && snapshot.sources.len() == 1);
    assert!(read(&ours, &[]).snapshot.complete && read(&ours, &[]).snapshot.missing().is_none());
}

/// Claims for a message in the bucket of these tests.
fn claims(sequence: u64, previous: u64, legacy_through: u64) -> Claims {
    Claims { bucket_created_ns: CREATED, sequence, previous, legacy_through, sealed_at_ms: 0 }
}

/// A value of source `a` as it is written now.
fn placed(key: &MasterKey, claims: Claims) -> Stored {
    let value = Source { name: "a".into(), ..Source::default() }.encode_to_vec();
    message(claims.sequence, "source.a", None, key.seal("source.a", &HeaderMap::new(), claims, &value))
}

/// A removal of source `a` as it is written now.
fn removal(key: &MasterKey, claims: Claims) -> Stored {
    message(claims.sequence, "source.a", None, key.seal("source.a", &HeaderMap::new(), claims, b""))
}

/// The same message, published again.
fn again(message: &Stored, seq: u64) -> Stored {
    Stored { seq: StreamSeq(seq), ..message.clone() }
}

/// Neither an old value nor an old removal counts when it is published again, also for a role that finds nothing else.
#[test]
fn what_is_published_again_does_not_count() {
    let key = key();
    let first = placed(&key, claims(1, 0, 0));
    let removed = removal(&key, claims(2, 1, 0));
    let created = placed(&key, claims(3, 2, 0));
    let messages = [first.clone(), removed.clone(), created.clone(), again(&removed, 4), again(&first, 5)];
    assert_eq!(revisions(&read(&key, &messages)), [("a".to_owned(), 3)]);
    let revoked = [first.clone(), removed.clone(), again(&first, 3), again(&first, 4)];
    assert!(revisions(&read(&key, &revoked)).is_empty());
    // The sound ones have been pushed out.
    for late in 2..=4 {
        let late = read(&key, &revoked[late..]);
        assert!(late.snapshot.sources.is_empty());
    }
    let flooded: Vec<_> = (10..10 + CATALOG_HISTORY).map(|seq| again(&first, seq.unsigned_abs())).collect();
    assert!(!read(&key, &flooded).snapshot.complete, "its value is lost");
}

/// A value that was sealed behind another message than the one that it follows is of a bucket that was restored since.
#[test]
fn a_value_follows_the_one_that_it_was_sealed_behind() {
    let key = key();
    let history = [placed(&key, claims(1, 0, 0)), placed(&key, claims(4, 1, 0))];
    assert_eq!(revisions(&read(&key, &history)), [("a".to_owned(), 4)]);
    let of_another_history = [&history[..], &[placed(&key, claims(9, 7, 0))]].concat();
    assert_eq!(revisions(&read(&key, &of_another_history)), [("a".to_owned(), 4)]);
    // A reader that comes late does not see what it follows; and after a purge an entry begins again.
    assert_eq!(revisions(&read(&key, &history[1..])), [("a".to_owned(), 4)]);
    let purged = [&history[..], &[placed(&key, claims(9, 0, 0))]].concat();
    assert_eq!(revisions(&read(&key, &purged)), [("a".to_owned(), 9)]);
}

/// A bucket that holds what was sealed for another one is not taken for an empty one.
#[test]
fn values_of_another_bucket_leave_the_catalog_incomplete() {
    let key = key();
    let elsewhere = placed(&key, Claims { bucket_created_ns: 1, ..claims(1, 0, 0) });
    let reading = read(&key, std::slice::from_ref(&elsewhere));
    assert!(!reading.snapshot.complete && reading.snapshot.sources.is_empty());
    assert!(reading.snapshot.missing().unwrap().contains("another bucket"));
    let known = [placed(&key, claims(1, 0, 0)), again(&elsewhere, 2)];
    let reading = read(&key, &known);
    assert!(reading.snapshot.complete && revisions(&reading) == [("a".to_owned(), 1)]);
}

/// Values of the form before count until the catalog is resealed, and those that are written later do not, regardless
/// of the entry that a reader learns that from, and of the order.
#[test]
fn values_of_the_form_before_count_until_the_catalog_is_resealed() {
    let key = key();
    let old = |seq: u64| message(seq, "source.b", None, source(&key, "source.b", "b"));
    let reading = read(&key, &[old(1), old(2)]);
    assert_eq!(revisions(&reading), [("b".to_owned(), 2)]);
    let legacy = StaleEntry { entry: "source.b".into(), revision: 2, base: Base { last: 2, previous: 2 } };
    assert_eq!((reading.stale(Stale::Form), reading.legacy_end()), (vec![legacy], (CREATED, u64::MAX)));

    let resealed = placed(&key, claims(3, 0, 2));
    let reading = read(&key, &[old(2), resealed.clone(), old(4)]);
    assert_eq!(revisions(&reading), [("a".to_owned(), 3), ("b".to_owned(), 2)]);
    assert!(!reading.is_outdated() && reading.legacy_end() == (CREATED, 2));

    // Only later values contain it: what has counted is read again with that knowledge.
    let messages = [old(4), placed(&key, claims(5, 3, 2))];
    assert!(read(&key, &messages).is_outdated());
    let mut informed = Reading::new(PREFIX, &key, CREATED, 2);
    for message in &messages {
        informed.apply(message);
    }
    informed.conclude();
    assert!(!informed.is_outdated());
    assert_eq!(revisions(&informed), [("a".to_owned(), 5)]);
}

/// While keys are exchanged, entries of either count, and those of the older key are the ones to seal again. Once they are,
/// the older key is not needed, although the bucket still has messages that were sealed with it.
#[test]
fn entries_of_an_older_key_count_and_are_stale() {
    let (new, old) = (key(), key());
    let both = new.clone().with_others([old.clone()]).unwrap();
    let before = placed(&old, claims(1, 0, 0));
    assert!(!read(&new, std::slice::from_ref(&before)).snapshot.complete, "the new key alone opens nothing");
    let reading = read(&both, std::slice::from_ref(&before));
    assert!(reading.snapshot.complete && revisions(&reading) == [("a".to_owned(), 1)]);
    let stale = StaleEntry { entry: "source.a".into(), revision: 1, base: Base { last: 1, previous: 1 } };
    assert_eq!((reading.stale(Stale::Form), reading.stale(Stale::FormOrKey)), (vec![], vec![stale]));

    let messages = [before, placed(&new, claims(2, 1, 0))];
    for keys in [both, new] {
        let reading = read(&keys, &messages);
        assert!(reading.snapshot.complete && revisions(&reading) == [("a".to_owned(), 2)]);
        assert_eq!(reading.stale(Stale::FormOrKey), vec![]);
    }
}

/// A step while master keys are exchanged.
#[derive(Debug, Clone, Copy)]
enum Exchange {
    /// A process writes an entry, or removes it. It has both keys, and seals with the older one until it is restarted.
    Write { entry: usize, with_new: bool, removes: bool },
    /// Someone without a master key writes to an entry's subject.
    Foreign { entry: usize },
}

const ENTRIES: [&str; 2] = ["a", "b"];

/// The bucket of an exchange of `old` for `new`: the steps, and then the resealing.
fn exchanged(both: &MasterKey, old_first: &MasterKey, steps: &[Exchange]) -> Vec<Stored> {
    let mut messages = Vec::new();
    let write = |messages: &mut Vec<Stored>, by: &MasterKey, entry: &str, base: Base, value: &[u8]| {
        let claims = claims(messages.len() as u64 + 1, base.previous, 0);
        let sealed = by.seal(entry, &HeaderMap::new(), claims, value);
        messages.push(message(claims.sequence, entry, None, sealed));
    };
    for step in steps {
        match *step {
            Exchange::Write { entry, with_new, removes } => {
                let (name, entry) = (ENTRIES[entry], format!("source.{}", ENTRIES[entry]));
                let by = if with_new { both } else { old_first };
                let base = read(by, &messages).seen.get(&entry).map_or(Base { last: 0, previous: 0 }, Seen::base);
                let value = Source { name: name.into(), ..Source::default() }.encode_to_vec();
                write(&mut messages, by, &entry, base, if removes { b"" } else { &value });
            }
            Exchange::Foreign { entry } => {
                let (seq, entry) = (messages.len() as u64 + 1, format!("source.{}", ENTRIES[entry]));
                messages.push(message(seq, &entry, None, b"forged".to_vec()));
            }
        }
    }
    for stale in read(both, &messages).stale(Stale::FormOrKey) {
        let stored = &messages[usize::try_from(stale.revision).unwrap() - 1];
        let value = both.open(&stale.entry, &stored.headers, &stored.payload).unwrap().value;
        write(&mut messages, both, &stale.entry, stale.base, &value);
    }
    messages
}

/// The messages that the bucket still has.
fn kept(messages: &[Stored]) -> Vec<Stored> {
    let later = |at: usize, subject: &str| messages[at + 1..].iter().filter(|other| other.subject == subject).count();
    let kept = messages.iter().enumerate();
    let kept = kept.filter(|(at, message)| later(*at, &message.subject) < CATALOG_HISTORY as usize);
    kept.map(|(_, message)| message.clone()).collect()
}

fn exchange() -> impl Strategy<Value = Exchange> {
    let (entry, with_new, removes) = (0..ENTRIES.len(), any::<bool>(), any::<bool>());
    prop_oneof![
        6 => (entry.clone(), with_new, removes)
            .prop_map(|(entry, with_new, removes)| Exchange::Write { entry, with_new, removes }),
        1 => entry.prop_map(|entry| Exchange::Foreign { entry }),
    ]
}

proptest! {
    /// An exchange of master keys rolls nothing back: with the new key alone every entry is what it was with both, regardless
    /// of the process that wrote to it last before the resealing. So what was revoked stays revoked.
    #[test]
    fn the_new_key_alone_reads_what_both_have_read(steps in proptest::collection::vec(exchange(), 0..12)) {
        let (new, old) = (key(), key());
        let both = new.clone().with_others([old.clone()]).unwrap();
        let old_first = old.with_others([new.clone()]).unwrap();
        let messages = exchanged(&both, &old_first, &steps);
        for messages in [messages.clone(), kept(&messages)] {
            let (before, after) = (read(&both, &messages), read(&new, &messages));
            prop_assert_eq!(revisions(&after), revisions(&before), "{:?}", steps);
            prop_assert_eq!(after.snapshot.complete, before.snapshot.complete);
            prop_assert_eq!(after.stale(Stale::FormOrKey), vec![]);
            for entry in ENTRIES {
                let entry = format!("source.{entry}");
                let base = |reading: &Reading| reading.seen.get(&entry).map(Seen::base);
                prop_assert_eq!(base(&after), base(&before));
            }
        }
    }
}

/// The history of a revoked key: updated by a process that seals with the new key, removed by one that still seals with the
/// old one, and then resealed. With the new key alone it stays removed.
#[test]
fn what_was_revoked_during_an_exchange_of_keys_stays_revoked() {
    let (new, old) = (key(), key());
    let created = placed(&old, claims(1, 0, 0));
    let updated = placed(&new, claims(2, 1, 0));
    let removed = removal(&old, claims(3, 2, 0));
    let resealed = removal(&new, claims(4, 3, 0));
    let messages = [created, updated, removed.clone(), resealed];
    assert!(revisions(&read(&new, &messages)).is_empty());
    // A value that was sealed behind an older one than that which counts is still none of this history.
    let of_another_history = [&messages[..], &[placed(&new, claims(5, 3, 0))]].concat();
    assert!(revisions(&read(&new, &of_another_history)).is_empty());
}

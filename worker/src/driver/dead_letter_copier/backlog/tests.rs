use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

fn uid(number: u8) -> SubscriptionUid {
    SubscriptionUid::from_bytes([number; 16])
}

fn dead(subscription: u8, sequence: u64) -> internal::Outcome {
    internal::Outcome {
        subscription: uid(subscription).to_vec(),
        sequence,
        kind: internal::OutcomeKind::DeadLettered.into(),
        reason: v1::DeadLetterReason::Permanent.into(),
        ..Default::default()
    }
}

fn commit(outcomes: Vec<internal::Outcome>) -> internal::Commit {
    internal::Commit { outcomes, ..Default::default() }
}

fn event(sequence: u64, bytes: usize) -> Arc<StoredEvent> {
    Arc::new(StoredEvent {
        seq: StreamSeq(sequence),
        stored_at: Timestamp::UNIX_EPOCH,
        event: weft_testkit::event("w").number(sequence).payload(vec![b'x'; bytes]).build(),
    })
}

fn copy(job: CopyJob) -> (SubscriptionUid, u64) {
    let CopyJob::Copy(uid, missing) = job else { panic!("a copy is to be made, not {job:?}") };
    (uid, missing.outcome.sequence)
}

/// A subscription whose copy fails waits for itself; how far copies are made stays before it.
#[test]
fn a_copy_that_fails_holds_back_its_own_subscription_only() {
    let now = Instant::now();
    let mut backlog = Backlog::new(4, 4, vec![], now);
    backlog.add(5, &commit(vec![dead(1, 10), dead(2, 11)]), vec![event(10, 100)]);
    backlog.add(6, &commit(vec![dead(1, 12), dead(2, 13)]), vec![]);
    assert_eq!(copy(backlog.next(now)), (uid(1), 10));
    assert_eq!(copy(backlog.next(now)), (uid(2), 11));
    assert!(matches!(backlog.next(now), CopyJob::Wait(None)), "one copy of a subscription at a time");
    assert_eq!(backlog.made(uid(1), CopyResult::Failed("no stream".into()), now), None);
    assert_eq!(backlog.made(uid(2), CopyResult::Stored, now), None);
    assert_eq!(copy(backlog.next(now)), (uid(2), 13));
    backlog.made(uid(2), CopyResult::Stored, now);
    assert!(matches!(backlog.next(now), CopyJob::Wait(Some(at)) if at > now));
    assert_eq!((backlog.copied(), backlog.horizon().keep_from), (4, Some(StreamSeq(10))));
    assert!(backlog.is_done(), "what is missing fails");
    assert_eq!(copy(backlog.next(now + RETRY.max())), (uid(1), 10));
    backlog.made(uid(1), CopyResult::Stored, now);
    assert_eq!((backlog.copied(), backlog.horizon().keep_from), (5, Some(StreamSeq(12))));
    assert_eq!(copy(backlog.next(now)), (uid(1), 12));
    backlog.made(uid(1), CopyResult::Stored, now);
    assert_eq!(backlog.horizon(), Horizon { outcomes: StreamSeq(6), keep_from: None });
    assert_eq!(backlog.event_bytes, 0);
}

/// A copy that is refused is recorded with the position that no longer waits for it, and its event is kept until the dead
/// letter is closed or the copy taken.
#[test]
fn a_refused_copy_is_recorded_and_keeps_its_event() {
    let mut now = Instant::now();
    let mut backlog = Backlog::new(4, 4, vec![], now);
    backlog.add(5, &commit(vec![dead(1, 10), dead(1, 11)]), vec![]);
    for tries in 1..=REFUSALS_MAX {
        now += RETRY.max();
        assert_eq!(copy(backlog.next(now)), (uid(1), 10));
        let given_up = backlog.made(uid(1), CopyResult::Refused("too large".into()), now);
        assert_eq!(given_up.is_some(), tries == REFUSALS_MAX);
    }
    assert_eq!(copy(backlog.next(now)), (uid(1), 11));
    backlog.made(uid(1), CopyResult::Stored, now);
    let (copied, news) = backlog.progress();
    assert_eq!((copied, news.len(), news[0].problem.as_str()), (5, 1, "too large"));
    assert_eq!(backlog.horizon().keep_from, Some(StreamSeq(10)));

    // The next owner reads it in the ledger.
    let mut next = Backlog::new(copied, 6, news.clone(), now);
    next.read(6, 6, &[]);
    assert_eq!(next.horizon().keep_from, Some(StreamSeq(10)));
    let CopyJob::Retry(place, outcome) = next.next(now) else { panic!("it is tried again") };
    assert_eq!(outcome.sequence, 10);
    next.retried(place, CopyResult::Refused("too large".into()), now);
    assert!(matches!(next.next(now), CopyJob::Wait(Some(at)) if at == now + REFUSED_PAUSE));
    assert!(matches!(next.next(now + REFUSED_PAUSE), CopyJob::Retry(..)));
    next.retried(place, CopyResult::Stored, now);
    assert_eq!(next.progress().1[0].kind(), internal::CopyStateKind::Stored);
    assert_eq!(next.horizon().keep_from, None);

    let resolved = internal::Outcome { run: 9, kind: internal::OutcomeKind::Resolved.into(), ..dead(1, 10) };
    backlog.add(7, &commit(vec![resolved]), vec![]);
    assert_eq!(backlog.horizon().keep_from, None, "a resolved dead letter needs no copy");
}

/// However many copies are missing, memory is bounded, a stuck subscription leaves room for others, and none is forgotten.
fn is_bounded_and_complete(commits: &[Vec<u8>], stuck: u8, copied: usize) {
    let now = Instant::now();
    let mut log: Vec<internal::Commit> = Vec::new();
    let mut sequence = 0;
    for subscriptions in commits {
        let mut outcomes = Vec::new();
        for subscription in subscriptions {
            // Many of one at once.
            for _ in 0..if *subscription == stuck { 100 } else { 3 } {
                sequence += 1;
                outcomes.push(dead(*subscription, sequence));
            }
        }
        log.push(commit(outcomes));
    }
    let copied = copied.min(log.len());
    let known = log.len().div_ceil(2).max(copied);
    let mut backlog = Backlog::new(copied as u64, known as u64, vec![], now);
    let mut made: Vec<u64> = Vec::new();
    let mut later = known;
    loop {
        assert!(backlog.count <= COPIES_MAX + 200, "bound");
        let position = backlog.copied();
        match backlog.next(now) {
            CopyJob::Copy(subscription, missing) if subscription == uid(stuck) => {
                assert!(position < missing.position);
                backlog.made(subscription, CopyResult::Failed("no".into()), now);
            }
            CopyJob::Copy(subscription, missing) => {
                assert!(position < missing.position, "how far copies are made stays before what is missing");
                made.push(missing.outcome.sequence);
                backlog.made(subscription, CopyResult::Stored, now);
            }
            CopyJob::Read { from, through } => {
                let end = through.min(from + 2);
                let part: Vec<(u64, internal::Commit)> =
                    (from..=end).map(|at| (at, log[at as usize - 1].clone())).collect();
                // The driver continues in the meantime.
                if let Some(commit) = log.get(later) {
                    later += 1;
                    backlog.add(later as u64, commit, vec![]);
                }
                backlog.read(from, end, &part);
            }
            CopyJob::Retry(..) => panic!("nothing was refused"),
            CopyJob::Wait(_) => match log.get(later) {
                Some(commit) => {
                    later += 1;
                    backlog.add(later as u64, commit, vec![]);
                }
                None => break,
            },
        }
    }
    let wanted: Vec<u64> = log[copied..]
        .iter()
        .flat_map(|commit| &commit.outcomes)
        .filter(|outcome| outcome.subscription != uid(stuck).to_vec())
        .map(|outcome| outcome.sequence)
        .collect();
    made.sort_unstable();
    assert_eq!(made, wanted, "each other copy is made once");
    let first_stuck = log[copied..]
        .iter()
        .position(|commit| commit.outcomes.iter().any(|outcome| outcome.subscription == uid(stuck).to_vec()));
    let end = log.len() as u64;
    assert_eq!(backlog.copied(), first_stuck.map_or(end, |at| (copied + at) as u64));
    let keep = first_stuck.and_then(|at| {
        let of_stuck = |outcome: &&internal::Outcome| outcome.subscription == uid(stuck).to_vec();
        log[copied + at].outcomes.iter().find(of_stuck).map(|outcome| StreamSeq(outcome.sequence))
    });
    assert_eq!(backlog.horizon().keep_from, keep);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn memory_is_bounded_and_no_copy_is_forgotten(
        commits in proptest::collection::vec(proptest::collection::vec(1u8..5, 0..4), 1..120),
        stuck in 1u8..5,
        copied in 0usize..40,
    ) {
        is_bounded_and_complete(&commits, stuck, copied);
    }
}

#[test]
fn events_in_memory_are_bounded() {
    let mut backlog = Backlog::new(0, 0, vec![], Instant::now());
    for sequence in 1..=20 {
        backlog.add(sequence, &commit(vec![dead(1, sequence)]), vec![event(sequence, EVENT_BYTES_MAX / 4)]);
    }
    assert_eq!(backlog.event_bytes, EVENT_BYTES_MAX);
    assert_eq!(backlog.queues[&uid(1)].copies.iter().filter(|missing| missing.event.is_some()).count(), 4);
}

//! Rows that the ledger keeps, and rows that it forgets.

use super::*;

#[test]
fn a_closed_subscription_leaves_only_its_own_row() {
    let database = memory();
    let busy = |subscription| internal::Commit {
        outcomes: vec![
            outcome(subscription, 0, 1, 0, internal::OutcomeKind::Delivered),
            outcome(subscription, 1, 2, 0, internal::OutcomeKind::DeadLettered),
        ],
        lanes: vec![lane(subscription, 0, 3, 3)],
        runs: vec![run(subscription, 1, 2, 4)],
        subscriptions: vec![change(subscription, Change::Opened(internal::Opened::default()))],
        ..Default::default()
    };
    apply(&database, &records(1, &[busy(0), busy(1)]), CREATED_NS).unwrap();
    let close = internal::Commit {
        subscriptions: vec![change(0, Change::Closed(internal::Closed::default()))],
        ..Default::default()
    };
    apply(&database, &records(3, &[close]), CREATED_NS).unwrap();
    let left: Vec<_> =
        dump(&database).into_iter().filter(|(_, key, _)| key.starts_with(&uid(0))).map(|(t, ..)| t).collect();
    assert_eq!(left, ["subscriptions"]);
    assert_eq!(dump(&database).iter().filter(|(_, key, _)| key.starts_with(&uid(1))).count(), 5, "others keep theirs");
}

/// Events that a lane, a run or a detached subscription needs are not settled.
#[test]
fn settled_is_what_nothing_needs() {
    let settled = |commits: &[internal::Commit]| {
        let database = memory();
        apply(&database, &records(7, commits), CREATED_NS).unwrap();
        settled(&database).unwrap()
    };
    let through = |commit: internal::Commit| settled(&[internal::Commit { cursor: 8, ..commit }]).through.0;
    let expected = Settled { outcomes: StreamSeq(7), through: StreamSeq(8) };
    assert_eq!(settled(&[internal::Commit { cursor: 8, ..Default::default() }]), expected);
    assert_eq!(
        through(internal::Commit { lanes: vec![lane(0, 0, 5, 7), lane(UNORDERED, 1, 4, 4)], ..Default::default() }),
        3
    );
    assert_eq!(through(internal::Commit { runs: vec![run(0, 0, 2, 9)], ..Default::default() }), 1);
    let detached = change(0, Change::Detached(internal::Detached { next: 6 }));
    assert_eq!(through(internal::Commit { subscriptions: vec![detached], ..Default::default() }), 5);
    let paused = internal::Lane { paused: true, ..lane(0, 0, 3, 2) };
    assert_eq!(through(internal::Commit { lanes: vec![paused], ..Default::default() }), 8, "it has nothing unsettled");
}

/// A file does not grow for ever: useless rows are pruned, at every reader by the same commit.
#[test]
fn heads_and_dead_letters_are_forgotten_when_a_commit_says_so() {
    use internal::OutcomeKind::{DeadLettered, Delivered};
    let database = memory();
    let dead = |sequence, at_ms| internal::Outcome { at_ms, ..outcome(0, 0, sequence, 0, DeadLettered) };
    let delivered = |workflow, sequence| outcome(0, workflow, sequence, 0, Delivered);
    let made = internal::Commit {
        outcomes: vec![delivered(0, 1), delivered(1, 2), dead(3, 70), dead(4, 71)],
        ..Default::default()
    };
    let forgets = internal::Commit { forget_heads_below: 2, forget_dead_before_ms: 71, ..Default::default() };
    apply(&database, &records(1, &[made, forgets, internal::Commit::default()]), CREATED_NS).unwrap();
    let database = through_checkpoint(Arc::new(database));
    let subscription = SubscriptionUid::from_slice(&uid(0)).unwrap();
    let head = |workflow| head(&database, subscription, workflow).unwrap();
    assert_eq!((head(WORKFLOWS[0]), head(WORKFLOWS[1]).map(|id| id.to_vec())), (None, Some(event(2))));
    let open = |seq| open_dead_letter(&database, subscription, StreamSeq(seq)).unwrap();
    assert_eq!((open(3), open(4)), (None, Some(Run(0))));
}

#[test]
fn request_ids_are_known_for_thirty_days() {
    let database = memory();
    let at = |seq, at_ms, results| {
        let commit = internal::Commit { at_ms, results, ..Default::default() };
        apply(&database, &records(seq, &[commit]), CREATED_NS).unwrap();
        has_request(&database, "request 1").unwrap()
    };
    assert!(at(1, DAY_MS, vec![result(1, 1)]));
    assert!(at(2, 31 * DAY_MS - 1, vec![]));
    assert!(!at(3, 32 * DAY_MS, vec![]));
}

/// The event of a refused copy is not settled until the dead letter is closed or the copy is there.
#[test]
fn a_refused_copy_keeps_its_event() {
    use internal::OutcomeKind::{DeadLettered, Resolved};
    let dead = |sequence| outcome(0, 0, sequence, 0, DeadLettered);
    let refused = |sequence| copy_state(dead(sequence), true);
    let first = internal::Commit {
        outcomes: vec![dead(3), dead(5), dead(6)],
        copies: vec![refused(3), refused(5), refused(7)],
        cursor: 8,
        ..Default::default()
    };
    let resolved = outcome(0, 0, 3, 2, Resolved);
    let second =
        internal::Commit { outcomes: vec![resolved], copies: vec![refused(3)], cursor: 8, ..Default::default() };
    let third = internal::Commit { copies: vec![copy_state(dead(5), false)], cursor: 8, ..Default::default() };
    let database = memory();
    let through = [first, second, third].map(|commit| {
        apply(&database, &records(1, &[commit]), CREATED_NS).unwrap();
        settled(&database).unwrap().through.0
    });
    assert_eq!(through, [2, 4, 8], "what is not open, or not open any more, keeps nothing");
}

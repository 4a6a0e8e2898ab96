//! Dead letters: their pages and copies, and what operators decided about them.

use super::*;

/// Pages of any size contain every dead letter once, also those of the same millisecond.
#[test]
fn pages_of_dead_letters_hold_everything_once() {
    let index = Index::new();
    index.apply(&event_messages(1..=7));
    let dead = |number| outcome(BILLING, number, 0, OutcomeKind::DeadLettered, 5_000 + (number as i64 / 3));
    let outcomes_of_all = (1..=7).map(dead).collect();
    index
        .apply(&outcomes([commit(1, internal::Commit { cursor: 7, outcomes: outcomes_of_all, ..Default::default() })]));
    let (view, subscriptions) = (index.view(), Subscriptions::of(&catalog("*", false)));
    let numbers = |filter: &DeadLetterFilter, limit: usize| {
        let (mut numbers, mut after) = (Vec::new(), None);
        loop {
            let page = dead_letters::page(&view, &subscriptions, filter, after, limit).unwrap();
            assert!(page.dead_letters.len() <= limit);
            numbers.extend(page.dead_letters.iter().map(|dead| dead.sequence_number));
            after = page.next;
            if after.is_none() {
                return numbers;
            }
        }
    };
    for limit in [1, 2, 3, 7, 8] {
        assert_eq!(numbers(&DeadLetterFilter::default(), limit), [7, 6, 5, 4, 3, 2, 1], "{limit}");
    }
    let window = DeadLetterFilter { since_ms: Some(5_001), until_ms: Some(5_002), ..Default::default() };
    assert_eq!(numbers(&window, 2), [5, 4, 3]);
    let none = DeadLetterFilter { event_type: Some("stock.*".into()), ..Default::default() };
    assert_eq!(numbers(&none, 2), [0u64; 0]);
    let redriven = DeadLetterFilter { statuses: vec![DeadLetterStatus::Redriven], ..Default::default() };
    assert_eq!(numbers(&redriven, 2), [0u64; 0]);
}

/// A history that is rebuilt after OUTCOMES has dropped the records of old dead letters uses the checkpoint.
#[test]
fn a_checkpoint_tells_which_old_dead_letters_are_open() {
    let index = Index::new();
    let dead = |number: u64| outcome(BILLING, number, 0, OutcomeKind::DeadLettered, 1_000);
    let copies = [copy(1, "billing", &dead(1)), copy(2, "billing", &dead(2))];
    index.apply(&copies.map(|message| (StreamKind::DeadLetters, message)));
    assert_eq!(index.statuses(1..=2), [DeadLetterStatus::Open, DeadLetterStatus::Open]);
    let open = internal::OpenDeadLetter { subscription: BILLING.to_vec(), sequence: 2, run: 0, at_ms: 1_000 };
    let chunk = |position, dead_letters| {
        Record::Chunk(internal::CheckpointChunk { position, dead_letters, ..Default::default() })
    };
    let end = |position| Record::End(internal::CheckpointEnd { position, ..Default::default() });
    // The end of a checkpoint that was taken before the first record that is still kept: it may lack what lies between.
    index.apply(&outcomes([record(100, end(90))]));
    assert_eq!(index.statuses(1..=2), [DeadLetterStatus::Open, DeadLetterStatus::Open]);
    index.apply(&outcomes([record(101, chunk(100, vec![open.clone()])), record(102, end(100))]));
    assert_eq!(index.statuses(1..=2), [DeadLetterStatus::Redriven, DeadLetterStatus::Open]);
    // Later checkpoints add nothing, and a dead letter whose outcome was read does not need them.
    index.apply(&outcomes([record(103, chunk(102, vec![open])), record(104, end(102))]));
    index.apply(&outcomes([commit(105, internal::Commit { outcomes: vec![dead(3)], ..Default::default() })]));
    assert_eq!(index.statuses(1..=2), [DeadLetterStatus::Redriven, DeadLetterStatus::Open]);
}

/// A dead letter shows why DLQ has no copy of it, for any order in which the streams are read.
#[test]
fn a_dead_letter_says_why_it_has_no_copy() {
    let index = Index::new();
    let dead = outcome(BILLING, 3, 0, OutcomeKind::DeadLettered, 5_000);
    let missing = || index.dead_letter(3).unwrap().copy_missing;
    let says = |seq, kind: internal::CopyStateKind| {
        let state = internal::CopyState { outcome: Some(dead.clone()), kind: kind.into(), problem: "too large".into() };
        index
            .apply(&outcomes([commit(seq, internal::Commit { cursor: 3, copies: vec![state], ..Default::default() })]));
    };
    index.apply(&event_messages(1..=3));
    let subscriptions = vec![opened(BILLING, "billing")];
    let first = internal::Commit { cursor: 3, subscriptions, outcomes: vec![dead.clone()], ..Default::default() };
    index.apply(&outcomes([commit(1, first)]));
    assert_eq!(missing(), "it waits to be made");
    says(2, internal::CopyStateKind::Refused);
    assert_eq!(missing(), "DLQ refuses it: too large");
    // DLQ accepts a copy without payload.
    index.apply(&[(StreamKind::DeadLetters, copy(1, "billing", &dead))]);
    assert_eq!(missing(), "DLQ refuses it: too large");
    says(3, internal::CopyStateKind::Stored);
    assert_eq!(missing(), "");
}

/// A replay leaves out resolved and discarded events, until they are delivered again.
#[test]
fn the_newest_decision_of_an_operator_stands() {
    let index = Index::new();
    index.apply(&event_messages(1..=4));
    let command = |seq: u64, action: internal::command::Action| {
        let command = internal::Command { request_id: format!("r{seq}"), action: Some(action), ..Default::default() };
        (StreamKind::Commands(SHARD), stored(seq, "commands.0".into(), records::headers(), command.encode_to_vec()))
    };
    let close = || internal::command::Action::Close(internal::CloseDeadLetters::default());
    let replay = || internal::command::Action::Replay(internal::ReplayEvents::default());
    index.apply(&[command(5, close()), command(6, replay()), command(7, replay())]);
    let dead = |number| outcome(BILLING, number, 0, OutcomeKind::DeadLettered, 5_000);
    let settled = |number, run, kind| outcome(BILLING, number, run, kind, 6_000);
    let outcomes_of_all = vec![
        dead(1),
        settled(1, 5, OutcomeKind::Discarded),
        dead(2),
        settled(2, 5, OutcomeKind::Resolved),
        // Discarded, and then replayed by its id.
        dead(3),
        settled(3, 5, OutcomeKind::Discarded),
        settled(3, 6, OutcomeKind::Delivered),
        // Delivered, and then part of a replay that was cancelled.
        settled(4, 0, OutcomeKind::Delivered),
        settled(4, 7, OutcomeKind::Discarded),
    ];
    index
        .apply(&outcomes([commit(1, internal::Commit { cursor: 4, outcomes: outcomes_of_all, ..Default::default() })]));
    let items: Vec<_> =
        (1..=5).map(|seq| CommandItem { shard: SHARD, seq: StreamSeq(seq), uid: BILLING, run: Run::LIVE }).collect();
    let decisions = requests::decisions(&index.view(), &items).unwrap();
    assert_eq!(decisions, [Some(OutcomeKind::Discarded), Some(OutcomeKind::Resolved), None, None, None]);
}

/// Operator and reason of a skip are in the outcome, since the command has no run. Outcomes of earlier versions have no operator.
#[test]
fn a_skip_has_operator_and_reason() {
    let index = Index::new();
    for (stored, operator, reason) in [
        ("ann", "ann", "refund: in dispute"),
        ("ann", "ann", ""),
        ("ann: b", "ann: b", "x"),
        ("", "ann", "a: b"),
        ("", "ann", ""),
    ] {
        let outcome = internal::Outcome {
            reason: v1::DeadLetterReason::Skipped.into(),
            operator: stored.into(),
            last_error: weft_nats::commands::skip_error(operator, reason),
            ..outcome(BILLING, 1, 0, OutcomeKind::DeadLettered, 5_000)
        };
        let decision = requests::Decision::of(&index.view(), SHARD.0, &outcome).unwrap();
        assert_eq!((decision.operator.as_str(), decision.reason.as_str()), (operator, reason));
    }
}

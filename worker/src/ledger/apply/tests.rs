//! The state is a function of the commits: however they are cut into transactions, and whether they are read from the
//! beginning, behind a checkpoint, or seen through the overlay.

use std::sync::Arc;

use proptest::prelude::*;
use redb::{ReadableDatabase as _, TableHandle as _, backends::InMemoryBackend};
use weft_proto::ids::{Run, StreamSeq, SubscriptionUid, WorkflowId};

use super::*;
use crate::{
    lane::LaneKey,
    ledger::{
        checkpoint,
        overlay::Overlay,
        tables::{Positions, Settled, UID_BYTES, all, has_request, head, open_dead_letter, positions_of, settled},
    },
};

mod forgotten;

const WORKFLOWS: [&str; 3] = ["a", "ab", "b"];
const CREATED_NS: u64 = 77;
/// The subscription whose lanes are of one event each.
const UNORDERED: u8 = 2;

fn memory() -> redb::Database {
    let database = redb::Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    clear(&database).unwrap();
    database
}

fn uid(index: u8) -> Vec<u8> {
    vec![index + 1; UID_BYTES]
}

fn event(sequence: u64) -> Vec<u8> {
    vec![u8::try_from(sequence).unwrap(); 16]
}

fn outcome(
    subscription: u8,
    workflow: usize,
    sequence: u64,
    run: u64,
    kind: internal::OutcomeKind,
) -> internal::Outcome {
    internal::Outcome {
        subscription: uid(subscription),
        sequence,
        run,
        kind: kind.into(),
        workflow_id: WORKFLOWS[workflow].into(),
        event_id: event(sequence),
        at_ms: 5,
        unordered: subscription == UNORDERED,
        ..Default::default()
    }
}

fn lane(subscription: u8, workflow: usize, next: u64, last: u64) -> internal::Lane {
    internal::Lane {
        subscription: uid(subscription),
        workflow_id: WORKFLOWS[workflow].into(),
        next,
        last,
        attempts: 2,
        next_attempt_at_ms: 99,
        first_failed_at_ms: 98,
        state: internal::LaneState::Open.into(),
        uncounted: 1,
        unordered: subscription == UNORDERED,
        ..Default::default()
    }
}

fn run(subscription: u8, workflow: usize, sequence: u64, run: u64) -> internal::PendingRun {
    internal::PendingRun {
        subscription: uid(subscription),
        sequence,
        run,
        workflow_id: WORKFLOWS[workflow].into(),
        event_id: event(sequence),
        ..Default::default()
    }
}

fn change(subscription: u8, change: Change) -> internal::SubscriptionChange {
    internal::SubscriptionChange { subscription: uid(subscription), change: Some(change), catalog: None }
}

fn copy_state(outcome: internal::Outcome, refused: bool) -> internal::CopyState {
    let kind = if refused { internal::CopyStateKind::Refused } else { internal::CopyStateKind::Stored };
    internal::CopyState { outcome: Some(outcome), kind: kind.into(), problem: "too large".into() }
}

fn result(request: u8, command: u64) -> internal::CommandResult {
    internal::CommandResult { command, request_id: format!("request {request}"), items: vec![] }
}

/// Commits as records from `first` on.
fn records(first: u64, commits: &[internal::Commit]) -> Vec<Applied> {
    let record = |(seq, commit): (u64, &internal::Commit)| Applied {
        seq: StreamSeq(seq),
        commit: Some(Arc::new(commit.clone())),
    };
    (first..).zip(commits).map(record).collect()
}

/// Everything that the tables hold, but for the day on which old request ids were looked for last.
fn dump(database: &redb::Database) -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let transaction = database.begin_read().unwrap();
    let mut rows = Vec::new();
    for table in [LANES, HEADS, RUNS, SUBSCRIPTIONS, COPIES] {
        for row in transaction.open_table(table).unwrap().iter().unwrap() {
            let (key, value) = row.unwrap();
            rows.push((table.name().to_owned(), key.value().to_vec(), value.value().to_vec()));
        }
    }
    for row in transaction.open_table(DEAD).unwrap().iter().unwrap() {
        let (key, value) = row.unwrap();
        rows.push(("dead".into(), key.value().to_vec(), format!("{:?}", value.value()).into()));
    }
    for row in transaction.open_table(REQUESTS).unwrap().iter().unwrap() {
        let (key, value) = row.unwrap();
        rows.push(("requests".into(), key.value().into(), format!("{:?}", value.value()).into()));
    }
    rows.push(("positions".into(), vec![], format!("{:?}", positions_of(&transaction).unwrap()).into()));
    rows
}

/// The checkpoint of a state, put in the place of another's.
fn through_checkpoint(database: Arc<redb::Database>) -> redb::Database {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (chunks, end) = runtime.block_on(async {
        let mut pieces = checkpoint::read(database);
        let mut chunks = Vec::new();
        loop {
            match pieces.recv().await.unwrap().unwrap() {
                checkpoint::Piece::Chunk(chunk) => chunks.push(chunk),
                checkpoint::Piece::End { end } => return (chunks, end),
            }
        }
    });
    assert_eq!(chunks.len(), end.chunks as usize);
    assert!((0..).zip(&chunks).all(|(index, chunk)| chunk.index == index && chunk.position == end.position));
    let loaded = memory();
    apply(&loaded, &records(1, &[internal::Commit { lanes: vec![lane(0, 0, 1, 9)], ..Default::default() }]), 1)
        .unwrap();
    clear(&loaded).unwrap();
    for chunk in chunks {
        load_chunks(&loaded, &[chunk]).unwrap();
    }
    assert_eq!(
        positions_of(&loaded.begin_read().unwrap()).unwrap(),
        Positions::default(),
        "counts as empty until its end"
    );
    end_checkpoint(&loaded, &end, CREATED_NS).unwrap();
    loaded
}

/// As owners make them while they drive a shard.
fn commits() -> impl Strategy<Value = Vec<internal::Commit>> {
    commits_with(false)
}

/// With `adoptions`, some commits go back to an earlier event.
fn commits_with(adoptions: bool) -> impl Strategy<Value = Vec<internal::Commit>> {
    use internal::OutcomeKind::{DeadLettered, Delivered, Discarded, Unrouted};
    let kind = prop_oneof![4 => Just(Delivered), 3 => Just(DeadLettered), 1 => Just(Discarded), 1 => Just(Unrouted)];
    let copy = (0..3u8, 0..3usize, 1..9u64, 0..4u64, any::<bool>()).prop_map(
        |(subscription, workflow, sequence, run, refused)| {
            copy_state(outcome(subscription, workflow, sequence, run, DeadLettered), refused)
        },
    );
    let outcome = (0..3u8, 0..3usize, 1..9u64, prop_oneof![2 => Just(0), 1 => 1..4u64], kind).prop_map(
        |(subscription, workflow, sequence, run, kind)| match kind {
            Unrouted => internal::Outcome { subscription: vec![], ..outcome(0, workflow, sequence, 0, kind) },
            _ => outcome(subscription, workflow, sequence, run, kind),
        },
    );
    let lane = (0..3u8, 0..3usize, 1..9u64, 0..9u64).prop_map(|(s, w, next, last)| lane(s, w, next, last));
    let run = (0..3u8, 0..3usize, 1..9u64, 1..4u64).prop_map(|(s, w, sequence, r)| run(s, w, sequence, r));
    let change = (0..3u8, 0..8u64).prop_map(|(subscription, n)| {
        change(
            subscription,
            match n {
                0 => Change::Closed(internal::Closed::default()),
                1..4 => Change::Detached(internal::Detached { next: n - 1 }),
                4..6 => Change::Revised(internal::Revised { revision: n, from: 1, ..Default::default() }),
                _ => Change::Opened(internal::Opened { name: "s".into(), from: n, revision: n, ..Default::default() }),
            },
        )
    });
    let result = (0..4u8, 1..9u64).prop_map(|(request, command)| result(request, command));
    let commit = (
        prop::collection::vec(outcome, 0..6),
        prop::collection::vec(lane, 0..4),
        prop::collection::vec(run, 0..3),
        prop::collection::vec(change, 0..2),
        prop::collection::vec(result, 0..2),
        prop::collection::vec(copy, 0..3),
        0..40i64,
        prop::option::weighted(0.2, 0..9u64).prop_map(move |cursor| cursor.filter(|_| adoptions)),
        any::<bool>(),
    );
    let position = |sequence| internal::LogPosition { created_ns: 7, sequence, ..Default::default() };
    let commit =
        commit.prop_map(move |(outcomes, lanes, runs, subscriptions, results, copies, days, adopted, known)| {
            internal::Commit {
                outcomes,
                lanes,
                runs,
                subscriptions,
                results,
                copies,
                cursor: adopted.unwrap_or(8),
                events: known.then(|| position(adopted.unwrap_or(8))),
                adopted: adopted.map(|_| internal::Adoption::default()),
                at_ms: days * DAY_MS / 4,
                ..Default::default()
            }
        });
    // As owners do, none says anything of a subscription that it has closed, and time goes forward.
    prop::collection::vec(commit, 1..12).prop_map(|mut commits| {
        let mut closed: Vec<Vec<u8>> = Vec::new();
        let mut at_ms = 0;
        for (index, commit) in (1..).zip(&mut commits) {
            at_ms += commit.at_ms;
            (commit.at_ms, commit.epoch, commit.commands_cursor, commit.copied) = (at_ms, index, index * 2, index - 1);
            commit.outcomes.retain(|outcome| !closed.contains(&outcome.subscription));
            let closes = |change: &internal::SubscriptionChange| matches!(change.change, Some(Change::Closed(_)));
            closed.extend(commit.subscriptions.iter().filter(|c| closes(c)).map(|c| c.subscription.clone()));
            commit.lanes.retain(|lane| !closed.contains(&lane.subscription));
            commit.runs.retain(|run| !closed.contains(&run.subscription));
            let of = |copy: &internal::CopyState| copy.outcome.as_ref().unwrap().subscription.clone();
            commit.copies.retain(|copy| !closed.contains(&of(copy)));
        }
        commits
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// P3, P5: a take-over with the file, without it, and behind a checkpoint all begin at the same state.
    #[test]
    fn every_way_to_read_the_commits_ends_in_the_same_state(commits in commits_with(true), cut in 0..12usize) {
        let cut = cut.min(commits.len());
        let all = records(1, &commits);
        let whole = memory();
        apply(&whole, &all, CREATED_NS).unwrap();
        let begun = memory();
        for record in &all[..cut] {
            apply(&begun, std::slice::from_ref(record), CREATED_NS).unwrap();
        }
        let loaded = through_checkpoint(Arc::new(begun));
        apply(&loaded, &all[cut..], CREATED_NS).unwrap();
        prop_assert_eq!(dump(&whole), dump(&loaded));
    }

    /// Reads see applied commits at once, whether on disk or not.
    #[test]
    fn the_overlay_says_what_the_file_will_say(commits in commits(), cut in 0..12usize, pruned in 0..12usize) {
        let (cut, all) = (cut.min(commits.len()), records(1, &commits));
        let (whole, file, mut overlay) = (memory(), memory(), Overlay::default());
        apply(&whole, &all, CREATED_NS).unwrap();
        apply(&file, &all[..cut], CREATED_NS).unwrap();
        for record in &all {
            overlay.add(record.seq, record.commit.as_ref().unwrap());
        }
        overlay.prune(StreamSeq(pruned.min(cut) as u64));
        for subscription in (0..3).map(|index| SubscriptionUid::from_slice(&uid(index)).unwrap()) {
            for workflow in WORKFLOWS {
                let key = LaneKey::of_workflow(subscription, WorkflowId::new(workflow).unwrap());
                let seen = overlay.head(&key).unwrap_or_else(|| head(&file, subscription, workflow).unwrap());
                prop_assert_eq!(seen, head(&whole, subscription, workflow).unwrap());
            }
            for seq in (1..9).map(StreamSeq) {
                let seen = overlay.open_dead_letter(subscription, seq);
                let seen = seen.unwrap_or_else(|| open_dead_letter(&file, subscription, seq).unwrap());
                prop_assert_eq!(seen, open_dead_letter(&whole, subscription, seq).unwrap());
            }
        }
        for request in (0..4).map(|request| format!("request {request}")) {
            let known = has_request(&whole, &request).unwrap();
            let seen = overlay.has_request(&request) || has_request(&file, &request).unwrap();
            prop_assert!(seen || !known, "a request that acted is never forgotten early");
        }
    }
}

/// Earlier versions wrote heads one by one; columns that do not fit together are refused, not half applied.
#[test]
fn heads_are_read_in_both_forms() {
    let database = memory();
    let old = internal::LaneHead { subscription: uid(0), workflow_id: "a".into(), event_id: event(3), sequence: 3 };
    let columns = internal::LaneHeads {
        subscription: uid(1),
        workflow_ids: vec!["a".into(), "b".into()],
        event_ids: [event(4), event(5)].concat(),
        sequences: vec![4, 5],
    };
    let chunk =
        internal::CheckpointChunk { heads: vec![old], head_columns: vec![columns.clone()], ..Default::default() };
    load_chunks(&database, &[chunk]).unwrap();
    for (subscription, workflow, number) in [(0, "a", 3), (1, "a", 4), (1, "b", 5)] {
        let subscription = SubscriptionUid::from_slice(&uid(subscription)).unwrap();
        let found = head(&database, subscription, workflow).unwrap().unwrap();
        assert_eq!(found.to_vec(), event(number));
    }
    for broken in [
        internal::LaneHeads { event_ids: vec![1; 31], ..columns.clone() },
        internal::LaneHeads { sequences: vec![4], ..columns.clone() },
        internal::LaneHeads { workflow_ids: vec![], ..columns },
    ] {
        let chunk = internal::CheckpointChunk { head_columns: vec![broken], ..Default::default() };
        assert!(matches!(load_chunks(&database, &[chunk]), Err(LedgerError::Record(_))));
    }
}

/// Applies commits and reads the lanes.
fn lanes_after(commits: &[internal::Commit]) -> Vec<internal::Lane> {
    let database = memory();
    apply(&database, &records(1, commits), CREATED_NS).unwrap();
    all(&database.begin_read().unwrap(), LANES).unwrap()
}

#[test]
fn an_outcome_moves_its_lane_and_ends_its_tries() {
    let waits = internal::Commit { lanes: vec![lane(0, 0, 3, 7)], ..Default::default() };
    let settles = internal::Commit {
        outcomes: vec![outcome(0, 0, 3, 0, internal::OutcomeKind::Delivered)],
        ..Default::default()
    };
    let lanes = lanes_after(&[waits.clone(), settles]);
    let expected =
        internal::Lane { attempts: 0, uncounted: 0, next_attempt_at_ms: 0, first_failed_at_ms: 0, ..lane(0, 0, 4, 7) };
    assert_eq!(lanes, [expected]);

    let redriven = internal::Commit {
        outcomes: vec![outcome(0, 0, 2, 9, internal::OutcomeKind::Delivered)],
        ..Default::default()
    };
    assert_eq!(lanes_after(&[waits.clone(), redriven]), [lane(0, 0, 3, 7)], "a redrive leaves the live lane alone");

    let last = internal::Commit {
        outcomes: vec![outcome(0, 0, 7, 0, internal::OutcomeKind::DeadLettered)],
        ..Default::default()
    };
    assert_eq!(lanes_after(&[waits.clone(), last]), [], "a lane with nothing unsettled has no row");

    let relisted = internal::Commit {
        outcomes: vec![outcome(0, 0, 3, 0, internal::OutcomeKind::Delivered)],
        lanes: vec![lane(0, 0, 6, 9)],
        ..Default::default()
    };
    assert_eq!(lanes_after(&[waits, relisted]), [lane(0, 0, 6, 9)], "what a commit lists stands as listed");
}

#[test]
fn an_outcome_of_an_event_of_its_own_lane_touches_no_other() {
    let waiting = |seq| internal::Lane { next: seq, ..lane(UNORDERED, 0, seq, seq) };
    let in_line = internal::Lane { unordered: false, ..lane(UNORDERED, 0, 5, 9) };
    let waits = internal::Commit { lanes: vec![waiting(2), waiting(3), in_line.clone()], ..Default::default() };
    let settles = internal::Commit {
        outcomes: vec![outcome(UNORDERED, 0, 3, 0, internal::OutcomeKind::Delivered)],
        ..Default::default()
    };
    assert_eq!(lanes_after(&[waits.clone(), settles]), [in_line.clone(), waiting(2)]);

    let skipped =
        internal::Outcome { unordered: false, ..outcome(UNORDERED, 0, 5, 0, internal::OutcomeKind::DeadLettered) };
    let skips = internal::Commit { outcomes: vec![skipped], ..Default::default() };
    let lanes = lanes_after(&[waits, skips]);
    assert_eq!(lanes.iter().map(|lane| (lane.next, lane.last)).collect::<Vec<_>>(), [(6, 9), (2, 2), (3, 3)]);
}

#[test]
fn a_dead_letter_is_open_until_another_run_ends() {
    use internal::OutcomeKind::{DeadLettered, Delivered};
    let database = memory();
    let subscription = SubscriptionUid::from_slice(&uid(0)).unwrap();
    let ends = |run, kind| internal::Commit { outcomes: vec![outcome(0, 0, 3, run, kind)], ..Default::default() };
    for (seq, commit, open) in [
        (1, ends(0, DeadLettered), Some(Run(0))),
        (2, internal::Commit { runs: vec![run(0, 0, 3, 4)], ..Default::default() }, Some(Run(0))),
        (3, ends(4, DeadLettered), Some(Run(4))),
        (4, ends(6, Delivered), None),
    ] {
        apply(&database, &records(seq, &[commit]), CREATED_NS).unwrap();
        assert_eq!(open_dead_letter(&database, subscription, StreamSeq(3)).unwrap(), open, "behind commit {seq}");
    }
    assert_eq!(
        all::<internal::PendingRun>(&database.begin_read().unwrap(), RUNS).unwrap(),
        [],
        "ended runs have no row"
    );
    assert_eq!(head(&database, subscription, "a").unwrap(), None, "a redrive is no part of the lane's chain");
}

/// P5: after an adoption nothing that the ledger says concerns an event after the last common one, so that what stands
/// there now is delivered; what concerns earlier events stays.
#[test]
fn an_adoption_voids_what_concerns_lost_events_and_keeps_the_rest() {
    use internal::OutcomeKind::{DeadLettered, Delivered};
    let database = memory();
    let before = internal::Commit {
        outcomes: vec![
            outcome(0, 0, 2, 0, Delivered),
            outcome(0, 1, 7, 0, Delivered),
            outcome(1, 0, 3, 0, DeadLettered),
            outcome(1, 1, 6, 0, DeadLettered),
        ],
        lanes: vec![lane(0, 2, 4, 8), lane(1, 2, 6, 7), lane(UNORDERED, 0, 5, 5), lane(UNORDERED, 1, 6, 6)],
        runs: vec![run(1, 0, 3, 2), run(1, 0, 2, 9), run(1, 1, 6, 2)],
        results: vec![result(1, 9)],
        subscriptions: vec![
            change(
                0,
                Change::Opened(internal::Opened { name: "s".into(), from: 7, revision: 1, ..Default::default() }),
            ),
            change(0, Change::Detached(internal::Detached { next: 8 })),
            change(1, Change::Detached(internal::Detached { next: 3 })),
        ],
        cursor: 8,
        commands_cursor: 9,
        ..Default::default()
    };
    let adopted = Some(internal::Adoption::default());
    let adopts = internal::Commit { cursor: 5, commands_cursor: 4, adopted, epoch: 2, ..Default::default() };
    apply(&database, &records(1, &[before, adopts]), CREATED_NS).unwrap();
    let view = database.begin_read().unwrap();
    let subscription = |index| SubscriptionUid::from_slice(&uid(index)).unwrap();
    let lanes: Vec<_> = all::<internal::Lane>(&view, LANES).unwrap();
    let lanes: Vec<_> = lanes.iter().map(|lane| (lane.subscription[0] - 1, lane.next, lane.last)).collect();
    assert_eq!(lanes, [(0, 4, 5), (UNORDERED, 5, 5)], "the unsettled part of what is left");
    let runs: Vec<_> = all::<internal::PendingRun>(&view, RUNS).unwrap();
    assert_eq!(runs.iter().map(|run| (run.sequence, run.run)).collect::<Vec<_>>(), [(3, 2)]);
    assert_eq!(head(&database, subscription(0), "a").unwrap().map(|id| id.to_vec()), Some(event(2)));
    assert_eq!(head(&database, subscription(0), "ab").unwrap(), None);
    let open = |seq| open_dead_letter(&database, subscription(1), StreamSeq(seq)).unwrap();
    assert_eq!((open(3), open(6)), (Some(Run(0)), None));
    let states: Vec<_> = all::<internal::SubscriptionState>(&view, SUBSCRIPTIONS).unwrap();
    assert_eq!(states.iter().map(|state| (state.from, state.detached)).collect::<Vec<_>>(), [(6, None), (0, Some(3))]);
    assert!(has_request(&database, "request 1").unwrap(), "what was carried out is not carried out again");
    assert_eq!(positions_of(&view).unwrap().cursor, StreamSeq(5));
}

use proptest::prelude::*;

use super::*;
use crate::projection::{Mark, Projector as _};

mod merging;

const DEDUP: Duration = Duration::from_secs(80);
const REMEMBER: Duration = Duration::from_secs(1_000);

/// Cases of a property: `PROPTEST_CASES`, or a small default.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").map_or(usual, |text| text.parse().expect("a number"))
}

fn horizons() -> Horizons {
    Horizons::new(DEDUP, REMEMBER)
}

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + secs).unwrap()
}

fn workflow(name: &str) -> WorkflowId {
    WorkflowId::new(name).unwrap()
}

fn id(n: u64) -> EventId {
    EventId::of_delivery("test", &n.to_string())
}

/// The event at `seq` of workflow `name`, whose id is `id(seq)` and whose predecessor is `id(previous)`.
fn event(seq: u64, secs: i64, name: &str, number: u64, previous: Option<u64>) -> Change {
    let accepted = Accepted {
        seq: StreamSeq(seq),
        stored_at: at(secs),
        digest: [seq as u8; 32],
        sequence_number: SequenceNumber(number),
        workflow: workflow(name),
        previous: previous.map(id),
        replay_key: None,
    };
    let mark = Mark { stored_at: at(secs), id: Some(id(seq)) };
    Change { seq: StreamSeq(seq), mark, content: Content::Event(id(seq), accepted) }
}

fn carried(seq: u64, secs: i64, name: &str, number: u64, event: u64, event_secs: i64) -> Change {
    let head = WorkflowHead {
        sequence_number: SequenceNumber(number),
        event_id: id(event),
        stored_at: at(event_secs),
        carried_at: at(secs),
    };
    let content = Content::Heads(vec![(workflow(name), head)]);
    Change { seq: StreamSeq(seq), mark: Mark { stored_at: at(secs), id: None }, content }
}

fn foreign(seq: u64, secs: i64) -> Change {
    Change { seq: StreamSeq(seq), mark: Mark { stored_at: at(secs), id: None }, content: Content::Foreign }
}

/// Receipts in a temporary folder.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn open(&self, horizons: Horizons) -> Receipts {
        Receipts::open(&self.folder.path().join("receipts.redb"), "EVENTS", horizons).unwrap()
    }
}

async fn apply(receipts: &Receipts, commits: impl IntoIterator<Item = Vec<Change>>) -> Committed {
    let position = receipts.view().unwrap().position().cloned().unwrap_or(Position::start(at(0)));
    let writer = receipts.writer_at(position, CommitInterval { interval: Duration::ZERO, ..COMMIT_INTERVAL }).unwrap();
    let mut committed = writer.committed();
    for changes in commits {
        let last = changes.last().unwrap().seq;
        writer.send(Changes::new(changes)).await.unwrap();
        committed.wait_for(|committed| committed.cursor == last).await.unwrap();
    }
    writer.close().await.unwrap();
    *committed.borrow()
}

fn number(receipts: &Receipts, name: &str) -> Option<u64> {
    receipts.view().unwrap().head(&workflow(name)).unwrap().map(|head| head.sequence_number.0)
}

#[test]
fn the_digest_tells_the_parts_apart() {
    let digest = |name: &str, event_type: &str, body: &[u8]| body_digest(&workflow(name), event_type, body);
    assert_eq!(digest("a", "b", b"c"), digest("a", "b", b"c"));
    let all = [digest("a", "b", b"c"), digest("ab", "", b"c"), digest("a", "bc", b""), digest("a", "b", b"d")];
    for (index, one) in all.iter().enumerate() {
        assert!(!all[..index].contains(one), "{index}");
    }
}

/// P2: the repeat gets the whole first receipt, also from a gateway that has started again.
#[tokio::test]
async fn what_was_accepted_is_known_whole_after_a_restart() {
    let fixture = Fixture::new();
    let changes = vec![event(1, 0, "a", 1, None), foreign(2, 0), event(3, 1, "a", 2, Some(1))];
    let committed = apply(&fixture.open(horizons()), [changes.clone()]).await;
    assert_eq!(committed, Committed { cursor: StreamSeq(3), violations: 0, foreign: 1 });

    let view = fixture.open(horizons()).view().unwrap();
    let position = view.position().unwrap();
    assert_eq!((position.cursor, position.mark.unwrap().id), (StreamSeq(3), Some(id(3))));
    let Content::Event(_, accepted) = &changes[2].content else { panic!("an event") };
    assert_eq!(view.receipt(id(3)).unwrap().as_ref(), Some(accepted));
    assert_eq!(view.receipt(id(2)).unwrap(), None);
    let head = view.head(&workflow("a")).unwrap().unwrap();
    assert_eq!((head.sequence_number, head.event_id), (SequenceNumber(2), id(3)));
    assert_eq!(horizons().next(Some(&head), at(1)), (SequenceNumber(3), Some(id(3))));
    assert_eq!(view.head(&workflow("b")).unwrap(), None);
}

/// An id is known for exactly the horizon, in any bucket; its rows are removed later.
#[tokio::test]
async fn ids_age_by_stream_time_and_go_bucket_by_bucket() {
    let fixture = Fixture::new();
    let receipts = fixture.open(horizons());
    apply(&receipts, [vec![event(1, 0, "a", 1, None)]]).await;
    let accepted = receipts.view().unwrap().receipt(id(1)).unwrap().unwrap();
    assert!(horizons().knows(&accepted, at(80)));
    assert!(!horizons().knows(&accepted, at(81)));
    apply(&receipts, [vec![foreign(2, 80)]]).await;
    assert!(receipts.view().unwrap().receipt(id(1)).unwrap().is_some());
    apply(&receipts, [vec![foreign(3, 80 + 11)]]).await;
    assert_eq!(receipts.view().unwrap().receipt(id(1)).unwrap(), None);
    assert_eq!(number(&receipts, "a"), Some(1), "heads stay");
}

#[tokio::test]
async fn a_longer_horizon_is_read_from_the_log_again_and_a_shorter_one_is_taken_over() {
    let fixture = Fixture::new();
    apply(&fixture.open(horizons()), [vec![event(1, 0, "a", 1, None)]]).await;
    let shorter = fixture.open(Horizons::new(DEDUP / 4, REMEMBER));
    assert!(shorter.view().unwrap().receipt(id(1)).unwrap().is_some());
    apply(&shorter, [vec![event(2, 1, "a", 2, Some(1))]]).await;
    let view = shorter.view().unwrap();
    assert!(view.receipt(id(1)).unwrap().is_some() && view.receipt(id(2)).unwrap().is_some());
    drop((view, shorter));
    let longer = fixture.open(horizons());
    assert_eq!(longer.view().unwrap().position(), None);
}

/// The invariants are checked, and the log wins.
#[tokio::test]
async fn what_breaks_the_order_is_counted_and_followed() {
    let fixture = Fixture::new();
    let receipts = fixture.open(horizons());
    let begins_in_the_middle = event(1, 0, "a", 7, Some(100));
    let skips = event(2, 0, "a", 9, Some(1));
    let wrong_predecessor = event(3, 0, "a", 10, Some(1));
    let mut twice = event(4, 0, "b", 1, None);
    if let Content::Event(twice_id, _) = &mut twice.content {
        *twice_id = id(3);
    }
    let commits = [vec![begins_in_the_middle, skips], vec![wrong_predecessor, twice]];
    assert_eq!(apply(&receipts, commits).await.violations, 3);
    assert_eq!(number(&receipts, "a"), Some(10));
}

/// `remember_workflows`: an event of a forgotten workflow may begin at 1 again, and another may continue.
#[tokio::test]
async fn a_forgotten_workflow_may_begin_again() {
    let fixture = Fixture::new();
    let receipts = fixture.open(horizons());
    apply(&receipts, [vec![event(1, 0, "a", 1, None), event(2, 0, "b", 1, None)]]).await;
    let head = receipts.view().unwrap().head(&workflow("a")).unwrap();
    assert_eq!(horizons().next(head.as_ref(), at(1_000)), (SequenceNumber(2), Some(id(1))));
    assert_eq!(horizons().next(head.as_ref(), at(1_001)), (SequenceNumber(1), None));
    let committed = apply(&receipts, [vec![event(3, 1_001, "a", 1, None), event(4, 1_001, "b", 2, Some(2))]]).await;
    assert_eq!(committed.violations, 0);
    assert_eq!((number(&receipts, "a"), number(&receipts, "b")), (Some(1), Some(2)));
}

/// The first event's time is late at this gateway. At others it is not, so they forget its id and its workflow earlier: an
/// event that results from that breaks no rule, an earlier one does.
#[tokio::test]
async fn what_others_forget_earlier_breaks_no_rule() {
    let late = LATE_MAX.as_secs() as i64;
    let same_id = |secs| match event(2, secs, "b", 1, None) {
        Change { seq, mark, content: Content::Event(_, accepted) } => {
            Change { seq, mark, content: Content::Event(id(1), accepted) }
        }
        _ => panic!("an event"),
    };
    // Ids are compared within a bucket: others have forgotten one that is repeated in the same second if that is more
    // than the horizon late.
    let horizon = |secs| Horizons::new(Duration::from_secs(secs), REMEMBER);
    for (horizons, second, violations) in [
        (horizons(), event(2, 1_001, "a", 1, None), 0),
        (horizons(), event(2, 1_000, "a", 1, None), 1),
        (horizon(LATE_MAX.as_secs() - 2), same_id(late), 0),
        (horizon(LATE_MAX.as_secs() + 2), same_id(late), 1),
    ] {
        let commits = [vec![event(1, late, "a", 1, None)], vec![second.clone()]];
        assert_eq!(apply(&Fixture::new().open(horizons), commits).await.violations, violations, "{second:?}");
    }
}

#[tokio::test]
async fn carried_heads_stand_for_their_events() {
    let fixture = Fixture::new();
    let receipts = fixture.open(horizons());
    let due = |now: i64, before: i64, after: Option<&str>, max: usize| {
        let after = after.map(workflow);
        let due = receipts.view().unwrap().heads_due(horizons(), at(now), at(before), after.as_ref(), max).unwrap();
        let names: Vec<_> = due.heads.iter().map(|(workflow, _)| workflow.to_string()).collect();
        (names.join(" "), due.more_after.map(|workflow| workflow.to_string()))
    };
    let events = vec![event(1, 0, "a", 1, None), event(2, 0, "b", 1, None), event(3, 5, "c", 1, None)];
    apply(&receipts, [events]).await;
    assert_eq!(due(10, 5, None, 10), ("a b".into(), None));
    assert_eq!(due(10, 5, None, 1), ("a".into(), Some("a".into())));
    assert_eq!(due(10, 5, Some("a"), 1), ("b".into(), Some("b".into())));
    assert_eq!(due(10, 5, Some("b"), 1), (String::new(), None));
    assert_eq!(due(1_001, 5, None, 10), (String::new(), None), "forgotten workflows are not carried");

    // The same head: carried. A newer event is not undone by an old record. An unknown workflow is learnt.
    let records = vec![
        carried(4, 20, "a", 1, 1, 0),
        event(5, 21, "b", 2, Some(2)),
        carried(6, 22, "b", 1, 2, 0),
        carried(7, 23, "d", 40, 99, 3),
    ];
    assert_eq!(apply(&receipts, [records]).await.violations, 0);
    assert_eq!(due(30, 20, None, 10).0, "c");
    assert_eq!(number(&receipts, "b"), Some(2));
    let head = receipts.view().unwrap().head(&workflow("d")).unwrap().unwrap();
    assert_eq!((head.stored_at, head.carried_at), (at(3), at(23)));
    let committed = apply(&receipts, [vec![event(8, 24, "d", 41, Some(99)), event(9, 24, "a", 2, Some(1))]]).await;
    assert_eq!(committed.violations, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(8)))]

    /// A projection: the file does not depend on how the log was split into commits, or where the process ended in
    /// between.
    #[test]
    fn the_file_is_a_function_of_the_log(
        log in proptest::collection::vec((0..4u8, 0..30i64), 1..40),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let mut numbers = [0u64; 4];
        let mut last = [None; 4];
        let mut now = 0;
        let changes: Vec<Change> = log.iter().zip(1..).map(|((which, wait), seq)| {
            now += wait;
            let at = usize::from(*which);
            numbers[at] += 1;
            event(seq, now, ["a", "b", "c", "d"][at], numbers[at], last[at].replace(seq))
        }).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(changes.len())).filter(|cut| *cut > 0).collect();
        cuts.extend([0, changes.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let commits: Vec<Vec<Change>> = cuts.windows(2).map(|cut| changes[cut[0]..cut[1]].to_vec()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (whole, parts) = (Fixture::new(), Fixture::new());
        let violations = runtime.block_on(async {
            let violations = apply(&whole.open(horizons()), [changes.clone()]).await.violations;
            let receipts = parts.open(horizons());
            for commit in commits {
                apply(&receipts, [commit]).await;
            }
            violations
        });
        prop_assert_eq!(violations, 0);
        let (whole, parts) = (whole.open(horizons()).view().unwrap(), parts.open(horizons()).view().unwrap());
        prop_assert_eq!(whole.position(), parts.position());
        for change in &changes {
            let Content::Event(id, accepted) = &change.content else { continue };
            let known = |view: &View| view.receipt(*id).unwrap().filter(|found| horizons().knows(found, at(now)));
            prop_assert_eq!(known(&whole), known(&parts));
            prop_assert_eq!(known(&whole).is_some(), horizons().knows(accepted, at(now)));
            prop_assert_eq!(whole.head(&accepted.workflow).unwrap(), parts.head(&accepted.workflow).unwrap());
        }
    }
}

/// The record at `seq` of the erased event at `of`, as its gateway knew it.
fn erased(seq: u64, secs: i64, of: &Change) -> Change {
    let Content::Event(event, accepted) = &of.content else { panic!("an event") };
    let head = WorkflowHead {
        sequence_number: accepted.sequence_number,
        event_id: *event,
        stored_at: accepted.stored_at,
        carried_at: at(secs),
    };
    let content = Content::Erased(*event, accepted.clone(), head);
    Change { seq: StreamSeq(seq), mark: Mark { stored_at: at(secs), id: None }, content }
}

/// P2, P3: a gateway that rebuilds after an erasure gives a repeat the first receipt, and the same next number, whether the
/// erased event is in the middle of its workflow or its newest; the gap in the log is no fault.
#[tokio::test]
async fn an_erased_event_keeps_its_receipt_and_its_number() {
    for is_newest in [false, true] {
        let (first, gone) = (event(1, 0, "a", 1, None), event(2, 1, "a", 2, Some(1)));
        let after = event(3, 2, "a", 3, Some(2));
        let rest = if is_newest { vec![erased(3, 2, &gone)] } else { vec![after.clone(), erased(4, 3, &gone)] };
        let rebuilt: Vec<Change> = std::iter::once(first.clone()).chain(rest.clone()).collect();
        let followed: Vec<Change> = [first, gone.clone()].into_iter().chain(rest).collect();
        for changes in [vec![rebuilt.clone()], rebuilt.into_iter().map(|change| vec![change]).collect(), vec![followed]]
        {
            let fixture = Fixture::new();
            let committed = apply(&fixture.open(horizons()), changes).await;
            assert_eq!(committed.violations, 0);
            let receipts = fixture.open(horizons());
            let Content::Event(_, accepted) = &gone.content else { panic!("an event") };
            assert_eq!(receipts.view().unwrap().receipt(id(2)).unwrap().as_ref(), Some(accepted));
            let head = receipts.view().unwrap().head(&workflow("a")).unwrap().unwrap();
            let expected = if is_newest { (2, id(2)) } else { (3, id(3)) };
            assert_eq!((head.sequence_number.0, head.event_id), expected, "{is_newest}");
        }
    }
}

/// P2: an id that was used again beyond the horizon stays known by its later event when the earlier one is erased, and that is
/// no fault.
#[tokio::test]
async fn an_erased_event_hides_no_later_one_of_its_id() {
    let earlier = event(1, 0, "a", 1, None);
    let beyond = 2 * i64::try_from(DEDUP.as_secs()).unwrap();
    let later = Change { seq: StreamSeq(2), ..event(1, beyond, "b", 1, None) };
    let Content::Event(id, accepted) = &later.content else { panic!("an event") };
    let later = Change { content: Content::Event(*id, Accepted { seq: StreamSeq(2), ..accepted.clone() }), ..later };
    let record = erased(3, beyond + 1, &earlier);
    let changes = [earlier, later.clone(), record];
    for changes in [vec![changes.to_vec()], changes.iter().map(|change| vec![change.clone()]).collect()] {
        let fixture = Fixture::new();
        assert_eq!(apply(&fixture.open(horizons()), changes).await.violations, 0);
        let Content::Event(id, accepted) = &later.content else { panic!("an event") };
        assert_eq!(fixture.open(horizons()).view().unwrap().receipt(*id).unwrap().as_ref(), Some(accepted));
    }
}

use jiff::Timestamp;
use proptest::prelude::*;
use weft_nats::event::Event;
use weft_proto::ids::{EventId, SequenceNumber, WorkflowId};

use super::*;

fn opened(from: u64, types: &[&str]) -> internal::SubscriptionChange {
    let types = types.iter().map(|text| (*text).to_owned()).collect();
    let opened = internal::Opened { name: "s".into(), from, revision: 1, types, ..Default::default() };
    internal::SubscriptionChange { change: Some(Change::Opened(opened)), ..Default::default() }
}

fn revised(from: u64, types: &[&str], sources: &[&str], settled_below: u64) -> internal::SubscriptionChange {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    let (types, sources) = (texts(types), texts(sources));
    let revised = internal::Revised { revision: from + 1, from, types, sources, settled_below, ..Default::default() };
    internal::SubscriptionChange { change: Some(Change::Revised(revised)), ..Default::default() }
}

fn closed(up_to: u64) -> internal::SubscriptionChange {
    let closed = internal::Closed { operator: "ann".into(), reason: String::new(), up_to };
    internal::SubscriptionChange { change: Some(Change::Closed(closed)), ..Default::default() }
}

fn state(changes: &[internal::SubscriptionChange]) -> internal::SubscriptionState {
    let mut state = internal::SubscriptionState::default();
    changes.iter().for_each(|change| apply_change(&mut state, change));
    state
}

fn judge(state: &internal::SubscriptionState, seq: u64, event_type: &str) -> Match {
    Filters::of(state).judge_kind(StreamSeq(seq), event_type, "shop")
}

#[test]
fn an_event_is_matched_by_the_filter_in_force_at_its_place() {
    let state = state(&[opened(3, &["order.*"]), revised(10, &["order.b"], &[], 3), revised(20, &["*"], &["crm"], 3)]);
    assert_eq!(judge(&state, 2, "order.a"), Match::Ignored, "before its start");
    assert_eq!(judge(&state, 9, "order.a"), Match::Taken);
    assert_eq!(judge(&state, 10, "order.a"), Match::Ignored);
    assert_eq!(judge(&state, 19, "order.b"), Match::Taken);
    assert_eq!(judge(&state, 20, "order.b"), Match::Ignored, "another source");
}

/// Records of earlier versions name no types.
#[test]
fn what_an_earlier_version_took_is_unknown_unless_the_oldest_known_filter_takes_it() {
    let before = state(&[opened(1, &[])]);
    assert_eq!(judge(&before, 5, "order.a"), Match::Taken, "no filter is known at all");
    let after = state(&[opened(1, &[]), revised(10, &["order.b"], &[], 0)]);
    assert_eq!((judge(&after, 9, "order.a"), judge(&after, 9, "order.b")), (Match::Unknown, Match::Taken));
    assert_eq!(judge(&after, 10, "order.a"), Match::Ignored);
}

#[test]
fn filters_of_what_is_settled_are_dropped() {
    let changes = [opened(1, &["a"]), revised(10, &["b"], &[], 1), revised(20, &["c"], &[], 10)];
    let froms =
        |state: &internal::SubscriptionState| state.filters.iter().map(|filter| filter.from).collect::<Vec<_>>();
    assert_eq!(froms(&state(&changes)), [10, 20]);
    let again = [&changes[..], &[revised(30, &["c"], &[], 30)]].concat();
    assert_eq!(froms(&state(&again)), [10, 20], "the same filter adds nothing");
}

#[test]
fn a_uid_that_is_opened_again_is_not_closed() {
    let ended = state(&[opened(1, &["a"]), closed(7)]);
    assert_eq!((ended.closed, ended.closed_through), (true, Some(7)));
    let again = state(&[opened(1, &["a"]), closed(7), opened(8, &["b"])]);
    assert_eq!((again.closed, again.from, again.filters.len()), (false, 8, 1));
}

/// A revision of the expression alone.
fn expressed(from: u64, expression: &str) -> internal::SubscriptionChange {
    let mut change = revised(from, &["order.*"], &[], 1);
    if let Some(Change::Revised(revised)) = &mut change.change {
        revised.expression = expression.into();
    }
    change
}

fn event(seq: u64, data: &str) -> StoredEvent {
    let event = Event {
        id: EventId::unique(),
        sequence_number: SequenceNumber(1),
        workflow: WorkflowId::new("w").unwrap(),
        previous: None,
        event_type: "order.paid".into(),
        source: "shop".into(),
        time: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        delivery_id: None,
        content_type: "application/json".into(),
        data_pointer: String::new(),
        verified_by: String::new(),
        traceparent: None,
        quarantine: None,
        kept_headers: vec![],
        payload: data.to_owned().into(),
    };
    StoredEvent { seq: StreamSeq(seq), stored_at: Timestamp::UNIX_EPOCH, event }
}

/// An expression is part of the filter that is in force at an event's place, and one that fails takes the event.
#[test]
fn an_expression_is_matched_by_at_its_place() {
    let changes = [opened(1, &["order.*"]), expressed(10, "data.total > 100"), expressed(20, "data.total > 200")];
    let filters = Filters::of(&state(&changes));
    let judge = |seq, data| filters.judge(&event(seq, data));
    let (small, large) = (r#"{"total":1}"#, r#"{"total":150}"#);
    assert_eq!((judge(9, small), judge(10, small), judge(10, large)), (Match::Taken, Match::Ignored, Match::Taken));
    assert_eq!((judge(19, large), judge(20, large)), (Match::Taken, Match::Ignored));
    assert_eq!(judge(10, "{}"), Match::Taken, "it fails");
    assert_eq!(filters.judge_kind(StreamSeq(20), "order.paid", "shop"), Match::Taken, "the data is not known");
    assert_eq!(filters.newest().map(|newest| newest.expression.as_str()), Some("data.total > 200"));
}

/// A filter that was corrected fails no event that it has a result for, and neither does one under which the event was taken.
#[test]
fn an_expression_fails_an_event_only_if_the_newest_one_fails_too() {
    let failure =
        |changes: &[internal::SubscriptionChange], seq: u64| Filters::of(&state(changes)).failure(&event(seq, "{}"));
    let narrow = [opened(1, &["order.*"]), expressed(10, "data.total > 100")];
    assert_eq!(failure(&narrow, 9), None, "taken before the expression was in force");
    assert_eq!(failure(&narrow, 10).unwrap(), "1:5: no such member: total");
    let corrected = [&narrow[..], &[expressed(20, "has(data.total) && data.total > 100")]].concat();
    assert_eq!(failure(&corrected, 10), None);
    let other = [&narrow[..], &[expressed(20, "data.amount > 100")]].concat();
    assert_eq!(failure(&other, 10).unwrap(), "1:5: no such member: amount");
}

/// Expressions are not compared: another one may take more.
#[test]
fn an_expression_is_covered_by_the_same_one_or_none() {
    let wide = |expression: &str| internal::FilterRevision {
        types: vec!["a".into()],
        expression: expression.into(),
        ..internal::FilterRevision::default()
    };
    let covered = |expression: &str, by: &str| is_covered(&["a".into()], &[], expression, &wide(by));
    assert!(covered("", "") && covered("data.a", "") && covered("data.a", "data.a"));
    assert!(!covered("", "data.a") && !covered("data.a && data.b", "data.a"));
    // Beyond the bound, of two filters whose expressions differ each event is taken.
    let mut changes = vec![opened(1, &["order.*"])];
    changes.extend((2..60).map(|from| expressed(from, &format!("data.total > {from}"))));
    let filters = Filters::of(&state(&changes));
    assert_eq!(filters.judge(&event(2, r#"{"total":1}"#)), Match::Taken);
    assert_eq!(filters.judge(&event(59, r#"{"total":1}"#)), Match::Ignored);
}

proptest! {
    /// A filter that is covered takes no event that the other one does not take, for any event; and each covers itself.
    #[test]
    fn a_covered_filter_takes_nothing_more(
        [types, wide] in proptest::array::uniform2(proptest::collection::vec("[ab*]{0,3}", 1..3)),
        [sources, wide_sources] in proptest::array::uniform2(proptest::collection::vec("[st]", 0..3)),
        event_type in "[ab]{0,4}", source in "[stu]",
    ) {
        let wide = internal::FilterRevision { types: wide, sources: wide_sources, ..Default::default() };
        prop_assert!(is_covered(&wide.types, &wide.sources, "", &wide));
        if is_covered(&types, &sources, "", &wide) && takes(&types, &sources, &event_type, &source) {
            prop_assert!(takes(&wide.types, &wide.sources, &event_type, &source));
        }
    }

    /// However often the filter changes, every event that was taken at its place still is, and the list is bounded.
    #[test]
    fn nothing_taken_is_ever_ignored(
        kinds in proptest::collection::vec((0u64..3, 0usize..3, any::<bool>()), 1..120),
    ) {
        const TYPES: [&str; 3] = ["a", "b", "c"];
        let mut state = state(&[opened(1, &["a"])]);
        let (mut taken, mut next, mut current) = (vec![], 1u64, (0usize, false));
        for (gap, kind, of_source) in kinds {
            for seq in next..next + gap {
                for (index, event_type) in TYPES.into_iter().enumerate() {
                    if index == current.0 && !current.1 {
                        taken.push((seq, event_type));
                    }
                }
            }
            next += gap;
            let sources: &[&str] = if of_source { &["crm"] } else { &[] };
            apply_change(&mut state, &revised(next, &[TYPES[kind]], sources, 1));
            current = (kind, of_source);
            prop_assert!(state.filters.len() <= FILTERS_MAX);
            prop_assert!(state.filters.is_sorted_by_key(|filter| filter.from));
        }
        for (seq, event_type) in taken {
            prop_assert_eq!(judge(&state, seq, event_type), Match::Taken, "{} at {}", event_type, seq);
        }
    }
}

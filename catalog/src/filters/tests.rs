use proptest::prelude::*;

use super::*;

fn opened(from: u64, types: &[&str]) -> v1::SubscriptionChange {
    let types = types.iter().map(|text| (*text).to_owned()).collect();
    let opened = v1::Opened { name: "s".into(), from, revision: 1, types, ..Default::default() };
    v1::SubscriptionChange { change: Some(Change::Opened(opened)), ..Default::default() }
}

fn revised(from: u64, types: &[&str], sources: &[&str], settled_below: u64) -> v1::SubscriptionChange {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    let (types, sources) = (texts(types), texts(sources));
    let revised = v1::Revised { revision: from + 1, from, types, sources, settled_below, ..Default::default() };
    v1::SubscriptionChange { change: Some(Change::Revised(revised)), ..Default::default() }
}

fn closed(up_to: u64) -> v1::SubscriptionChange {
    let closed = v1::Closed { operator: "ann".into(), reason: String::new(), up_to };
    v1::SubscriptionChange { change: Some(Change::Closed(closed)), ..Default::default() }
}

fn state(changes: &[v1::SubscriptionChange]) -> v1::SubscriptionState {
    let mut state = v1::SubscriptionState::default();
    changes.iter().for_each(|change| apply_change(&mut state, change));
    state
}

fn judge(state: &v1::SubscriptionState, seq: u64, event_type: &str) -> Match {
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
    let froms = |state: &v1::SubscriptionState| state.filters.iter().map(|filter| filter.from).collect::<Vec<_>>();
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

proptest! {
    /// A filter that is covered takes no event that the other one does not take, for any event; and each covers itself.
    #[test]
    fn a_covered_filter_takes_nothing_more(
        [types, wide] in proptest::array::uniform2(proptest::collection::vec("[ab*]{0,3}", 1..3)),
        [sources, wide_sources] in proptest::array::uniform2(proptest::collection::vec("[st]", 0..3)),
        event_type in "[ab]{0,4}", source in "[stu]",
    ) {
        let wide = v1::FilterRevision { types: wide, sources: wide_sources, ..Default::default() };
        prop_assert!(is_covered(&wide.types, &wide.sources, &wide));
        if is_covered(&types, &sources, &wide) && takes(&types, &sources, &event_type, &source) {
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

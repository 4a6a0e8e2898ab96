use jiff::Timestamp;

use super::*;

/// The event of this number at `seq`.
fn event(seq: u64, number: u64) -> StoredEvent {
    let event = weft_testkit::event("a").number(number).build();
    StoredEvent { seq: StreamSeq(seq), stored_at: Timestamp::UNIX_EPOCH, event }
}

fn events(of: &[(u64, u64)]) -> Vec<StoredEvent> {
    of.iter().map(|(seq, number)| event(*seq, *number)).collect()
}

/// P5: numbers say how many events a read lacks, at its start and inside; where they cannot, it is not concluded that none is.
#[test]
fn a_read_knows_by_its_numbers_what_it_lacks() {
    let missing = |of: &[(u64, u64)], known, after: Option<u64>| {
        missing(&events(of), StreamSeq(5), StreamSeq(known), after.map(SequenceNumber))
    };
    assert_eq!(missing(&[(5, 3), (7, 4), (9, 5)], 9, None), Some(0));
    assert_eq!(missing(&[(5, 3), (9, 6)], 9, None), Some(2));
    assert_eq!(missing(&[(6, 3), (9, 4)], 9, None), None, "one may have stood at 5");
    assert_eq!(missing(&[(6, 3), (9, 4)], 9, Some(2)), Some(0));
    assert_eq!(missing(&[(6, 3), (9, 4)], 9, Some(1)), Some(1));
    assert_eq!(missing(&[(6, 1), (9, 2)], 9, None), Some(0), "the first of its workflow");
    assert_eq!(missing(&[(6, 9), (9, 1)], 9, Some(8)), Some(0), "a workflow that was forgotten begins again");
    assert_eq!(missing(&[(5, 3)], 8, None), None, "one may have stood after it");
    assert_eq!(missing(&[], 8, Some(2)), None);
}

/// P5: erased events take their places; where more is missing than was erased, the part ends before that, and the next one
/// says that it is gone.
#[test]
fn what_is_missing_all_the_same_has_gone() {
    let part = |of: &[(u64, u64)], known, after: Option<u64>, first| {
        let after = after.map(SequenceNumber);
        let Part { events, known, gone } =
            whole_part(events(of), StreamSeq(5), StreamSeq(known), after, StreamSeq(first));
        (events.iter().map(|event| event.seq.0).collect::<Vec<_>>(), known.0, gone.0)
    };
    assert_eq!(part(&[(5, 3), (9, 5), (7, 4)], 9, None, 1), (vec![5, 7, 9], 9, 0));
    assert_eq!(part(&[(5, 3), (9, 5)], 9, None, 1), (vec![5], 5, 0));
    assert_eq!(part(&[(9, 5)], 9, Some(3), 1), (vec![9], 9, 8));
    assert_eq!(part(&[(9, 4)], 9, Some(3), 1), (vec![9], 9, 0), "others' messages stood between");
    // The log begins at 8.
    assert_eq!(part(&[(9, 5)], 9, None, 8), (vec![9], 9, 7));
    assert_eq!(part(&[(9, 4)], 9, Some(3), 8), (vec![9], 9, 0), "all before it were erased");
    assert_eq!(part(&[(6, 4)], 7, Some(3), 8), (vec![6], 6, 0), "the one at 7 was dropped");
    assert_eq!(part(&[], 7, Some(4), 8), (vec![], 7, 7));
    assert_eq!(part(&[], 7, None, 1), (vec![], 7, 0));
    assert_eq!(part(&[(5, 3), (8, 4)], 7, None, 1), (vec![5], 7, 0), "more than one read takes");
}

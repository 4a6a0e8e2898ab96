//! Expiry of decisions, by the log's own time.

use std::time::Duration;

use jiff::Timestamp;
use weft_index::{
    projection::Mark,
    receipts::{Accepted, Change, Content, Horizons, WorkflowHead},
};
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use crate::sequencer::{
    decide::{Candidate, Decision, Looked, decide},
    overlay::{LogMismatch, Overlay, UNCONFIRMED},
};

const DIGEST: [u8; 32] = [1; 32];

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(secs).unwrap()
}

fn horizons() -> Horizons {
    Horizons::new(Duration::from_secs(10), Duration::from_secs(100))
}

fn accepted(seq: u64, stored_at: Timestamp, number: u64) -> Accepted {
    Accepted {
        seq: StreamSeq(seq),
        stored_at,
        digest: DIGEST,
        sequence_number: SequenceNumber(number),
        workflow: WorkflowId::new("a").unwrap(),
        previous: None,
        replay_key: None,
    }
}

fn foreign(seq: u64, stored_at: Timestamp) -> Change {
    Change { seq: StreamSeq(seq), mark: Mark { stored_at, id: None }, content: Content::Foreign }
}

fn event(id: EventId, accepted: Accepted) -> Change {
    let mark = Mark { stored_at: accepted.stored_at, id: Some(id) };
    Change { seq: accepted.seq, mark, content: Content::Event(id, accepted) }
}

/// The message at the file's cursor.
fn newest(stored_at: Timestamp) -> Option<(StreamSeq, Mark)> {
    Some((StreamSeq(1), Mark { stored_at, id: None }))
}

fn decide_one(overlay: &Overlay, id: EventId, looked: &Looked) -> Decision {
    let workflow = WorkflowId::new("a").unwrap();
    let candidate = Candidate { id, workflow: &workflow, digest: &DIGEST, replay_key: None, looked, linked: None };
    decide(overlay, horizons(), [candidate]).remove(0)
}

/// The file says the same all the time; what it means changes with the newest message of the log.
#[test]
fn repeats_are_known_to_the_horizon_and_workflows_as_long_as_remembered() {
    let (first, other) = (EventId::unique(), EventId::unique());
    let head =
        WorkflowHead { sequence_number: SequenceNumber(7), event_id: first, stored_at: at(0), carried_at: at(0) };
    let looked =
        Looked { cursor: StreamSeq(1), accepted: Some(accepted(1, at(0), 7)), replayed: None, head: Some(head) };
    let next = Decision::New { sequence_number: SequenceNumber(8), previous: Some(first) };
    let anew = Decision::New { sequence_number: SequenceNumber(1), previous: None };
    let mut overlay = Overlay::new(StreamSeq(1), StreamSeq(1), newest(at(10)));
    assert_eq!(decide_one(&overlay, first, &looked), Decision::Known(accepted(1, at(0), 7)));
    overlay.read(&foreign(2, at(11))).unwrap();
    assert_eq!(decide_one(&overlay, first, &looked), next, "beyond the horizon it is a new event");
    overlay.read(&foreign(3, at(100))).unwrap();
    let unknown = Looked { accepted: None, ..looked.clone() };
    assert_eq!(decide_one(&overlay, other, &unknown), next);
    overlay.read(&foreign(4, at(101))).unwrap();
    assert_eq!(decide_one(&overlay, other, &unknown), anew, "forgotten");
}

/// An event of ours whose time is not known yet is never too old, however old the newest message is that was read.
#[test]
fn what_was_acked_and_not_read_is_known() {
    let id = EventId::unique();
    let mut overlay = Overlay::new(StreamSeq(1), StreamSeq(1), newest(at(0)));
    overlay.append(id, accepted(2, UNCONFIRMED, 1));
    let looked = Looked { cursor: StreamSeq(1), ..Looked::default() };
    assert!(matches!(decide_one(&overlay, id, &looked), Decision::Known(_)));
    assert_eq!(overlay.read(&event(id, accepted(2, at(5_000), 1))), Ok(true));
    assert_eq!(overlay.accepted(id).map(|accepted| accepted.stored_at), Some(at(5_000)));
    assert!(matches!(decide_one(&overlay, id, &looked), Decision::Known(_)));
    overlay.read(&foreign(3, at(5_011))).unwrap();
    assert!(matches!(decide_one(&overlay, id, &looked), Decision::New { .. }));
}

/// The storage time of each message is not queried: the time assumed is at most a little later, so the id is known for long
/// enough.
#[test]
fn what_was_acked_counts_as_stored_with_the_newest_that_was_asked_about() {
    let ids = [(); 3].map(|()| EventId::unique());
    let mut overlay = Overlay::new(StreamSeq(1), StreamSeq(1), newest(at(0)));
    for (id, seq) in ids.iter().zip(2..) {
        overlay.append(*id, accepted(seq, UNCONFIRMED, seq - 1));
    }
    let mark = |id, secs| Mark { stored_at: at(secs), id: Some(id) };
    let at_3 = |id| event(id, accepted(3, at(7), 2));
    assert_eq!(overlay.confirm(&at_3(ids[2])).unwrap_err(), LogMismatch(StreamSeq(3)));
    let changes = overlay.confirm(&at_3(ids[1])).unwrap();
    let marks: Vec<_> = changes.iter().map(|change| (change.seq.0, change.mark)).collect();
    assert_eq!(marks, [(2, mark(ids[0], 7)), (3, mark(ids[1], 7))]);
    assert_eq!((overlay.now(), overlay.unconfirmed_from(), overlay.end()), (at(7), StreamSeq(4), StreamSeq(4)));
    assert!(overlay.confirm(&at_3(ids[1])).unwrap().is_empty(), "known already");
    let looked = Looked { cursor: StreamSeq(1), ..Looked::default() };
    for id in ids {
        assert!(matches!(decide_one(&overlay, id, &looked), Decision::Known(_)));
    }
}

/// A log that lost what it had acked is another log, also where another event stands there under the same id.
#[test]
fn another_message_in_our_place_is_noticed() {
    let id = EventId::unique();
    let ours = accepted(2, at(1), 1);
    let others = [
        event(EventId::unique(), ours.clone()),
        event(id, Accepted { digest: [2; 32], ..ours.clone() }),
        event(id, Accepted { sequence_number: SequenceNumber(2), ..ours.clone() }),
        event(id, Accepted { workflow: WorkflowId::new("b").unwrap(), ..ours.clone() }),
        event(id, Accepted { previous: Some(EventId::unique()), ..ours.clone() }),
        event(id, Accepted { replay_key: Some(EventId::unique()), ..ours }),
        foreign(2, at(1)),
        Change { mark: Mark { stored_at: at(1), id: Some(id) }, ..foreign(2, at(1)) },
        foreign(3, at(1)),
    ];
    for other in others {
        let mut overlay = Overlay::new(StreamSeq(1), StreamSeq(1), newest(at(0)));
        overlay.append(id, accepted(2, UNCONFIRMED, 1));
        let mut confirmed = Overlay::new(StreamSeq(1), StreamSeq(1), newest(at(0)));
        confirmed.append(id, accepted(2, UNCONFIRMED, 1));
        assert_eq!(overlay.read(&other), Err(LogMismatch(other.seq)), "{other:?}");
        assert_eq!(confirmed.confirm(&other).unwrap_err(), LogMismatch(other.seq), "{other:?}");
    }
}

/// P2: an id and a body that were used again beyond the horizon are known by the later event, although a record states that
/// the earlier one was erased.
#[test]
fn an_erased_event_hides_no_later_one_of_its_id_or_body() {
    let (id, key, workflow) = (EventId::unique(), EventId::unique(), WorkflowId::new("a").unwrap());
    let (earlier, later) = (accepted(1, at(0), 1), accepted(4, at(20), 2));
    let earlier = Accepted { replay_key: Some(key), ..earlier };
    let head = |of: &Accepted| WorkflowHead {
        sequence_number: of.sequence_number,
        event_id: id,
        stored_at: of.stored_at,
        carried_at: of.stored_at,
    };
    let record = Change { content: Content::Erased(id, earlier.clone(), head(&earlier)), ..foreign(6, at(25)) };
    let looked = |later: Option<&Accepted>| Looked {
        cursor: StreamSeq(5),
        accepted: later.cloned(),
        replayed: later.map(|later| (id, later.clone())),
        head: later.map(head),
    };
    // The later event is in the file, or beyond it.
    for is_stored in [true, false] {
        let mut overlay = Overlay::new(StreamSeq(3), StreamSeq(3), newest(at(15)));
        let later = Accepted { replay_key: Some(key).filter(|_| !is_stored), ..later.clone() };
        let looked = if is_stored {
            overlay = Overlay::new(StreamSeq(5), StreamSeq(5), newest(at(22)));
            looked(Some(&later))
        } else {
            overlay.read(&event(id, later.clone())).unwrap();
            looked(None)
        };
        overlay.read(&record).unwrap();
        // Another id with the same body.
        let of_other = Looked { accepted: None, ..looked.clone() };
        let candidates = [(id, &looked), (EventId::unique(), &of_other)].map(|(id, looked)| Candidate {
            id,
            workflow: &workflow,
            digest: &DIGEST,
            replay_key: Some(key),
            looked,
            linked: None,
        });
        let decisions = decide(&overlay, horizons(), candidates);
        assert_eq!(decisions, [Decision::Known(later.clone()), Decision::Replayed(id, later)], "{is_stored}");
    }
}

use weft_nats::subject::Layout;
use weft_proto::ids::EventId;

use super::*;
use crate::sequencer::submission::test_event;

/// A `SubmitQueue` with room for `places` submissions, and the receiver of its queue.
fn submit_queue(places: usize) -> (SubmitQueue, mpsc::Receiver<Submission>) {
    SubmitQueue::new(places, mpsc::channel(1).0, watch::channel(None).1)
}

fn event() -> Encoded {
    Encoded::new(test_event(EventId::unique(), "a", b"{}"), Layout::new(1))
}

fn drain(queue: &mut mpsc::Receiver<Submission>) -> Vec<EventId> {
    std::iter::from_fn(|| queue.try_recv().ok()).map(|submission| submission.id).collect()
}

/// A batch that does not fit is refused as a whole, at every `SubmitQueue`, and occupies no place; one that fits keeps its
/// order.
#[test]
fn all_are_taken_in_or_none() {
    let (wide, mut wide_queue) = submit_queue(8);
    let (tiny, mut tiny_queue) = submit_queue(2);
    let submit_queues = [wide, tiny];
    let deadline = Instant::now();
    let batch = |at: &[usize]| at.iter().map(|at| (*at, event())).collect::<Vec<_>>();
    let refused = take_all(&submit_queues, batch(&[0, 1, 0, 1, 1]), deadline);
    assert_eq!(refused.map(|pending| pending.len()), Err(SubmitError::Overloaded));
    assert!(drain(&mut wide_queue).is_empty() && drain(&mut tiny_queue).is_empty());
    assert_eq!(submit_queues[0].room.available_permits(), QUEUE_BYTES_MAX);

    let taken = batch(&[0, 1, 0, 1]);
    let at = |index| taken.iter().filter(|(at, _)| *at == index).map(|(_, event)| event.id).collect::<Vec<_>>();
    let (at_wide, at_tiny) = (at(0), at(1));
    let pending = take_all(&submit_queues, taken, deadline).unwrap();
    assert_eq!(pending.len(), 4);
    assert!(submit_queues[0].room.available_permits() < QUEUE_BYTES_MAX);
    assert_eq!((drain(&mut wide_queue), drain(&mut tiny_queue)), (at_wide, at_tiny));
    assert_eq!(submit_queues[0].room.available_permits(), QUEUE_BYTES_MAX, "given back with the submissions");
}

/// Bytes are bounded like places.
#[test]
fn a_batch_without_room_is_refused_as_a_whole() {
    let (submit_queue, mut queue) = submit_queue(8);
    let held = submit_queue.room(QUEUE_BYTES_MAX - event().bytes).unwrap();
    let submit_queues = [submit_queue];
    let batch = || vec![(0, event()), (0, event())];
    let refused = take_all(&submit_queues, batch(), Instant::now());
    assert_eq!(refused.map(|pending| pending.len()), Err(SubmitError::Overloaded));
    assert!(drain(&mut queue).is_empty());
    drop(held);
    assert!(take_all(&submit_queues, batch(), Instant::now()).is_ok());
}

//! A subscription that is not ordered: what waits for what.

use super::*;

/// A world with events of one workflow for the subscription that is not ordered; the others are paused.
fn world_with(events: u64) -> World {
    let mut world = World::new(1);
    while (world.log.len() as u64) < events {
        // Every second is taken.
        world.log.push(event(world.log.len() as u64 + 1, 0));
    }
    world.pause(0, true);
    world.pause(1, true);
    (0..events).for_each(|_| world.read());
    world
}

fn attempted(world: &World) -> Vec<u64> {
    let mut seqs: Vec<u64> = world.attempts.iter().map(|attempt| attempt.work.seq.0).collect();
    seqs.sort_unstable();
    seqs
}

fn end(world: &mut World, seq: u64, verdict: Verdict) {
    let at = world.attempts.iter().position(|attempt| attempt.work.seq.0 == seq).unwrap();
    let attempt = world.attempts.remove(at);
    world.end(attempt, verdict);
}

fn go_on(world: &mut World) {
    loop {
        if !world.catch_ups.is_empty() {
            world.catch_up(0, false);
        } else if world.lanes.has_draft() {
            world.run(Step::TakeDraft);
            world.commit();
        } else {
            return;
        }
    }
}

#[test]
fn a_failing_event_holds_back_none_of_its_workflow() {
    let mut world = world_with(8);
    assert_eq!(attempted(&world), [2, 4], "as many at a time as its concurrency allows");
    end(&mut world, 2, Verdict::Failed);
    end(&mut world, 4, Verdict::Delivered);
    go_on(&mut world);
    assert_eq!(attempted(&world), [6, 8], "the second waits for its retry and nobody for it");
    let waiting = world.record.lanes.get(&(uid(UNORDERED).to_vec(), "w0".into(), Some(2))).unwrap();
    assert_eq!((waiting.next, waiting.last, waiting.attempts, waiting.unordered), (2, 2, 1, true));
}

/// What waits beyond the bound is positions in the lane of its workflow, and is neither lost nor repeated.
#[test]
fn what_finds_no_place_waits_in_the_log() {
    let mut world = world_with(20);
    assert_eq!(world.lanes.world.event_lanes(uid(UNORDERED)), limits().event_lanes_max);
    while let Some(attempt) = world.attempts.pop() {
        world.end(attempt, Verdict::Delivered);
        go_on(&mut world);
    }
    assert_eq!(world.received.len(), 10);
    assert!(world.record.lanes.values().all(|lane| lane.subscription != uid(UNORDERED).to_vec()));
}

#[test]
fn who_stops_a_workflow_stops_all_its_events() {
    let mut world = world_with(8);
    world.run(Step::PauseLane { subscription: UNORDERED, workflow: 0 });
    end(&mut world, 2, Verdict::Failed);
    end(&mut world, 4, Verdict::Delivered);
    go_on(&mut world);
    world.run(Step::Wait { seconds: 100 });
    go_on(&mut world);
    assert!(attempted(&world).is_empty());
    world.run(Step::ResumeLane { subscription: UNORDERED, workflow: 0 });
    assert!(attempted(&world).is_empty(), "not before the commit");
    go_on(&mut world);
    assert_eq!(attempted(&world).len(), 2, "whichever of them");
}

/// Each by its own name: there is no head that stands for the others.
#[test]
fn an_operator_retries_and_skips_single_events() {
    let mut world = world_with(4);
    end(&mut world, 2, Verdict::Failed);
    end(&mut world, 4, Verdict::Failed);
    go_on(&mut world);
    let head = |seq| Head { seq: StreamSeq(seq), next: StreamSeq(seq) };
    world.retry_at.clear();
    world.command(Order::Lane { lane: lane(UNORDERED, 0), order: LaneOrder::Retry { head: head(4) } });
    let event = world.log[1].event.id;
    world.command(Order::Lane { lane: lane(UNORDERED, 0), order: LaneOrder::Skip { head: head(2), event } });
    go_on(&mut world);
    assert_eq!(attempted(&world), [4]);
    assert_eq!(world.record.outcomes[&(uid(UNORDERED).to_vec(), 2, 0)].1, i32::from(v1::OutcomeKind::DeadLettered));
}

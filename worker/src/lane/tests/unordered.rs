//! A subscription that is not ordered: what waits for what.

use super::*;

/// A world with events of one workflow for the subscription that is not ordered; the others are paused.
fn model_with(events: u64) -> Model {
    let mut model = Model::new(1);
    while (model.log.len() as u64) < events {
        // Every second is taken.
        model.log.push(event(model.log.len() as u64 + 1, 0));
    }
    model.pause(0, true);
    model.pause(1, true);
    (0..events).for_each(|_| model.read());
    model
}

fn attempted(model: &Model) -> Vec<u64> {
    let mut seqs: Vec<u64> = model.attempts.iter().map(|attempt| attempt.work.seq.0).collect();
    seqs.sort_unstable();
    seqs
}

fn end(model: &mut Model, seq: u64, result: AttemptResult) {
    let at = model.attempts.iter().position(|attempt| attempt.work.seq.0 == seq).unwrap();
    let attempt = model.attempts.remove(at);
    model.end(attempt, result);
}

fn go_on(model: &mut Model) {
    loop {
        if !model.catch_ups.is_empty() {
            model.catch_up(0, false);
        } else if model.lanes.has_commit() {
            model.run(Step::TakeCommit);
            model.commit();
        } else {
            return;
        }
    }
}

#[test]
fn a_failing_event_delays_no_other_event_of_its_workflow() {
    let mut model = model_with(8);
    assert_eq!(attempted(&model), [2, 4], "as many at a time as its concurrency allows");
    end(&mut model, 2, AttemptResult::Failed);
    end(&mut model, 4, AttemptResult::Delivered);
    go_on(&mut model);
    assert_eq!(attempted(&model), [6, 8], "the second waits for its retry, and no other event for it");
    let waiting = model.record.lanes.get(&(uid(UNORDERED).to_vec(), "w0".into(), Some(2))).unwrap();
    assert_eq!((waiting.next, waiting.last, waiting.attempts, waiting.unordered), (2, 2, 1, true));
}

/// Events beyond the bound wait as positions in the lane of their workflow, and are neither lost nor repeated.
#[test]
fn events_without_a_slot_wait_in_the_log() {
    let mut model = model_with(20);
    assert_eq!(model.lanes.state.lanes.values().filter(|lane| lane.has_slot).count(), limits().event_lanes_max);
    while let Some(attempt) = model.attempts.pop() {
        model.end(attempt, AttemptResult::Delivered);
        go_on(&mut model);
    }
    assert_eq!(model.received.len(), 10);
    assert!(model.record.lanes.values().all(|lane| lane.subscription != uid(UNORDERED).to_vec()));
}

#[test]
fn pausing_a_workflow_pauses_all_its_events() {
    let mut model = model_with(8);
    model.run(Step::PauseLane { subscription: UNORDERED, workflow: 0 });
    end(&mut model, 2, AttemptResult::Failed);
    end(&mut model, 4, AttemptResult::Delivered);
    go_on(&mut model);
    model.run(Step::Wait { seconds: 100 });
    go_on(&mut model);
    assert!(attempted(&model).is_empty());
    model.run(Step::ResumeLane { subscription: UNORDERED, workflow: 0 });
    assert!(attempted(&model).is_empty(), "not before the commit");
    go_on(&mut model);
    assert_eq!(attempted(&model).len(), 2, "any two of them");
}

/// Each by its own name: there is no head that stands for the others.
#[test]
fn an_operator_retries_and_skips_single_events() {
    let mut model = model_with(4);
    end(&mut model, 2, AttemptResult::Failed);
    end(&mut model, 4, AttemptResult::Failed);
    go_on(&mut model);
    let head = |seq| HeadRef { seq: StreamSeq(seq), next: StreamSeq(seq) };
    model.retry_at.clear();
    model.command(CommandAction::Lane { lane: lane(UNORDERED, 0), command: LaneCommand::Retry { head: head(4) } });
    let event = model.log[1].event.id;
    model
        .command(CommandAction::Lane { lane: lane(UNORDERED, 0), command: LaneCommand::Skip { head: head(2), event } });
    go_on(&mut model);
    assert_eq!(attempted(&model), [4]);
    assert_eq!(
        model.record.outcomes[&(uid(UNORDERED).to_vec(), 2, 0)].1,
        i32::from(internal::OutcomeKind::DeadLettered)
    );
}

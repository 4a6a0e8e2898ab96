//! P4 in simulated time: how long healthy workflows wait with sick ones, and how often a receiver that is down is called.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use super::*;

/// How a sick workflow's attempts end.
#[derive(Debug, Clone, Copy)]
struct Sick {
    result: AttemptResult,
    after_ms: i64,
}

/// Status 500, 503, a time-out, a reset connection.
const KINDS: [Sick; 4] = [
    Sick { result: AttemptResult::Failed, after_ms: 5 },
    Sick { result: AttemptResult::Unavailable, after_ms: 5 },
    Sick { result: AttemptResult::Failed, after_ms: 15_000 },
    Sick { result: AttemptResult::Failed, after_ms: 1 },
];
/// Workflows that are healthy, one event a second among them.
const HEALTHY: u8 = 10;
const FIRST_SICK: u8 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Append { workflow: u8 },
    End { attempt: u64 },
}

/// How an attempt ends, and after how many milliseconds.
type Answer = dyn Fn(Timestamp, &Work) -> (AttemptResult, i64);

/// Lanes of one subscription, a log, and a receiver that answers in simulated time.
struct Simulation {
    lanes: Lanes,
    now: Timestamp,
    agenda: BinaryHeap<Reverse<(Timestamp, u64, Happens)>>,
    planned: u64,
    log: Vec<Arc<StoredEvent>>,
    appended: Vec<Timestamp>,
    in_flight: BTreeMap<u64, Work>,
    answer: Box<Answer>,
    /// When attempts started: of which event, the number of the attempt.
    started: Vec<(Timestamp, Work, u32)>,
    outcomes: Vec<internal::Outcome>,
    receivers: Vec<internal::ReceiverState>,
    uncounted: BTreeMap<u64, u32>,
}

fn start() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn number_of(workflow: &WorkflowId) -> u8 {
    workflow.as_str()[1..].parse().unwrap()
}

impl Simulation {
    fn new(seed: u64, answer: impl Fn(Timestamp, &Work) -> (AttemptResult, i64) + 'static) -> Self {
        let mut simulation = Self {
            lanes: Lanes::new(Limits::default(), Restored::default(), start(), StdRng::seed_from_u64(seed)),
            now: start(),
            agenda: BinaryHeap::new(),
            planned: 0,
            log: vec![],
            appended: vec![],
            in_flight: BTreeMap::new(),
            answer: Box::new(answer),
            started: vec![],
            outcomes: vec![],
            receivers: vec![],
            uncounted: BTreeMap::new(),
        };
        let retry = RetryPolicy::Exponential {
            max_retries: 3,
            base: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_secs(3600),
            jitter: 0.2,
        };
        simulation.handle(Input::Subscribed(SubscriptionPolicy { concurrency: 64, retry, ..policy(0, false, 1) }));
        simulation
    }

    fn plan(&mut self, after_ms: i64, happens: Happens) {
        self.planned += 1;
        let at = self.now.checked_add(SignedDuration::from_millis(after_ms)).unwrap();
        self.agenda.push(Reverse((at, self.planned, happens)));
    }

    fn handle(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut actions = vec![];
            self.lanes.handle(input, self.now, &mut actions);
            for action in actions {
                match action {
                    Action::Attempt { id, work, number, .. } => {
                        self.started.push((self.now, work.clone(), number));
                        let (_, after_ms) = (self.answer)(self.now, &work);
                        self.in_flight.insert(id.0, work);
                        self.plan(after_ms, Happens::End { attempt: id.0 });
                    }
                    Action::CatchUp { lane, from, through, limit } => {
                        let of_lane = |event: &&Arc<StoredEvent>| {
                            event.event.workflow == lane.workflow && (from..=through).contains(&event.seq)
                        };
                        let events: Vec<_> = self.log.iter().filter(of_lane).take(limit).cloned().collect();
                        let through = events.last().filter(|_| events.len() == limit).map_or(through, |last| last.seq);
                        inputs.push(Input::CaughtUp { lane, events, through, gone: StreamSeq(0) });
                    }
                    Action::Receiver { .. } => {}
                    other => panic!("not expected: {other:?}"),
                }
            }
            while let Some(pending) = self.lanes.take_commit() {
                self.outcomes.extend(pending.commit.outcomes);
                self.receivers.extend(pending.commit.receivers);
                for attempt in pending.commit.attempts.iter().filter(|attempt| attempt.uncounted) {
                    *self.uncounted.entry(attempt.sequence).or_default() += 1;
                }
                inputs.push(Input::CommitStored { number: pending.number });
            }
        }
    }

    fn run(&mut self, seconds: i64) {
        let end = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        loop {
            let next = self.agenda.peek().map(|Reverse((at, ..))| *at);
            let due = self.lanes.next_deadline().into_iter().chain(next).min().filter(|at| *at <= end);
            let Some(due) = due else { break };
            self.now = self.now.max(due);
            if next.is_none_or(|next| next > due) {
                self.handle(Input::TimerFired);
                continue;
            }
            match self.agenda.pop().unwrap().0.2 {
                Happens::Append { workflow } => {
                    let event = event(self.log.len() as u64 + 1, workflow);
                    self.log.push(Arc::clone(&event));
                    self.appended.push(self.now);
                    self.handle(Input::Arrived { event, matching: vec![uid(0)] });
                }
                Happens::End { attempt } => {
                    let work = self.in_flight.remove(&attempt).unwrap();
                    let (result, _) = (self.answer)(self.now, &work);
                    let delivered = result == AttemptResult::Delivered;
                    let end = AttemptEnd {
                        result,
                        is_attributed: true,
                        class: if delivered { v1::AttemptClass::Delivered } else { v1::AttemptClass::HttpStatus },
                        status: 0,
                        error: if delivered { String::new() } else { "it failed".into() },
                        response: Bytes::new(),
                        retry_after: None,
                        started_at: self.now,
                        ended_at: self.now,
                        connected_ms: None,
                        answered_ms: None,
                    };
                    self.handle(Input::AttemptFinished { attempt: AttemptId(attempt), ends: vec![end] });
                }
            }
        }
        self.now = end;
    }

    /// How long the events of healthy workflows waited for their first attempt, shortest first.
    fn healthy_waits(&self) -> Vec<i64> {
        let first =
            self.started.iter().filter(|(_, work, number)| *number == 1 && number_of(&work.lane.workflow) < FIRST_SICK);
        let mut waits: Vec<i64> = first
            .map(|(at, work, _)| at.duration_since(self.appended[work.seq.0 as usize - 1]).as_millis() as i64)
            .collect();
        waits.sort_unstable();
        waits
    }
}

/// Healthy workflows have one event a second, each of `sick` ones an event every ten seconds, all for five minutes.
fn mixed(kind: Sick, sick: u8, seed: u64) -> Simulation {
    let mut simulation = Simulation::new(seed, move |_, work| {
        if number_of(&work.lane.workflow) < FIRST_SICK {
            (AttemptResult::Delivered, 5)
        } else {
            (kind.result, kind.after_ms)
        }
    });
    for second in 0..300 {
        let jitter = (seed as i64 * 137 + second * 311) % 700;
        simulation.plan(second * 1000 + jitter, Happens::Append { workflow: (second % i64::from(HEALTHY)) as u8 });
    }
    for number in 0..sick {
        for round in 0..30 {
            // One after the other, so that their failures are not at one moment: the harder case.
            let at = round * 10_000 + i64::from(number) * 9_000 / i64::from(sick);
            simulation.plan(at, Happens::Append { workflow: FIRST_SICK + number });
        }
    }
    simulation.run(600);
    simulation
}

#[test]
fn healthy_workflows_do_not_wait_for_sick_ones_of_any_kind() {
    for (index, kind) in KINDS.into_iter().enumerate() {
        for sick in [1, 5, 20] {
            for seed in 0..3 {
                let simulation = mixed(kind, sick, seed);
                let waits = simulation.healthy_waits();
                assert_eq!(waits.len(), 300, "each is attempted");
                let (p99, longest) = (waits[waits.len() * 99 / 100], waits[waits.len() - 1]);
                eprintln!("kind {index}, {sick} sick, seed {seed}: p99 {p99} ms, longest {longest} ms");
                assert!(p99 <= 250, "kind {index}, {sick} sick: p99 {p99} ms, longest {longest} ms");
            }
        }
    }
}

/// A receiver that answers others is not away: sick workflows come to their end by their own retries.
#[test]
fn sick_workflows_use_up_their_own_retries() {
    for kind in KINDS {
        for sick in [1, 5, 20] {
            let simulation = mixed(kind, sick, 7);
            let dead =
                simulation.outcomes.iter().filter(|outcome| outcome.kind() == internal::OutcomeKind::DeadLettered);
            let dead: Vec<_> = dead.collect();
            // Four attempts of 15 s and their waits take a minute and more, one event after the other.
            let least = if kind.after_ms > 1000 { 7 } else { 30 };
            assert!(dead.len() >= least * usize::from(sick), "{kind:?}, {sick} sick: {} dead letters", dead.len());
            for outcome in dead {
                let uncounted = simulation.uncounted.get(&outcome.sequence).copied().unwrap_or_default();
                assert_eq!(outcome.attempts, 4 + uncounted);
                assert!(uncounted <= 4, "{kind:?}: {uncounted} attempts of an event did not count");
            }
        }
    }
}

/// No attempt succeeds for ten minutes while events of new workflows keep arriving.
#[test]
fn a_receiver_that_is_away_is_called_a_few_times_a_second_and_makes_no_dead_letter() {
    for (result, most_a_second) in
        [(AttemptResult::Unreachable, 2), (AttemptResult::Unavailable, 5), (AttemptResult::Failed, 5)]
    {
        let away = SignedDuration::from_secs(600);
        let mut simulation = Simulation::new(3, move |now, _| {
            let is_back = now.duration_since(start()) >= away;
            if is_back { (AttemptResult::Delivered, 5) } else { (result, 5) }
        });
        for number in 0..1000 {
            simulation.plan(number * 600, Happens::Append { workflow: (number % 250) as u8 });
        }
        simulation.run(650);
        let from = start().checked_add(SignedDuration::from_secs(10)).unwrap();
        let until = start().checked_add(away).unwrap();
        let calls = simulation.started.iter().filter(|(at, ..)| (from..until).contains(at)).count();
        assert!(calls <= 590 * most_a_second, "{result:?}: {calls} attempts in 590 s");
        let kinds: BTreeSet<_> = simulation.outcomes.iter().map(|outcome| outcome.kind()).collect();
        assert_eq!(kinds, BTreeSet::from([internal::OutcomeKind::Delivered]), "{result:?}");
        assert_eq!(simulation.outcomes.len(), 1000, "{result:?}: all within a minute after it is back");
        let conditions: Vec<_> = simulation.receivers.iter().map(|receiver| receiver.condition()).collect();
        assert_eq!(conditions.first(), Some(&v1::ReceiverCondition::Away));
        assert_eq!(conditions.last(), Some(&v1::ReceiverCondition::Available));
    }
}

/// A configuration that prevents calls for an hour: no attempt is recorded, nothing is lost, and deliveries resume
/// automatically.
#[test]
fn what_our_configuration_holds_uses_up_nothing_and_goes_on_by_itself() {
    let held = SignedDuration::from_secs(3600);
    let mut simulation = Simulation::new(3, move |now, _| {
        let mended = now.duration_since(start()) >= held;
        if mended { (AttemptResult::Delivered, 5) } else { (AttemptResult::Held, 0) }
    });
    for number in 0..100 {
        simulation.plan(number * 30_000, Happens::Append { workflow: (number % 50) as u8 });
    }
    simulation.run(3700);
    assert!(simulation.started.len() <= 300, "{} tries in an hour", simulation.started.len());
    let delivered: Vec<_> = simulation.outcomes.iter().map(|outcome| (outcome.kind(), outcome.attempts)).collect();
    assert_eq!(delivered, vec![(internal::OutcomeKind::Delivered, 1); 100], "the delivery is the first attempt");
    assert_eq!(simulation.receivers[0].condition(), v1::ReceiverCondition::Held);
    assert_eq!(simulation.receivers[0].reason, "it failed");
    assert_eq!(simulation.receivers.last().unwrap().condition(), v1::ReceiverCondition::Available);
}

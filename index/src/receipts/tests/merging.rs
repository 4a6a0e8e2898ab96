//! Segments are merged, files are closed in the middle of a merge, and the receipts answer like a plain map.

use std::collections::HashMap;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// A commit of these messages: workflow, content, seconds since the one before.
    Commit(Vec<(u8, Said, i64)>, bool),
    /// Parts of the upkeep.
    Upkeep(u8),
    /// The process ends and starts again.
    Restart,
}

#[derive(Debug, Clone)]
enum Said {
    /// The workflow's next event.
    Next,
    /// An event that was accepted before, and forgotten.
    Again(u8),
    /// A head record with the head of this number of events ago.
    Carried(u8),
}

/// The model: expected answers in plain maps.
#[derive(Default)]
struct Model {
    seq: u64,
    now: i64,
    ids: HashMap<EventId, Accepted>,
    heads: HashMap<u8, WorkflowHead>,
}

impl Model {
    fn message(&mut self, workflow: u8, said: &Said, wait: i64) -> Change {
        self.seq += 1;
        self.now += wait;
        let name = format!("w-{workflow}");
        let head = self.heads.get(&workflow).copied();
        let mut change = match (said, head) {
            (Said::Carried(back), Some(head)) => {
                let number = head.sequence_number.0.saturating_sub((*back).into()).max(1);
                carried(self.seq, self.now, &name, number, 1_000_000 + number, self.now)
            }
            (_, head) => {
                let number = head.map_or(1, |head| head.sequence_number.0 + 1);
                event(self.seq, self.now, &name, number, None)
            }
        };
        if let (Said::Again(back), Content::Event(event_id, _)) = (said, &mut change.content) {
            *event_id = id(self.seq.saturating_sub((*back).into()).max(1));
        }
        match &change.content {
            Content::Event(event_id, accepted) => {
                self.ids.insert(*event_id, accepted.clone());
                let (stored_at, carried_at) = (accepted.stored_at, accepted.stored_at);
                let sequence_number = accepted.sequence_number;
                self.heads
                    .insert(workflow, WorkflowHead { sequence_number, event_id: *event_id, stored_at, carried_at });
            }
            Content::Heads(carried) => {
                let known = self.heads.entry(workflow).or_insert(carried[0].1);
                if known.sequence_number <= carried[0].1.sequence_number {
                    *known = carried[0].1;
                }
            }
            Content::Erased(..) | Content::Foreign => {}
        }
        change
    }

    fn check(&self, receipts: &Receipts) {
        let view = receipts.view().unwrap();
        assert_eq!(view.cursor().0, self.seq);
        for (event_id, accepted) in &self.ids {
            let found = view.receipt(*event_id).unwrap();
            let known = horizons().knows(accepted, at(self.now));
            assert_eq!(found.filter(|found| horizons().knows(found, at(self.now))).as_ref(), known.then_some(accepted));
        }
        for (workflow, head) in &self.heads {
            let remembered = |head: &WorkflowHead| horizons().remembers(head, at(self.now));
            let found = view.head(&super::workflow(&format!("w-{workflow}"))).unwrap().filter(remembered);
            assert_eq!(found, Some(*head).filter(remembered), "w-{workflow}");
        }
        let due = view.heads_due(horizons(), at(self.now), at(self.now + 1), None, usize::MAX).unwrap();
        assert_eq!(
            due.heads.len(),
            self.heads.values().filter(|head| horizons().remembers(head, at(self.now))).count()
        );
        assert!(due.heads.is_sorted_by(|a, b| a.0.as_str() < b.0.as_str()));
    }
}

/// The writing thread's work, step by step.
struct Machine {
    receipts: Receipts,
    apply: Apply,
}

impl Machine {
    fn open(fixture: &Fixture) -> Self {
        let receipts = fixture.open(horizons());
        let position = receipts.view().unwrap().position().cloned().unwrap_or(Position::start(at(0)));
        let transaction = receipts.database.begin_write().unwrap();
        set_position(&transaction, "EVENTS", &position).unwrap();
        let (database, filters) = (receipts.database.clone(), receipts.filters.clone());
        let apply = Apply::new(database, filters, "EVENTS".into(), position, horizons(), &transaction).unwrap();
        transaction.commit().unwrap();
        Self { receipts, apply }
    }

    fn commit(&mut self, changes: Vec<Change>, catching_up: bool) {
        let transaction = self.receipts.database.begin_write().unwrap();
        self.apply.apply(&transaction, vec![Changes { changes, catching_up }]).unwrap();
        transaction.commit().unwrap();
    }

    fn upkeep(&mut self) -> bool {
        if self.apply.wants_upkeep() {
            let transaction = self.receipts.database.begin_write().unwrap();
            self.apply.upkeep(&transaction).unwrap();
            transaction.commit().unwrap();
        }
        self.apply.wants_upkeep()
    }
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![6 => Just(Said::Next), 1 => (1..40u8).prop_map(Said::Again), 2 => (0..4u8).prop_map(Said::Carried)]
}

fn step() -> impl Strategy<Value = Step> {
    let messages = proptest::collection::vec((0..12u8, said(), prop_oneof![9 => 0..2i64, 1 => 0..40i64]), 1..12);
    prop_oneof![
        12 => (messages, any::<bool>()).prop_map(|(messages, catching_up)| Step::Commit(messages, catching_up)),
        6 => (1..4u8).prop_map(Step::Upkeep),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(24)))]

    /// P2, P3: decisions about repeats and numbers do not depend on merges or on where the process ends.
    #[test]
    fn merged_receipts_say_what_the_log_says(steps in proptest::collection::vec(step(), 1..120)) {
        let fixture = Fixture::new();
        let (mut model, mut machine) = (Model::default(), Machine::open(&fixture));
        for step in steps {
            match step {
                Step::Commit(messages, catching_up) => {
                    let changes =
                        messages.iter().map(|(workflow, said, wait)| model.message(*workflow, said, *wait)).collect();
                    machine.commit(changes, catching_up);
                }
                Step::Upkeep(parts) => (0..parts).for_each(|_| { machine.upkeep(); }),
                Step::Restart => {
                    drop(machine);
                    machine = Machine::open(&fixture);
                }
            }
            model.check(&machine.receipts);
        }
        while machine.upkeep() {}
        model.check(&machine.receipts);
    }
}

/// A merge of more rows than one step takes, with commits in between, and the same after the process has ended in the middle
/// of it.
#[test]
fn a_merge_goes_on_over_many_steps_and_starts_over_after_a_crash() {
    const ROWS: u64 = 20_000;
    let fixture = Fixture::new();
    let (mut model, mut machine) = (Model::default(), Machine::open(&fixture));
    let commit = |machine: &mut Machine, model: &mut Model, rows: u64| {
        let changes = (0..rows).map(|row| model.message((row % 100) as u8, &Said::Next, 0)).collect();
        machine.commit(changes, true);
    };
    for _ in 0..8 {
        commit(&mut machine, &mut model, ROWS);
    }
    machine.upkeep();
    machine.upkeep();
    drop(machine);
    machine = Machine::open(&fixture);
    let mut steps = 0;
    while machine.upkeep() {
        steps += 1;
        commit(&mut machine, &mut model, 1);
        assert!(steps < 100, "merging ends");
    }
    assert!(steps >= 4, "{steps} steps");
    model.check(&machine.receipts);
    let tables = machine.receipts.database.begin_read().unwrap().list_tables().unwrap().count();
    assert!(tables < 2 * 8 + 6, "{tables} tables: the parts of the merge that a crash ended are removed");
}

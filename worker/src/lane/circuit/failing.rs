//! The workflows of a receiver whose newest attempt failed.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use weft_proto::ids::WorkflowId;

use crate::lane::AttemptId;

/// Maximum number of workflows, of 50 bytes each. A workflow that is evicted counts as healthy until it fails again.
const WORKFLOWS_MAX: usize = 1024;

/// Hash of a workflow id. Two workflows with the same hash count as one, which only delays opening the circuit.
pub(super) type WorkflowHash = u64;

/// Failing workflows.
#[derive(Debug, Clone, Default)]
pub(super) struct Failing {
    /// The newest attempt that was started when the workflow first failed after its last success.
    marks: BTreeMap<WorkflowHash, Option<AttemptId>>,
    /// In the order of insertion. May contain workflows that were removed.
    order: VecDeque<WorkflowHash>,
    /// The newest attempt that succeeded.
    answered: Option<AttemptId>,
}

impl Failing {
    pub fn hash(workflow: &WorkflowId) -> WorkflowHash {
        let mut hasher = DefaultHasher::new();
        workflow.hash(&mut hasher);
        hasher.finish()
    }

    pub fn contains(&self, workflow: WorkflowHash) -> bool {
        self.marks.contains_key(&workflow)
    }

    /// Whether the workflow fails although the receiver is up: an attempt has succeeded that started after it failed.
    pub fn is_sick(&self, workflow: WorkflowHash) -> bool {
        self.marks.get(&workflow).is_some_and(|mark| self.answered > *mark)
    }

    /// An attempt of the workflow failed; `newest`: the newest attempt that was started.
    pub fn failed(&mut self, workflow: WorkflowHash, newest: Option<AttemptId>) {
        // The first failure's mark is kept: with a later one, another success would be needed to show that it is sick.
        if let Entry::Vacant(vacant) = self.marks.entry(workflow) {
            vacant.insert(newest);
            self.order.push_back(workflow);
        }
        while self.order.len() > WORKFLOWS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.marks.remove(&oldest);
            }
        }
    }

    pub fn succeeded(&mut self, workflow: WorkflowHash, attempt: AttemptId) {
        self.answered = self.answered.max(Some(attempt));
        if self.marks.remove(&workflow).is_some() {
            self.order.retain(|other| *other != workflow);
        }
    }
}

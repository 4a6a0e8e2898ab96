//! Workflows whose newest attempt failed, of one receiver.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use weft_proto::ids::WorkflowId;

use crate::lane::AttemptId;

/// Workflows that are remembered, 50 bytes each. One that is forgotten counts as healthy until it fails again.
const WORKFLOWS_MAX: usize = 1024;

/// Stands for a workflow; two of one hash are taken for one, which only makes the circuit a little slower to open.
pub(super) type WorkflowHash = u64;

/// The workflows.
#[derive(Debug, Clone, Default)]
pub(super) struct Failing {
    /// The newest attempt that had started when the workflow failed first since it succeeded.
    marks: BTreeMap<WorkflowHash, Option<AttemptId>>,
    /// In the order in which they were entered. May name some that are no longer there.
    order: VecDeque<WorkflowHash>,
    /// The newest attempt that was answered.
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

    /// Whether the workflow fails although the receiver answers: it has answered an attempt that started after this
    /// workflow had failed.
    pub fn is_sick(&self, workflow: WorkflowHash) -> bool {
        self.marks.get(&workflow).is_some_and(|mark| self.answered > *mark)
    }

    /// `newest`: the newest attempt that has started.
    pub fn failed(&mut self, workflow: WorkflowHash, newest: Option<AttemptId>) {
        // The first failure's mark stays: a later one would need another answer to show that the workflow is sick.
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

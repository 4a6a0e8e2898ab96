//! The bounds of an evaluation.

use crate::{
    COST_MAX, MEMORY_MAX,
    node::{Fault, Node},
};

/// Bytes of text that cost a step.
const BYTES_A_STEP: usize = 64;

/// Steps and bytes that an evaluation has used.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    steps: u64,
    bytes: usize,
}

impl Budget {
    /// Counts steps.
    pub fn spend(&mut self, node: &Node, steps: u64) -> Result<(), Fault> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > COST_MAX {
            let message = format!("the expression needs more than {COST_MAX} steps for this event");
            return Err(Fault { is_fatal: true, ..node.fault(message) });
        }
        Ok(())
    }

    /// Counts the steps for a pass over a text.
    pub fn spend_bytes(&mut self, node: &Node, bytes: usize) -> Result<(), Fault> {
        self.spend(node, (bytes / BYTES_A_STEP) as u64)
    }

    /// Counts memory, and the steps to fill it.
    pub fn allocate(&mut self, node: &Node, bytes: usize) -> Result<(), Fault> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MEMORY_MAX {
            let message = format!("the expression makes more than {MEMORY_MAX} bytes of values of this event");
            return Err(Fault { is_fatal: true, ..node.fault(message) });
        }
        self.spend_bytes(node, bytes)
    }
}

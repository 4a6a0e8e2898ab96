//! CEL expressions over events: the `filter` and the `transform` of a subscription.
//!
//! Pure: an event in, a decision or JSON text out. Expressions are parsed by the `cel` crate and evaluated here, because an
//! evaluation runs for every event of a shard and must stay within bounds for any expression and any event:
//!
//! * an expression has at most [`EXPRESSION_BYTES_MAX`] bytes and [`DEPTH_MAX`] levels, and regular expressions are literals
//!   that are compiled with it;
//! * an evaluation ends with an error after [`COST_MAX`] steps or [`MEMORY_MAX`] bytes of new values. Steps are counted, not
//!   time, so every worker decides the same about an event;
//! * there is no recursion, no loop but over lists and maps, no clock and no I/O.
//!
//! Values keep what JSON has: the order of members, integers up to the bounds of `i64` and `u64`, and doubles to the last
//! digit. An integer beyond that is a double, and a number beyond the range of doubles is infinite.
//!
//! Differences from the standard: arithmetic accepts mixed numbers, since the numbers of JSON have one type; the pattern of
//! `matches` is a literal; time zones are `UTC` or an offset, since names depend on the host; there are no messages.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use parking_lot::Mutex;

mod budget;
mod compile;
mod equality;
mod eval;
mod function;
mod functions;
mod input;
mod json;
mod node;
mod number;
mod operator;
mod time;
mod value;

#[cfg(test)]
mod tests;

pub use input::{Attributes, Data, Input};

use self::{eval::Machine, node::Node, value::Value};

/// Longest expression in bytes: parsing it takes milliseconds.
pub const EXPRESSION_BYTES_MAX: usize = 4096;
/// Levels of an expression. Each takes a part of the stack of a thread.
pub const DEPTH_MAX: usize = 96;
/// Steps of one evaluation: some ten milliseconds. A comparison for each of 10,000 list elements takes half of them.
pub const COST_MAX: u64 = 200_000;
/// Bytes of the texts, lists and maps that one evaluation makes.
pub const MEMORY_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a transformed `data`: the largest body that a gateway can be configured to accept.
pub const OUTPUT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    text: String,
    root: Node,
}

/// Reason why a text is not an expression, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct CompileError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The problem. Holds no more than names of the expression.
    pub message: String,
}

/// Reason why an expression has no result for an event, in one line that names members and types, never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct EvalError {
    /// Line of the part that failed, from 1.
    pub line: usize,
    /// Its column in characters, from 1.
    pub column: usize,
    /// The problem.
    pub message: String,
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    ///
    /// [`CompileError`].
    pub fn compile(text: &str) -> Result<Self, CompileError> {
        Ok(Self { text: text.to_owned(), root: compile::compile(text)? })
    }

    /// As [`compile`](Self::compile), once for all who hold the expression.
    ///
    /// # Errors
    ///
    /// [`CompileError`].
    pub fn shared(text: &str) -> Result<Arc<Self>, CompileError> {
        static SHARED: Mutex<Option<HashMap<String, Weak<Expression>>>> = Mutex::new(None);
        let lock = || SHARED.lock();
        if let Some(known) = lock().as_ref().and_then(|known| known.get(text)).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let expression = Arc::new(Self::compile(text)?);
        let mut known = lock();
        let known = known.get_or_insert_default();
        if known.len().is_power_of_two() {
            known.retain(|_, expression| expression.strong_count() > 0);
        }
        known.insert(text.to_owned(), Arc::downgrade(&expression));
        Ok(expression)
    }

    /// The text that it was compiled from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a filter takes an event.
    ///
    /// # Errors
    ///
    /// [`EvalError`]: it has no result, or one that is not a bool.
    pub fn filter(&self, input: &Input<'_>) -> Result<bool, EvalError> {
        let fault = match Machine::new(input).eval(&self.root) {
            Ok(Value::Bool(taken)) => return Ok(taken),
            Ok(other) => self.root.fault(format!("the result of a filter is a bool, not {}", other.type_name())),
            Err(fault) => fault,
        };
        Err(self.error(&fault))
    }

    /// The data that a transform makes of an event, as JSON text.
    ///
    /// # Errors
    ///
    /// [`EvalError`]: it has no result, or one that JSON cannot hold.
    pub fn transform(&self, input: &Input<'_>) -> Result<Bytes, EvalError> {
        let value = Machine::new(input).eval(&self.root).map_err(|fault| self.error(&fault))?;
        json::write(&value, OUTPUT_BYTES_MAX).map_err(|problem| self.error(&self.root.fault(problem)))
    }

    fn error(&self, fault: &node::Fault) -> EvalError {
        let (line, column) = compile::position(&self.text, fault.at);
        EvalError { line, column, message: fault.message.clone() }
    }
}

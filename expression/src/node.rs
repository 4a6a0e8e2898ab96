//! The compiled form of an expression.

use std::sync::Arc;

use regex::Regex;

use crate::{function::Function, operator::Operator, value::Value};

/// A part of an expression.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its offset in the text, in bytes.
    pub at: u32,
    pub kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Literal(Value),
    /// `data`.
    Data,
    /// `event`.
    Event,
    /// `event.type` and the like.
    Attribute(Attribute),
    /// A variable of a comprehension, by its depth.
    Variable(usize),
    Select(Box<Node>, Arc<str>),
    /// `has(operand.field)`.
    Has(Box<Node>, Arc<str>),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    And(Box<(Node, Node)>),
    Or(Box<(Node, Node)>),
    If(Box<(Node, Node, Node)>),
    Not(Box<Node>),
    Negate(Box<Node>),
    Binary(Operator, Box<(Node, Node)>),
    Call(Function, Vec<Node>),
    Matches(Box<Node>, Box<Pattern>),
    Loop(Box<Loop>),
}

/// An attribute of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    EventId,
    SequenceNumber,
    WorkflowId,
    PreviousEventId,
    Type,
    Source,
    Time,
    ReceivedAt,
    DeliveryId,
}

impl Attribute {
    pub const ALL: [Self; 9] = [
        Self::EventId,
        Self::SequenceNumber,
        Self::WorkflowId,
        Self::PreviousEventId,
        Self::Type,
        Self::Source,
        Self::Time,
        Self::ReceivedAt,
        Self::DeliveryId,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::EventId => "eventId",
            Self::SequenceNumber => "sequenceNumber",
            Self::WorkflowId => "workflowId",
            Self::PreviousEventId => "previousEventId",
            Self::Type => "type",
            Self::Source => "source",
            Self::Time => "time",
            Self::ReceivedAt => "receivedAt",
            Self::DeliveryId => "deliveryId",
        }
    }
}

/// A compiled regular expression.
#[derive(Debug)]
pub(crate) struct Pattern {
    pub regex: Regex,
    /// Its cost for four bytes of text.
    pub weight: u64,
}

/// A comprehension: a macro such as `all` over a list or the keys of a map.
#[derive(Debug)]
pub(crate) struct Loop {
    pub kind: LoopKind,
    pub range: Node,
    /// The condition of `all`, `exists`, `exists_one` and `filter`; of `map` with three arguments.
    pub condition: Option<Node>,
    /// The result of an element in a `map`.
    pub element: Option<Node>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoopKind {
    All,
    Exists,
    ExistsOne,
    /// `map` and `filter`.
    List,
}

/// Reason why a part of an expression has no value.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Offset of the part in the text.
    pub at: u32,
    pub message: String,
    /// A bound is reached: no operator absorbs it.
    pub is_fatal: bool,
}

impl Node {
    pub fn fault(&self, message: impl Into<String>) -> Fault {
        Fault { at: self.at, message: message.into(), is_fatal: false }
    }

    /// No operator or function of that name takes these types.
    pub fn no_overload(&self, name: &str, arguments: &[&Value]) -> Fault {
        let types: Vec<_> = arguments.iter().map(|value| value.type_name()).collect();
        self.fault(format!("{name} does not take ({})", types.join(", ")))
    }
}

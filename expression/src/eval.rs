//! The evaluation of a compiled expression.

use std::{cmp::Ordering, sync::Arc};

use crate::{
    budget::Budget,
    equality,
    functions::call,
    input::Input,
    node::{Attribute, Fault, Kind, Loop, LoopKind, Node, Pattern},
    number::{self, Problem},
    operator::Operator,
    time,
    value::{Key, Map, Value, whole},
};

/// Memory of an element of a list.
const ELEMENT_BYTES: usize = size_of::<Value>();
/// Memory of a member of a map: key, value, hash and index.
const MEMBER_BYTES: usize = 3 * size_of::<Value>();

/// One evaluation.
pub(crate) struct Machine<'a, 'i> {
    input: &'a Input<'i>,
    /// Variables of the comprehensions around the present part.
    variables: Vec<Value>,
    budget: Budget,
}

type Evaluated<T = Value> = Result<T, Fault>;

impl<'a, 'i> Machine<'a, 'i> {
    pub fn new(input: &'a Input<'i>) -> Self {
        Self { input, variables: Vec::new(), budget: Budget::default() }
    }

    pub fn eval(&mut self, node: &Node) -> Evaluated {
        self.budget.spend(node, 1)?;
        match &node.kind {
            Kind::Literal(value) => Ok(value.clone()),
            Kind::Data => self.input.data().map_err(|problem| node.fault(problem)),
            Kind::Event => {
                self.budget.allocate(node, Attribute::ALL.len() * MEMBER_BYTES)?;
                Ok(self.input.event())
            }
            Kind::Attribute(attribute) => Ok(self.input.attribute(*attribute)),
            Kind::Variable(depth) => Ok(self.variables.get(*depth).cloned().unwrap_or(Value::Null)),
            Kind::Select(operand, field) => self.select(node, operand, field),
            Kind::Has(operand, field) => self.has(node, operand, field),
            Kind::List(elements) => self.list(node, elements),
            Kind::Map(members) => self.map(node, members),
            Kind::And(sides) => self.logical(node, &sides.0, &sides.1, false),
            Kind::Or(sides) => self.logical(node, &sides.0, &sides.1, true),
            Kind::If(parts) => self.conditional(node, &parts.0, &parts.1, &parts.2),
            Kind::Not(operand) => match self.eval(operand)? {
                Value::Bool(value) => Ok(Value::Bool(!value)),
                other => Err(node.no_overload("!", &[&other])),
            },
            Kind::Negate(operand) => self.negate(node, operand),
            Kind::Binary(operator, sides) => {
                let (one, other) = (self.eval(&sides.0)?, self.eval(&sides.1)?);
                self.binary(node, *operator, &one, &other)
            }
            Kind::Call(function, arguments) => {
                let values = arguments.iter().map(|argument| self.eval(argument)).collect::<Evaluated<Vec<_>>>()?;
                call(&mut self.budget, node, *function, &values)
            }
            Kind::Matches(text, pattern) => self.matches(node, text, pattern),
            Kind::Loop(of) => self.comprehension(node, of),
        }
    }

    fn select(&mut self, node: &Node, operand: &Node, field: &Arc<str>) -> Evaluated {
        match self.eval(operand)? {
            Value::Map(map) => {
                let found = map.get(&Key::String(Arc::clone(field))).cloned();
                found.ok_or_else(|| node.fault(format!("no such member: {field}")))
            }
            other => Err(node.fault(format!("{} has no member {field}", other.type_name()))),
        }
    }

    fn has(&mut self, node: &Node, operand: &Node, field: &Arc<str>) -> Evaluated {
        match self.eval(operand)? {
            Value::Map(map) => Ok(Value::Bool(map.contains_key(&Key::String(Arc::clone(field))))),
            other => Err(node.fault(format!("{} has no member {field}", other.type_name()))),
        }
    }

    fn list(&mut self, node: &Node, elements: &[Node]) -> Evaluated {
        self.budget.allocate(node, elements.len() * ELEMENT_BYTES)?;
        let elements = elements.iter().map(|element| self.eval(element));
        Ok(Value::list(elements.collect::<Evaluated<Vec<_>>>()?))
    }

    fn map(&mut self, node: &Node, members: &[(Node, Node)]) -> Evaluated {
        self.budget.allocate(node, members.len() * MEMBER_BYTES)?;
        let mut map = Map::with_capacity(members.len());
        for (key, value) in members {
            let of = self.eval(key)?;
            let Some(of) = of.key().filter(|_| !matches!(of, Value::Double(_))) else {
                return Err(key.fault(format!("a key is a string, an int, a uint or a bool, not {}", of.type_name())));
            };
            self.budget.spend_bytes(node, of.text_len())?;
            let value = self.eval(value)?;
            if map.insert(of, value).is_some() {
                return Err(key.fault("the key is repeated"));
            }
        }
        Ok(Value::Map(Arc::new(map)))
    }

    /// `&&` and `||`: a side with the value `decides` decides, also where the other side has failed.
    fn logical(&mut self, node: &Node, one: &Node, other: &Node, decides: bool) -> Evaluated {
        let first = self.truth(node, one);
        match first {
            Ok(value) if value == decides => return Ok(Value::Bool(value)),
            Err(fault) if fault.is_fatal => return Err(fault),
            _ => {}
        }
        match self.truth(node, other) {
            Ok(value) if value == decides => Ok(Value::Bool(value)),
            Err(fault) if fault.is_fatal => Err(fault),
            second => first.and(second).map(Value::Bool),
        }
    }

    /// The value of an operand that is a bool.
    fn truth(&mut self, node: &Node, operand: &Node) -> Evaluated<bool> {
        match self.eval(operand)? {
            Value::Bool(value) => Ok(value),
            other => {
                let name = if matches!(node.kind, Kind::Or(_)) { "||" } else { "&&" };
                Err(operand.fault(format!("{name} takes bools, not {}", other.type_name())))
            }
        }
    }

    fn conditional(&mut self, node: &Node, condition: &Node, one: &Node, other: &Node) -> Evaluated {
        match self.eval(condition)? {
            Value::Bool(true) => self.eval(one),
            Value::Bool(false) => self.eval(other),
            value => Err(node.fault(format!("the condition of ? is a bool, not {}", value.type_name()))),
        }
    }

    fn negate(&mut self, node: &Node, operand: &Node) -> Evaluated {
        match self.eval(operand)? {
            Value::Int(value) => value.checked_neg().map(Value::Int).ok_or_else(|| node.fault("integer overflow")),
            Value::Double(value) => Ok(Value::Double(-value)),
            other => Err(node.no_overload("-", &[&other])),
        }
    }

    fn binary(&mut self, node: &Node, operator: Operator, one: &Value, other: &Value) -> Evaluated {
        match operator {
            Operator::Equal => Ok(Value::Bool(equality::equal(&mut self.budget, node, one, other)?)),
            Operator::NotEqual => Ok(Value::Bool(!equality::equal(&mut self.budget, node, one, other)?)),
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
                let order = equality::order(&mut self.budget, node, one, other)?;
                let order = order.ok_or_else(|| node.no_overload(operator.name(), &[one, other]))?;
                let is = |wanted: fn(Ordering) -> bool| Ok(Value::Bool(order.is_some_and(wanted)));
                match operator {
                    Operator::Less => is(Ordering::is_lt),
                    Operator::LessOrEqual => is(Ordering::is_le),
                    Operator::Greater => is(Ordering::is_gt),
                    _ => is(Ordering::is_ge),
                }
            }
            Operator::In => self.is_in(node, one, other),
            Operator::Index => index(&mut self.budget, node, one, other),
            Operator::Add => self.add(node, one, other),
            Operator::Subtract | Operator::Multiply | Operator::Divide | Operator::Modulo => {
                arithmetic(node, operator, one, other)
            }
        }
    }

    fn is_in(&mut self, node: &Node, one: &Value, other: &Value) -> Evaluated {
        match other {
            Value::List(list) => {
                for element in list.iter() {
                    if equality::equal(&mut self.budget, node, one, element)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            Value::Map(map) => {
                let Some(key) = one.key() else { return Ok(Value::Bool(false)) };
                self.budget.spend_bytes(node, key.text_len())?;
                Ok(Value::Bool(map.contains_key(&key)))
            }
            _ => Err(node.no_overload("in", &[one, other])),
        }
    }

    fn add(&mut self, node: &Node, one: &Value, other: &Value) -> Evaluated {
        match (one, other) {
            (Value::String(one), Value::String(other)) => {
                self.budget.allocate(node, one.len() + other.len())?;
                Ok(Value::String([one.as_ref(), other.as_ref()].concat().into()))
            }
            (Value::Bytes(one), Value::Bytes(other)) => {
                self.budget.allocate(node, one.len() + other.len())?;
                Ok(Value::Bytes([one.as_ref(), other.as_ref()].concat().into()))
            }
            (Value::List(one), Value::List(other)) => {
                self.budget.allocate(node, (one.len() + other.len()) * ELEMENT_BYTES)?;
                self.budget.spend(node, (one.len() + other.len()) as u64)?;
                Ok(Value::list(one.iter().chain(other.iter()).cloned().collect()))
            }
            _ => arithmetic(node, Operator::Add, one, other),
        }
    }

    fn matches(&mut self, node: &Node, text: &Node, pattern: &Pattern) -> Evaluated {
        match self.eval(text)? {
            Value::String(text) => {
                self.budget.spend(node, (text.len() as u64 / 4).saturating_mul(pattern.weight))?;
                Ok(Value::Bool(pattern.regex.is_match(&text)))
            }
            other => Err(node.no_overload("matches", &[&other])),
        }
    }

    fn comprehension(&mut self, node: &Node, of: &Loop) -> Evaluated {
        let range = match self.eval(&of.range)? {
            Value::List(list) => list,
            Value::Map(map) => {
                self.budget.allocate(node, map.len() * ELEMENT_BYTES)?;
                Arc::new(map.keys().map(Value::from).collect())
            }
            other => return Err(node.fault(format!("{} is neither a list nor a map", other.type_name()))),
        };
        let depth = self.variables.len();
        self.variables.push(Value::Null);
        let result = self.iterate(node, of, &range, depth);
        self.variables.truncate(depth);
        result
    }

    fn iterate(&mut self, node: &Node, of: &Loop, range: &[Value], depth: usize) -> Evaluated {
        let mut list = Vec::new();
        let (mut count, mut failed) = (0, None);
        for element in range {
            self.budget.spend(node, 1)?;
            if let Some(variable) = self.variables.get_mut(depth) {
                variable.clone_from(element);
            }
            let holds = match &of.condition {
                Some(condition) => self.holds(condition),
                None => Ok(true),
            };
            match (of.kind, holds) {
                (_, Err(fault)) if fault.is_fatal => return Err(fault),
                // An element that decides counts more than one that has failed.
                (LoopKind::All, Ok(false)) => return Ok(Value::Bool(false)),
                (LoopKind::Exists, Ok(true)) => return Ok(Value::Bool(true)),
                (LoopKind::All | LoopKind::Exists, Err(fault)) => failed = failed.or(Some(fault)),
                (LoopKind::All | LoopKind::Exists, Ok(_)) => {}
                (_, Err(fault)) => return Err(fault),
                (LoopKind::ExistsOne, Ok(holds)) => count += usize::from(holds),
                (LoopKind::List, Ok(false)) => {}
                (LoopKind::List, Ok(true)) => {
                    self.budget.allocate(node, ELEMENT_BYTES)?;
                    list.push(match &of.element {
                        Some(result) => self.eval(result)?,
                        None => element.clone(),
                    });
                }
            }
        }
        match (of.kind, failed) {
            (_, Some(fault)) => Err(fault),
            (LoopKind::All, None) => Ok(Value::Bool(true)),
            (LoopKind::Exists, None) => Ok(Value::Bool(false)),
            (LoopKind::ExistsOne, None) => Ok(Value::Bool(count == 1)),
            (LoopKind::List, None) => Ok(Value::list(list)),
        }
    }

    fn holds(&mut self, condition: &Node) -> Evaluated<bool> {
        match self.eval(condition)? {
            Value::Bool(value) => Ok(value),
            other => Err(condition.fault(format!("the condition is a bool, not {}", other.type_name()))),
        }
    }
}

fn index(budget: &mut Budget, node: &Node, one: &Value, other: &Value) -> Evaluated {
    match one {
        Value::List(list) => {
            let at = match other {
                Value::Double(value) => whole(*value).unwrap_or(Value::Null),
                other => other.clone(),
            };
            let at = match at {
                Value::Int(at) => usize::try_from(at).ok(),
                Value::Uint(at) => usize::try_from(at).ok(),
                _ => return Err(node.no_overload("[]", &[one, other])),
            };
            let found = at.and_then(|at| list.get(at)).cloned();
            found.ok_or_else(|| node.fault(format!("the index is outside of a list of {}", list.len())))
        }
        Value::Map(map) => {
            let key = other.key().ok_or_else(|| node.no_overload("[]", &[one, other]))?;
            budget.spend_bytes(node, key.text_len())?;
            map.get(&key).cloned().ok_or_else(|| node.fault("no such key"))
        }
        _ => Err(node.no_overload("[]", &[one, other])),
    }
}

fn arithmetic(node: &Node, operator: Operator, one: &Value, other: &Value) -> Evaluated {
    match number::arithmetic(operator, one, other).or_else(|problem| match problem {
        Problem::Types => time::arithmetic(operator, one, other),
        _ => Err(problem),
    }) {
        Ok(value) => Ok(value),
        Err(Problem::Types) => Err(node.no_overload(operator.name(), &[one, other])),
        Err(Problem::Overflow) => Err(node.fault(format!("the result of {} is out of range", operator.name()))),
        Err(Problem::DivisionByZero) => Err(node.fault("division by zero")),
    }
}

//! Compilation: the parse tree of the `cel` crate to our own form. Names and functions are resolved, macros are loops, and
//! regular expressions are compiled.

use std::sync::Arc;

use cel::{
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators},
    parser::{ParseError, Parser},
};
use regex::RegexBuilder;

use crate::{
    CompileError, DEPTH_MAX, EXPRESSION_BYTES_MAX, function,
    node::{Attribute, Fault, Kind, Loop, LoopKind, Node, Pattern},
    operator::Operator,
    value::{TYPES, Value},
};

/// Levels of parentheses, calls and conditionals that the parser follows.
const PARSER_DEPTH_MAX: u16 = 48;
/// Sizes of compiled regular expressions in bytes, which are tried in turn, and the steps of each for four bytes of text.
const PATTERN_SIZES: [(usize, u64); 4] = [(1 << 12, 1), (1 << 14, 4), (1 << 16, 16), (1 << 18, 64)];
/// Longest problem that is reported.
const MESSAGE_CHARS_MAX: usize = 200;
/// Name of the accumulator in the comprehensions that macros become. No identifier has it.
const ACCUMULATOR: &str = "@result";

pub(crate) fn compile(text: &str) -> Result<Node, CompileError> {
    let at_start = |message: String| CompileError { line: 1, column: 1, message };
    if text.trim().is_empty() {
        return Err(at_start("the expression is empty".into()));
    }
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(at_start(format!("the expression has more than {EXPRESSION_BYTES_MAX} bytes")));
    }
    let parser = Parser::new().max_recursion_depth(PARSER_DEPTH_MAX).error_recovery_limit(1);
    let (tree, source) = parser.parse_with_source_info(text).map_err(|errors| {
        errors.errors.iter().map(of_parser).next().unwrap_or_else(|| at_start("it is not an expression".into()))
    })?;
    let mut compiler = Compiler { text, source, variables: Vec::new() };
    compiler.node(&tree, 0).map_err(|fault| {
        let (line, column) = position(text, fault.at);
        CompileError { line, column, message: shortened(&fault.message) }
    })
}

/// Line and column, each from 1, of an offset in bytes.
pub(crate) fn position(text: &str, at: u32) -> (usize, usize) {
    let at = text.floor_char_boundary(at as usize);
    let before = text.get(..at).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count();
    (before.matches('\n').count() + 1, column + 1)
}

fn of_parser(error: &ParseError) -> CompileError {
    let place = |at: isize| usize::try_from(at).unwrap_or(1).max(1);
    let (line, column) = (place(error.pos.0), place(error.pos.1));
    let message = if error.msg.contains("Recursion limit") {
        format!("the expression is nested more than {PARSER_DEPTH_MAX} deep")
    } else {
        shortened(error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg))
    };
    CompileError { line, column, message }
}

/// One line of a bounded length.
fn shortened(message: &str) -> String {
    message
        .chars()
        .take(MESSAGE_CHARS_MAX)
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect()
}

struct Compiler<'a> {
    text: &'a str,
    source: SourceInfo,
    /// Variables of the comprehensions around the present part.
    variables: Vec<String>,
}

type Compiled<T = Node> = Result<T, Fault>;

impl Compiler<'_> {
    fn at(&self, tree: &IdedExpr) -> u32 {
        let at = self.source.offset_for(tree.id).map_or(0, |(start, _)| start);
        at.min(self.text.len() as u32)
    }

    fn node(&mut self, tree: &IdedExpr, depth: usize) -> Compiled {
        let at = self.at(tree);
        let fault = |message: String| Fault { at, message, is_fatal: false };
        if depth > DEPTH_MAX {
            return Err(fault(format!("the expression is nested more than {DEPTH_MAX} deep")));
        }
        let kind = match &tree.expr {
            Expr::Literal(literal) => Kind::Literal(of_literal(literal)),
            Expr::Ident(name) => self.name(name).map_err(fault)?,
            Expr::Select(select) => {
                if let Some(attribute) = self.attribute(&select.operand, &select.field).map_err(fault)? {
                    let of_event = Node { at, kind: Kind::Attribute(attribute) };
                    if select.test {
                        let null = Node { at, kind: Kind::Literal(Value::Null) };
                        Kind::Binary(Operator::NotEqual, Box::new((of_event, null)))
                    } else {
                        of_event.kind
                    }
                } else {
                    let operand = Box::new(self.node(&select.operand, depth + 1)?);
                    let field: Arc<str> = select.field.as_str().into();
                    if select.test { Kind::Has(operand, field) } else { Kind::Select(operand, field) }
                }
            }
            Expr::List(list) if list.optional_indices.is_empty() => Kind::List(self.nodes(&list.elements, depth)?),
            Expr::Map(map) => {
                let mut members = Vec::with_capacity(map.entries.len());
                for entry in &map.entries {
                    match &entry.expr {
                        EntryExpr::MapEntry(entry) if !entry.optional => {
                            members.push((self.node(&entry.key, depth + 1)?, self.node(&entry.value, depth + 1)?));
                        }
                        _ => return Err(fault("optional members are not supported".into())),
                    }
                }
                Kind::Map(members)
            }
            Expr::Call(call) => self.call(call, depth, &fault)?,
            Expr::Comprehension(of) => Kind::Loop(Box::new(self.comprehension(of, depth, &fault)?)),
            Expr::Struct(of) => return Err(fault(format!("{}: there are no messages", of.type_name))),
            Expr::List(_) => return Err(fault("optional elements are not supported".into())),
            Expr::Unspecified => return Err(fault("it is not an expression".into())),
        };
        Ok(Node { at, kind })
    }

    fn nodes(&mut self, trees: &[IdedExpr], depth: usize) -> Compiled<Vec<Node>> {
        trees.iter().map(|tree| self.node(tree, depth + 1)).collect()
    }

    fn name(&self, name: &str) -> Result<Kind, String> {
        if let Some(depth) = self.variables.iter().rposition(|known| known == name) {
            return Ok(Kind::Variable(depth));
        }
        match name {
            "data" => Ok(Kind::Data),
            "event" => Ok(Kind::Event),
            _ => match TYPES.into_iter().find(|known| *known == name) {
                Some(known) => Ok(Kind::Literal(Value::Type(known))),
                None => Err(format!("unknown name {name}; there are event and data")),
            },
        }
    }

    /// The attribute that a selection names; `None` if it is not one of `event`.
    fn attribute(&self, operand: &IdedExpr, field: &str) -> Result<Option<Attribute>, String> {
        let is_event = matches!(&operand.expr, Expr::Ident(name) if name == "event");
        if !is_event || self.variables.iter().any(|name| name == "event") {
            return Ok(None);
        }
        let found = Attribute::ALL.into_iter().find(|attribute| attribute.name() == field);
        let names = || Attribute::ALL.map(Attribute::name).join(", ");
        found.map(Some).ok_or_else(|| format!("event has no {field}; it has {}", names()))
    }

    fn call(&mut self, call: &CallExpr, depth: usize, fault: &impl Fn(String) -> Fault) -> Compiled<Kind> {
        let mut arguments = Vec::with_capacity(call.args.len() + 1);
        if let Some(target) = &call.target {
            arguments.push(self.node(target, depth + 1)?);
        }
        if call.func_name == "matches" {
            return self.matches(call, arguments, depth, fault);
        }
        arguments.extend(self.nodes(&call.args, depth)?);
        if call.target.is_none() {
            arguments = match operator(&call.func_name, arguments) {
                Ok(kind) => return Ok(kind),
                Err(arguments) => arguments,
            };
        }
        let function = function::find(&call.func_name, call.target.is_some(), arguments.len()).map_err(fault)?;
        Ok(Kind::Call(function, arguments))
    }

    /// `text.matches(pattern)` or `matches(text, pattern)`.
    fn matches(
        &mut self,
        call: &CallExpr,
        mut target: Vec<Node>,
        depth: usize,
        fault: &impl Fn(String) -> Fault,
    ) -> Compiled<Kind> {
        let pattern = match (target.len(), call.args.as_slice()) {
            (1, [pattern]) => pattern,
            (0, [text, pattern]) => {
                target.push(self.node(text, depth + 1)?);
                pattern
            }
            _ => return Err(fault("matches takes a text and a pattern".into())),
        };
        let Expr::Literal(LiteralValue::String(literal)) = &pattern.expr else {
            return Err(fault("the pattern of matches is a literal text".into()));
        };
        let pattern = self.pattern(pattern, literal.inner())?;
        let text = target.pop().ok_or_else(|| fault("matches takes a text and a pattern".into()))?;
        Ok(Kind::Matches(Box::new(text), Box::new(pattern)))
    }

    fn pattern(&self, tree: &IdedExpr, text: &str) -> Compiled<Pattern> {
        let fault = |message: String| Fault { at: self.at(tree), message, is_fatal: false };
        for (bytes, weight) in PATTERN_SIZES {
            match RegexBuilder::new(text).size_limit(bytes).build() {
                Ok(regex) => return Ok(Pattern { regex, weight }),
                Err(regex::Error::CompiledTooBig(_)) => {}
                Err(error) => {
                    let message = error.to_string();
                    let last = message.lines().last().unwrap_or_default().trim();
                    return Err(fault(format!("pattern: {}", last.strip_prefix("error: ").unwrap_or(last))));
                }
            }
        }
        Err(fault("the pattern is too large; use fewer repetitions or classes".into()))
    }

    /// The loop of a macro, recognised by how its accumulator starts and what each step makes of it.
    fn comprehension(
        &mut self,
        of: &ComprehensionExpr,
        depth: usize,
        fault: &impl Fn(String) -> Fault,
    ) -> Compiled<Loop> {
        let range = self.node(&of.iter_range, depth + 1)?;
        let unknown = || fault("unknown macro".into());
        if of.accu_var != ACCUMULATOR || of.iter_var2.is_some() {
            return Err(unknown());
        }
        let Expr::Call(step) = &of.loop_step.expr else { return Err(unknown()) };
        let (kind, condition, element) = match (&of.accu_init.expr, step.func_name.as_str(), step.args.as_slice()) {
            (Expr::Literal(LiteralValue::Boolean(_)), operators::LOGICAL_AND, [_, condition]) => {
                (LoopKind::All, Some(condition), None)
            }
            (Expr::Literal(LiteralValue::Boolean(_)), operators::LOGICAL_OR, [_, condition]) => {
                (LoopKind::Exists, Some(condition), None)
            }
            (Expr::Literal(LiteralValue::Int(_)), operators::CONDITIONAL, [condition, ..]) => {
                (LoopKind::ExistsOne, Some(condition), None)
            }
            (Expr::List(_), operators::CONDITIONAL, [condition, step, _]) => {
                (LoopKind::List, Some(condition), Some(added(step).ok_or_else(unknown)?))
            }
            (Expr::List(_), operators::ADD, _) => {
                (LoopKind::List, None, Some(added(&of.loop_step).ok_or_else(unknown)?))
            }
            _ => return Err(unknown()),
        };
        self.variables.push(of.iter_var.clone());
        let condition = condition.map(|tree| self.node(tree, depth + 1)).transpose();
        let element = element.map(|tree| self.node(tree, depth + 1)).transpose();
        self.variables.pop();
        Ok(Loop { kind, range, condition: condition?, element: element? })
    }
}

/// The element that `@result + [element]` adds.
fn added(step: &IdedExpr) -> Option<&IdedExpr> {
    match &step.expr {
        Expr::Call(CallExpr { func_name, args, .. }) if func_name == operators::ADD => match args.as_slice() {
            [_, IdedExpr { expr: Expr::List(list), .. }] => list.elements.first(),
            _ => None,
        },
        _ => None,
    }
}

fn of_literal(literal: &LiteralValue) -> Value {
    match literal {
        LiteralValue::Boolean(value) => Value::Bool(*value.inner()),
        LiteralValue::Bytes(bytes) => Value::Bytes(bytes.inner().to_vec().into()),
        LiteralValue::Double(value) => Value::Double(*value.inner()),
        LiteralValue::Int(value) => Value::Int(*value.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(text) => Value::string(text.inner()),
        LiteralValue::UInt(value) => Value::Uint(*value.inner()),
    }
}

/// The operator of a name with its operands; the operands where the name is none.
fn operator(name: &str, operands: Vec<Node>) -> Result<Kind, Vec<Node>> {
    let binary = match name {
        operators::ADD => Some(Operator::Add),
        operators::SUBSTRACT => Some(Operator::Subtract),
        operators::MULTIPLY => Some(Operator::Multiply),
        operators::DIVIDE => Some(Operator::Divide),
        operators::MODULO => Some(Operator::Modulo),
        operators::EQUALS => Some(Operator::Equal),
        operators::NOT_EQUALS => Some(Operator::NotEqual),
        operators::LESS => Some(Operator::Less),
        operators::LESS_EQUALS => Some(Operator::LessOrEqual),
        operators::GREATER => Some(Operator::Greater),
        operators::GREATER_EQUALS => Some(Operator::GreaterOrEqual),
        operators::IN => Some(Operator::In),
        operators::INDEX => Some(Operator::Index),
        _ => None,
    };
    match operands.len() {
        1 if name == operators::LOGICAL_NOT || name == operators::NEGATE => {
            let [operand]: [Node; 1] = operands.try_into()?;
            let operand = Box::new(operand);
            Ok(if name == operators::NEGATE { Kind::Negate(operand) } else { Kind::Not(operand) })
        }
        2 if binary.is_some() || name == operators::LOGICAL_AND || name == operators::LOGICAL_OR => {
            let sides: [Node; 2] = operands.try_into()?;
            let sides = Box::new(sides.into());
            Ok(match binary {
                Some(operator) => Kind::Binary(operator, sides),
                None if name == operators::LOGICAL_AND => Kind::And(sides),
                None => Kind::Or(sides),
            })
        }
        3 if name == operators::CONDITIONAL => {
            let parts: [Node; 3] = operands.try_into()?;
            Ok(Kind::If(Box::new(parts.into())))
        }
        _ => Err(operands),
    }
}

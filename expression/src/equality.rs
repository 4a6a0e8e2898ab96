//! Equality and order of values.

use std::cmp::Ordering;

use crate::{
    budget::Budget,
    node::{Fault, Node},
    number,
    value::Value,
};

/// Whether two values are equal. Values of different types are not; numbers are compared by their values. Costs a step
/// for each part.
pub(crate) fn equal(budget: &mut Budget, node: &Node, one: &Value, other: &Value) -> Result<bool, Fault> {
    budget.spend(node, 1)?;
    if let Some(order) = number::compare(one, other) {
        return Ok(order == Some(Ordering::Equal));
    }
    Ok(match (one, other) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(one), Value::Bool(other)) => one == other,
        (Value::String(one), Value::String(other)) => {
            budget.spend_bytes(node, one.len().min(other.len()))?;
            one == other
        }
        (Value::Bytes(one), Value::Bytes(other)) => {
            budget.spend_bytes(node, one.len().min(other.len()))?;
            one == other
        }
        (Value::Timestamp(one), Value::Timestamp(other)) => one == other,
        (Value::Duration(one), Value::Duration(other)) => one == other,
        (Value::Type(one), Value::Type(other)) => one == other,
        (Value::List(one), Value::List(other)) => {
            if one.len() != other.len() {
                return Ok(false);
            }
            for (one, other) in one.iter().zip(other.iter()) {
                if !equal(budget, node, one, other)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Map(one), Value::Map(other)) => {
            if one.len() != other.len() {
                return Ok(false);
            }
            for (key, one) in one.iter() {
                budget.spend_bytes(node, key.text_len())?;
                let Some(other) = other.get(key) else { return Ok(false) };
                if !equal(budget, node, one, other)? {
                    return Ok(false);
                }
            }
            true
        }
        _ => false,
    })
}

/// The order of two values of one type, or of two numbers; `None` where a number is not one.
pub(crate) fn order(
    budget: &mut Budget,
    node: &Node,
    one: &Value,
    other: &Value,
) -> Result<Option<Option<Ordering>>, Fault> {
    if let Some(order) = number::compare(one, other) {
        return Ok(Some(order));
    }
    Ok(Some(Some(match (one, other) {
        (Value::Bool(one), Value::Bool(other)) => one.cmp(other),
        (Value::String(one), Value::String(other)) => {
            budget.spend_bytes(node, one.len().min(other.len()))?;
            one.cmp(other)
        }
        (Value::Bytes(one), Value::Bytes(other)) => {
            budget.spend_bytes(node, one.len().min(other.len()))?;
            one.cmp(other)
        }
        (Value::Timestamp(one), Value::Timestamp(other)) => one.cmp(other),
        (Value::Duration(one), Value::Duration(other)) => one.cmp(other),
        _ => return Ok(None),
    })))
}

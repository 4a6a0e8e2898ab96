//! Demo.
pub mod check;

//! The operator's commands: `weft <noun> <verb>`.

pub mod admin;
pub mod dlq;
pub mod event;
pub mod listen;
pub mod output;
pub mod prompt;
pub mod rejected;
pub mod select;
pub mod sign;
pub mod view;

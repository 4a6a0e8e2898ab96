//! The operator's commands: `weft <noun> <verb>`.

pub mod admin;
pub mod audit;
pub mod catalog;
pub mod check;
pub mod common;
pub mod config;
pub mod dlq;
pub mod event;
pub mod healthcheck;
mod json;
mod lag;
pub mod listen;
pub mod nats;
pub mod output;
mod paging;
pub mod prompt;
pub mod rejected;
pub mod replay;
pub mod select;
pub mod shard;
pub mod sign;
pub mod stats;
pub mod terminal;
pub mod top;
pub mod verify;
pub mod view;
pub mod workflow;

use std::{fs, io::Read as _};

use crate::failure::Failure;

/// The data that a flag names: itself, @FILE, or - for standard input.
fn read_data(flag: &str, data: &str) -> Result<String, Failure> {
    let read = if data == "-" {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else if let Some(path) = data.strip_prefix('@') {
        fs::read_to_string(path)
    } else {
        return Ok(data.to_owned());
    };
    read.map_err(|error| Failure::Failed(format!("{flag} {data}: {error}")))
}

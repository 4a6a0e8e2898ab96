//! Through: the way of an event from the log to its receivers.
//!
//! ordered reader → match ([`matching`]) → lanes ([`lane`], pure) → destination ([`destination`]) → commit on OUTCOMES →
//! ledger ([`ledger`]). The driver ([`driver`]) is the only place that waits. Between this crate and the gateways only
//! the log passes.
//!
//! A program may embed it, with code of its own to deliver to: [`Worker::builder`].

mod adopt;
pub mod builder;
pub mod destination;
pub mod driver;
mod identity;
pub mod lane;
pub mod ledger;
mod log;
pub mod matching;
pub mod metrics;
pub mod options;
mod owner;
pub mod ownership;
pub mod service;
mod shares;

pub use builder::WorkerBuilder;
pub use options::WorkerOptions;
pub use service::Worker;

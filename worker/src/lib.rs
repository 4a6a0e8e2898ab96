//! The worker: delivers events from the log to receivers.
//!
//! ordered reader → match ([`matching`]) → lanes ([`lane`], pure) → destination ([`destination`]) → commit on OUTCOMES →
//! ledger ([`ledger`]). Only the driver ([`driver`]) waits. This crate and the gateways share nothing but the log.
//!
//! A program may embed a worker, with destinations that are its own code: [`Worker::builder`].

mod adopt;
pub mod builder;
pub mod destination;
pub mod driver;
pub mod lane;
pub mod ledger;
mod log;
pub mod matching;
pub mod metrics;
pub mod options;
mod owner;
pub mod ownership;
mod readiness;
pub mod service;
mod shares;
mod stream_identity;
#[cfg(feature = "testing")]
pub mod testing;

pub use builder::WorkerBuilder;
pub use options::WorkerOptions;
pub use service::Worker;

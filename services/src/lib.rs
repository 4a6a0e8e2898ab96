//! The `weft` binary's parts: the roles in one process or in several, and the operator's commands.
//!
//! - [`config`]: `weft.toml` with its environment variables; errors in one line.
//! - [`up`] and [`role`]: the processes; [`roles`] starts and drains, [`health_http`] serves health and metrics, [`apply`] writes the
//!   file's sources and subscriptions into the catalog, [`data`] is the folder,
//!   [`deliveries`] connects the admin's test deliveries with the worker's code.
//! - [`command`]: the operator's commands, one file or folder each.
//! - [`sender`] and [`receiver`]: both ends of a mesh, for commands, proofs and tests.
//! - [`demo`]: a [`mesh`] of real [`process`]es, and the proof of its promises.
//!
//! The library exists for the `weft` binary, its benchmarks and its tests.

pub mod apply;
pub mod command;
pub mod config;
pub mod data;
pub mod deliveries;
pub mod demo;
pub mod failure;
pub mod health_http;
pub mod mesh;
pub mod process;
pub mod ready_output;
pub mod receiver;
pub mod role;
pub mod roles;
pub mod sender;
pub mod signal;
pub mod telemetry;
pub mod traces;
pub mod up;

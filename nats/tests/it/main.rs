//! The log against a real nats-server.

mod broker;
mod catalog;
mod checkpoints;
mod log;
mod scan;
mod server;
mod streams;
mod tail;
mod testing;
mod users;

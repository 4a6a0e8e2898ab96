//! The log against a real nats-server.

mod checkpoints;
mod log;
mod scan;
mod server;
mod streams;
mod tail;
mod testing;

//! The log against a real nats-server.

mod log;
mod testing;

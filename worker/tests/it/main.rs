//! The worker against a real nats-server and real receivers.

mod commands;
mod delivering;
mod embedded;
mod faults;
mod http;
mod isolation;
mod leases;
mod shares;
mod support;

//! The worker against a real nats-server and real receivers.

mod delivering;
mod http;
mod leases;
mod support;

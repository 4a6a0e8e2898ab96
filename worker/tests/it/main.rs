//! The worker against a real nats-server and real receivers.

mod delivering;
mod faults;
mod http;
mod leases;
mod support;

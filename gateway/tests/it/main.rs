//! The gateway over a real nats-server: real sockets, real streams, real receipts.

mod http;
mod mesh;
mod sequencer;
mod service;
mod since;
mod stream;
mod webhooks;

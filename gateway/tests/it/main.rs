//! The gateway over a real nats-server: real sockets, real streams, real receipts.

mod admission;
mod erased;
mod events;
mod hostile;
mod http;
mod http_rules;
mod keys;
mod mesh;
mod overload;
mod providers;
mod rejected;
mod rpc;
mod sample;
mod sequencer;
mod service;
mod since;
mod stream;
mod tls;
mod webhooks;

//! The worker against a real nats-server and real receivers.

mod batches;
mod behind;
mod checkpoints;
mod commands;
mod copies;
mod delivering;
mod embedded;
mod expiry;
mod expressions;
mod faults;
mod full;
mod grpc;
mod http;
mod identity;
mod isolation;
mod leases;
mod nats;
mod orphans;
mod repeated;
mod revisions;
mod shares;
mod subscriptions;
mod support;
mod twins;
mod unordered;
mod unreachable;

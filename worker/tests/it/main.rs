//! The worker against a real nats-server and real receivers.

mod batches;
mod behind;

mod checkpoints;
mod commands;
mod copies;
mod delivering;
mod embedded;
mod erased;
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
mod postgres;
mod repeated;
mod revisions;
mod shares;
mod slow_receiver;
mod subscriptions;
mod support;
mod twins;
mod unordered;
mod unreachable;

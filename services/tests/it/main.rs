//! The binary as a process: what it says when it cannot start, and what it does when it can.

mod apply;
mod bodies;
mod catalog;
mod clock;
mod cluster;
mod commands;
mod drain;
mod failover;
mod faults;
mod full;
mod gateways;
mod load;
mod mesh;
mod order;
mod orphans;
mod outage;
mod refusals;
mod rejected;
mod restore;
mod roles;
mod schemas;
mod secrets;
mod signing;
mod starts;
mod tls;
mod up;

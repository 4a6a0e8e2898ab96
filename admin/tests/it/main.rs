//! The admin over a real nats-server and real sockets. The test plays gateway and worker: it appends events, commits and
//! copies itself.

mod audit;
mod catalog;
mod component;
mod console;
mod dead_letters;
mod erase;
mod events;
mod keys;
mod lag;
mod limits;
mod listed;
mod mesh;
mod orders;
mod rejected;
mod stats;

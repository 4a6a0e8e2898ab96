//! HTTP connections of a role's port: accepted within bounds, secured, served as HTTP/1.1 or HTTP/2, drained.
//!
//! - [`server`]: the accept loop and draining.
//! - [`descriptors`]: the process's limit of open files, from which the bounds follow.
//! - `connection_limit`: the number of connections, in total and per network; the longest idle one is evicted.
//! - [`options`]: options of a port, and time-outs.
//! - `connection`: one connection, from its first byte to its last.
//! - [`request`]: rules of HTTP that hyper does not enforce, and answers to requests that reach no route.
//! - [`framing`]: the message boundaries of an HTTP/1 connection, as far as those rules need them.
//! - `transport`: the byte stream below hyper: framing is observed, hyper's own answers are replaced, and a connection
//!   whose request was not read to its end lingers before it is closed.
//! - [`request_limit`]: concurrent requests on a connection without authenticated requests yet.

mod connection;
mod connection_limit;
pub mod descriptors;
pub mod framing;
pub mod network;
pub mod options;
pub mod request;
pub mod request_limit;
pub mod server;
#[cfg(test)]
mod tests;
mod transport;

pub use connection_limit::Connections;
pub use network::{Peer, network};
pub use options::{Counters, Options};
pub use request::Malformed;
pub use request_limit::RequestLimit;
pub use server::serve;

//! Options of a port, and the time-outs of its connections.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    Connections,
    request::{Answer, plain_text},
    request_limit::STREAMS_MAX,
    transport::Linger,
};

/// Options of a port.
#[derive(Clone)]
pub struct Options {
    /// Name of the port in the log, such as `gateway`.
    pub port: &'static str,
    /// Limits of its connections.
    pub connections: Connections,
    /// Addresses without the limit per network, such as trusted proxies.
    pub exempt: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
    /// Answers requests that reach no route.
    pub answer: Answer,
    /// Maximum number of concurrent requests on one HTTP/2 connection; at most [`STREAMS_MAX`].
    pub streams: u32,
    /// Names of the counters; `None`: nothing is counted.
    pub counters: Option<Counters>,
}

/// Names of the counters of connections.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    /// Connections opened.
    pub opened: &'static str,
    /// Connections closed.
    pub closed: &'static str,
    /// Connections closed at once, because their network has too many.
    pub refused: &'static str,
}

/// Time-outs of connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// From a connection to its first request.
    pub first_head: Duration,
    /// For a later request's head, and so between requests. Longer than the time for which senders keep an idle connection,
    /// mostly 60 s or less, so that both ends seldom act at once.
    pub next_head: Duration,
    /// For the first request of a connection that was opened just before draining began: it may be in flight already.
    pub last_head: Duration,
    /// For the rest of a request that was answered before its end.
    pub linger: Linger,
    /// For the requests in flight when draining begins: longer than any of them waits for the log.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_head: Duration::from_secs(10),
            next_head: Duration::from_secs(75),
            last_head: Duration::from_millis(500),
            linger: Linger { total: Duration::from_secs(30), idle: Duration::from_secs(5) },
            drain: Duration::from_secs(15),
        }
    }
}

impl Options {
    /// A port with these limits that answers malformed requests in plain text.
    pub fn new(port: &'static str, connections: Connections) -> Self {
        Self {
            port,
            connections,
            exempt: Arc::new(|_| false),
            answer: Arc::new(plain_text),
            streams: STREAMS_MAX,
            counters: None,
        }
    }
}

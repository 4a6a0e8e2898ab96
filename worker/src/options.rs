//! `[worker]`.

use serde::Deserialize;
use weft_nats::options::Span;

/// Options of `[worker]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerOptions {
    /// Maximum number of attempts in flight in this process, divided among the shards that it owns.
    pub concurrency: usize,
    /// Time to live of a shard's lease, after which another worker takes the shard.
    pub lease: Span,
    /// Private networks that may be called. `weft up` adds 127.0.0.0/8 and ::1.
    pub allow_networks: Vec<ipnet::IpNet>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self { concurrency: 512, lease: Span::secs(3), allow_networks: Vec::new() }
    }
}

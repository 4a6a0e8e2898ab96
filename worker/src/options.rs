//! `[worker]`.

use serde::Deserialize;
use weft_nats::options::Span;

/// `[worker]`: delivering.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerOptions {
    /// Attempts in flight in this process, at the most: divided among the shards that it owns at present.
    pub concurrency: usize,
    /// How long a shard's lease lives without renewal; another worker takes the shard after that.
    pub lease: Span,
    /// Private networks that destinations may lie in. `weft up` adds 127.0.0.0/8 and ::1.
    pub allow_networks: Vec<ipnet::IpNet>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self { concurrency: 512, lease: Span::secs(3), allow_networks: Vec::new() }
    }
}

//! `[worker]`.

use serde::{Deserialize, Deserializer, de::Error as _};
use weft_nats::options::Span;

use crate::destination::address::{AddressRules, DENY_PORTS_DEFAULT};

/// Options of `[worker]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerOptions {
    /// Maximum number of attempts in flight in this process, divided among the shards that it owns.
    pub concurrency: usize,
    /// Time to live of a shard's lease, after which another worker takes the shard.
    pub lease: Span,
    /// Private networks that may be called.
    pub allow_networks: Vec<ipnet::IpNet>,
    /// Ports that must not be called on any address.
    #[serde(deserialize_with = "ports")]
    pub deny_ports: Vec<u16>,
    /// Ports that may be called on loopback addresses: those of the receivers in the file of `weft up`.
    #[serde(skip)]
    pub loopback_ports: Vec<u16>,
}

impl WorkerOptions {
    /// Which addresses may be called.
    pub fn address_rules(&self) -> AddressRules {
        AddressRules {
            allow_networks: self.allow_networks.clone(),
            loopback_ports: self.loopback_ports.clone(),
            deny_ports: self.deny_ports.clone(),
        }
    }
}

/// Ports as numbers, or as texts: an environment variable holds texts.
fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Port {
        Number(u16),
        Text(String),
    }
    let port = |port| match port {
        Port::Number(port) => Ok(port),
        Port::Text(text) => text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not a port"))),
    };
    Vec::<Port>::deserialize(deserializer)?.into_iter().map(port).collect()
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            concurrency: 512,
            lease: Span::secs(3),
            allow_networks: Vec::new(),
            deny_ports: DENY_PORTS_DEFAULT.to_vec(),
            loopback_ports: Vec::new(),
        }
    }
}

//! `[gateway]`.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;
use serde::Deserialize;
use weft_nats::options::Span;
use weft_tls::TlsOptions;

use crate::admission::Rate;

/// `[gateway]`: the HTTP API.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayOptions {
    /// Where the HTTP API listens. Port 0: a free one.
    pub listen: SocketAddr,
    /// The largest body taken, at most 8 MiB. A body of exactly this size is taken.
    pub max_body: bytesize::ByteSize,
    /// How long the port stays open once draining has begun and `/readyz` says so: what load balancers need to notice.
    /// At most [`DRAIN_DELAY_MAX`].
    pub drain_delay: Span,
    /// How many levels of objects and arrays JSON may have: what many receivers can read.
    pub max_depth: usize,
    /// Limits of requests, by address, source and key.
    pub rate_limit: RateLimits,
    /// Networks of proxies whose `X-Forwarded-For` or `Forwarded` is trusted. Empty: these headers are ignored.
    pub trusted_proxies: Vec<IpNet>,
    /// Certificate and key. Empty: plain HTTP.
    pub tls: TlsOptions,
}

/// The longest `drain_delay`. A process manager kills what does not end for minutes.
pub const DRAIN_DELAY_MAX: Span = Span::secs(5 * 60);

/// `rate_limit = { per_ip = "600/min", per_source = "off", per_key = "60000/min" }`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Refused requests of one address; accepted ones never count.
    pub per_ip: Rate,
    /// Verified webhooks of one source.
    pub per_source: Rate,
    /// Requests with one API key.
    pub per_key: Rate,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { per_ip: Rate::per_minute(600), per_source: Rate::Off, per_key: Rate::per_minute(60_000) }
    }
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body: bytesize::ByteSize::mib(1),
            drain_delay: Span(Duration::ZERO),
            max_depth: 512,
            rate_limit: RateLimits::default(),
            trusted_proxies: Vec::new(),
            tls: TlsOptions::default(),
        }
    }
}

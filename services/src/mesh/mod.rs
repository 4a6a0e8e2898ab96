//! A mesh of real processes between a sender and a receiver of ours: [`Up`] is one `weft up`; [`Nats`] and
//! [`RoleProcess`] are its parts as separate processes. The demo, the benchmarks and the process tests use it.

mod nats;
mod role;
mod up;

use std::{fmt, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};

pub use nats::Nats;
pub use role::RoleProcess;
pub use up::Up;

use crate::sender::{Scheme, Signing};

/// The one source.
pub const SOURCE: &str = "shop";
/// The one subscription.
pub const SUBSCRIPTION: &str = "billing";

/// Bytes of a secret that is made.
const SECRET_BYTES: usize = 32;

/// Sender, receiver and retry policy of a mesh.
#[derive(Clone)]
pub struct Wiring {
    /// The sender's secret.
    pub sender_secret: String,
    /// The receiver's secret.
    pub receiver_secret: String,
    /// The subscription's `retry`, as the configuration writes it.
    pub retry: String,
    /// The subscription's `timeout`, as the configuration writes it.
    pub timeout: String,
    /// The subscription's `batch.max_events`.
    pub max_events: u32,
}

impl Wiring {
    /// New secrets; retries after 50 ms, 100 ms and 200 ms.
    pub fn new() -> Self {
        Self {
            sender_secret: secret(),
            receiver_secret: secret(),
            retry: r#"{ max_retries = 3, base = "50ms", factor = 2.0, max = "1s" }"#.into(),
            timeout: "5s".into(),
            max_events: 1,
        }
    }

    /// How the sender signs.
    pub fn signing(&self) -> Signing {
        Signing::new(Scheme::Standard, self.sender_secret.as_str())
    }

    /// The configuration: the source, and the subscription of the receiver at `receiver`; without one, only the source.
    pub fn config(&self, receiver: Option<&str>) -> String {
        let Self { sender_secret, receiver_secret, retry, timeout, max_events } = self;
        let mut text = format!(
            "[[source]]\nname = \"{SOURCE}\"\nverify = {{ scheme = \"standard\", secrets = [\"{sender_secret}\"] }}\n"
        );
        if let Some(url) = receiver {
            text.push_str(&format!(
                "[[subscription]]\nname = \"{SUBSCRIPTION}\"\ntimeout = \"{timeout}\"\nretry = {retry}\n\
                 batch = {{ max_events = {max_events} }}\n\
                 destination = {{ type = \"http\", url = \"{url}\", secret = \"{receiver_secret}\" }}\n"
            ));
        }
        text
    }
}

/// Without the secrets.
impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring").field("retry", &self.retry).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Default for Wiring {
    fn default() -> Self {
        Self::new()
    }
}

/// A new Standard Webhooks secret.
pub fn secret() -> String {
    format!("whsec_{}", STANDARD.encode(rand::random::<[u8; SECRET_BYTES]>()))
}

/// This program, which the parts of a mesh are run by.
///
/// # Errors
///
/// When the system does not say where it is.
pub fn weft_program() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn its_configuration_is_valid() {
        let text = Wiring::new().config(Some("http://127.0.0.1:1/"));
        let config = Config::parse(Path::new("weft.toml"), text, [], None).unwrap();
        assert_eq!((config.catalog.sources.len(), config.catalog.subscriptions.len()), (1, 1));
    }
}

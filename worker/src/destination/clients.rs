//! The HTTP clients of the process: one for all receivers of a scheme, since each holds a TLS configuration and its roots.

use std::{
    sync::{Mutex, Once, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use reqwest::{Client, ClientBuilder};
use rustls::{ClientConfig, RootCertStore};

use super::resolver::GuardedResolver;

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Unused connections that are kept for a receiver: as many as one process makes attempts at a time by default.
const IDLE_PER_HOST: usize = 512;

/// The clients, made when they are first needed.
#[derive(Debug)]
pub struct HttpClients {
    resolver: GuardedResolver,
    plain: Mutex<Option<Client>>,
    secure: Mutex<Option<Client>>,
}

impl HttpClients {
    /// `allow_networks`: private networks that may be called.
    pub fn new(allow_networks: Vec<IpNet>) -> Self {
        Self {
            resolver: GuardedResolver::new(allow_networks.into()),
            plain: Mutex::default(),
            secure: Mutex::default(),
        }
    }

    /// Private networks that may be called.
    pub fn allow_networks(&self) -> &[IpNet] {
        self.resolver.allow_networks()
    }

    /// Names to addresses that may be called.
    pub fn resolver(&self) -> &GuardedResolver {
        &self.resolver
    }

    /// The client for `https`, or for `http`. What could not be made is tried again with the next call.
    pub(super) fn of(&self, secure: bool) -> Result<Client, String> {
        let slot = if secure { &self.secure } else { &self.plain };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let client = if secure { self.secure() } else { self.plain() };
        let client = client.map_err(|error| Chain(&error).innermost())?;
        Ok(slot.insert(client).clone())
    }

    fn builder(&self) -> ClientBuilder {
        install_crypto();
        Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .dns_resolver(self.resolver.clone())
    }

    /// Trusts no root, and needs none: it also works where there is no certificate at all.
    fn plain(&self) -> reqwest::Result<Client> {
        install_crypto();
        self.builder().tls_backend_preconfigured(trusting(RootCertStore::empty())).build()
    }

    /// Trusts the system's roots; where there are none, such as in a minimal container, those of Mozilla.
    fn secure(&self) -> reqwest::Result<Client> {
        let error = match self.builder().build() {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        let cause = Chain(&error).innermost();
        tracing::warn!(cause, "the system's root certificates cannot be used; the built-in ones of Mozilla are");
        let roots = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
        self.builder().tls_backend_preconfigured(trusting(roots)).build()
    }
}

fn trusting(roots: RootCertStore) -> ClientConfig {
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// The process-wide TLS provider; a second installation is of no account.
fn install_crypto() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

/// An error and its causes.
pub(super) struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl<'a> Chain<'a> {
    fn causes(&self) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
        // An `io::Error` names as its source not what it wraps, but the source of that.
        let wrapped = |error: &'a (dyn std::error::Error + 'static)| {
            let inner: &'a (dyn std::error::Error + 'static) = error.downcast_ref::<std::io::Error>()?.get_ref()?;
            Some(inner)
        };
        std::iter::successors(Some(self.0), move |error| wrapped(*error).or_else(|| error.source()))
    }

    /// The first of a kind.
    pub fn find<T: std::error::Error + 'static>(&self) -> Option<&'a T> {
        self.causes().find_map(|error| error.downcast_ref::<T>())
    }

    /// What happened; the outer ones only say what was being done.
    pub fn innermost(&self) -> String {
        self.causes().last().map(ToString::to_string).unwrap_or_default()
    }
}

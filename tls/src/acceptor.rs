//! The server's side of the handshake.

use std::{io, sync::Arc, time::Duration};

use parking_lot::RwLock;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::{TlsError, identity, options::TlsOptions};

/// Time-out of a handshake: a few round trips over the slowest links.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which the files are read again: certificates are renewed days before they expire.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
/// Protocols offered by ALPN, the preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Accepts TLS 1.2 and 1.3 with one certificate, which may be renewed. Cheap to clone; clones share the certificate.
#[derive(Debug, Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    presented: Arc<Presented>,
}

/// The certificate that new connections are shown.
#[derive(Debug)]
struct Presented {
    options: TlsOptions,
    provider: CryptoProvider,
    identity: RwLock<Arc<CertifiedKey>>,
}

impl Acceptor {
    /// Reads certificate and key; `None` when the options name neither.
    ///
    /// # Errors
    ///
    /// [`TlsError`]: what a person must correct.
    pub fn open(options: &TlsOptions) -> Result<Option<Self>, TlsError> {
        let provider = ring::default_provider();
        let Some(identity) = identity::read(options, &provider)? else { return Ok(None) };
        let shared = Arc::new(provider.clone());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&shared))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Unusable(error.to_string()))?;
        let builder = match identity::authorities(options)? {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), shared).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::Unusable(error.to_string()))?)
            }
        };
        let presented = Arc::new(Presented { options: options.clone(), provider, identity: RwLock::new(identity) });
        let mut config = builder.with_cert_resolver(presented.clone());
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Some(Self { config: Arc::new(config), presented }))
    }

    /// Shakes hands, within 10 seconds.
    ///
    /// # Errors
    ///
    /// The error of TLS or of the connection, or [`io::ErrorKind::TimedOut`]; it concerns only this connection.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let handshake = TlsAcceptor::from(self.config.clone()).accept(stream);
        timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Reads the files every minute until `stop`, and uses a renewed certificate for new connections. Files that cannot be used
    /// change nothing: the last good certificate stays, and a warning is logged.
    pub async fn renew(self, stop: CancellationToken) {
        let mut ticks = interval(RENEWAL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported = None;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.reload() {
                Ok(true) => tracing::info!("certificate renewed"),
                Ok(false) => {}
                // Once for each reason, not once a minute.
                Err(error) if reported.as_ref() == Some(&error) => continue,
                Err(error) => {
                    tracing::warn!(%error, "certificate cannot be renewed; the last one stays");
                    reported = Some(error);
                    continue;
                }
            }
            reported = None;
        }
    }

    /// Reads the files again and returns whether the certificate has changed.
    pub(crate) fn reload(&self) -> Result<bool, TlsError> {
        let presented = &*self.presented;
        let Some(found) = identity::read(&presented.options, &presented.provider)? else { return Ok(false) };
        let mut identity = presented.identity.write();
        let renewed = identity.cert != found.cert;
        if renewed {
            *identity = found;
        }
        Ok(renewed)
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.identity.read()))
    }
}

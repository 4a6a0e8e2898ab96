//! A bound port.

use std::{io, net::SocketAddr};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

use crate::{Acceptor, TlsError, TlsOptions};

/// Maximum number of concurrent handshakes of [`secured`]: enough that a few slow ones do not delay others.
const HANDSHAKES_MAX: usize = 256;

/// A bound port that is not served yet.
#[derive(Debug)]
pub struct Listener {
    /// The port.
    pub tcp: TcpListener,
    /// Its address; with port 0 in the options, with the port that the system assigned.
    pub local_addr: SocketAddr,
    /// TLS of its connections; `None`: plain text.
    pub acceptor: Option<Acceptor>,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port is not available.
    #[error("cannot listen")]
    Listen(#[from] io::Error),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Listener {
    /// Reads the certificate, if there is one, and binds the port.
    ///
    /// # Errors
    ///
    /// [`BindError`]: what a person must correct, such as a port in use.
    pub async fn bind(listen: SocketAddr, tls: &TlsOptions) -> Result<Self, BindError> {
        let acceptor = Acceptor::open(tls)?;
        let tcp = TcpListener::bind(listen).await?;
        let local_addr = tcp.local_addr()?;
        Ok(Self { tcp, local_addr, acceptor })
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.acceptor.is_some() { "https" } else { "http" }
    }
}

/// Connections after their handshake, in the order in which handshakes ended. Failed handshakes are skipped; an error is one
/// of accepting.
pub fn secured(tcp: TcpListener, acceptor: Acceptor) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> + Send {
    let accepted = stream::unfold(tcp, async |tcp| Some((tcp.accept().await, tcp)));
    accepted
        .map(move |accepted| {
            let acceptor = acceptor.clone();
            async move {
                let (stream, _) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => return Some(Err(error)),
                };
                let secured = match stream.set_nodelay(true) {
                    Ok(()) => acceptor.accept(stream).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = &secured {
                    tracing::debug!(%error, "handshake failed");
                }
                secured.ok().map(Ok)
            }
        })
        .buffer_unordered(HANDSHAKES_MAX)
        .filter_map(async |secured| secured)
}

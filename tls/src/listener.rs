//! A bound port.

use std::{io, net::SocketAddr};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

use crate::{Acceptor, TlsError, TlsOptions};

/// Handshakes at a time where connections come as a [stream](Listener::secured): enough that a few slow ones hold up nobody.
const HANDSHAKES_MAX: usize = 256;

/// A port that is bound and that nobody serves yet.
#[derive(Debug)]
pub struct Listener {
    /// The port.
    pub tcp: TcpListener,
    /// Where it listens; with port 0 in the options, the port that the system gave.
    pub local_addr: SocketAddr,
    /// How its connections are secured; `None`: not at all.
    pub acceptor: Option<Acceptor>,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port cannot be had.
    #[error("cannot listen")]
    Listen(#[from] io::Error),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Listener {
    /// Reads the certificate, where there is one, and binds the port.
    ///
    /// # Errors
    ///
    /// [`BindError`]: what a person must put right, such as a port that is taken.
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

/// Connections after their handshake, in the order in which those ended. One that fails is nobody's business but its
/// client's; an error is one of accepting.
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

//! The HTTP clients of the process, for all receivers: connections, TLS configuration and certificate authorities are shared.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::Service;

use super::{
    address::{AddressGuard, AddressRules},
    body::LeaseGuardedBody,
    connection::{Connections, IDLE_MAX, TrackingConnector},
    resolver::GuardedResolver,
};

/// Idle connections kept for a receiver: the default number of attempts in flight of a process.
const IDLE_PER_HOST: usize = 512;
/// Timeout of connecting, over all addresses of a receiver: an address that does not answer leaves time for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle time after which a ping is sent on an HTTP/2 connection.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of a ping, after which the connection is closed. With the interval less than the default timeout of an attempt, so
/// that a request on a frozen connection is repeated on a new one within the same attempt.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Receive windows of HTTP/2, per stream and per connection: little more of a response is ever read.
const STREAM_WINDOW_BYTES: u32 = 65_535;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

type Connector = TrackingConnector<HttpsConnector<GuardedConnector>>;
pub(super) type HttpClient = Client<Connector, LeaseGuardedBody>;

/// The clients, created when they are first needed.
#[derive(Debug)]
pub struct HttpClients {
    resolver: GuardedResolver,
    /// `None`: that of [`weft_tls::client::client_config`].
    tls: Option<ClientConfig>,
    made: Mutex<Option<Pair>>,
}

/// Two clients with the same settings.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// Reuses connections.
    pub pooled: HttpClient,
    /// Opens a connection for each request.
    pub unpooled: HttpClient,
    pub connections: Arc<Connections>,
}

impl HttpClients {
    /// Clients that call the addresses which these rules allow.
    pub fn new(rules: impl Into<AddressRules>) -> Self {
        Self::with_resolver(GuardedResolver::new(Arc::new(AddressGuard::new(rules.into()))))
    }

    pub(super) fn with_resolver(resolver: GuardedResolver) -> Self {
        Self { resolver, tls: None, made: Mutex::default() }
    }

    /// Sets a TLS configuration, such as for a private certificate authority. It must not name ALPN protocols.
    #[must_use]
    pub fn with_tls(self, tls: ClientConfig) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Refuses connections to ports of this process whose services trust local callers, also where their network is allowed.
    pub fn refuse_ports(&self, ports: impl IntoIterator<Item = SocketAddr>) {
        self.guard().refuse_ports(ports);
    }

    /// Decides which addresses may be called.
    pub fn guard(&self) -> &AddressGuard {
        self.resolver.guard()
    }

    /// The resolver of names to addresses that may be called.
    pub fn resolver(&self) -> &GuardedResolver {
        &self.resolver
    }

    /// The clients, created on the first call that succeeds.
    pub(super) fn get(&self) -> Result<Pair, String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = &*made {
            return Ok(pair.clone());
        }
        let tls = match &self.tls {
            Some(tls) => tls.clone(),
            None => weft_tls::client::client_config().map_err(|error| error.to_string())?,
        };
        let connections = Arc::new(Connections::default());
        let connector = self.connector(tls, Arc::clone(&connections));
        let pooled = client(connector.clone(), IDLE_PER_HOST);
        let pair = Pair { pooled, unpooled: client(connector, 0), connections };
        Ok(made.insert(pair).clone())
    }

    fn connector(&self, mut tls: ClientConfig, connections: Arc<Connections>) -> Connector {
        // The builder names the protocols itself.
        tls.alpn_protocols.clear();
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().enable_http2();
        let guarded = GuardedConnector { resolver: self.resolver.clone() };
        TrackingConnector { inner: https.wrap_connector(guarded), connections }
    }
}

/// Connects to addresses that the guard allows.
#[derive(Debug, Clone)]
pub(super) struct GuardedConnector {
    resolver: GuardedResolver,
}

impl Service<Uri> for GuardedConnector {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let resolver = self.resolver.clone();
        Box::pin(async move {
            let is_tls = uri.scheme_str() == Some("https");
            let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
            // Addresses in the URI itself are not resolved.
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            if let Ok(address) = host.parse() {
                resolver.guard().check(address, port)?;
            }
            let mut http = HttpConnector::new_with_resolver(resolver.at(port));
            http.enforce_http(false);
            http.set_nodelay(true);
            http.set_connect_timeout(Some(CONNECT_TIMEOUT));
            Ok(http.call(uri).await?)
        })
    }
}

/// A client that neither follows redirects nor uses a proxy.
fn client(connector: Connector, idle_per_host: usize) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(idle_per_host)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .build(connector)
}

/// An error and its causes.
pub(super) struct Chain<'a>(pub &'a (dyn Error + 'static));

impl<'a> Chain<'a> {
    fn causes(&self) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
        // The source of an `io::Error` is not the error that it wraps, but that one's source.
        let wrapped = |error: &'a (dyn Error + 'static)| {
            let inner: &'a (dyn Error + 'static) = error.downcast_ref::<std::io::Error>()?.get_ref()?;
            Some(inner)
        };
        std::iter::successors(Some(self.0), move |error| {
            let error: &'a (dyn Error + 'static) = *error;
            wrapped(error).or_else(|| error.source())
        })
    }

    /// The first error of a type.
    pub fn find<T: Error + 'static>(&self) -> Option<&'a T> {
        self.causes().find_map(|error| error.downcast_ref::<T>())
    }

    /// The innermost cause; the outer errors only name the operation.
    pub fn innermost(&self) -> String {
        self.causes().last().map(ToString::to_string).unwrap_or_default()
    }
}

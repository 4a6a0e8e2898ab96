//! The HTTP clients of the process: receivers with the same TLS settings and proxy share connections, TLS configuration and
//! certificate authorities.

use std::{
    collections::HashMap,
    error::Error,
    net::SocketAddr,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{Uri, uri::Scheme};
use http_body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::Service;
use weft_catalog::delivery_url::InvalidUrl;
use weft_proto::v1;

use super::{
    address::{AddressGuard, AddressRules},
    body::LeaseGuardedBody,
    connection::{Connections, IDLE_MAX, TrackingConnector},
    proxy::Proxy,
    resolver::GuardedResolver,
    tls::{InvalidTls, Trust, client_config},
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
/// A client of HTTP/2 alone.
pub(super) type Http2Client<B> = Client<Connector, B>;
pub(super) type HttpClient = Client<Connector, LeaseGuardedBody>;

/// The clients, created when they are first needed, one for all destinations with the same settings.
#[derive(Debug)]
pub struct HttpClients {
    resolver: GuardedResolver,
    /// `None`: that of [`weft_tls::client::client_config`].
    tls: Option<ClientConfig>,
    made: Mutex<HashMap<ClientSettings, Weak<Pair>>>,
}

/// Settings of a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClientSettings {
    pub tls: v1::ClientTls,
    pub trust: Trust,
    pub proxy: Option<v1::HttpProxy>,
}

/// Two clients with the same settings.
#[derive(Debug)]
pub(super) struct Pair {
    /// Reuses connections.
    pub pooled: HttpClient,
    /// Opens a connection for each request.
    pub unpooled: HttpClient,
    pub connections: Arc<Connections>,
    /// Of requests for `http`; those for `https` are in a tunnel.
    pub proxy: Option<Arc<Proxy>>,
}

/// Why there is no client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidClient {
    /// Certificates or the key.
    #[error(transparent)]
    Tls(#[from] InvalidTls),
    /// The proxy's URL.
    #[error("proxy: {0}")]
    Proxy(#[from] InvalidUrl),
}

impl HttpClients {
    /// Clients that call the addresses which these rules allow.
    pub fn new(rules: impl Into<AddressRules>) -> Self {
        Self::with_resolver(GuardedResolver::new(Arc::new(AddressGuard::new(rules.into()))))
    }

    pub(super) fn with_resolver(resolver: GuardedResolver) -> Self {
        Self { resolver, tls: None, made: Mutex::default() }
    }

    /// Sets a TLS configuration for destinations without their own, such as for a private certificate authority. It must not
    /// name ALPN protocols.
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

    /// The clients with these settings, which all destinations share that have them.
    pub(super) fn get(&self, settings: &ClientSettings) -> Result<Arc<Pair>, InvalidClient> {
        let mut made = self.made.lock();
        if let Some(pair) = made.get(settings).and_then(Weak::upgrade) {
            return Ok(pair);
        }
        let tls = match &self.tls {
            Some(tls) if settings.tls == v1::ClientTls::default() => tls.clone(),
            _ => client_config(&settings.tls, settings.trust)?,
        };
        let proxy = settings.proxy.as_ref().map(Proxy::new).transpose()?.map(Arc::new);
        let connections = Arc::new(Connections::default());
        let connector = self.connector(tls, Arc::clone(&connections), proxy.clone());
        let pooled = client(connector.clone(), IDLE_PER_HOST);
        let pair = Arc::new(Pair { pooled, unpooled: client(connector, 0), connections, proxy });
        made.retain(|_, pair| pair.strong_count() > 0);
        made.insert(settings.clone(), Arc::downgrade(&pair));
        Ok(pair)
    }

    /// The TLS configuration of clients without settings.
    pub(super) fn tls(&self) -> Result<ClientConfig, String> {
        match &self.tls {
            Some(tls) => Ok(tls.clone()),
            None => weft_tls::client::client_config().map_err(|error| error.to_string()),
        }
    }

    /// A client of HTTP/2 alone, also without TLS, with its own connections.
    pub(super) fn http2<B>(&self, tls: &v1::ClientTls) -> Result<Http2Client<B>, InvalidClient>
    where
        B: Body + Send + 'static + Unpin,
        B::Data: Send,
    {
        let tls = client_config(tls, Trust::Own)?;
        let connector = TrackingConnector { is_http2: true, ..self.connector(tls, Arc::default(), None) };
        Ok(builder().http2_only(true).build(connector))
    }

    fn connector(&self, mut tls: ClientConfig, connections: Arc<Connections>, proxy: Option<Arc<Proxy>>) -> Connector {
        // The builder names the protocols itself.
        tls.alpn_protocols.clear();
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().enable_http2();
        let is_proxied = proxy.is_some();
        let guarded = GuardedConnector { resolver: self.resolver.clone(), proxy };
        TrackingConnector { inner: https.wrap_connector(guarded), connections, is_proxied, is_http2: false }
    }
}

/// Connects to addresses that the guard allows, or to the proxy.
#[derive(Debug, Clone)]
pub(super) struct GuardedConnector {
    resolver: GuardedResolver,
    proxy: Option<Arc<Proxy>>,
}

type ConnectError = Box<dyn Error + Send + Sync>;

impl GuardedConnector {
    async fn connect(&self, uri: Uri) -> Result<TokioIo<TcpStream>, ConnectError> {
        let port = port(&uri);
        // Addresses in the URI itself are not resolved.
        self.resolver.check_literal(uri.host().unwrap_or_default(), port)?;
        let mut http = HttpConnector::new_with_resolver(self.resolver.at(port));
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Ok(http.call(uri).await?)
    }

    async fn connect_by(&self, proxy: &Proxy, uri: Uri) -> Result<TokioIo<TcpStream>, ConnectError> {
        self.resolver.check_host(uri.host().unwrap_or_default(), port(&uri)).await?;
        let mut connection = self.connect(proxy.url().uri().clone()).await?;
        if is_https(&uri) {
            proxy.tunnel(connection.inner_mut(), &uri).await?;
        }
        Ok(connection)
    }
}

pub(super) fn is_https(uri: &Uri) -> bool {
    uri.scheme() == Some(&Scheme::HTTPS)
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if is_https(uri) { 443 } else { 80 })
}

impl Service<Uri> for GuardedConnector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            match &connector.proxy {
                Some(proxy) => connector.connect_by(proxy, uri).await,
                None => connector.connect(uri).await,
            }
        })
    }
}

/// A client that does not follow redirects.
fn client(connector: Connector, idle_per_host: usize) -> HttpClient {
    builder().pool_max_idle_per_host(idle_per_host).build(connector)
}

fn builder() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(proxy: &str) -> ClientSettings {
        let proxy = Some(proxy).filter(|url| !url.is_empty());
        let proxy = proxy.map(|url| v1::HttpProxy { url: url.into(), ..Default::default() });
        ClientSettings { tls: v1::ClientTls::default(), trust: Trust::Own, proxy }
    }

    /// Guards: ten thousand destinations with the same settings cost one client, and one without destinations none.
    #[test]
    fn destinations_with_the_same_settings_share_a_client() {
        let clients = HttpClients::new(AddressRules::default());
        let plain = clients.get(&settings("")).unwrap();
        assert!(Arc::ptr_eq(&plain, &clients.get(&settings("")).unwrap()));
        let proxied = clients.get(&settings("http://proxy:3128")).unwrap();
        assert!(!Arc::ptr_eq(&plain, &proxied));
        drop(plain);
        drop(clients.get(&settings("http://other:3128")).unwrap());
        drop(clients.get(&settings("http://third:3128")).unwrap());
        assert_eq!(clients.made.lock().len(), 2, "the one in use and the newest");
        assert!(Arc::ptr_eq(&proxied, &clients.get(&settings("http://proxy:3128")).unwrap()));
    }

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        let clients = HttpClients::new(AddressRules::default());
        let problem = clients.get(&settings("proxy")).map(drop).unwrap_err();
        assert!(problem.to_string().starts_with("proxy: "), "{problem}");
    }
}

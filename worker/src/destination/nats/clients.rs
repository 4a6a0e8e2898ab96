//! Connections to other NATS servers: one for each server and credentials, shared by the destinations that use it and closed
//! with the last of them.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use prost::Message as _;
use rustls::ClientConfig;
use tokio::time::{Instant, timeout};
use url::Host;
use weft_catalog::nats_url::NatsUrl;
use weft_nats::user_streams::UserStreams;
use weft_proto::v1::{self, AttemptClass};

use super::{
    super::{
        Failure,
        address::RefusedAddress,
        resolver::{GuardedResolver, ResolveError},
    },
    tls,
};

/// Timeout of connecting, over all addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a lost connection is replaced by one to the addresses that the name has now.
const LOST_MAX: Duration = Duration::from_secs(5);

/// The connections.
pub(in super::super) struct NatsClients {
    resolver: GuardedResolver,
    by_server: Mutex<HashMap<ServerKey, Weak<NatsClient>>>,
}

impl std::fmt::Debug for NatsClients {
    /// Without the keys, which hold credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NatsClients")
    }
}

/// URL, credentials and TLS of a destination, encoded.
type ServerKey = Vec<u8>;

/// A connection to one server, made when it is first needed.
#[derive(Debug)]
pub(super) struct NatsClient {
    url: NatsUrl,
    credentials: Secret,
    tls: ClientConfig,
    tls_required: bool,
    resolver: GuardedResolver,
    state: tokio::sync::Mutex<State>,
}

/// Credentials, which are never printed.
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(weft_proto::SECRET_MASK)
    }
}

#[derive(Debug, Default)]
struct State {
    connected: Option<UserStreams>,
    /// Since when the connection is lost.
    lost_since: Option<Instant>,
}

impl NatsClients {
    pub fn new(resolver: GuardedResolver) -> Self {
        Self { resolver, by_server: Mutex::default() }
    }

    /// The connection of a destination.
    ///
    /// # Errors
    ///
    /// The URL or TLS is invalid: the problem, in one line.
    pub(super) fn get(&self, nats: &v1::NatsDestination) -> Result<Arc<NatsClient>, String> {
        let url = NatsUrl::parse(&nats.url)?;
        let key = v1::NatsDestination { subject: String::new(), stream: String::new(), ..nats.clone() }.encode_to_vec();
        let mut by_server = self.by_server.lock();
        if let Some(client) = by_server.get(&key).and_then(Weak::upgrade) {
            return Ok(client);
        }
        by_server.retain(|_, client| client.strong_count() > 0);
        let client = Arc::new(NatsClient {
            tls: tls::config(&nats.tls.clone().unwrap_or_default(), url.host())?,
            tls_required: url.is_tls() || nats.tls.is_some(),
            url,
            credentials: Secret(nats.creds.clone()),
            resolver: self.resolver.clone(),
            state: tokio::sync::Mutex::default(),
        });
        by_server.insert(key, Arc::downgrade(&client));
        Ok(client)
    }
}

impl NatsClient {
    /// The connection. Attempts that come while it is made wait for it.
    pub async fn streams(&self) -> Result<UserStreams, Failure> {
        let mut state = self.state.lock().await;
        if let Some(streams) = state.connected.clone() {
            if streams.is_connected() {
                state.lost_since = None;
                return Ok(streams);
            }
            // The client connects again to the same addresses.
            if state.lost_since.get_or_insert_with(Instant::now).elapsed() < LOST_MAX {
                let error = format!("connection to {} lost", self.url.authority());
                return Err(Failure::unreachable(AttemptClass::Connect, error));
            }
            *state = State::default();
        }
        let addresses = self.addresses().await?;
        let connecting = {
            let (tls, name) = (self.tls.clone(), "weft-destination");
            UserStreams::connect(&addresses, &self.credentials.0, tls, self.tls_required, name)
        };
        let at = self.url.authority();
        let streams = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(problem)) => {
                return Err(Failure::unreachable(AttemptClass::Connect, format!("no connection to {at}: {problem}")));
            }
            Err(_) => {
                let error = format!("no connection to {at} within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(Failure::unreachable(AttemptClass::Connect, error));
            }
        };
        state.connected = Some(streams.clone());
        Ok(streams)
    }

    /// The addresses of the server that may be called, at least one.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let refused = |refused: RefusedAddress| Failure::held(AttemptClass::RefusedAddress, refused.to_string());
        let port = self.url.port();
        let literal = |address: IpAddr| {
            self.resolver.guard().check(address, port).map_err(refused)?;
            Ok(vec![SocketAddr::new(address, port)])
        };
        match self.url.host() {
            Host::Ipv4(address) => literal((*address).into()),
            Host::Ipv6(address) => literal((*address).into()),
            Host::Domain(name) => match self.resolver.addresses(name, port).await {
                Ok(found) => Ok(found),
                Err(ResolveError::Refused(address)) => Err(refused(address)),
                Err(ResolveError::NoAddress(problem)) => {
                    Err(Failure::unreachable(AttemptClass::Dns, problem.to_string()))
                }
            },
        }
    }

    /// Whether the server may be called, without calling it.
    pub async fn check(&self) -> Result<(), RefusedAddress> {
        self.resolver.check_host(&self.url.host().to_string(), self.url.port()).await
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::address::AddressGuard, *};

    /// Guards: no form of a destination's credentials is printed, neither as text nor as a list of bytes.
    #[test]
    fn credentials_are_not_printed() {
        let clients = NatsClients::new(GuardedResolver::new(Arc::new(AddressGuard::default())));
        let tls = v1::ClientTls::default();
        let nats = v1::NatsDestination {
            url: "nats://a.test".into(),
            creds: "hush".into(),
            tls: Some(tls),
            ..Default::default()
        };
        let client = clients.get(&nats).unwrap();
        let text = format!("{clients:?} {client:?}");
        assert!(!text.contains("hush") && !text.contains("104, 117"), "{text}");
    }
}

//! Connections to a database: a bounded number, shared by all subscriptions with the same connection string.
//!
//! Each address is checked before it is connected to, as for webhooks, and a server that is read-only is not used.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_postgres::{Client, Statement, types::Type};
use tokio_util::task::AbortOnDropHandle;
use weft_proto::v1::AttemptClass;

use super::{
    dsn::{Address, Dsn},
    failure::{Phase, failure},
    tls,
};
use crate::destination::{Failure, FailureKind, address::RefusedAddress, clients::HttpClients, resolver::ResolveError};

/// Connections of a process to one database: a sixth of the default `max_connections`, and more transactions at a time gain
/// nothing on a database of a few cores.
const CONNECTIONS_MAX: usize = 16;
/// Connections of them that one subscription may use, so that slow statements of one leave some to the others.
pub(super) const SHARE_MAX: usize = 12;
/// Idle time after which a connection is not used again: firewalls forget connections after a few minutes.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Age after which a connection is not used again, so that a changed address of a name is noticed.
const AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// Timeout of connecting to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a request to cancel, which an attempt that has timed out waits for.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
/// Statements of a connection. Above it all are forgotten: revisions of a subscription bring new ones.
const STATEMENTS_MAX: usize = 32;

/// The pools of a process, by connection string.
#[derive(Default)]
pub struct Pools(Mutex<HashMap<String, Weak<Pool>>>);

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pools")
    }
}

impl Pools {
    pub(super) fn get(&self, dsn: &str, clients: &Arc<HttpClients>) -> Result<Arc<Pool>, String> {
        let mut pools = self.0.lock();
        if let Some(pool) = pools.get(dsn).and_then(Weak::upgrade) {
            return Ok(pool);
        }
        pools.retain(|_, pool| pool.strong_count() > 0);
        let pool = Arc::new(Pool {
            dsn: Dsn::parse(dsn)?,
            clients: Arc::clone(clients),
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            idle: Mutex::default(),
        });
        pools.insert(dsn.to_owned(), Arc::downgrade(&pool));
        Ok(pool)
    }
}

/// The connections to one database.
#[derive(Debug)]
pub(super) struct Pool {
    dsn: Dsn,
    clients: Arc<HttpClients>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub client: Client,
    /// Ends the connection when it is dropped.
    _task: AbortOnDropHandle<()>,
    statements: HashMap<String, Statement>,
    address: SocketAddr,
    host: String,
    made: Instant,
    last_used: Instant,
}

/// A connection in use. Dropped, it is closed.
#[derive(Debug)]
pub(super) struct Lease {
    pub connection: Connection,
    /// Whether it has served others before.
    pub reused: bool,
    pool: Arc<Pool>,
}

/// The right to use one connection at a time.
#[derive(Debug)]
pub(super) struct Turn {
    _share: OwnedSemaphorePermit,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Host, port and database.
    pub fn name(&self) -> String {
        self.dsn.name()
    }

    /// The right to a connection, and what is needed to have others left for other subscriptions. Waits while all are in use.
    pub(super) async fn turn(&self, share: &Arc<Semaphore>) -> Result<Turn, Failure> {
        let closed = |_| Failure::unreachable(AttemptClass::Connect, "the pool of connections is closed");
        let share = Arc::clone(share).acquire_owned().await.map_err(closed)?;
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(closed)?;
        Ok(Turn { _share: share, _permit: permit })
    }

    /// A connection, an idle one if there is one.
    pub(super) async fn get(self: &Arc<Self>, _: &Turn) -> Result<Lease, Failure> {
        let (connection, reused) = match self.take_idle() {
            Some(connection) => (connection, true),
            None => (self.connect().await?, false),
        };
        Ok(Lease { connection, reused, pool: Arc::clone(self) })
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let now = Instant::now();
        idle.retain(|connection| {
            now.duration_since(connection.last_used) < IDLE_MAX
                && now.duration_since(connection.made) < AGE_MAX
                && !connection.client.is_closed()
        });
        idle.pop()
    }

    /// Closes connections that are not in use: another one has turned out to be dead.
    pub(super) fn close_idle(&self) {
        self.idle.lock().clear();
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let mut failed = None;
        for address in &self.dsn.addresses {
            let sockets = match self.allowed(address).await {
                Ok(sockets) => sockets,
                Err(error) => {
                    failed = Some(unresolved(&error));
                    continue;
                }
            };
            for socket in sockets {
                match self.connect_to(address, socket).await {
                    Ok(connection) => return Ok(connection),
                    Err(failure) => failed = Some(failure),
                }
            }
        }
        Err(failed
            .unwrap_or_else(|| Failure::unreachable(AttemptClass::Connect, format!("no address of {}", self.name()))))
    }

    /// The addresses that may be connected to.
    async fn allowed(&self, address: &Address) -> Result<Vec<SocketAddr>, ResolveError> {
        match address.ip {
            Some(ip) => {
                self.clients.guard().check(ip, address.port)?;
                Ok(vec![SocketAddr::new(ip, address.port)])
            }
            None => self.clients.resolver().addresses(&address.host, address.port).await,
        }
    }

    /// Checks the addresses without connecting. A name without an address now may have one when it is connected to, and is
    /// checked then.
    pub(super) async fn check(&self) -> Result<(), RefusedAddress> {
        for address in &self.dsn.addresses {
            if let Err(ResolveError::Refused(refused)) = self.allowed(address).await {
                return Err(refused);
            }
        }
        Ok(())
    }

    async fn connect_to(&self, address: &Address, socket: SocketAddr) -> Result<Connection, Failure> {
        let limit = self.dsn.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT).min(CONNECT_TIMEOUT);
        let connecting = timeout(limit, self.open(address, socket)).await;
        connecting.unwrap_or_else(|_| {
            let error = format!("no connection to {} ({socket}) within {} ms", self.name(), limit.as_millis());
            Err(Failure::unreachable(AttemptClass::Connect, error))
        })
    }

    async fn open(&self, address: &Address, socket: SocketAddr) -> Result<Connection, Failure> {
        let at = self.name();
        let (stream, tls) = self.stream(&address.host, socket).await?;
        let connected = self.dsn.config.connect_raw(stream, tls).await;
        let (client, connection) = connected.map_err(|error| failure(&error, Phase::Connect, &at))?;
        // Ends with the connection.
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to PostgreSQL ended");
            }
        }));
        let read_only = client.query_one("SHOW transaction_read_only", &[]).await;
        let read_only: String =
            read_only.and_then(|row| row.try_get(0)).map_err(|error| failure(&error, Phase::Connect, &at))?;
        if read_only == "on" {
            let error = format!("{at} ({socket}) is read-only, as a standby is (SQLSTATE 25006)");
            return Err(Failure { kind: FailureKind::Unavailable, ..Failure::failed(AttemptClass::Sql, error) });
        }
        let now = Instant::now();
        let host = address.host.clone();
        Ok(Connection {
            client,
            _task: task,
            statements: HashMap::new(),
            address: socket,
            host,
            made: now,
            last_used: now,
        })
    }

    async fn stream(&self, host: &str, socket: SocketAddr) -> Result<(TcpStream, tls::Connect), Failure> {
        let tls = tls::Connect::new(&self.dsn, host, || self.clients.tls()).await;
        let tls = tls.map_err(|problem| Failure::held(AttemptClass::Tls, format!("{}: {problem}", self.name())))?;
        let stream = TcpStream::connect(socket).await.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        let stream = stream.map_err(|error| {
            Failure::unreachable(AttemptClass::Connect, format!("no connection to {} ({socket}): {error}", self.name()))
        })?;
        Ok((stream, tls))
    }
}

fn unresolved(error: &ResolveError) -> Failure {
    match error {
        ResolveError::Refused(refused) => Failure::held(AttemptClass::RefusedAddress, refused.to_string()),
        ResolveError::NoAddress(missing) => Failure::unreachable(AttemptClass::Dns, missing.to_string()),
    }
}

impl Connection {
    /// A prepared statement with parameters of these types; none: those that the server finds.
    pub async fn prepared(&mut self, sql: &str, types: &[Type]) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare_typed(sql, types).await?;
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl Lease {
    /// Returns the connection for use by others.
    pub fn give_back(self) {
        let Self { mut connection, pool, .. } = self;
        connection.last_used = Instant::now();
        pool.idle.lock().push(connection);
    }

    /// Asks the server to cancel what the connection is doing, and closes the connection.
    pub async fn cancel(self) {
        let (token, pool) = (self.connection.client.cancel_token(), &self.pool);
        let cancelling = async {
            let (stream, tls) = pool.stream(&self.connection.host, self.connection.address).await.ok()?;
            token.cancel_query_raw(stream, tls).await.ok()
        };
        // If it fails, the statement's own time-out ends it.
        let _ = timeout(CANCEL_TIMEOUT, cancelling).await;
    }
}

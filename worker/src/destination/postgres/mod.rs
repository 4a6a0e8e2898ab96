//! PostgreSQL: each event has its effect in the database once, in a transaction with what says that it has.
//!
//! - `dsn`: connection strings. `tls`, `pool`: connections.
//! - `sql`: statements. `row`: values of an event.
//! - `transaction`: the transaction with its fence. `failure`: errors by SQLSTATE.
//!
//! The database of a workflow is chosen by the hash of its subject token, as its shard of the log is.

use std::{collections::HashMap, fmt, sync::Arc};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Semaphore, time::timeout};
use weft_nats::subject::Layout;
use weft_proto::{
    ids::{ShardId, SubscriptionUid},
    v1::{self, AttemptClass},
};

use self::{
    failure::{Phase, failure, is_lost},
    pool::{Lease, Pool, Turn},
    row::Row,
    sql::{Field, Statements},
    transaction::{Aborted, Batch, create},
};
use super::{
    Delivery, DeliveryResult, Destination, Failure, FailureKind, InvalidDestination, PlannedRequest,
    address::RefusedAddress, clients::HttpClients,
};

mod dsn;
mod failure;
mod pool;
mod row;
mod sql;
mod tls;
mod transaction;

/// The ports of a connection string; none if it is not valid.
pub fn ports(dsn: &str) -> Vec<u16> {
    dsn::Dsn::parse(dsn).map(|dsn| dsn.ports().collect()).unwrap_or_default()
}

pub use self::pool::Pools;

/// Repeats of a transaction within one attempt: after a deadlock, a lost connection that had served others, or the creation
/// of a table.
const REPEATS_MAX: u32 = 3;

/// Response to a test delivery.
const UNFENCED: &str = "committed, without the fence: it compares epochs of shard owners, and a test is sent by an admin, which owns no \
                        shard; the event's id is unique as always";

/// PostgreSQL databases.
#[derive(Debug)]
pub struct PostgresDestination {
    databases: Vec<Database>,
    layout: Layout,
    statements: Statements,
    create: bool,
}

/// One of the databases.
struct Database {
    pool: Arc<Pool>,
    /// The subscription's share of the pool.
    share: Arc<Semaphore>,
    /// Epochs that the fence was raised to, by shard of the log.
    raised: Mutex<HashMap<(SubscriptionUid, u32), u64>>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({})", self.pool.name())
    }
}

/// Continuation after a transaction that was not committed.
enum Next {
    /// The event is rejected. `index`: where it is; `None`: unknown.
    Rejected {
        failure: Failure,
        index: Option<usize>,
    },
    /// The same transaction may succeed at once.
    Repeat(Failure),
    Fail(Failure),
}

impl PostgresDestination {
    /// The databases of `postgres.dsns`, with connections of `pools`.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`]: a connection string, a name or the SQL is invalid.
    pub fn new(
        postgres: &v1::PostgresDestination,
        clients: &Arc<HttpClients>,
        pools: &Pools,
    ) -> Result<Self, InvalidDestination> {
        let invalid = |problem| InvalidDestination::Postgres { problem };
        let statements = Statements::new(postgres).map_err(invalid)?;
        let database = |(index, dsn): (usize, &String)| {
            let pool = pools.get(dsn, clients);
            let pool = pool.map_err(|problem| invalid(format!("shards[{index}]: {problem}")))?;
            let share = Arc::new(Semaphore::new(pool::SHARE_MAX));
            Ok::<_, InvalidDestination>(Database { pool, share, raised: Mutex::default() })
        };
        let databases: Vec<_> = postgres.dsns.iter().enumerate().map(database).collect::<Result<_, _>>()?;
        let count = u32::try_from(databases.len()).unwrap_or(u32::MAX);
        if count == 0 {
            return Err(invalid("shards is empty: say which databases".into()));
        }
        Ok(Self { databases, layout: Layout::new(count), statements, create: postgres.create })
    }

    /// The statements that create missing tables.
    pub fn migration(&self) -> &[String] {
        &self.statements.create
    }

    /// Creates missing tables in each database. Returns the names of the databases.
    ///
    /// # Errors
    ///
    /// The problem, in one line, with the name of the database. Those before it have their tables.
    pub async fn migrate(&self) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        for Database { pool, share, .. } in &self.databases {
            let turn = pool.turn(share).await.map_err(|failure| failure.error)?;
            let lease = pool.get(&turn).await.map_err(|failure| failure.error)?;
            let created = create(&lease.connection.client, &self.statements).await;
            created.map_err(|error| failure(&error, Phase::Prepare, &pool.name()).error)?;
            lease.give_back();
            names.push(pool.name());
        }
        Ok(names)
    }

    /// Delivers as many events as are not rejected.
    async fn attempt(
        &self,
        database: &Database,
        turn: &Turn,
        deliveries: &[Delivery],
        lease: &mut Option<Lease>,
    ) -> DeliveryResult {
        let Some(first) = deliveries.first() else { return DeliveryResult::all(0) };
        let rows: Vec<Row> = deliveries.iter().map(|delivery| Row::new(&delivery.event.event)).collect();
        let mut rejected = None;
        let mut count = rows.len();
        let mut repeats = 0;
        while count > 0 {
            let batch = Batch {
                rows: &rows[..count],
                statements: &self.statements,
                subscription: first.uid,
                shard: first.shard,
                epoch: first.epoch,
                timeout: first.timeout,
                lease: &first.lease,
            };
            match self.commit(database, turn, &batch, lease).await {
                Ok(()) => break,
                // Those before it are delivered without it.
                Err(Next::Rejected { failure, index: Some(index) }) => {
                    (rejected, count) = (Some(failure), index.min(count - 1))
                }
                Err(Next::Repeat(_)) if repeats < REPEATS_MAX => repeats += 1,
                Err(Next::Rejected { failure, index: None } | Next::Repeat(failure) | Next::Fail(failure)) => {
                    return DeliveryResult::failed(failure);
                }
            }
        }
        let is_attributed = rejected.is_some();
        DeliveryResult { failure: rejected, is_attributed, ..DeliveryResult::all(count) }
    }

    /// A database that does not serve uses up no retries, also where others of the same destination serve: nothing was committed.
    fn of_one_database(&self, failure: Failure, code: &str) -> Failure {
        // A lock may be held because of this very event.
        let is_away = failure.kind == FailureKind::Unavailable && !code.starts_with("55");
        let kind = if is_away && self.databases.len() > 1 { FailureKind::Unreachable } else { failure.kind };
        Failure { kind, ..failure }
    }

    /// Commits the effects of events. `lease` is the connection while it is in use.
    async fn commit(
        &self,
        database: &Database,
        turn: &Turn,
        batch: &Batch<'_>,
        lease: &mut Option<Lease>,
    ) -> Result<(), Next> {
        let used = database.pool.get(turn).await.map_err(|failure| Next::Fail(self.of_one_database(failure, "")))?;
        let reused = used.reused;
        let aborted = match database.commit(batch, lease.insert(used)).await {
            Ok(()) => {
                give_back(lease);
                return Ok(());
            }
            Err(aborted) => aborted,
        };
        let at = database.pool.name();
        let (error, phase, index) = match aborted {
            Aborted::NotSent => {
                give_back(lease);
                let failure = Failure::failed(AttemptClass::Sql, super::NotSent.to_string());
                return Err(Next::Fail(Failure { kind: FailureKind::NotSent, ..failure }));
            }
            Aborted::Fenced => {
                give_back(lease);
                return Err(Next::Fail(Failure::held(AttemptClass::Sql, fenced(batch, &at))));
            }
            Aborted::Database { error, phase, index } => (error, phase, index),
        };
        let code = error.code().map_or("", |code| code.code());
        let failure = self.of_one_database(failure(&error, phase, &at), code);
        let Some(used) = lease.take() else { return Err(Next::Fail(failure)) };
        if code == "42P01" && self.create {
            let created = create(&used.connection.client, &self.statements).await;
            return match created {
                Ok(()) => Err(Next::Repeat(failure)),
                Err(error) => Err(Next::Fail(self::failure(&error, Phase::Prepare, &at))),
            };
        }
        if failure.kind == FailureKind::Rejected {
            used.give_back();
            return Err(Next::Rejected { failure, index });
        }
        // The connection is closed: the others may have the same problem.
        if matches!(failure.kind, FailureKind::Unavailable | FailureKind::Unreachable) {
            database.pool.close_idle();
        }
        let alone = code.starts_with("40");
        // An idle connection of a server that was shut down or crashed has ended, possibly with a last message.
        let ended = is_lost(&error) || code.starts_with("57P");
        if alone || reused && ended { Err(Next::Repeat(failure)) } else { Err(Next::Fail(failure)) }
    }
}

fn give_back(lease: &mut Option<Lease>) {
    if let Some(lease) = lease.take() {
        lease.give_back();
    }
}

impl Database {
    async fn commit(&self, batch: &Batch<'_>, lease: &mut Lease) -> Result<(), Aborted> {
        let connection = &mut lease.connection;
        let key = (batch.subscription, batch.shard.0);
        let is_raised = batch.epoch == 0 || self.raised().get(&key) == Some(&batch.epoch);
        if is_raised {
            match batch.commit(connection).await {
                // By a later owner; or the database was restored from a backup.
                Err(Aborted::Fenced) => {}
                end => return end,
            }
        }
        if batch.raise(connection).await? != batch.epoch {
            return Err(Aborted::Fenced);
        }
        self.raised().insert(key, batch.epoch);
        batch.commit(connection).await
    }

    fn raised(&self) -> MutexGuard<'_, HashMap<(SubscriptionUid, u32), u64>> {
        self.raised.lock()
    }
}

/// Error of an owner that is fenced off. A later one exists, or the log was restored from a backup of an earlier time.
fn fenced(batch: &Batch<'_>, at: &str) -> String {
    let Batch { epoch, shard: ShardId(shard), statements, subscription, .. } = batch;
    format!(
        "{at} was written by an owner of shard {shard} with a higher epoch than {epoch}; if the log was restored from a \
         backup, run DELETE FROM {} WHERE subscription = '{subscription}'",
        statements.fence
    )
}

#[async_trait]
impl Destination for PostgresDestination {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        let Some(first) = deliveries.first() else { return DeliveryResult::all(0) };
        let ShardId(index) = self.layout.shard_of(&first.event.event.workflow);
        let Some(database) = self.databases.get(index as usize) else { return DeliveryResult::all(0) };
        let (at, ms) = (database.pool.name(), first.timeout.as_millis());
        // The wait for a connection of ours takes nothing of the transaction's time.
        let turn = match timeout(first.timeout, database.pool.turn(&database.share)).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(failure)) => return DeliveryResult::failed(failure),
            Err(_) => {
                let error = format!("no free connection to {at} within {ms} ms");
                return DeliveryResult::failed(Failure::unreachable(AttemptClass::Connect, error));
            }
        };
        let mut lease = None;
        if let Ok(mut result) = timeout(first.timeout, self.attempt(database, &turn, deliveries, &mut lease)).await {
            if first.epoch == 0 && result.failure.is_none() {
                result.response = UNFENCED.into();
            }
            return result;
        }
        let Some(lease) = lease else {
            let error = format!("no connection to {at} within {ms} ms");
            return DeliveryResult::failed(Failure::unreachable(AttemptClass::Connect, error));
        };
        lease.cancel().await;
        database.pool.close_idle();
        DeliveryResult::failed(Failure::failed(AttemptClass::Timeout, format!("no answer from {at} within {ms} ms")))
    }

    async fn check(&self) -> Result<(), RefusedAddress> {
        for database in &self.databases {
            database.pool.check().await?;
        }
        Ok(())
    }

    /// The first event's statement: the target is its database, the body the statement, and the headers are its parameters
    /// in order. It runs in a transaction with the fence, and a batch of inserts is one statement.
    fn planned(&self, deliveries: &[Delivery]) -> PlannedRequest {
        let Some(first) = deliveries.first() else { return PlannedRequest::default() };
        let event = &first.event.event;
        let ShardId(index) = self.layout.shard_of(&event.workflow);
        let row = Row::new(event);
        let (statement, fields) = self.statements.effect.planned();
        let parameter = |field: Field| (field.name().to_owned(), row.get(field).unwrap_or("NULL").to_owned());
        PlannedRequest {
            method: "EXECUTE".into(),
            target: self.databases.get(index as usize).map(|database| database.pool.name()).unwrap_or_default(),
            headers: fields.into_iter().map(parameter).collect(),
            body: statement.into(),
        }
    }
}

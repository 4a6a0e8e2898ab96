//! The transaction of a delivery: the fence, the effects of events of one lane, and what makes each happen once.
//!
//! A transaction takes a shared advisory lock of its fence and compares the fence's epoch with its own. An owner's first
//! transaction takes the exclusive lock and raises the epoch. So after it no transaction of an earlier owner commits, and
//! transactions of one owner do not wait for each other. Advisory locks are in memory; row locks would be written by each
//! transaction.

use std::{collections::HashSet, future::poll_fn, pin::Pin, task::Poll, time::Duration};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, maybe_done},
    join,
};
use tokio_postgres::{
    Client, Error, SimpleQueryMessage, Statement,
    error::SqlState,
    types::{ToSql, Type},
};
use weft_proto::ids::{ShardId, SubscriptionUid};

use super::{
    failure::{Phase, kind},
    pool::Connection,
    row::{Row, Text, array},
    sql::{Effect, Field, IN_TRANSACTION, Statements, TableInsert, UserSql},
};
use crate::{destination::FailureKind, ownership::LeaseGuard};

/// Time after which the server ends a transaction that the worker does not continue, such as one that is suspended: a new owner
/// waits for it.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);
/// Key of the advisory lock under which tables are created. Only one session at a time can.
const CREATE_LOCK: i64 = 0x7765_6674_0001;

/// The events of a delivery, and who delivers them.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub rows: &'a [Row],
    pub statements: &'a Statements,
    pub subscription: SubscriptionUid,
    /// Shard of the log.
    pub shard: ShardId,
    /// Fencing epoch of the shard's owner; 0 when an admin sends a test delivery.
    pub epoch: u64,
    pub timeout: Duration,
    pub lease: &'a LeaseGuard,
}

/// Why a transaction was not committed.
#[derive(Debug)]
pub(super) enum Aborted {
    /// The owner's lease has run out.
    NotSent,
    /// The fence has another epoch than the transaction.
    Fenced,
    /// An error of the database. `index`: of the event that it is about, where that is known.
    Database { error: Error, phase: Phase, index: Option<usize> },
}

impl Aborted {
    fn of(error: Error, phase: Phase) -> Self {
        Self::Database { error, phase, index: None }
    }
}

impl Batch<'_> {
    /// Commits the effects of all events, each once.
    pub async fn commit(&self, connection: &mut Connection) -> Result<(), Aborted> {
        match &self.statements.effect {
            Effect::Insert(insert) => self.insert(connection, insert).await,
            Effect::Sql(sql) => self.run_sql(connection, sql).await,
        }
    }

    async fn insert(&self, connection: &mut Connection, insert: &TableInsert) -> Result<(), Aborted> {
        let statement = prepare_insert(connection, insert).await.map_err(|error| Aborted::of(error, Phase::Prepare))?;
        self.check_lease()?;
        let client = &connection.client;
        let begin = self.begin();
        let requests =
            vec![run(client, &begin), insert_rows(client, &statement, insert, self.rows), run(client, "COMMIT")];
        let aborted = match first_error(pipelined(requests).await) {
            None => return Ok(()),
            Some((0, error)) => return Err(before_effects(error)),
            // One statement for all events.
            Some((_, error)) => error,
        };
        let rejected = aborted.code().is_some_and(|code| kind(code.code(), Phase::Run) == FailureKind::Rejected);
        if !rejected || self.rows.len() == 1 {
            return Err(Aborted::of(aborted, Phase::Run));
        }
        // Event by event, to be rolled back.
        let mut requests = vec![run(client, &begin)];
        requests.extend(self.rows.chunks(1).map(|row| insert_rows(client, &statement, insert, row)));
        requests.push(run(client, "ROLLBACK"));
        Err(match first_error(pipelined(requests).await) {
            Some((at, error)) if (1..=self.rows.len()).contains(&at) => {
                Aborted::Database { error, phase: Phase::Run, index: Some(at - 1) }
            }
            // Such as a constraint that is checked at the end.
            _ => Aborted::of(aborted, Phase::Run),
        })
    }

    async fn run_sql(&self, connection: &mut Connection, sql: &UserSql) -> Result<(), Aborted> {
        let types: Vec<Type> = sql.fields.iter().map(|field| field.sql_type()).collect();
        let claim = format!(
            "INSERT INTO {} (subscription, event_id) SELECT $1, event_id FROM unnest($2) AS event_id WHERE {IN_TRANSACTION} \
             ON CONFLICT DO NOTHING RETURNING event_id::text",
            self.statements.delivered
        );
        let prepared = async {
            let claim = connection.prepared(&claim, &[Type::UUID, Type::UUID_ARRAY]).await?;
            Ok((claim, connection.prepared(&sql.text, &types).await?))
        };
        let (claim, statement) = prepared.await.map_err(|error| Aborted::of(error, Phase::Prepare))?;
        self.check_lease()?;
        let client = &connection.client;
        let (subscription, ids) = (self.subscription.to_string(), array(self.rows, Field::EventId));
        let begin = self.begin();
        let (subscription, ids) = (Text(Some(&subscription)), Text(Some(&ids)));
        let values: [&(dyn ToSql + Sync); 2] = [&subscription, &ids];
        let (begun, claimed) = join!(client.batch_execute(&begin), client.query(&claim, &values));
        let new: Result<HashSet<String>, Aborted> = match (begun, claimed) {
            (Err(error), _) => Err(before_effects(error)),
            (Ok(()), claimed) => claimed
                .and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect())
                .map_err(|error| Aborted::of(error, Phase::Run)),
        };
        let mut new = match new {
            Ok(new) => new,
            Err(aborted) => {
                // If it fails, the connection is of no use, which the next operation finds.
                let _ = client.batch_execute("ROLLBACK").await;
                return Err(aborted);
            }
        };
        // An id may be in a batch twice, and has its effect once.
        let mut is_new = |row: &Row| row.get(Field::EventId).is_some_and(|id| new.remove(id));
        let todo: Vec<usize> = (0..self.rows.len()).filter(|index| is_new(&self.rows[*index])).collect();
        let mut requests: Vec<_> = todo
            .iter()
            .map(|index| {
                let row = &self.rows[*index];
                let values: Vec<_> = sql.fields.iter().map(|field| Text(row.get(*field))).collect();
                client.execute_raw(&statement, values).boxed()
            })
            .collect();
        requests.push(run(client, "COMMIT"));
        match first_error(pipelined(requests).await) {
            None => Ok(()),
            Some((at, error)) => Err(Aborted::Database { error, phase: Phase::Run, index: todo.get(at).copied() }),
        }
    }

    /// Raises the fence to the epoch of this owner. Returns the fence's epoch: a higher one is that of a later owner.
    pub async fn raise(&self, connection: &Connection) -> Result<u64, Aborted> {
        self.check_lease()?;
        let Self { subscription, shard: ShardId(shard), epoch, .. } = self;
        let sql = format!(
            "{}; SELECT pg_advisory_xact_lock({}); \
             INSERT INTO {} AS fence (subscription, shard, epoch) VALUES ('{subscription}', {shard}, {epoch}) \
             ON CONFLICT (subscription, shard) DO UPDATE SET epoch = greatest(fence.epoch, excluded.epoch) \
             RETURNING epoch; COMMIT",
            self.settings(),
            self.lock_key(),
            self.statements.fence,
        );
        let answered = connection.client.simple_query(&sql).await;
        let messages = match answered {
            Ok(messages) => messages,
            Err(error) => {
                let _ = connection.client.batch_execute("ROLLBACK").await;
                return Err(Aborted::of(error, Phase::Prepare));
            }
        };
        let epoch = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.try_get("epoch").ok().flatten()?.parse().ok(),
            _ => None,
        });
        epoch.ok_or(Aborted::Fenced)
    }

    fn check_lease(&self) -> Result<(), Aborted> {
        if self.lease.may_attempt() { Ok(()) } else { Err(Aborted::NotSent) }
    }

    /// Starts the transaction, with the fence. Later statements of the transaction see what is committed while it waits for the
    /// lock: hence the isolation level.
    fn begin(&self) -> String {
        let Self { subscription, shard: ShardId(shard), epoch, .. } = self;
        if *epoch == 0 {
            return self.settings();
        }
        format!(
            // Without a row of this epoch the division by zero aborts the transaction before it has an effect.
            "{}; SELECT pg_advisory_xact_lock_shared({}); \
             SELECT 1 / count(*) FROM {} WHERE subscription = '{subscription}' AND shard = {shard} AND epoch = {epoch}",
            self.settings(),
            self.lock_key(),
            self.statements.fence,
        )
    }

    fn settings(&self) -> String {
        let statement = self.timeout.as_millis().max(1);
        format!(
            // A statement that waits for a lock ends first, so that the error names the lock.
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL weft.transaction = 'on'; SET LOCAL statement_timeout = {statement}; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}",
            (statement * 2 / 3).max(1),
            IDLE_IN_TRANSACTION.as_millis(),
        )
    }

    /// Key of the fence's advisory lock. Another lock with the same key would only be waited for.
    fn lock_key(&self) -> i64 {
        let bytes = self.subscription.to_vec();
        let low = bytes.iter().skip(8).fold(0_u64, |key, byte| key << 8 | u64::from(*byte));
        (low ^ u64::from(self.shard.0)).cast_signed()
    }
}

/// Creates the tables that are missing.
pub(super) async fn create(client: &Client, statements: &Statements) -> Result<(), Error> {
    let sql = format!("BEGIN; SELECT pg_advisory_xact_lock({CREATE_LOCK}); {}; COMMIT", statements.create.join("; "));
    let created = client.batch_execute(&sql).await;
    if created.is_err() {
        let _ = client.batch_execute("ROLLBACK").await;
    }
    created
}

/// An error before any effect: of the fence, or of the transaction's start.
fn before_effects(error: Error) -> Aborted {
    if error.code() == Some(&SqlState::DIVISION_BY_ZERO) { Aborted::Fenced } else { Aborted::of(error, Phase::Prepare) }
}

/// The statement that inserts any number of events, with arrays of the types of the table's columns.
async fn prepare_insert(connection: &mut Connection, insert: &TableInsert) -> Result<Statement, Error> {
    let probe = connection.prepared(&insert.probe(), &[]).await?;
    connection.prepared(&insert.batched(probe.params()), &[]).await
}

fn insert_rows<'a>(
    client: &'a Client,
    statement: &'a Statement,
    insert: &'a TableInsert,
    rows: &'a [Row],
) -> BoxFuture<'a, Result<u64, Error>> {
    let arrays: Vec<String> = insert.fields().map(|field| array(rows, field)).collect();
    async move {
        let values: Vec<_> = arrays.iter().map(|array| Text(Some(array))).collect();
        client.execute_raw(statement, values).await
    }
    .boxed()
}

fn run<'a>(client: &'a Client, sql: &'a str) -> BoxFuture<'a, Result<u64, Error>> {
    client.batch_execute(sql).map(|done| done.map(|()| 0)).boxed()
}

/// Sends requests in order without waiting for their answers, then waits for all.
async fn pipelined<T>(requests: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    let mut requests: Vec<_> = requests.into_iter().map(maybe_done).collect();
    poll_fn(|cx| {
        let mut all_done = Poll::Ready(());
        for request in &mut requests {
            if Pin::new(request).poll_unpin(cx).is_pending() {
                all_done = Poll::Pending;
            }
        }
        all_done
    })
    .await;
    requests.iter_mut().filter_map(|request| Pin::new(request).take_output()).collect()
}

fn first_error<T>(results: Vec<Result<T, Error>>) -> Option<(usize, Error)> {
    results.into_iter().enumerate().find_map(|(at, result)| Some((at, result.err()?)))
}

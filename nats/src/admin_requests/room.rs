//! Temporarily raises the limit of a full EVENTS, for a message that makes room.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::Message;
use parking_lot::{Mutex, MutexGuard};
use weft_proto::ids::ShardId;

use super::{AskError, Requests};
use crate::{
    connect::Connection,
    streams::{self, EnsureError},
    subject::Layout,
};

/// Bytes by which the limit of a full stream is raised for a loan.
const LOAN_BYTES: u64 = 1 << 20;
/// When a loan is taken back that its borrower has not returned.
const LOAN_MAX: Duration = Duration::from_secs(10);

const LEND: &[u8] = b"lend";
const RETURN: &[u8] = b"return";

/// Does what needs room in a shard's EVENTS that is full. The limit is as before when this returns, or some seconds later.
///
/// # Errors
///
/// [`EnsureError`]: no room could be had.
pub async fn with_room<T>(
    requests: &Requests,
    layout: Layout,
    shard: ShardId,
    work: impl Future<Output = T>,
) -> Result<T, EnsureError> {
    let connection = &requests.connection;
    let subject = || format!("room.{shard}");
    match requests.ask(subject(), LEND.to_vec()).await {
        Ok(()) => {
            let done = work.await;
            // Otherwise the admin takes it back when the time of the loan is over.
            let _ = requests.ask(subject(), RETURN.to_vec()).await;
            Ok(done)
        }
        // One user for all roles.
        Err(AskError::NoAdmin) => {
            let stream = layout.events_stream(shard);
            let Some(max) = lend(connection, &stream).await? else { return Ok(work.await) };
            let done = work.await;
            streams::set_bytes_max(connection, &stream, max).await?;
            Ok(done)
        }
        Err(AskError::Failed(problem)) => Err(EnsureError::Unavailable(problem)),
    }
}

/// Raises a stream's limit; the limit before. `None`: it has none.
async fn lend(connection: &Connection, stream: &str) -> Result<Option<u64>, EnsureError> {
    let usage = streams::usage(connection, stream).await?;
    let Some(max) = usage.bytes_max else { return Ok(None) };
    // It may hold more than its limit, where that has been lowered.
    streams::set_bytes_max(connection, stream, max.max(usage.bytes).saturating_add(LOAN_BYTES)).await?;
    Ok(Some(max))
}

/// Loans that an admin has made. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Loans {
    admin: Connection,
    layout: Layout,
    /// The limits to be restored.
    lent: Arc<Mutex<BTreeMap<ShardId, u64>>>,
    /// One request at a time: two loans of one stream would restore the raised limit.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Loans {
    pub fn new(admin: Connection, layout: Layout) -> Self {
        Self { admin, layout, lent: Arc::default(), turn: Arc::default() }
    }

    pub async fn request(&self, request: &Message) -> Result<(), String> {
        let shard = request.subject.strip_prefix("room.").and_then(|shard| shard.parse().ok()).map(ShardId);
        let shard = shard.filter(|shard| shard.0 < self.layout.shards()).ok_or("there is no such shard")?;
        let done = match request.payload.as_ref() {
            LEND => self.lend(shard).await,
            RETURN => self.take_back(shard).await,
            _ => return Err("say lend or return".into()),
        };
        done.map_err(|error| error.to_string())
    }

    async fn lend(&self, shard: ShardId) -> Result<(), EnsureError> {
        let _turn = self.turn.lock().await;
        if self.held().contains_key(&shard) {
            return Ok(());
        }
        if let Some(max) = lend(&self.admin, &self.layout.events_stream(shard)).await? {
            self.held().insert(shard, max);
            let loans = self.clone();
            // The task ends after the time of a loan.
            tokio::spawn(async move {
                tokio::time::sleep(LOAN_MAX).await;
                if let Err(error) = loans.take_back(shard).await {
                    tracing::warn!(%shard, %error, "the limit of EVENTS stays raised");
                }
            });
        }
        Ok(())
    }

    async fn take_back(&self, shard: ShardId) -> Result<(), EnsureError> {
        let _turn = self.turn.lock().await;
        let Some(max) = self.held().get(&shard).copied() else { return Ok(()) };
        streams::set_bytes_max(&self.admin, &self.layout.events_stream(shard), max).await?;
        self.held().remove(&shard);
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<ShardId, u64>> {
        self.lent.lock()
    }
}

//! Carries out what the lanes ask for: the only place of a shard that waits.
//!
//! One driver owns one shard, from its epoch record on. It takes what is there (events, ended attempts, commands, news of
//! the catalog, acks of commits), hands it to the lanes, and carries out their actions. Commits go one after the other;
//! what must follow a commit is done after it. If a commit cannot be made because another owner has written, the driver
//! ends at once: it is no longer the owner, whatever its lease says.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use weft_nats::{
    catalog::Snapshot,
    connect::Connection,
    reader::{Batch, OrderedReader, ReadError, ReaderOptions},
    subject::Layout,
};
use weft_proto::ids::{ShardId, SubscriptionUid};

use crate::{
    destination::Destinations,
    lane::{Action, AttemptEnd, AttemptId, Input, Lanes, Limits},
    ledger::{LedgerError, Recovered, RecoveryError},
    matching::Compiled,
    ownership::Tenure,
};

mod attempts;
mod backfill;
mod commands;
mod commits;
mod copies;
mod lookups;
mod subscriptions;

use backfill::Backfills;
pub use commits::CHECKPOINT_COMMITS;
use commits::{Commits, Turn};
use copies::Copies;
use lookups::Lookup;

/// Messages of EVENTS of one turn: few enough that ended attempts and acks do not wait long.
const TURN_MESSAGES: usize = 256;
/// Sealed drafts that wait for their commit, above which nothing more is read: each is a whole commit.
const DRAFTS_WAITING_MAX: usize = 16;

/// What a driver needs besides its shard's state.
#[derive(Debug, Clone)]
pub struct Context {
    /// The log.
    pub connection: Connection,
    /// How it is cut.
    pub layout: Layout,
    /// The worker's id.
    pub worker: String,
    /// How deliveries are made.
    pub destinations: Arc<Destinations>,
    /// The catalog, as it changes.
    pub catalog: watch::Receiver<Arc<Snapshot>>,
    /// The bounds.
    pub limits: Limits,
    /// A checkpoint is written after so many commits.
    pub checkpoint_commits: u64,
}

/// Why a driver ended.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Another owner has written to OUTCOMES.
    #[error("another worker has taken the shard")]
    Fenced,
    /// The lease ran out before it could be renewed.
    #[error("the lease has run out")]
    LeaseLost,
    /// EVENTS is not the log that the ledger was made of, or has dropped what is unsettled.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The ledger's file.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Reading OUTCOMES again after an uncertain commit.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
}

/// Drives one shard.
#[derive(Debug)]
pub struct Driver {
    context: Context,
    shard: ShardId,
    tenure: Tenure,
    lanes: Lanes,
    commits: Commits,
    copies: Copies,
    events: OrderedReader,
    commands: OrderedReader,
    subscriptions: HashMap<SubscriptionUid, Compiled>,
    backfills: Backfills,
    attempts: JoinSet<(AttemptId, AttemptEnd)>,
    lookups: JoinSet<Lookup>,
    /// Whether the catalog has been read to its end: nothing is matched before.
    matching: bool,
}

impl Driver {
    /// Takes over a shard that has been recovered and whose epoch record is the next thing to be committed.
    pub fn new(context: Context, shard: ShardId, tenure: Tenure, recovered: Recovered) -> Self {
        let Recovered { ledger, positions, restored } = recovered;
        let reader = |stream: String, what: &str, after: u64| {
            let name = format!("worker-{what}-{shard}");
            let from = weft_proto::ids::StreamSeq(after + 1);
            let options = ReaderOptions { stream, name, from, filter: None, batch_messages_max: TURN_MESSAGES };
            OrderedReader::new(context.connection.clone(), options)
        };
        let events = reader(context.layout.events_stream(shard), "events", positions.cursor.0);
        let commands = reader(context.layout.commands_stream(shard), "commands", positions.commands);
        let detached = restored.subscriptions.clone();
        let lanes = Lanes::new(context.limits, restored, StdRng::from_rng(&mut rand::rng()));
        let copies = Copies::start(&context, positions.copied);
        let commits = Commits::new(&context, shard, ledger, positions);
        let backfills = Backfills::new(&context, shard, &detached);
        Self {
            context,
            shard,
            tenure,
            lanes,
            commits,
            copies,
            events,
            commands,
            subscriptions: HashMap::new(),
            backfills,
            attempts: JoinSet::new(),
            lookups: JoinSet::new(),
            matching: false,
        }
    }

    /// Delivers until `drain`: then what is in flight ends and is committed. Ends early when it is no longer the owner.
    ///
    /// # Errors
    ///
    /// [`DriverError`]: why it had to stop. Nothing is lost; the next owner goes on from OUTCOMES.
    pub async fn run(mut self, drain: CancellationToken) -> Result<(), DriverError> {
        self.commits.fence().await?;
        self.copies.repeat(&self.context, self.shard, self.commits.copied()).await?;
        tracing::info!(shard = %self.shard, epoch = self.commits.epoch(), "shard is taken over");
        let mut catalog = self.context.catalog.clone();
        catalog.mark_changed();
        let lost = self.tenure.lost();
        loop {
            self.commit_next();
            let draining = drain.is_cancelled();
            if draining {
                self.lanes.drain();
                if self.attempts.is_empty() && !self.commits.in_flight() && !self.lanes.has_draft() {
                    return Ok(());
                }
            }
            let reads = self.matching && !draining && self.lanes.drafts_waiting() < DRAFTS_WAITING_MAX;
            let deadline = self.lanes.next_deadline();
            tokio::select! {
                () = lost.cancelled() => return Err(DriverError::LeaseLost),
                () = drain.cancelled(), if !draining => {}
                Some(ended) = self.attempts.join_next(), if !self.attempts.is_empty() => self.ended(ended)?,
                turn = self.commits.next() => match turn? {
                    Turn::Answered(answer) => self.committed(*answer).await?,
                    Turn::Piece(piece) => self.commits.append_piece(piece),
                },
                Some(looked) = self.lookups.join_next(), if !self.lookups.is_empty() => self.looked(looked)?,
                changed = catalog.changed(), if !draining => {
                    if changed.is_ok() {
                        let snapshot = Arc::clone(&catalog.borrow_and_update());
                        self.catalog_changed(&snapshot)?;
                    }
                }
                () = sleep_until(deadline), if deadline.is_some() && !draining => self.handle(Input::TimerFired)?,
                batch = self.commands.next(), if self.matching && !draining => self.commanded(&batch?)?,
                step = self.backfills.next(), if reads && !self.backfills.is_empty() => self.backfilled(step?)?,
                batch = self.events.next(), if reads => self.arrived(batch?)?,
            }
        }
    }

    fn arrived(&mut self, batch: Batch) -> Result<(), DriverError> {
        use weft_nats::event::{Entry, StoredEvent};
        for message in batch.messages {
            let seq = message.seq;
            let stored_at = message.stored_at;
            match Entry::decode(self.context.layout, &message) {
                Entry::Event(event) => {
                    let event = Arc::new(StoredEvent { seq, stored_at, event: *event });
                    let takers = self
                        .subscriptions
                        .values()
                        .filter(|compiled| !self.backfills.has(compiled.matcher.uid))
                        .filter(|compiled| compiled.matcher.takes(&event))
                        .map(|compiled| compiled.matcher.uid)
                        .collect();
                    self.handle(Input::Arrived { event, takers })?;
                }
                Entry::Heads(_) => self.handle(Input::Passed { seq })?,
                Entry::Foreign(problem) => {
                    metrics::counter!(crate::metrics::FOREIGN_MESSAGES).increment(1);
                    tracing::debug!(seq = seq.0, %problem, "message is not an event and is passed over");
                    self.handle(Input::Passed { seq })?;
                }
            }
        }
        Ok(())
    }

    /// Tells the lanes, and carries out what they ask for.
    fn handle(&mut self, input: Input) -> Result<(), DriverError> {
        let mut actions = Vec::new();
        self.lanes.handle(input, Timestamp::now(), &mut actions);
        for action in actions {
            match action {
                Action::Attempt { id, work, event, number, previous } => {
                    self.attempt(id, work, event, number, previous)?;
                }
                Action::CatchUp { lane, from, through, limit } => self.catch_up(lane, from, through, limit),
                Action::Load { work, subscription_name, event, dead_run } => {
                    self.load(work, subscription_name, event, dead_run);
                }
                Action::Lost { lane, from, through } => {
                    metrics::counter!(crate::metrics::LOST_RANGES).increment(1);
                    let Self { shard, .. } = self;
                    tracing::error!(
                        %shard, subscription = %lane.subscription, workflow_id = %lane.workflow,
                        from = from.0, through = through.0,
                        "events of a lane are no longer in the log although they are unsettled"
                    );
                }
            }
        }
        Ok(())
    }
}

/// Until a moment of the wall clock; for ever when there is none.
async fn sleep_until(deadline: Option<Timestamp>) {
    let Some(deadline) = deadline else { return std::future::pending().await };
    let left = Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
    tokio::time::sleep(left).await;
}

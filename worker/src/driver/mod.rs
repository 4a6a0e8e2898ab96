//! The driver of a shard: performs the lanes' actions and reports their results. It is the only part of a shard that waits.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use weft_catalog::{Catalog, Snapshot};
use weft_nats::{
    clock::{Anchored, boot_time},
    conditions::Conditions,
    connect::Connection,
    options::OnFull,
    position::Position,
    reader::{OrderedReader, ReadError, ReaderOptions},
    subject::Layout,
};
use weft_proto::ids::ShardId;

use crate::{
    destination::Destinations,
    lane::{Action, Input, Lanes},
    ledger::{LedgerError, Recovered, RecoveryError},
    log::Log,
    matching::Subscriptions,
    ownership::LeaseGuard,
    shares::Share,
    stream_identity::Known,
};

mod append;
mod attempts;
mod backfill;
mod catalog;
mod checkpoint_schedule;
mod checkpoints;
mod commands;
mod commits;
mod cursor_marks;
mod dead_letter_copier;
mod endpoint_pause;
mod erasures;
mod expiry_watch;
mod filters;
mod lookups;
mod reader;
mod receivers;
mod trace;
mod trim;

pub(crate) use append::append_until_stored;
use attempts::FinishedAttempt;
use backfill::Backfills;
use catalog::CatalogFollower;
pub use checkpoint_schedule::CheckpointPolicy;
use checkpoints::{Checkpoints, Removal};
use commands::CommandReader;
use commits::{Commits, Stored};
use dead_letter_copier::DeadLetterCopier;
use erasures::{Erasures, EventsReader};
use expiry_watch::ExpiryWatch;
use filters::DeferredFilters;
use lookups::{Lookup, ReadEnds};
use receivers::Receivers;
use trace::Traced;
use trim::Trim;

/// Messages of EVENTS of one turn: few enough that finished attempts and acks do not wait long.
const BATCH_MESSAGES: usize = 256;
/// Sealed commits that wait for their append, above which nothing more is read: each is up to a megabyte in memory, and a few
/// keep the pipeline of appends busy.
const SEALED_COMMITS_MAX: usize = 4;
/// How long a drain waits for the copies of dead letters: long enough while the log is available. The next owner makes the
/// missing ones.
const DRAIN_COPIES: Duration = Duration::from_secs(5);

/// The parts that the drivers of a worker share.
#[derive(Debug, Clone)]
pub struct Context {
    /// The connection to NATS.
    pub connection: Connection,
    /// The layout of the log.
    pub layout: Layout,
    /// The worker's id.
    pub worker: String,
    /// The destinations of subscriptions.
    pub destinations: Arc<Destinations>,
    /// The catalog, as it changes.
    pub catalog: watch::Receiver<Arc<Snapshot>>,
    /// The catalog, to pause subscriptions in.
    pub pauses: Catalog,
    /// How often a checkpoint is written.
    pub checkpoints: CheckpointPolicy,
    /// How long EVENTS keeps an event. Zero: for ever.
    pub retention: Duration,
    /// How long DLQ keeps a copy.
    pub dead_retention: Duration,
    /// How long the sequence number of an idle workflow is remembered.
    pub remember: Duration,
    /// Policy for an EVENTS that is nearly full.
    pub on_full: OnFull,
    /// Conditions shown to operators.
    pub conditions: Conditions,
    /// Cancelled when a drain waits for attempts no longer: they are left to the next owner.
    pub cut: CancellationToken,
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
    /// EVENTS is not the stream that the ledger follows from, or COMMANDS has dropped commands that were not read.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The ledger's file.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// OUTCOMES and EVENTS do not allow a take-over.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// A task has panicked. The shard starts over from its last commit.
    #[error("{what} aborted")]
    Task {
        /// The task.
        what: &'static str,
        /// How it ended.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// Drives one shard, from its take-over until it drains or loses the shard.
///
/// [`run`](Self::run) first appends the epoch record, which fences off the previous owner. Then each turn takes one thing that
/// has happened (messages, a finished attempt, a stored commit, a change of the catalog, a timer), passes it to the
/// [`Lanes`] as an input, and performs the actions that follow. Commits are appended one at a time, and nothing is applied
/// or acted on before its commit is stored. If a commit cannot be stored because another owner has written, the driver ends
/// at once: it no longer owns the shard, even if its lease has not run out.
///
/// Lanes live by a clock that is anchored to the server's at take-over and follows the boot clock from then on, so a step of a
/// wall clock neither ends a wait early nor prolongs it.
#[derive(Debug)]
pub struct Driver {
    context: Context,
    shard: ShardId,
    lease: LeaseGuard,
    share: Share,
    clock: Anchored,
    lanes: Lanes,
    commits: Commits,
    checkpoints: Checkpoints,
    copier: DeadLetterCopier,
    events: EventsReader,
    commands: CommandReader,
    catalog: CatalogFollower,
    /// The subscriptions that events are matched by.
    subscriptions: Subscriptions,
    deferred_filters: DeferredFilters,
    backfills: Backfills,
    expiry_watch: ExpiryWatch,
    _trim: Option<AbortOnDropHandle<()>>,
    attempts: JoinSet<FinishedAttempt>,
    lookups: JoinSet<Lookup>,
    read_ends: ReadEnds,
    receivers: Receivers,
    traced: Traced,
    /// Pauses of subscriptions that the catalog has not taken yet.
    pauses: JoinSet<()>,
    /// The attempts in flight have been aborted.
    is_cut: bool,
}

impl Driver {
    /// A driver for a recovered shard, whose epoch record is the next thing to be appended.
    ///
    /// # Errors
    ///
    /// [`DriverError::Ledger`].
    pub(crate) fn new(
        context: Context,
        shard: ShardId,
        lease: LeaseGuard,
        mut share: Share,
        recovered: Recovered,
        known: Known,
    ) -> Result<Self, DriverError> {
        let Recovered { ledger, positions, restored, checkpoints } = recovered;
        let log = Log { connection: context.connection.clone(), layout: context.layout, shard };
        let stream = context.layout.events_stream(shard);
        let erasures = Erasures::new(log.clone());
        let events = reader(&context, stream, &format!("events-{shard}"), known.events.clone());
        let events = EventsReader::new(events, known.events.cursor, erasures.clone());
        let stream = context.layout.commands_stream(shard);
        let commands = reader(&context, stream, &format!("commands-{shard}"), known.commands.clone());
        crate::metrics::shard_owned(shard);
        let receivers = Receivers::new(shard, context.conditions.clone());
        let backfills = Backfills::new(log.clone(), erasures, &restored.subscriptions);
        let clock = lane_clock(&context.connection);
        let lanes = Lanes::new(share.limits(), restored, clock.now(), StdRng::from_rng(&mut rand::rng()));
        let expiry_watch = ExpiryWatch::start(log.clone(), context.retention);
        let refused = ledger.refused_copies()?;
        let (copied, end, cursor) = (positions.copied, positions.outcomes, positions.cursor);
        let copier =
            DeadLetterCopier::start(&context, log.clone(), copied, end, cursor, refused, ledger.subscriptions()?);
        let trim = (context.on_full == OnFull::DropSettled)
            .then(|| Trim::start(&context, log.clone(), ledger.settlement(), copier.shared()));
        let created_ns = positions.created_ns;
        let commits = Commits::new(&context, log.clone(), ledger, &positions, known, clock);
        let (admins, conditions) = (context.pauses.requests(), context.conditions.clone());
        let removal = Removal { log, admins, conditions };
        let checkpoints = Checkpoints::new(removal, context.checkpoints, commits.epoch(), created_ns, checkpoints);
        Ok(Self {
            context,
            shard,
            lease,
            share,
            clock,
            lanes,
            commits,
            checkpoints,
            copier,
            events,
            commands: CommandReader::new(commands),
            catalog: CatalogFollower::default(),
            subscriptions: Subscriptions::default(),
            deferred_filters: DeferredFilters::default(),
            backfills,
            expiry_watch,
            _trim: trim,
            attempts: JoinSet::new(),
            lookups: JoinSet::new(),
            read_ends: ReadEnds::default(),
            receivers,
            traced: Traced::default(),
            pauses: JoinSet::new(),
            is_cut: false,
        })
    }

    /// Delivers until `drain`: then attempts in flight end and are committed. Ends early when it no longer owns the shard.
    ///
    /// # Errors
    ///
    /// [`DriverError`]: why it had to stop. Nothing is lost; the next owner continues from OUTCOMES.
    pub async fn run(mut self, drain: CancellationToken) -> Result<(), DriverError> {
        let lost = self.lease.lost();
        let ended = tokio::select! {
            biased;
            () = lost.cancelled() => Err(DriverError::LeaseLost),
            ended = self.drive(&drain) => ended,
        };
        self.checkpoints.stop();
        self.clear_conditions();
        self.commits.close().await;
        ended
    }

    async fn drive(&mut self, drain: &CancellationToken) -> Result<(), DriverError> {
        tokio::select! {
            () = drain.cancelled() => return Ok(()),
            fenced = self.take_over() => fenced?,
        }
        let mut catalog = self.context.catalog.clone();
        catalog.mark_changed();
        while !(drain.is_cancelled() && self.is_drained()) {
            if self.context.cut.is_cancelled() && !self.is_cut {
                self.cut_attempts().await;
            }
            self.turn(drain, &mut catalog).await?;
        }
        // The next owner makes the missing copies.
        let _ = tokio::time::timeout(DRAIN_COPIES, self.copier.done()).await;
        Ok(())
    }

    /// Aborts the attempts in flight, whose results stay unknown: the next owner makes them again, with the same event ids.
    async fn cut_attempts(&mut self) {
        self.is_cut = true;
        let attempts = self.attempts.len();
        if attempts > 0 {
            tracing::warn!(shard = %self.shard, attempts, "attempts outlast the drain timeout and are left to the next owner");
            self.attempts.shutdown().await;
        }
    }

    /// Fences off the previous owner.
    async fn take_over(&mut self) -> Result<(), DriverError> {
        let Stored { commit, .. } = self.commits.fence().await?;
        self.checkpoints.taken_over();
        self.deferred_filters.find_earlier_end(self.log());
        self.copier.add(self.commits.position(), &commit, Vec::new());
        tracing::info!(shard = %self.shard, epoch = self.commits.epoch(), "shard taken over");
        Ok(())
    }

    /// Starts no attempt from now on. Returns whether those in flight have ended and are committed.
    fn is_drained(&mut self) -> bool {
        self.lanes.drain();
        self.attempts.is_empty() && !self.commits.in_flight() && !self.lanes.has_commit()
    }

    /// Takes one thing that has happened, and performs what follows.
    async fn turn(
        &mut self,
        drain: &CancellationToken,
        catalog: &mut watch::Receiver<Arc<Snapshot>>,
    ) -> Result<(), DriverError> {
        self.commit_next();
        self.checkpoints.start_if_due(self.commits.ledger());
        let active = !drain.is_cancelled();
        let matches = self.catalog.is_complete() && active;
        let reads = matches && self.lanes.sealed_commits() < SEALED_COMMITS_MAX;
        if reads {
            self.backfill_next()?;
        }
        let deadline = self.lanes.next_deadline();
        let checkpoint = self.checkpoints.wait();
        let commit = self.commits.wait(&self.lanes);
        tokio::select! {
            () = drain.cancelled(), if active => {}
            // The next turn aborts the attempts.
            () = self.context.cut.cancelled(), if !self.is_cut => {}
            Some(ended) = self.attempts.join_next() => self.on_attempt_finished(ended)?,
            answer = self.commits.answer() => self.on_commit_stored(answer).await?,
            ended = self.checkpoints.ended() => self.checkpoints.finish(ended)?,
            // The next turn records it.
            () = self.copier.has_news(), if !self.commits.in_flight() => {}
            // The next turn starts it.
            () = tokio::time::sleep(checkpoint.unwrap_or_default()), if checkpoint.is_some() => {}
            () = tokio::time::sleep(commit.unwrap_or_default()), if commit.is_some() => {}
            Some(lookup) = self.lookups.join_next() => self.on_lookup(lookup)?,
            Ok(()) = catalog.changed(), if active => {
                let snapshot = Arc::clone(&catalog.borrow_and_update());
                self.on_catalog_changed(&snapshot)?;
            }
            confirmed = self.catalog.confirmed(), if active => self.on_catalog_confirmed(confirmed)?,
            end = self.deferred_filters.earlier_end(), if active => self.on_earlier_end(end)?,
            () = self.share.changed() => {
                let limits = self.share.limits();
                self.handle(Input::LimitsChanged(limits))?;
            }
            () = sleep_until(self.clock, deadline), if active => self.handle(Input::TimerFired)?,
            batch = self.commands.next(), if matches => self.on_commands(&batch?)?,
            () = self.expiry_watch.changed(), if matches => self.on_log_aged()?,
            progress = self.backfills.next(), if active => self.on_backfill(progress)?,
            batch = self.events.next(), if reads && !self.backfills.is_closing() => self.on_events(batch.map_err(aborted("read"))?)?,
        }
        Ok(())
    }

    /// The shard's streams.
    fn log(&self) -> Log {
        Log { connection: self.context.connection.clone(), layout: self.context.layout, shard: self.shard }
    }

    /// Passes an input to the lanes, and performs the actions that follow.
    fn handle(&mut self, input: Input) -> Result<(), DriverError> {
        let mut actions = Vec::new();
        let sealed = self.lanes.sealed_commits();
        self.lanes.handle(input, self.clock.now(), &mut actions);
        if self.lanes.sealed_commits() > sealed {
            self.commits.events().seal();
            self.commits.commands().seal();
        }
        for action in actions {
            match action {
                Action::Attempt { id, work, events, number, previous } => {
                    self.start_attempt(id, &work, events, number, previous)?;
                }
                Action::CatchUp { lane, from, through, limit } => self.start_catch_up(lane, from, through, limit),
                Action::Load { work, subscription_name, event, dead_run } => {
                    self.start_load(work, subscription_name, event, dead_run);
                }
                Action::Detach { uid } => self.backfills.begin(uid),
                Action::Pause { uid, revision, reason } => self.pause_subscription(uid, revision, reason),
                Action::Receiver { uid, condition } => self.show_receiver(uid, condition.as_ref()),
                Action::Lost { lane, from, through } => {
                    metrics::counter!(crate::metrics::LOST_RANGES).increment(1);
                    tracing::error!(
                        shard = %self.shard, subscription = %lane.subscription, workflow_id = %lane.workflow,
                        from = from.0, through = through.0,
                        "unsettled events of a lane are no longer in the log"
                    );
                }
            }
        }
        Ok(())
    }
}

/// A reader that continues after a position, while the stream is the one of that position.
fn reader(context: &Context, stream: String, name: &str, known: Position) -> OrderedReader {
    let (name, from) = (format!("worker-{name}"), known.cursor.next());
    let known = Some(known);
    let (filter, batch_messages_max, pages) = (None, BATCH_MESSAGES, true);
    let options = ReaderOptions { stream, name, from, filter, batch_messages_max, known, pages };
    OrderedReader::new(context.connection.clone(), options)
}

/// The server's clock, which recovery has just read; if that is unknown, the local one.
fn lane_clock(connection: &Connection) -> Anchored {
    let server = connection.server_clock().anchored();
    server.unwrap_or_else(|| Anchored::new(Timestamp::now(), boot_time()))
}

/// Waits until a time of the lanes' clock; for ever when there is none.
async fn sleep_until(clock: Anchored, deadline: Option<Timestamp>) {
    let Some(deadline) = deadline else { return std::future::pending().await };
    let left = Duration::try_from(deadline.duration_since(clock.now())).unwrap_or(Duration::ZERO);
    tokio::time::sleep(left).await;
}

/// The error of a task that has panicked.
fn aborted(what: &'static str) -> impl Fn(tokio::task::JoinError) -> DriverError {
    move |source| DriverError::Task { what, source }
}

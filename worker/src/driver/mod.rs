//! Carries out what the lanes ask for: the only place of a shard that waits.
//!
//! One driver owns one shard, from its epoch record on. It takes what is there (events, ended attempts, commands, news of
//! the catalog, acks of commits), hands it to the lanes, and carries out their actions. Commits go one after the other;
//! what must follow a commit is done after it. If a commit cannot be made because another owner has written, the driver
//! ends at once: it is no longer the owner, whatever its lease says.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use weft_nats::{
    broker::Requests,
    catalog::{Catalog, Snapshot},
    clock::{Anchored, boot_time},
    conditions::Conditions,
    connect::Connection,
    options::OnFull,
    position::Position,
    reader::{OrderedReader, ReadError, ReaderOptions},
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    v1,
};

use crate::{
    destination::Destinations,
    identity::Known,
    lane::{Action, Input, Lanes},
    ledger::{LedgerError, Recovered, RecoveryError},
    log::Log,
    matching::Subscriptions,
    ownership::LeaseGuard,
    shares::Share,
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
mod expiry_watch;
mod filters;
mod lookups;
mod reader;
mod receivers;
mod trim;

pub(crate) use append::append_until_stored;
use attempts::FinishedAttempt;
use backfill::Backfills;
pub use checkpoint_schedule::CheckpointPolicy;
use checkpoints::{Checkpoints, Removal};
use commits::{Commits, Stored};
use dead_letter_copier::DeadLetterCopier;
use expiry_watch::ExpiryWatch;
use lookups::Lookup;
use receivers::Receivers;
use trim::Trim;

/// Messages of EVENTS of one turn: few enough that ended attempts and acks do not wait long.
const BATCH_MESSAGES: usize = 256;
/// Sealed drafts that wait for their commit, above which nothing more is read: each is a whole commit, up to a megabyte in
/// memory, and a few keep the commits going one after the other.
const SEALED_COMMITS_MAX: usize = 4;
/// How long a drain waits for the copies of dead letters: long enough for a log that answers; the next owner makes the
/// rest.
const DRAIN_COPIES: Duration = Duration::from_secs(5);

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
    /// The catalog, to pause subscriptions in.
    pub pauses: Catalog,
    /// How often a checkpoint is written.
    pub checkpoints: CheckpointPolicy,
    /// How long EVENTS keeps an event. Zero: for ever.
    pub retention: Duration,
    /// How long DLQ keeps a copy.
    pub dead_retention: Duration,
    /// For how long an idle workflow's number goes on.
    pub remember: Duration,
    /// What happens when EVENTS is nearly full.
    pub on_full: OnFull,
    /// What an operator should know of.
    pub conditions: Conditions,
    /// The worker drains and waits for attempts no longer: they are left to the next owner.
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
    /// EVENTS is not the log that the ledger was made of, or COMMANDS has dropped what is not carried out.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The ledger's file.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What OUTCOMES and EVENTS hold does not allow it to begin.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// A task has panicked. What was not committed is done again, so the shard starts over.
    #[error("{what} has failed in the midst of it")]
    Task {
        /// What it did.
        what: &'static str,
        /// How it ended.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// Drives one shard.
#[derive(Debug)]
pub struct Driver {
    context: Context,
    shard: ShardId,
    lease: LeaseGuard,
    share: Share,
    /// The lanes' clock: the log server's as it was when the shard was taken over, and from then on the boot clock. So a
    /// step of any wall clock neither ends a wait early nor prolongs it.
    clock: Anchored,
    lanes: Lanes,
    commits: Commits,
    checkpoints: Checkpoints,
    copies: DeadLetterCopier,
    events: OrderedReader,
    commands: OrderedReader,
    /// Request ids that have been handed to the lanes and whose results are not committed yet.
    requests: HashSet<String>,
    subscriptions: Subscriptions,
    /// Subscriptions that events are matched for by an earlier filter than the catalog's.
    deferred: Vec<SubscriptionUid>,
    /// Asks for the end of EVENTS, behind which their filters in the catalog count.
    earlier_end: JoinSet<StreamSeq>,
    /// Asks the server for a catalog that was not read as far as the shard has acted on.
    confirming: JoinSet<Arc<Snapshot>>,
    /// What the server has confirmed to be all of the catalog.
    confirmed: Option<v1::CatalogPosition>,
    /// When the catalog's bucket was created of which the shard has been told last, in unix nanoseconds.
    bucket: i64,
    /// The catalog's bucket was created again, and orphans are left from before.
    created_again: bool,
    backfills: Backfills,
    expiry_watch: ExpiryWatch,
    /// Makes room in EVENTS, where that is wanted.
    _trim: Option<AbortOnDropHandle<()>>,
    attempts: JoinSet<FinishedAttempt>,
    lookups: JoinSet<Lookup>,
    receivers: Receivers,
    /// Subscriptions that are being paused.
    pauses: JoinSet<()>,
    /// Whether the catalog has been read to its end: nothing is matched before.
    matching: bool,
    /// Since when there has been something to commit.
    pending_since: Option<tokio::time::Instant>,
    /// Attempts in flight have been given up.
    is_cut: bool,
}

impl Driver {
    /// Takes over a shard that has been recovered and whose epoch record is the next thing to be committed.
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
        let events = reader(&context, stream, &format!("events-{shard}"), known.events.clone());
        let stream = context.layout.commands_stream(shard);
        let commands = reader(&context, stream, &format!("commands-{shard}"), known.commands.clone());
        let receivers = Receivers::new(shard, context.conditions.clone());
        let backfills = Backfills::new(log.clone(), &restored.subscriptions);
        let clock = lane_clock(&context.connection);
        let lanes = Lanes::new(share.limits(), restored, clock.now(), StdRng::from_rng(&mut rand::rng()));
        let expiry_watch = ExpiryWatch::start(log.clone(), context.retention);
        let refused = ledger.refused_copies()?;
        let (copied, end, cursor) = (positions.copied, positions.outcomes, positions.cursor);
        let copies =
            DeadLetterCopier::start(&context, log.clone(), copied, end, cursor, refused, ledger.subscriptions()?);
        let trim = (context.on_full == OnFull::DropSettled)
            .then(|| Trim::start(&context, log.clone(), ledger.settlement(), copies.shared()));
        let created_ns = positions.created_ns;
        let commits = Commits::new(&context, log.clone(), ledger, &positions, known, clock);
        let (admins, conditions) = (Requests::new(&context.pauses), context.conditions.clone());
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
            copies,
            events,
            commands,
            requests: HashSet::new(),
            subscriptions: Subscriptions::default(),
            deferred: Vec::new(),
            earlier_end: JoinSet::new(),
            confirming: JoinSet::new(),
            confirmed: None,
            bucket: 0,
            created_again: false,
            backfills,
            expiry_watch,
            _trim: trim,
            attempts: JoinSet::new(),
            lookups: JoinSet::new(),
            receivers,
            pauses: JoinSet::new(),
            matching: false,
            pending_since: None,
            is_cut: false,
        })
    }

    /// Delivers until `drain`: then what is in flight ends and is committed. Ends early when it is no longer the owner.
    ///
    /// # Errors
    ///
    /// [`DriverError`]: why it had to stop. Nothing is lost; the next owner goes on from OUTCOMES.
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
        // What is missing is made by the next owner.
        let _ = tokio::time::timeout(DRAIN_COPIES, self.copies.done()).await;
        Ok(())
    }

    /// Gives up the attempts in flight. What the receiver makes of them nobody learns: the next owner makes them again, with
    /// the same event ids.
    async fn cut_attempts(&mut self) {
        self.is_cut = true;
        let attempts = self.attempts.len();
        if attempts > 0 {
            tracing::warn!(shard = %self.shard, attempts, "attempts take longer than the drain and are left to the next owner");
            self.attempts.shutdown().await;
        }
    }

    /// Fences off the owner before.
    async fn take_over(&mut self) -> Result<(), DriverError> {
        let Stored { commit, .. } = self.commits.fence().await?;
        self.checkpoints.taken_over();
        self.ask_earlier_end();
        self.copies.add(self.commits.position(), &commit, Vec::new());
        tracing::info!(shard = %self.shard, epoch = self.commits.epoch(), "shard is taken over");
        Ok(())
    }

    /// From now on no attempt starts. Whether what was in flight has ended and is committed.
    fn is_drained(&mut self) -> bool {
        self.lanes.drain();
        self.attempts.is_empty() && !self.commits.in_flight() && !self.lanes.has_commit()
    }

    /// Takes one thing that has happened, whichever it is, and carries out what follows.
    async fn turn(
        &mut self,
        drain: &CancellationToken,
        catalog: &mut watch::Receiver<Arc<Snapshot>>,
    ) -> Result<(), DriverError> {
        self.commit_next();
        self.checkpoints.start_if_due(self.commits.ledger());
        let active = !drain.is_cancelled();
        let reads = self.matching && active && self.lanes.sealed_commits() < SEALED_COMMITS_MAX;
        if reads {
            self.backfill_next()?;
        }
        let deadline = self.lanes.next_deadline();
        let checkpoint = self.checkpoints.wait();
        let pending = self.commit_wait();
        tokio::select! {
            () = drain.cancelled(), if active => {}
            // The next turn gives up what is in flight.
            () = self.context.cut.cancelled(), if !self.is_cut => {}
            Some(ended) = self.attempts.join_next() => self.on_attempt_finished(ended)?,
            answer = self.commits.answer() => self.on_commit_stored(answer).await?,
            ended = self.checkpoints.ended() => self.checkpoints.finish(ended)?,
            // The next turn records it.
            () = self.copies.has_news(), if !self.commits.in_flight() => {}
            // The next turn starts it.
            () = tokio::time::sleep(checkpoint.unwrap_or_default()), if checkpoint.is_some() => {}
            () = tokio::time::sleep(pending.unwrap_or_default()), if pending.is_some() => {}
            Some(looked) = self.lookups.join_next() => self.on_lookup(looked)?,
            Ok(()) = catalog.changed(), if active => {
                let snapshot = Arc::clone(&catalog.borrow_and_update());
                self.on_catalog_changed(&snapshot)?;
            }
            Some(end) = self.earlier_end.join_next(), if active => self.on_earlier_end(end)?,
            Some(confirmed) = self.confirming.join_next(), if active => self.on_catalog_confirmed(confirmed)?,
            () = self.share.changed() => {
                let limits = self.share.limits();
                self.handle(Input::LimitsChanged(limits))?;
            }
            () = sleep_until(self.clock, deadline), if active => self.handle(Input::TimerFired)?,
            batch = self.commands.next(), if self.matching && active => self.on_commands(&batch?)?,
            () = self.expiry_watch.changed(), if self.matching && active => self.on_log_aged()?,
            step = self.backfills.next(), if active => self.on_backfill(step)?,
            batch = self.events.next(), if reads && !self.backfills.is_closing() => self.on_events(batch)?,
        }
        Ok(())
    }

    /// The shard's streams.
    fn log(&self) -> Log {
        Log { connection: self.context.connection.clone(), layout: self.context.layout, shard: self.shard }
    }

    /// Tells the lanes, and carries out what they ask for.
    fn handle(&mut self, input: Input) -> Result<(), DriverError> {
        let mut actions = Vec::new();
        let drafts = self.lanes.sealed_commits();
        self.lanes.handle(input, self.clock.now(), &mut actions);
        if self.lanes.sealed_commits() > drafts {
            self.commits.events().seal();
            self.commits.commands().seal();
        }
        for action in actions {
            match action {
                Action::Attempt { id, work, event, number, previous } => {
                    self.start_attempt(id, work, event, number, previous)?;
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
                        "events of a lane are no longer in the log although they are unsettled"
                    );
                }
            }
        }
        Ok(())
    }
}

/// Reads what follows a position, as long as the stream is the one of that position.
fn reader(context: &Context, stream: String, name: &str, known: Position) -> OrderedReader {
    let (name, from) = (format!("worker-{name}"), known.cursor.next());
    let known = Some(known);
    let (filter, batch_messages_max, pages) = (None, BATCH_MESSAGES, true);
    let options = ReaderOptions { stream, name, from, filter, batch_messages_max, known, pages };
    OrderedReader::new(context.connection.clone(), options)
}

/// The server's clock, which recovery has just asked for; a server that tells no time leaves the local one.
fn lane_clock(connection: &Connection) -> Anchored {
    let server = connection.server_clock().anchored();
    server.unwrap_or_else(|| Anchored::new(Timestamp::now(), boot_time()))
}

/// Until a moment of the lanes' clock; for ever when there is none.
async fn sleep_until(clock: Anchored, deadline: Option<Timestamp>) {
    let Some(deadline) = deadline else { return std::future::pending().await };
    let left = Duration::try_from(deadline.duration_since(clock.now())).unwrap_or(Duration::ZERO);
    tokio::time::sleep(left).await;
}

//! One shard of a worker: claimed when the worker should own it, taken over, driven, given back, again and again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_nats::{position::BehindWatch, reader::ReadError};
use weft_proto::ids::ShardId;

use crate::{
    adopt::{self, Orders},
    driver::{Context, Driver, DriverError},
    identity::{self, Comparison, Difference, Known},
    ledger::{self, Recovered, RecoveryError, tables::Positions},
    log::Log,
    ownership::{
        LeaseGuard, Leases,
        assignment::ShardAction,
        membership::{Assignment, DeclinedShards},
    },
    service::States,
    shares::{Share, Shares},
};

/// The pause before what failed is tried again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The pause before a shard is tried again whose fault does not end by itself: its log has lost something, or its file
/// cannot be used. An operator must act, and reads of it in the log.
const FAULT_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks whether a stopped shard may go on: two or three requests each.
const STOPPED_LOOK: Duration = Duration::from_secs(1);

/// Owns one shard whenever its worker should.
pub(crate) struct Owner {
    pub context: Context,
    pub leases: Leases,
    pub assignment: watch::Receiver<Assignment>,
    pub shares: Arc<Shares>,
    pub declined: DeclinedShards,
    pub shard: ShardId,
    /// The ledger's file.
    pub file: PathBuf,
    pub states: Arc<States>,
}

impl Owner {
    pub async fn run(mut self, drain: CancellationToken) {
        while let Some(expected) = self.called(&drain).await {
            // Not cancelled: a driver that drains ends by itself, with what is in flight committed.
            let pause = self.own(expected, &drain).await;
            tokio::select! {
                () = drain.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Waits for the word to own the shard, and the revision of the lease to claim it behind; each word is good for one
    /// try. `None`: the worker drains.
    async fn called(&mut self, drain: &CancellationToken) -> Option<u64> {
        loop {
            tokio::select! {
                () = drain.cancelled() => return None,
                changed = self.assignment.changed() => changed.ok()?,
            }
            match self.assignment.borrow_and_update().clone() {
                Ok(ShardAction::Own { expected }) => return Some(expected),
                // A standby is ready: it delivers nothing because somebody else does.
                Ok(ShardAction::StandBy | ShardAction::HandOver) => self.states.set(self.shard, None),
                Err(problem) => self.states.set(self.shard, Some(problem)),
            }
        }
    }

    /// Claims the lease, takes the shard over, drives it until it ends. How long to wait before the next try.
    async fn own(&self, expected: u64, drain: &CancellationToken) -> Duration {
        let shard = self.shard;
        let lease = match self.leases.claim(shard, expected).await {
            Ok(Some(lease)) => lease,
            // Something has been written since: the next look says what.
            Ok(None) => return Duration::ZERO,
            Err(problem) => {
                self.states.set(shard, Some(format!("lease: {problem}")));
                return RETRY_PAUSE;
            }
        };
        // From now on: the others' attempts that are above their shares end while this one reads its outcomes.
        let share = self.shares.take();
        let release = CancellationToken::new();
        let (lease, keeping) = lease.keep(release.clone());
        // Ends when it is released or lost.
        let keeper = tokio::spawn(keeping);
        let ended = self.drive(lease, share, drain).await;
        release.cancel();
        let _ = keeper.await;
        // The next owner finds out by its own writes.
        let Context { connection, layout, .. } = &self.context;
        connection.note_write(&layout.outcomes_stream(shard), None);
        let Err(error) = ended else { return Duration::ZERO };
        let problem = problem_of(&error);
        let is_transient = is_transient(&error);
        if is_transient {
            tracing::warn!(%shard, problem, "shard is given up");
        } else {
            tracing::error!(%shard, problem, "shard stops");
            self.declined.add(shard);
        }
        self.states.set(shard, Some(problem));
        if is_transient { RETRY_PAUSE } else { FAULT_PAUSE }
    }

    /// Takes the shard over and drives it until `drain`, or until another worker should have it.
    async fn drive(&self, lease: LeaseGuard, share: Share, drain: &CancellationToken) -> Result<(), DriverError> {
        let shard = self.shard;
        let recovered = tokio::select! {
            recovered = self.recover(&lease, drain) => recovered?,
            () = self.context.cut.cancelled() => return Ok(()),
        };
        let Some((recovered, known)) = recovered else { return Ok(()) };
        self.states.set(shard, None);
        let drain = drain.child_token();
        let driving = Driver::new(self.context.clone(), shard, lease, share, recovered, known)?.run(drain.clone());
        tokio::pin!(driving);
        tokio::select! {
            ended = &mut driving => return ended,
            () = self.dismissed() => {}
        }
        tracing::info!(%shard, "shard is handed over");
        drain.cancel();
        driving.await
    }

    /// Reads the shard's state, and waits until its streams are those of that state. `None`: the worker drains, or another
    /// one should have the shard.
    async fn recover(
        &self,
        lease: &LeaseGuard,
        drain: &CancellationToken,
    ) -> Result<Option<(Recovered, Known)>, DriverError> {
        let Context { connection, layout, .. } = &self.context;
        let log = Log { connection: connection.clone(), layout: *layout, shard: self.shard };
        loop {
            self.states.set(self.shard, Some("reading its outcomes".into()));
            let mut recovered = ledger::recover(connection, *layout, self.shard, &self.file).await?;
            let difference = match identity::compare(&log, &recovered.positions).await? {
                Comparison::Same(known) => return Ok(Some((recovered, known))),
                Comparison::Differs(difference) => difference,
            };
            // The file is read again when the shard goes on.
            recovered.ledger.close().await;
            let positions = recovered.positions.clone();
            drop(recovered);
            let stopped = Stopped { owner: self, log: &log, positions, worker: &self.context.worker };
            let goes_on = tokio::select! {
                goes_on = stopped.wait(difference) => goes_on,
                () = drain.cancelled() => Ok(false),
                () = self.dismissed() => Ok(false),
                () = lease.lost().cancelled_owned() => Err(DriverError::LeaseLost),
            };
            metrics::gauge!(crate::metrics::STOPPED, "shard" => self.shard.to_string()).set(0.0);
            if !goes_on? {
                return Ok(None);
            }
        }
    }

    /// Waits until another worker should have the shard.
    async fn dismissed(&self) {
        let mut assignment = self.assignment.clone();
        if assignment.wait_for(|assignment| *assignment == Ok(ShardAction::HandOver)).await.is_err() {
            // The worker drains.
            std::future::pending().await
        }
    }
}

/// A shard whose streams are not those of its commits. Nothing is attempted and nothing is committed, but that an operator
/// has it adopted.
struct Stopped<'a> {
    owner: &'a Owner,
    log: &'a Log,
    positions: Positions,
    worker: &'a str,
}

impl Stopped<'_> {
    /// Waits until the streams are those of the commits again, or an operator has had the shard adopted: then its state is
    /// to be read again.
    async fn wait(&self, mut difference: Difference) -> Result<bool, DriverError> {
        let mut watch = BehindWatch::default();
        let mut orders = Orders::default();
        let mut is_said = false;
        loop {
            let is_certain = difference.is_certain(&mut watch);
            if is_certain && !is_said {
                is_said = true;
                tracing::error!(shard = %self.owner.shard, %difference, "shard stops: {}", self.advice());
            }
            self.say(&difference, is_certain);
            tokio::time::sleep(STOPPED_LOOK).await;
            match identity::compare(self.log, &self.positions).await {
                Ok(Comparison::Same(_)) => return Ok(true),
                Ok(Comparison::Differs(now)) => difference = now,
                Err(error) => {
                    tracing::debug!(shard = %self.owner.shard, %error, "streams cannot be compared now");
                    continue;
                }
            }
            match orders.find(self.log, &self.positions).await {
                Ok(None) => {}
                Ok(Some(order)) => {
                    adopt::commit(self.log, &self.positions, self.worker, order).await?;
                    return Ok(true);
                }
                Err(error) => tracing::debug!(shard = %self.owner.shard, %error, "commands cannot be read now"),
            }
        }
    }

    fn say(&self, difference: &Difference, is_certain: bool) {
        let shard = self.owner.shard;
        let gauge = metrics::gauge!(crate::metrics::STOPPED, "shard" => shard.to_string());
        gauge.set(f64::from(u8::from(is_certain)));
        self.owner.states.set(
            shard,
            Some(if is_certain {
                format!("stopped: {difference}; {}", self.advice())
            } else {
                format!("waiting: {difference}")
            }),
        );
    }

    fn advice(&self) -> String {
        format!(
            "the streams were restored or lost a part; restore EVENTS, OUTCOMES and COMMANDS of the same moment, or \
             see `weft shard adopt {} --dry-run`",
            self.owner.shard
        )
    }
}

/// Whether the next try may go better without an operator. A stream that is not that of the reader's position is compared
/// with the ledger's position at the next try, which then waits.
fn is_transient(error: &DriverError) -> bool {
    match error {
        DriverError::Fenced | DriverError::LeaseLost | DriverError::Recovery(RecoveryError::Unavailable(_)) => true,
        DriverError::Log(error) => !matches!(error, ReadError::Gone { .. }),
        DriverError::Ledger(_) | DriverError::Recovery(_) | DriverError::Task { .. } => false,
    }
}

/// An error with its causes, in one line.
fn problem_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

//! The owner of one shard of a worker: claims it when it is assigned, takes it over, drives it, and releases it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_nats::{error_chain::in_one_line, position::BehindWatch, reader::ReadError};
use weft_proto::ids::ShardId;

use crate::{
    adopt::{self, AdoptionFinder},
    driver::{Context, Driver, DriverError},
    ledger::{self, Recovered, RecoveryError, tables::Positions},
    log::Log,
    ownership::{
        LeaseGuard, Leases,
        assignment::ShardAction,
        membership::{Assignment, DeclinedShards},
    },
    readiness::Readiness,
    shares::{Share, Shares},
    stream_identity::{self, Comparison, Difference, Known},
};

/// Pause after a transient failure.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause after a permanent fault, such as a log that has lost messages or a file that cannot be used. An operator must act.
const FAULT_PAUSE: Duration = Duration::from_secs(5);
/// Time between two checks whether a stopped shard may continue: two or three requests each.
const STOPPED_LOOK: Duration = Duration::from_secs(1);

/// Owns one shard while it is assigned to its worker.
pub(crate) struct Owner {
    pub context: Context,
    pub leases: Leases,
    pub assignment: watch::Receiver<Assignment>,
    pub shares: Arc<Shares>,
    pub declined: DeclinedShards,
    pub shard: ShardId,
    /// The ledger's file.
    pub file: PathBuf,
    pub readiness: Arc<Readiness>,
}

impl Owner {
    pub async fn run(mut self, drain: CancellationToken) {
        while let Some(expected) = self.assigned(&drain).await {
            // Not cancelled: a draining driver commits the attempts in flight before it ends.
            let pause = self.own(expected, &drain).await;
            tokio::select! {
                () = drain.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Waits until the shard is assigned, and returns the expected revision of its lease; each assignment is good for one claim.
    /// `None`: the worker drains.
    async fn assigned(&mut self, drain: &CancellationToken) -> Option<u64> {
        loop {
            tokio::select! {
                () = drain.cancelled() => return None,
                changed = self.assignment.changed() => changed.ok()?,
            }
            match self.assignment.borrow_and_update().clone() {
                Ok(ShardAction::Own { expected }) => return Some(expected),
                // A standby is ready: another worker delivers the shard.
                Ok(ShardAction::StandBy | ShardAction::HandOver) => self.readiness.set(self.shard, None),
                Err(problem) => self.readiness.set(self.shard, Some(problem)),
            }
        }
    }

    /// Claims the lease, takes the shard over, and drives it until it ends. Returns the pause before the next try.
    async fn own(&self, expected: u64, drain: &CancellationToken) -> Duration {
        let shard = self.shard;
        let lease = match self.leases.claim(shard, expected).await {
            Ok(Some(lease)) => lease,
            // The lease was written since: the next view has it.
            Ok(None) => return Duration::ZERO,
            Err(problem) => {
                self.readiness.set(shard, Some(format!("lease: {problem}")));
                return RETRY_PAUSE;
            }
        };
        // Taken now, so that attempts of other shards above their shares end while this one reads its outcomes.
        let share = self.shares.take();
        let release = CancellationToken::new();
        let (lease, keeping) = lease.keep(release.clone());
        // Ends when it is released or lost.
        let keeper = tokio::spawn(keeping);
        let ended = self.drive(lease, share, drain).await;
        release.cancel();
        let _ = keeper.await;
        // The next owner reports the state of its writes.
        let Context { connection, layout, .. } = &self.context;
        connection.note_write(&layout.outcomes_stream(shard), None);
        let Err(error) = ended else { return Duration::ZERO };
        let problem = in_one_line(&error);
        let is_transient = is_transient(&error);
        if is_transient {
            tracing::warn!(%shard, problem, "shard released after an error");
        } else {
            tracing::error!(%shard, problem, "shard stopped by a permanent fault");
            self.declined.add(shard);
        }
        self.readiness.set(shard, Some(problem));
        if is_transient { RETRY_PAUSE } else { FAULT_PAUSE }
    }

    /// Takes the shard over and drives it until `drain`, or until it is assigned to another worker.
    async fn drive(&self, lease: LeaseGuard, share: Share, drain: &CancellationToken) -> Result<(), DriverError> {
        let shard = self.shard;
        let recovered = tokio::select! {
            recovered = self.recover(&lease, drain) => recovered?,
            () = self.context.cut.cancelled() => return Ok(()),
        };
        let Some((recovered, known)) = recovered else { return Ok(()) };
        self.readiness.set(shard, None);
        let drain = drain.child_token();
        let driving = Driver::new(self.context.clone(), shard, lease, share, recovered, known)?.run(drain.clone());
        tokio::pin!(driving);
        tokio::select! {
            ended = &mut driving => return ended,
            () = self.unassigned() => {}
        }
        tracing::info!(%shard, "shard is being handed over");
        drain.cancel();
        driving.await
    }

    /// Recovers the shard's state, and waits until its streams are those of that state. `None`: the worker drains, or the shard
    /// is assigned to another one.
    async fn recover(
        &self,
        lease: &LeaseGuard,
        drain: &CancellationToken,
    ) -> Result<Option<(Recovered, Known)>, DriverError> {
        let Context { connection, layout, .. } = &self.context;
        let log = Log { connection: connection.clone(), layout: *layout, shard: self.shard };
        loop {
            self.readiness.set(self.shard, Some("reading its outcomes".into()));
            let mut recovered = ledger::recover(connection, *layout, self.shard, &self.file).await?;
            let difference = match stream_identity::compare(&log, &recovered.positions).await? {
                Comparison::Same(known) => return Ok(Some((recovered, known))),
                Comparison::Differs(difference) => difference,
            };
            // The file is read again when the shard continues.
            recovered.ledger.close().await;
            let positions = recovered.positions.clone();
            drop(recovered);
            let stopped = Stopped { owner: self, log: &log, positions, worker: &self.context.worker };
            let goes_on = tokio::select! {
                goes_on = stopped.wait(difference) => goes_on,
                () = drain.cancelled() => Ok(false),
                () = self.unassigned() => Ok(false),
                () = lease.lost().cancelled_owned() => Err(DriverError::LeaseLost),
            };
            metrics::gauge!(crate::metrics::STOPPED, "shard" => self.shard.to_string()).set(0.0);
            if !goes_on? {
                return Ok(None);
            }
        }
    }

    /// Waits until the shard is assigned to another worker.
    async fn unassigned(&self) {
        let mut assignment = self.assignment.clone();
        if assignment.wait_for(|assignment| *assignment == Ok(ShardAction::HandOver)).await.is_err() {
            // The worker drains.
            std::future::pending().await
        }
    }
}

/// A shard whose streams are not those of its commits. Nothing is attempted or committed, except an adoption.
struct Stopped<'a> {
    owner: &'a Owner,
    log: &'a Log,
    positions: Positions,
    worker: &'a str,
}

impl Stopped<'_> {
    /// Waits until the streams are those of the commits again, or the shard is adopted: then its state is recovered again.
    async fn wait(&self, mut difference: Difference) -> Result<bool, DriverError> {
        let mut watch = BehindWatch::default();
        let mut adoptions = AdoptionFinder::default();
        let mut is_reported = false;
        loop {
            let is_certain = difference.is_certain(&mut watch);
            if is_certain && !is_reported {
                is_reported = true;
                tracing::error!(shard = %self.owner.shard, %difference, "shard stopped: {}", self.advice());
            }
            self.report(&difference, is_certain);
            tokio::time::sleep(STOPPED_LOOK).await;
            match stream_identity::compare(self.log, &self.positions).await {
                Ok(Comparison::Same(_)) => return Ok(true),
                Ok(Comparison::Differs(now)) => difference = now,
                Err(error) => {
                    tracing::debug!(shard = %self.owner.shard, %error, "comparing the streams failed; retrying");
                    continue;
                }
            }
            match adoptions.find(self.log, &self.positions).await {
                Ok(None) => {}
                Ok(Some(adoption)) => {
                    adopt::commit(self.log, &self.positions, self.worker, adoption).await?;
                    return Ok(true);
                }
                Err(error) => {
                    tracing::debug!(shard = %self.owner.shard, %error, "reading the commands failed; retrying")
                }
            }
        }
    }

    fn report(&self, difference: &Difference, is_certain: bool) {
        let shard = self.owner.shard;
        let gauge = metrics::gauge!(crate::metrics::STOPPED, "shard" => shard.to_string());
        gauge.set(f64::from(u8::from(is_certain)));
        self.owner.readiness.set(
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

/// Whether the next try may succeed without an operator. A stream that is not that of the reader's position is compared with
/// the ledger's position at the next try, which then waits.
fn is_transient(error: &DriverError) -> bool {
    match error {
        DriverError::Fenced | DriverError::LeaseLost | DriverError::Recovery(RecoveryError::Unavailable(_)) => true,
        DriverError::Log(error) => !matches!(error, ReadError::Gone { .. }),
        DriverError::Ledger(_) | DriverError::Recovery(_) | DriverError::Task { .. } => false,
    }
}

//! Election of the preferred appender: claims a free lease, renews it while events arrive, follows another holder, and
//! releases it when the gateway drains.
//!
//! The lease is checked only while events arrive: an idle gateway lets its lease expire. A lease is claimed only if it
//! has expired, was released, or if the server no longer knows its holder.

use tokio::{
    sync::mpsc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use weft_role::sleep_until;

use super::{
    Appender, ForwardingState, Name,
    lease::{LeaseHint, LeaseKey, TTL},
};

/// Interval of checks while events arrive: a few in the lifetime of a lease.
const LOOK: Duration = Duration::from_secs(1);
/// Reads per check: after a lost claim the second one finds the winner.
const READS_MAX: usize = 2;

/// A suspicion about the appender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspicion {
    pub holder: Name,
    pub reason: SuspicionReason,
}

/// Reason of a suspicion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SuspicionReason {
    /// The server has no subscriber for its requests.
    Gone,
    /// It has refused a request: it is draining, or not the appender.
    Refused,
    /// No sign of life for too long.
    Silent,
}

/// Result of a check.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Claim {
        expected: u64,
    },
    LogTracker(Name),
    /// No appender: the holder did not answer, and has not renewed its lease since.
    Contend,
}

/// Decides on a read lease. A holder that was suspected at a revision is trusted again once it has renewed its lease,
/// which only a working gateway does.
fn next(hint: &LeaseHint, me: &Name, suspected: Option<&(Suspicion, u64)>) -> Step {
    let Some(holder) = &hint.holder else { return Step::Claim { expected: hint.revision } };
    if holder == me {
        return Step::Claim { expected: hint.revision };
    }
    let suspected = suspected.filter(|(suspicion, revision)| suspicion.holder == *holder && hint.revision <= *revision);
    match suspected.map(|(suspicion, _)| suspicion.reason) {
        None => Step::LogTracker(holder.clone()),
        Some(SuspicionReason::Gone) => Step::Claim { expected: hint.revision },
        Some(SuspicionReason::Refused | SuspicionReason::Silent) => Step::Contend,
    }
}

/// Maintains the appender of one shard.
#[derive(Debug)]
pub(super) struct Election {
    shared: ForwardingState,
    hints: LeaseKey,
    suspicions: mpsc::Receiver<Suspicion>,
    /// The newest suspicion, and the revision of the key at that time.
    suspected: Option<(Suspicion, u64)>,
    /// Last known revision of the key.
    revision: u64,
    /// Expiry of the local lease.
    claimed_until: Option<Instant>,
    next_look: Instant,
}

impl Election {
    pub fn new(shared: ForwardingState, hints: LeaseKey, suspicions: mpsc::Receiver<Suspicion>) -> Self {
        let next_look = Instant::now();
        Self { shared, hints, suspicions, suspected: None, revision: 0, claimed_until: None, next_look }
    }

    /// Runs until `drain`, then releases the lease.
    pub async fn run(mut self, drain: CancellationToken) {
        loop {
            let next_look = self.next_look;
            let work = async {
                sleep_until(Some(next_look)).await;
                self.shared.work.arrived().await;
            };
            tokio::select! {
                () = drain.cancelled() => return self.hand_over().await,
                Some(suspicion) = self.suspicions.recv() => {
                    let looks = suspicion.reason != SuspicionReason::Silent;
                    self.suspected = Some((suspicion, self.revision));
                    // A silent appender gets time to renew its lease.
                    if looks { self.look().await }
                }
                () = sleep_until(self.claimed_until) => {
                    self.claimed_until = None;
                    self.shared.set_appender(Appender::None);
                }
                () = work => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        self.next_look = Instant::now() + LOOK;
        if let Err(problem) = self.try_look().await {
            tracing::debug!(shard = self.shared.shard.0, problem, "forwarding appender is not known");
            self.claimed_until = None;
            self.shared.set_appender(Appender::None);
        }
    }

    async fn try_look(&mut self) -> Result<(), String> {
        let me = self.shared.me.clone();
        let ours = self.claimed_until.take().is_some();
        // The local lease is renewed without a read.
        let mut known = ours.then(|| LeaseHint { holder: Some(me.clone()), revision: self.revision });
        for _ in 0..READS_MAX {
            let hint = match known.take() {
                Some(hint) => hint,
                None => self.hints.read().await?,
            };
            self.revision = hint.revision;
            match next(&hint, &me, self.suspected.as_ref()) {
                Step::LogTracker(holder) => {
                    self.shared.set_appender(Appender::Remote(holder));
                    return Ok(());
                }
                Step::Contend => break,
                Step::Claim { expected } => {
                    let claimed_at = Instant::now();
                    if let Some(revision) = self.hints.claim(expected).await? {
                        self.revision = revision;
                        self.suspected = None;
                        self.claimed_until = Some(claimed_at + TTL * 2 / 3);
                        self.shared.set_appender(Appender::Local);
                        return Ok(());
                    }
                }
            }
        }
        self.shared.set_appender(Appender::None);
        Ok(())
    }

    async fn hand_over(self) {
        self.shared.set_appender(Appender::None);
        if self.claimed_until.is_some()
            && let Err(problem) = self.hints.release(self.revision).await
        {
            tracing::debug!(
                shard = self.shared.shard.0,
                problem,
                "the lease of the forwarding appender was not released and will expire"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(holder: Option<&str>, revision: u64) -> LeaseHint {
        LeaseHint { holder: holder.map(Name::from), revision }
    }

    fn suspected(holder: &str, reason: SuspicionReason, revision: u64) -> Option<(Suspicion, u64)> {
        Some((Suspicion { holder: holder.into(), reason }, revision))
    }

    /// A lease is never claimed from a working holder, nor twice.
    #[test]
    fn only_a_role_that_nobody_has_is_claimed() {
        let me = Name::from("me");
        let claim = |expected| Step::Claim { expected };
        let follow = Step::LogTracker("other".into());
        let cases = [
            (hint(None, 0), None, claim(0)),
            (hint(None, 7), None, claim(7)),
            (hint(Some("me"), 7), None, claim(7)),
            (hint(Some("other"), 7), None, follow),
            (hint(Some("other"), 7), suspected("other", SuspicionReason::Gone, 7), claim(7)),
            (hint(Some("other"), 7), suspected("other", SuspicionReason::Silent, 7), Step::Contend),
            (hint(Some("other"), 7), suspected("other", SuspicionReason::Refused, 7), Step::Contend),
            (hint(Some("other"), 7), suspected("third", SuspicionReason::Gone, 7), Step::LogTracker("other".into())),
        ];
        for (hint, suspected, expected) in cases {
            assert_eq!(next(&hint, &me, suspected.as_ref()), expected, "{hint:?} {suspected:?}");
        }
        // It has renewed its claim since, so it works.
        for reason in [SuspicionReason::Gone, SuspicionReason::Silent, SuspicionReason::Refused] {
            assert_eq!(
                next(&hint(Some("other"), 8), &me, suspected("other", reason, 7).as_ref()),
                Step::LogTracker("other".into())
            );
        }
    }
}

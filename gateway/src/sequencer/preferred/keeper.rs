//! Takes the role where nobody has it, renews it while there is work, follows whoever has it, and gives it back.
//!
//! It looks only while events come: an idle gateway asks for nothing and lets its claim run out. The role is taken from
//! nobody who does his work: only a key that has run out or was given back, or whose holder the server no longer knows, is
//! claimed.

use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Name, Shared, Standing,
    hint::{Hint, Hints, TTL},
};

/// Between two looks while there is work: a few in a claim's life.
const LOOK: Duration = Duration::from_secs(1);
/// Reads in one look: whoever was first to claim is found by the second.
const READS_MAX: usize = 2;

/// A doubt about the preferred appender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    pub holder: Name,
    pub why: Why,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The server knows nobody who would take its requests.
    Gone,
    /// It has refused: it is about to leave, or not the preferred appender any more.
    Refused,
    /// It said nothing for too long.
    Silent,
}

/// What a look leads to.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    Claim {
        expected: u64,
    },
    Follow(Name),
    /// Nobody: the one who is named did not answer, and has not renewed its claim since.
    Contend,
}

/// What follows from a hint. A holder that was in doubt at `doubted`'s revision is trusted again once it has renewed its
/// claim, which it does only while it works.
fn next(hint: &Hint, me: &Name, doubted: Option<&(Doubt, u64)>) -> Move {
    let Some(holder) = &hint.holder else { return Move::Claim { expected: hint.revision } };
    if holder == me {
        return Move::Claim { expected: hint.revision };
    }
    let doubted = doubted.filter(|(doubt, revision)| doubt.holder == *holder && hint.revision <= *revision);
    match doubted.map(|(doubt, _)| doubt.why) {
        None => Move::Follow(holder.clone()),
        Some(Why::Gone) => Move::Claim { expected: hint.revision },
        Some(Why::Refused | Why::Silent) => Move::Contend,
    }
}

/// Keeps the standing of one shard up to date.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Shared,
    hints: Hints,
    doubts: mpsc::Receiver<Doubt>,
    /// The newest doubt, and the revision of the key when it came up.
    doubted: Option<(Doubt, u64)>,
    /// The key's revision as it was seen last.
    revision: u64,
    /// Our claim is good until then.
    claimed_until: Option<Instant>,
    next_look: Instant,
}

impl Keeper {
    pub fn new(shared: Shared, hints: Hints, doubts: mpsc::Receiver<Doubt>) -> Self {
        let next_look = Instant::now();
        Self { shared, hints, doubts, doubted: None, revision: 0, claimed_until: None, next_look }
    }

    /// Works until `drain`; the role is handed over first.
    pub async fn run(mut self, drain: CancellationToken) {
        loop {
            let next_look = self.next_look;
            let work = async {
                sleep_until(next_look).await;
                self.shared.work.arrived().await;
            };
            tokio::select! {
                () = drain.cancelled() => return self.hand_over().await,
                Some(doubt) = self.doubts.recv() => {
                    let looks = doubt.why != Why::Silent;
                    self.doubted = Some((doubt, self.revision));
                    // Who is only silent is given the time to renew its claim.
                    if looks { self.look().await }
                }
                () = super::at(self.claimed_until) => {
                    self.claimed_until = None;
                    self.shared.stand(Standing::Nobody);
                }
                () = work => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        self.next_look = Instant::now() + LOOK;
        if let Err(problem) = self.try_look().await {
            tracing::debug!(shard = self.shared.shard.0, problem, "preferred appender is not known");
            self.claimed_until = None;
            self.shared.stand(Standing::Nobody);
        }
    }

    async fn try_look(&mut self) -> Result<(), String> {
        let me = self.shared.me.clone();
        let ours = self.claimed_until.take().is_some();
        // Our own claim is renewed unread.
        let mut known = ours.then(|| Hint { holder: Some(me.clone()), revision: self.revision });
        for _ in 0..READS_MAX {
            let hint = match known.take() {
                Some(hint) => hint,
                None => self.hints.read().await?,
            };
            self.revision = hint.revision;
            match next(&hint, &me, self.doubted.as_ref()) {
                Move::Follow(holder) => {
                    self.shared.stand(Standing::Theirs(holder));
                    return Ok(());
                }
                Move::Contend => break,
                Move::Claim { expected } => {
                    let claimed_at = Instant::now();
                    if let Some(revision) = self.hints.claim(expected).await? {
                        self.revision = revision;
                        self.doubted = None;
                        self.claimed_until = Some(claimed_at + TTL * 2 / 3);
                        self.shared.stand(Standing::Ours);
                        return Ok(());
                    }
                }
            }
        }
        self.shared.stand(Standing::Nobody);
        Ok(())
    }

    async fn hand_over(self) {
        self.shared.stand(Standing::Nobody);
        if self.claimed_until.is_some()
            && let Err(problem) = self.hints.release(self.revision).await
        {
            tracing::debug!(shard = self.shared.shard.0, problem, "the role of preferred appender runs out by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(holder: Option<&str>, revision: u64) -> Hint {
        Hint { holder: holder.map(Name::from), revision }
    }

    fn doubted(holder: &str, why: Why, revision: u64) -> Option<(Doubt, u64)> {
        Some((Doubt { holder: holder.into(), why }, revision))
    }

    /// A gateway takes the role from nobody who does his work, and not twice what was taken meanwhile.
    #[test]
    fn only_a_role_that_nobody_has_is_claimed() {
        let me = Name::from("me");
        let claim = |expected| Move::Claim { expected };
        let follow = Move::Follow("other".into());
        let cases = [
            (hint(None, 0), None, claim(0)),
            (hint(None, 7), None, claim(7)),
            (hint(Some("me"), 7), None, claim(7)),
            (hint(Some("other"), 7), None, follow),
            (hint(Some("other"), 7), doubted("other", Why::Gone, 7), claim(7)),
            (hint(Some("other"), 7), doubted("other", Why::Silent, 7), Move::Contend),
            (hint(Some("other"), 7), doubted("other", Why::Refused, 7), Move::Contend),
            (hint(Some("other"), 7), doubted("third", Why::Gone, 7), Move::Follow("other".into())),
        ];
        for (hint, doubted, expected) in cases {
            assert_eq!(next(&hint, &me, doubted.as_ref()), expected, "{hint:?} {doubted:?}");
        }
        // It has renewed its claim since, so it works.
        for why in [Why::Gone, Why::Silent, Why::Refused] {
            assert_eq!(
                next(&hint(Some("other"), 8), &me, doubted("other", why, 7).as_ref()),
                Move::Follow("other".into())
            );
        }
    }
}

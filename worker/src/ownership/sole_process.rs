//! Detection of another process with the same worker id. Pure.
//!
//! A running process with the id renews the presence key or a lease. The key is written by compare-and-set only, so of two
//! processes with one id exactly one holds it: the other sees it renewed and owns nothing. A process that finds the key of
//! another one takes it once that one has renewed nothing for `quiet`: long enough that no attempt of it can still start,
//! and shorter than waiting until its keys run out.

use std::time::Duration;

use super::{ClusterView, Holder, attempts_until};

/// The action of a process on its presence key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceAction {
    /// Write it, expecting this revision. Only when that succeeds may the process own shards.
    Write {
        /// The newest revision of the key.
        expected: u64,
    },
    /// Wait: another process with the id wrote it last. This one owns nothing until that one is known to have ended.
    Wait {
        /// Incarnation of that process.
        other: String,
        /// It has been seen to renew its keys, so it runs.
        alive: bool,
    },
}

/// Decides for one process, from one view to the next.
#[derive(Debug)]
pub struct Identity {
    me: Holder,
    quiet: Duration,
    /// Time to live of a key.
    ttl: Duration,
    /// The newest revision that this process has written.
    written: u64,
    /// When that write was started.
    written_at: Duration,
    other: Option<Other>,
}

/// Another process with the id, as it was last seen.
#[derive(Debug)]
struct Other {
    incarnation: String,
    /// Newest revision of any key that it wrote.
    revision: u64,
    /// Since when that is the newest.
    since: Duration,
    alive: bool,
}

/// How long another process must have renewed nothing before it counts as ended: until then it may start attempts under a
/// lease that it renewed just before the first view.
fn quiet(ttl: Duration) -> Duration {
    attempts_until(Duration::ZERO, ttl)
}

impl Identity {
    /// Decides for `me`; keys have this time to live.
    pub fn new(me: Holder, ttl: Duration) -> Self {
        Self { me, quiet: quiet(ttl), ttl, written: 0, written_at: Duration::ZERO, other: None }
    }

    /// The newest revision that this process has written; 0: none.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// A write that was started at `now` has succeeded.
    pub fn wrote(&mut self, revision: u64, now: Duration) {
        (self.written, self.written_at) = (revision, now);
        self.other = None;
    }

    /// The next action, by a view whose read was started at `now`. `now` never goes back.
    pub fn next_action(&mut self, view: &ClusterView, now: Duration) -> PresenceAction {
        let expected = view.revisions.get(&self.me.worker).copied().unwrap_or(0);
        // A key that has run out leaves no message: the next write is the first one. The leader compares, so this is safe
        // also where the view is that of a replica that lags.
        let ran_out = expected == 0 && now.saturating_sub(self.written_at) >= self.ttl;
        if expected < self.written && !ran_out {
            // The view is that of a replica that lags.
            return PresenceAction::Write { expected: self.written };
        }
        let presence = view.workers.get(&self.me.worker);
        let Some(incarnation) = presence.map(|presence| &presence.incarnation).filter(|of| **of != self.me.incarnation)
        else {
            self.other = None;
            return PresenceAction::Write { expected };
        };
        let revision = self.newest_of_others(view).max(expected);
        let other = self.other.get_or_insert_with(|| Other {
            incarnation: incarnation.clone(),
            revision,
            since: now,
            alive: false,
        });
        if other.revision < revision {
            *other = Other { incarnation: incarnation.clone(), revision, since: now, alive: true };
        }
        if now.saturating_sub(other.since) >= self.quiet {
            return PresenceAction::Write { expected };
        }
        PresenceAction::Wait { other: other.incarnation.clone(), alive: other.alive }
    }

    /// The newest revision of a lease that another process with the id holds.
    fn newest_of_others(&self, view: &ClusterView) -> u64 {
        let of_another = |holder: &Holder| holder.worker == self.me.worker && *holder != self.me;
        let held = view.leases.values().filter(|lease| lease.holder.as_ref().is_some_and(of_another));
        held.map(|lease| lease.revision).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ownership::{Presence, WorkerId};

    const TTL: Duration = Duration::from_secs(3);

    fn holder(incarnation: &str) -> Holder {
        Holder { worker: WorkerId("id".into()), incarnation: incarnation.into() }
    }

    fn view(incarnation: Option<&str>, revision: u64) -> ClusterView {
        let id = WorkerId("id".into());
        let presence = |of: &str| Presence { incarnation: of.into(), ..Presence::default() };
        ClusterView {
            workers: incarnation.map(|of| (id.clone(), presence(of))).into_iter().collect(),
            revisions: [(id, revision)].into(),
            ..ClusterView::default()
        }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A worker that was cut off for longer than its key lives comes back.
    #[test]
    fn a_key_that_ran_out_is_written_as_a_new_one() {
        let mut identity = Identity::new(holder("a"), TTL);
        identity.wrote(9, secs(10));
        assert_eq!(
            identity.next_action(&ClusterView::default(), secs(12)),
            PresenceAction::Write { expected: 9 },
            "a replica lags"
        );
        assert_eq!(identity.next_action(&ClusterView::default(), secs(13)), PresenceAction::Write { expected: 0 });
        assert_eq!(
            identity.next_action(&view(Some("a"), 8), secs(14)),
            PresenceAction::Write { expected: 9 },
            "a replica lags"
        );
    }

    #[test]
    fn a_free_key_and_its_own_are_written_at_once() {
        let mut identity = Identity::new(holder("a"), TTL);
        assert_eq!(identity.next_action(&ClusterView::default(), secs(1)), PresenceAction::Write { expected: 0 });
        assert_eq!(identity.next_action(&view(None, 7), secs(1)), PresenceAction::Write { expected: 7 });
        assert_eq!(identity.next_action(&view(Some("a"), 8), secs(2)), PresenceAction::Write { expected: 8 });
    }

    #[test]
    fn the_key_of_a_process_that_has_ended_is_taken_once_it_has_been_quiet() {
        let mut identity = Identity::new(holder("a"), TTL);
        let wait = PresenceAction::Wait { other: "b".into(), alive: false };
        assert_eq!(identity.next_action(&view(Some("b"), 7), secs(10)), wait);
        assert_eq!(identity.next_action(&view(Some("b"), 7), secs(11)), wait);
        assert_eq!(identity.next_action(&view(Some("b"), 7), secs(12)), PresenceAction::Write { expected: 7 });
    }

    #[test]
    fn a_process_that_renews_is_alive_and_keeps_its_id() {
        let mut identity = Identity::new(holder("a"), TTL);
        for look in 0..100 {
            let alive = look > 0;
            let action = identity.next_action(&view(Some("b"), 7 + look), secs(look));
            assert_eq!(action, PresenceAction::Wait { other: "b".into(), alive });
        }
        assert_eq!(
            identity.next_action(&view(None, 200), secs(101)),
            PresenceAction::Write { expected: 200 },
            "it has left"
        );
    }

    #[test]
    fn a_replica_that_lags_does_not_bring_an_earlier_process_back() {
        let mut identity = Identity::new(holder("a"), TTL);
        identity.wrote(9, secs(1));
        assert_eq!(identity.next_action(&view(Some("b"), 7), secs(1)), PresenceAction::Write { expected: 9 });
        assert_eq!(
            identity.next_action(&view(Some("b"), 11), secs(2)),
            PresenceAction::Wait { other: "b".into(), alive: false }
        );
    }
}

//! A history that makes no progress although the log holds more: a condition for operators. Reads answer from its state.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use weft_index::history::{AsOf, History};
use weft_nats::{conditions::Conditions, subject::Layout};
use weft_proto::ids::StreamSeq;

use crate::metrics;

/// Interval of checks, and the maximum time of a check for the history to reach the end of the log.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time without a commit, while the log holds more, after which the condition is set: ten times a slow batch.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// Name of the condition.
const CONDITION: &str = "history";

/// Progress of a history between checks. Pure.
#[derive(Debug, Default)]
struct Stall {
    positions: Vec<StreamSeq>,
    since: Option<Instant>,
}

impl Stall {
    /// Records the positions of a history and whether it has reached the end of the log. Returns the time without progress,
    /// once that is too long.
    fn look(&mut self, positions: Vec<StreamSeq>, is_current: bool, now: Instant) -> Option<Duration> {
        let moved = positions != self.positions;
        self.positions = positions;
        if is_current || moved {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        Some(now.saturating_duration_since(since)).filter(|stalled| *stalled >= STALLED_AFTER)
    }
}

/// Sets and clears the condition until `stop`.
pub(super) async fn watch(history: History, layout: Layout, conditions: Conditions, stop: CancellationToken) {
    let shards: Vec<_> = layout.all().collect();
    let looking = async {
        let mut stall = Stall::default();
        loop {
            sleep(INTERVAL).await;
            // Without an answer of the log the history's progress is not known.
            let Ok(as_of) = history.catch_up(&shards, INTERVAL).await else { continue };
            metrics::history_lag(match as_of {
                AsOf::Current => 0,
                AsOf::Behind { messages, .. } => messages,
            });
            let positions = history.changes().borrow().clone();
            let stalled = stall.look(positions, matches!(as_of, AsOf::Current), Instant::now());
            let text = stalled.map(|stalled| {
                format!("no progress for {} s although the log holds more; see the admin's log", stalled.as_secs())
            });
            conditions.set(CONDITION, text);
        }
    };
    tokio::select! {
        () = looking => {}
        () = stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_stalls_when_it_commits_nothing_and_the_log_holds_more() {
        let (mut stall, start) = (Stall::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let positions = |last| vec![StreamSeq(last), StreamSeq(7)];
        assert_eq!(stall.look(positions(1), false, at(0)), None);
        assert_eq!(stall.look(positions(1), false, at(5)), None);
        assert_eq!(stall.look(positions(1), false, at(35)), Some(Duration::from_secs(30)));
        assert_eq!(stall.look(positions(2), false, at(40)), None, "it has moved");
        assert_eq!(stall.look(positions(2), false, at(45)), None);
        assert_eq!(stall.look(positions(2), true, at(90)), None, "nothing is left to read");
        assert_eq!(stall.look(positions(2), false, at(100)), None);
    }
}

//! From what is ready to an append in flight, and what becomes of it.

use std::{collections::VecDeque, mem, pin::Pin, time::Duration};

use tokio::time::Instant;
use weft_nats::{
    append::{AppendError, AppendErrorKind, Appender, BATCH_BYTES_MAX},
    message::Outgoing,
};
use weft_proto::ids::StreamSeq;

use super::{GROUP_MESSAGES_MAX, OVERLAY_MAX, Session, changed};
use crate::sequencer::{
    SubmitError,
    in_flight::{AppendOutcome, InFlightAppend},
    probe,
    submission::Submission,
};

/// The pauses before an append that failed is tried again: the first as short as a stolen turn, the last as long as an
/// outage can wait.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// So many times as long as a batch may it take to publish one by one, as a fraction, before a group is a batch. One by one,
/// half of the senders have their answers after half of the time, where in a batch all wait for its end; and where a batch is
/// made as soon as it is as fast, whoever comes during it, at a rate with which single publishes could just keep up, is
/// enough for the next one. With more than this, where publishes cannot keep up, too many wait before there is a batch.
const SINGLES_LONGER: (usize, usize) = (5, 4);
/// After so many failures in a row without the log having moved on, events go one by one: something in the group may be
/// what the server does not take. Of a batch it only says that it is incomplete.
const FAILURES_TOGETHER_MAX: u32 = 2;

/// The one append that a session may have under way.
pub(super) enum AppendState {
    Idle(Appender),
    Running { append: InFlightAppend, future: Pin<Box<dyn Future<Output = Box<AppendFinished>> + Send>> },
}

/// An append has ended.
pub(super) struct AppendFinished {
    appender: Appender,
    messages: Vec<Outgoing>,
    result: Result<StreamSeq, AppendError>,
    /// What senders are told where it was refused for want of room: the log is at its limit, or the disk has none.
    full: SubmitError,
    /// Whether it was a batch.
    batched: bool,
    sent_at: Instant,
}

impl AppendState {
    pub fn is_idle(&self) -> bool {
        matches!(self, Self::Idle(_))
    }

    /// What is being appended.
    pub fn running(&self) -> Option<&InFlightAppend> {
        match self {
            Self::Idle(_) => None,
            Self::Running { append, .. } => Some(append),
        }
    }

    /// The end of the append under way, which must be handled before this is called again; waits for ever without one. Safe
    /// to cancel.
    pub async fn finished(&mut self) -> Box<AppendFinished> {
        match self {
            Self::Idle(_) => std::future::pending().await,
            Self::Running { future, .. } => future.await,
        }
    }
}

impl Session<'_> {
    /// Decides for what is ready and sends it off, unless something must come first.
    pub(super) fn start_append(&mut self) {
        let gathers = self.group_waits_until().is_some();
        let reads_on = self.overlay.end() < self.end.wanted();
        let waits = gathers
            || self.probe.is_some()
            || !self.identity.is_verified()
            || !self.identity.is_fresh(Instant::now())
            || reads_on
            || self.overlay.len() >= OVERLAY_MAX;
        let mut trial = self.trial().filter(|_| !waits && !self.draining);
        while !waits
            && (!self.ready.is_empty() || self.head_refresher.has_page() || trial.is_some())
            && let AppendState::Idle(appender) = &mut self.append
        {
            self.group_commit.started(self.ready.len(), Instant::now());
            let batches = appender.batches(worth_a_batch(self.ready.len()));
            let group = self.next_group(batches);
            let carry = self.head_refresher.next_head_record(&self.overlay).or_else(|| trial.take());
            let (flight, messages) = InFlightAppend::decide(&self.overlay, self.shard.horizons(), group, carry);
            if messages.is_empty() {
                // All of them were known, and have been answered.
                continue;
            }
            let expected = flight.expected();
            let spare = AppendState::Idle(Appender::new(self.shard.connection.clone()));
            let AppendState::Idle(mut appender) = mem::replace(&mut self.append, spare) else { return };
            let (lost, sent_at) = (changed(&self.shard.connection), Instant::now());
            let batched = appender.batches(messages.len());
            // A write that meets the end of the disk stops the stream: it is not even tried.
            let refused = self.shard.options.storage_problem();
            let full = if refused.is_some() { SubmitError::Unavailable } else { SubmitError::Full };
            let future = Box::pin(async move {
                let result = tokio::select! {
                    biased;
                    Some(problem) = std::future::ready(refused) => Err(storage_full(problem)),
                    result = appender.append(expected, &messages) => result,
                    // No ack comes over another connection than the one that the append went over.
                    () = lost => Err(connection_lost()),
                };
                Box::new(AppendFinished { appender, messages, result, full, batched, sent_at })
            });
            self.append = AppendState::Running { append: flight, future };
        }
    }

    /// Until when what is ready waits for others; `None`: it does not.
    pub(super) fn group_waits_until(&self) -> Option<Instant> {
        let idle = self.append.is_idle() && !self.ready.is_empty() && !self.draining;
        if idle { self.group_commit.waits(self.ready.len(), Instant::now()) } else { None }
    }

    /// The next submissions that go together, without those that have been given up. One, where they would be published one
    /// by one: so each is answered as soon as it is stored, and whoever comes meanwhile may make a batch of the rest.
    fn next_group(&mut self, batches: bool) -> Vec<Submission> {
        let messages_max = if batches && self.single_appends_left == 0 { GROUP_MESSAGES_MAX } else { 1 };
        let now = Instant::now();
        let mut group = Vec::with_capacity(self.ready.len().min(messages_max));
        let mut bytes = 0;
        while group.len() < messages_max
            && let Some(next) = self.ready.front()
            && (group.is_empty() || bytes + next.bytes <= BATCH_BYTES_MAX)
            && let Some(submission) = self.ready.pop_front()
        {
            if submission.deadline <= now {
                submission.answer(Err(SubmitError::Unavailable));
            } else if submission.looked.cursor < self.overlay.base() {
                self.arrived.push(submission);
            } else {
                bytes += submission.bytes;
                group.push(submission);
            }
        }
        self.single_appends_left = self.single_appends_left.saturating_sub(1);
        group
    }

    pub(super) fn append_finished(&mut self, landed: AppendFinished) {
        let AppendFinished { appender, messages, result, full, batched, sent_at } = landed;
        let AppendState::Running { append: flight, .. } = mem::replace(&mut self.append, AppendState::Idle(appender))
        else {
            return;
        };
        let sent = messages.len();
        let stored = result.as_ref().map_or_else(|error| error.stored, |_| sent).min(sent);
        let ours = flight.expected().0 + stored as u64;
        let now = Instant::now();
        let refused = matches!(&result, Err(AppendError { kind: AppendErrorKind::Conflict { .. }, .. }));
        if stored > 0 || refused {
            self.identity.answered(sent_at, now);
        }
        let AppendOutcome { appended, heads_stored, mut left } = flight.complete(stored, messages, &mut self.overlay);
        if stored > 0 && self.overlay.unconfirmed_from() <= self.overlay.end() {
            self.tracker.unconfirmed_up_to(self.overlay.end(), now);
        }
        if let Some(observer) = &self.shard.observer {
            observer.appended(appended);
        }
        self.head_refresher.append_finished(heads_stored);
        self.answer_reached();
        match result {
            Ok(_) => {
                self.failures = 0;
                self.accepted();
                if batched {
                    self.group_commit.completed(sent, self.ready.len() + left.len(), now - sent_at, now);
                } else {
                    self.group_commit.cancel();
                }
                // A log in doubt is read, whoever else appends.
                if self.identity.is_verified() {
                    self.tracker.appended(sent, now);
                }
                self.put_back(left);
            }
            Err(AppendError { kind: kind @ AppendErrorKind::Full(_), .. }) => {
                left.drain(..).for_each(|submission| submission.answer(Err(full.clone())));
                self.failed(kind, sent, self.overlay.end().0 > ours, left);
            }
            Err(AppendError { kind, .. }) => self.failed(kind, sent, self.overlay.end().0 > ours, left),
        }
        self.prune();
    }

    /// Before all that is ready: it came before.
    fn put_back(&mut self, mut submissions: VecDeque<Submission>) {
        submissions.append(&mut self.ready);
        self.ready = submissions;
    }

    /// Sees to what is left of a flight. `moved_on`: somebody else's messages have been read since it was decided.
    fn failed(&mut self, kind: AppendErrorKind, sent: usize, moved_on: bool, mut left: VecDeque<Submission>) {
        tracing::debug!(shard = self.shard.id.0, %kind, left = left.len(), "append not wholly stored");
        self.failures = self.failures.saturating_add(1);
        self.refused(&kind);
        self.group_commit.cancel();
        self.tracker.foreign_appends();
        match kind {
            AppendErrorKind::Conflict { last: Some(last) } if last > self.overlay.end() => {
                self.failures = 0;
                self.end.refuses(last);
                // The reader is given the time to bring it, on a log that was quiet too.
                self.heard_at = Instant::now();
            }
            AppendErrorKind::Conflict { .. } if moved_on => self.failures = 0,
            // Everybody has been answered.
            AppendErrorKind::Full(_) => {}
            AppendErrorKind::Refused(_) if sent > 1 => self.single_appends_left = left.len(),
            AppendErrorKind::Refused(reason) => {
                tracing::warn!(shard = self.shard.id.0, reason, "the log refuses an event");
                let too_large = reason.contains("exceed");
                let answer = if too_large { SubmitError::TooLarge } else { SubmitError::Unavailable };
                if let Some(submission) = left.pop_front() {
                    submission.answer(Err(answer));
                }
            }
            kind => {
                if !matches!(kind, AppendErrorKind::Unavailable(_)) && self.failures >= FAILURES_TOGETHER_MAX {
                    self.single_appends_left = left.len();
                }
                self.probe_end();
            }
        }
        if sent == 1 && self.failures >= FAILURES_TOGETHER_MAX {
            // What the server does not take for now holds up nobody but those behind it in its chain.
            let chained = |waiting: &Submission| left.iter().any(|put_off| put_off.is_chained_to(waiting));
            let (mut behind, others) = mem::take(&mut self.ready).into_iter().partition(chained);
            self.ready = others;
            self.ready.append(&mut left);
            self.ready.append(&mut behind);
        } else {
            self.put_back(left);
        }
    }

    /// Asks where the log ends and whether it is still the same, after a pause that grows with each failure in a row.
    pub(super) fn probe_end(&mut self) {
        let doubled = PAUSE.0.saturating_mul(1 << self.failures.min(8));
        let pause = if self.failures == 0 { Duration::ZERO } else { doubled.min(PAUSE.1) };
        self.probe = Some(probe::log(self.shard, pause, self.known(), self.overlay.end()));
    }
}

/// For how many that all wait for the end a batch must be better, for it to be better for so many that are answered one by
/// one.
fn worth_a_batch(waiting: usize) -> usize {
    (waiting * SINGLES_LONGER.1).div_ceil(SINGLES_LONGER.0)
}

fn connection_lost() -> AppendError {
    AppendError { stored: 0, kind: AppendErrorKind::Unknown("connection lost".into()) }
}

fn storage_full(problem: String) -> AppendError {
    AppendError { stored: 0, kind: AppendErrorKind::Full(problem) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few more go one by one than those for whom a batch is just faster; and on a log where each publish costs what a
    /// batch costs, two are a batch as ever.
    #[test]
    fn a_batch_must_be_faster_by_a_quarter() {
        assert_eq!([1, 2, 5, 10, 40].map(worth_a_batch), [1, 2, 4, 8, 32]);
    }
}

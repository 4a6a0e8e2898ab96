//! Starts an append and handles its end.

use std::{collections::VecDeque, mem, pin::Pin, time::Duration};

use tokio::time::Instant;
use weft_nats::{
    append::{AppendError, AppendErrorKind, Appender, BATCH_BYTES_MAX},
    backoff::Backoff,
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

/// Pauses before a failed append is tried again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
/// A group is published as a batch only when single publishes are expected to take more than 5/4 of its time. Published
/// one by one, half of the senders have their answers after half of the time, whereas in a batch all wait for its end;
/// and a batch that starts as soon as it is equally fast lets enough events arrive during it for the next one, at rates
/// that single publishes could keep up with.
const SINGLES_LONGER: (usize, usize) = (5, 4);
/// Consecutive failures without progress of the log after which events are published one by one: the server may refuse
/// one event of the group, and of a batch it only says that it is incomplete.
const FAILURES_TOGETHER_MAX: u32 = 2;

/// The append that may be under way.
pub(super) enum AppendState {
    Idle(Box<Appender>),
    Running { append: InFlightAppend, future: Pin<Box<dyn Future<Output = Box<AppendFinished>> + Send>> },
}

/// An append has ended.
pub(super) struct AppendFinished {
    appender: Box<Appender>,
    messages: Vec<Outgoing>,
    result: Result<StreamSeq, AppendError>,
    /// Answer to the senders if there was no room: the log is at its limit, or the disk is full.
    full: SubmitError,
    /// Whether it was a batch.
    batched: bool,
    sent_at: Instant,
}

impl AppendState {
    pub fn is_idle(&self) -> bool {
        matches!(self, Self::Idle(_))
    }

    /// The append under way.
    pub fn running(&self) -> Option<&InFlightAppend> {
        match self {
            Self::Idle(_) => None,
            Self::Running { append, .. } => Some(append),
        }
    }

    /// Waits for the end of the append, which must be handled before the next call; never returns while idle. Safe to
    /// cancel.
    pub async fn finished(&mut self) -> Box<AppendFinished> {
        match self {
            Self::Idle(_) => std::future::pending().await,
            Self::Running { future, .. } => future.await,
        }
    }
}

impl Session<'_> {
    /// Decides for the ready submissions and starts their append, unless something forbids it.
    pub(super) fn start_append(&mut self) {
        let gathers = self.group_waits_until().is_some();
        let reads_on = self.overlay.end() < self.end.wanted();
        let waits = gathers
            || self.probe.is_some()
            || !self.identity.is_verified()
            || reads_on
            || self.overlay.len() >= OVERLAY_MAX;
        let now = Instant::now();
        let mut trial = self.trial(now).filter(|_| !waits && !self.draining);
        while !waits
            && (self.may_decide_next(now) || self.may_refresh_heads(now) || trial.is_some())
            && let AppendState::Idle(appender) = &mut self.append
        {
            self.group_commit.started(self.ready.len(), Instant::now());
            let batches = appender.batches(worth_a_batch(self.ready.len()));
            let group = self.next_group(batches);
            let heads =
                if self.may_refresh_heads(now) { self.head_refresher.next_head_record(&self.overlay) } else { None };
            let carry = heads.or_else(|| trial.take());
            let (flight, messages) = InFlightAppend::decide(&self.overlay, self.shard.horizons(), group, carry);
            if messages.is_empty() {
                // All were duplicates and have been answered.
                continue;
            }
            let expected = flight.expected();
            let spare = AppendState::Idle(Box::new(Appender::new(self.shard.connection.clone())));
            let AppendState::Idle(mut appender) = mem::replace(&mut self.append, spare) else { return };
            let (lost, sent_at) = (changed(&self.shard.connection), Instant::now());
            let batched = appender.batches(messages.len());
            // A write to a full disk stops the stream, so it is not tried.
            let refused = self.shard.options.storage_problem();
            let full = if refused.is_some() { SubmitError::Unavailable } else { SubmitError::Full };
            let future = Box::pin(async move {
                let result = tokio::select! {
                    biased;
                    Some(problem) = std::future::ready(refused) => Err(storage_full(problem)),
                    result = appender.append(expected, &messages) => result,
                    // An ack arrives only over the connection of the append.
                    () = lost => Err(connection_lost()),
                };
                Box::new(AppendFinished { appender, messages, result, full, batched, sent_at })
            });
            self.append = AppendState::Running { append: flight, future };
        }
    }

    /// True if the first ready submission may be decided by what is known of the log.
    fn may_decide_next(&self, now: Instant) -> bool {
        self.ready.front().is_some_and(|next| self.identity.covers(next.arrived_at, now))
    }

    /// True if there are due heads that may be appended by what is known of the log.
    fn may_refresh_heads(&self, now: Instant) -> bool {
        self.head_refresher.page_found_at().is_some_and(|found_at| self.identity.covers(found_at, now))
    }

    /// Time until which the ready group waits for more senders; `None`: it does not wait.
    pub(super) fn group_waits_until(&self) -> Option<Instant> {
        let idle = self.append.is_idle() && !self.ready.is_empty() && !self.draining;
        if idle { self.group_commit.waits(self.ready.len(), Instant::now()) } else { None }
    }

    /// Takes the next group and answers expired submissions. The group has one submission if it would be published one
    /// by one: it is answered as soon as it is stored, and submissions that arrive meanwhile may form a batch with the
    /// rest.
    fn next_group(&mut self, batches: bool) -> Vec<Submission> {
        let messages_max = if batches && self.single_appends_left == 0 { GROUP_MESSAGES_MAX } else { 1 };
        let now = Instant::now();
        let mut group = Vec::with_capacity(self.ready.len().min(messages_max));
        let mut bytes = 0;
        while group.len() < messages_max
            && self.may_decide_next(now)
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
            self.identity.answered(sent_at);
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
                // A log in doubt is read regardless of who appends.
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

    /// Returns submissions to the front of the queue.
    fn put_back(&mut self, mut submissions: VecDeque<Submission>) {
        submissions.append(&mut self.ready);
        self.ready = submissions;
    }

    /// Handles a failed append. `moved_on`: messages of others have been read since it was decided.
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
                // Gives the reader time to deliver the messages.
                self.heard_at = Instant::now();
            }
            AppendErrorKind::Conflict { .. } if moved_on => self.failures = 0,
            // All senders have been answered.
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
            // A submission that the server refuses for now delays only later members of its chain.
            let chained = |waiting: &Submission| left.iter().any(|put_off| put_off.is_chained_to(waiting));
            let (mut behind, others) = mem::take(&mut self.ready).into_iter().partition(chained);
            self.ready = others;
            self.ready.append(&mut left);
            self.ready.append(&mut behind);
        } else {
            self.put_back(left);
        }
    }

    /// Asks for the end and the identity of the log, after a pause that doubles with each consecutive failure.
    pub(super) fn probe_end(&mut self) {
        self.probe = Some(probe::log(self.shard, RETRY.after(self.failures), self.known(), self.overlay.end()));
    }
}

/// Number of events for which a batch must pay, if `waiting` single publishes are to take 5/4 of its time.
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

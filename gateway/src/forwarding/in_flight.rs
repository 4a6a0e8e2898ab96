//! Requests to the appender that are under way, and its liveness. Pure.
//!
//! The appender counts as silent when nothing arrived from it for [`SILENCE_MAX`] while a request was under way. A long
//! request does not count: the appender reports that it is working. An overloaded appender, or one with a slow disk,
//! therefore keeps its lease, and a dead one costs this time once and not per request.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::Name;
use crate::sequencer::submission::Submission;

/// Time without a sign of life after which the appender is abandoned: ten times a group commit, and short compared with a
/// sender's patience.
pub(super) const SILENCE_MAX: Duration = Duration::from_millis(50);
/// Requests under way at a time: one being appended, one waiting for the next append, and one in transit each way. More
/// would only be smaller.
const REQUESTS_MAX: usize = 4;

/// Requests under way.
#[derive(Debug, Default)]
pub(super) struct InFlightRequests {
    /// Receiver of the requests.
    to: Option<Name>,
    requests: BTreeMap<u64, Request>,
    heard_at: Option<Instant>,
    last_number: u64,
}

#[derive(Debug)]
struct Request {
    sent_at: Instant,
    submissions: Vec<Submission>,
}

impl InFlightRequests {
    /// True if another request may be sent.
    pub fn has_room(&self) -> bool {
        self.requests.len() < REQUESTS_MAX
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Receiver of the requests under way.
    pub fn to(&self) -> Option<&Name> {
        self.to.as_ref().filter(|_| !self.is_empty())
    }

    /// Registers a request and returns its number.
    pub fn send(&mut self, to: &Name, now: Instant, submissions: Vec<Submission>) -> u64 {
        debug_assert!(self.to().is_none_or(|under_way| under_way == to), "answers would be taken for another's");
        self.to = Some(to.clone());
        self.last_number += 1;
        self.requests.insert(self.last_number, Request { sent_at: now, submissions });
        self.last_number
    }

    /// Notes a sign of life for a request. Returns true if it is under way.
    pub fn heard(&mut self, number: u64, now: Instant) -> bool {
        let under_way = self.requests.contains_key(&number);
        if under_way {
            self.heard_at = Some(now);
        }
        under_way
    }

    /// Removes an answered request; returns its submissions and its duration.
    pub fn answered(&mut self, number: u64, now: Instant) -> Option<(Vec<Submission>, Duration)> {
        let Request { sent_at, submissions } = self.requests.remove(&number)?;
        Some((submissions, now.saturating_duration_since(sent_at)))
    }

    /// Time at which the appender counts as silent.
    pub fn silent_at(&self) -> Option<Instant> {
        let oldest = self.requests.first_key_value()?.1.sent_at;
        let since = self.heard_at.map_or(oldest, |heard| heard.max(oldest));
        Some(since + SILENCE_MAX)
    }

    /// Removes all requests, in the order in which they were sent.
    pub fn give_up(&mut self) -> Vec<(u64, Vec<Submission>)> {
        std::mem::take(&mut self.requests).into_iter().map(|(number, request)| (number, request.submissions)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    /// Only a forwarding appender that says nothing at all is given up, and only while something is under way.
    #[test]
    fn silence_counts_from_the_last_word_or_the_oldest_request() {
        let (mut in_flight, to, start) = (InFlightRequests::default(), Name::from("a"), Instant::now());
        assert_eq!(in_flight.silent_at(), None);
        let first = in_flight.send(&to, start + STEP, Vec::new());
        let second = in_flight.send(&to, start + STEP * 2, Vec::new());
        assert_eq!(in_flight.silent_at(), Some(start + STEP + SILENCE_MAX));
        assert!(in_flight.heard(first, start + STEP * 3) && !in_flight.heard(second + 1, start + STEP * 4));
        assert_eq!(in_flight.silent_at(), Some(start + STEP * 3 + SILENCE_MAX));
        let mut took = || in_flight.answered(first, start + STEP * 3).map(|(_, took)| took);
        assert_eq!([took(), took()], [Some(STEP * 2), None]);
        let given_up: Vec<u64> = in_flight.give_up().into_iter().map(|(number, _)| number).collect();
        assert_eq!((given_up, in_flight.silent_at(), in_flight.to()), (vec![second], None, None));
    }

    #[test]
    fn requests_under_way_are_few() {
        let (mut in_flight, to) = (InFlightRequests::default(), Name::from("a"));
        while in_flight.has_room() {
            in_flight.send(&to, Instant::now(), Vec::new());
        }
        assert_eq!((in_flight.requests.len(), in_flight.to()), (REQUESTS_MAX, Some(&to)));
    }
}

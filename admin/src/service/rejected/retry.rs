//! A retry of refused requests that acts once.
//!
//! First the entries, the operator and the reason are recorded on COMMANDS; then entry after entry is sent to a gateway, and
//! the results are recorded in parts. So everything that was done has a record of its operator, also if the admin crashes
//! in between. A repeat with the same request id reads the records, skips recorded entries, and continues with the next
//! one. An entry that was retried but not recorded is retried again; its event id keeps it from being accepted twice.

use std::time::Duration;

use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use weft_catalog::edit::RECORD_SHARD;
use weft_index::history::StoredCommand;
use weft_nats::{
    commands::{self, ITEMS_BYTES_MAX, cut_reason, part_id},
    connect::Connection,
    subject::RETRY_SUBJECT,
};
use weft_proto::{
    ids::{EventId, StreamSeq},
    internal::{self, RejectedRetry, RetryEntry, RetryOutcome, command::Action},
    v1::{self, RetriedRejected},
};

use super::parse_id;
use crate::{
    auth,
    error::{Code, refuse},
    service::{
        command::request_id,
        gateways,
        state::{LogState, draining, reused},
    },
};

/// Maximum number of entries of one retry: each takes some milliseconds, one after the other.
const RETRIES_MAX: usize = 1_000;
/// Time-out of a gateway for one entry: longer than its time-out for the log.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum number of outcomes of one record: these are repeated if the admin crashes before it is stored.
const RECORD_OUTCOMES_MAX: usize = 100;

/// A requested retry.
#[derive(Debug)]
pub(super) struct Retry {
    request_id: String,
    operator: String,
    reason: String,
    /// In the order in which they were kept.
    entries: Vec<StreamSeq>,
}

impl Retry {
    /// Reads the request.
    ///
    /// # Errors
    ///
    /// BAD_QUERY: the request id or an entry is invalid.
    pub fn new(request: &Request<v1::RetryRejectedRequest>) -> Result<Self, Status> {
        let v1::RetryRejectedRequest { ids, reason, request_id: given } = request.get_ref();
        Ok(Self {
            request_id: request_id(given)?,
            operator: auth::grant(request)?.operator().to_owned(),
            reason: cut_reason(reason),
            entries: in_order(ids)?,
        })
    }

    /// Records the entries, retries them, and records the results; recorded results are returned. One entry after the other: a
    /// transient answer ends the call, so that no later request of a workflow overtakes an earlier one.
    ///
    /// # Errors
    ///
    /// ID_REUSED if another call has used the request id; DRAINING, LOG_UNAVAILABLE: call again with the same request id.
    pub async fn carry_out(&self, log: &LogState, drain: &CancellationToken) -> Result<Vec<RetriedRejected>, Status> {
        let recorded = log.recorded(&self.request_id).await?;
        let mut done = self.done(&recorded)?;
        let mut part = recorded.len();
        if recorded.is_empty() {
            let entries = self.entries.iter().map(|entry| entry.0).collect();
            self.record(log, part, RejectedRetry { entries, outcomes: Vec::new() }).await?;
            part += 1;
        }
        let mut stopped = None;
        while done.len() < self.entries.len() && stopped.is_none() {
            let outcomes;
            (outcomes, stopped) = self.some(log, drain, &self.entries[done.len()..]).await;
            if !outcomes.is_empty() {
                done.extend_from_slice(&outcomes);
                self.record(log, part, RejectedRetry { entries: Vec::new(), outcomes }).await?;
                part += 1;
            }
        }
        match stopped {
            Some(Stop::Draining) => Err(draining()),
            Some(Stop::Problem(problem)) => Err(self.unfinished(&problem, done.len())),
            None => Ok(done.into_iter().map(result).collect()),
        }
    }

    /// The results in these records of this call.
    fn done(&self, recorded: &[StoredCommand]) -> Result<Vec<RetryOutcome>, Status> {
        let mut done = Vec::new();
        for (part, stored) in recorded.iter().enumerate() {
            let other = || reused(&self.request_id, stored.command.at_ms);
            let Some(Action::Retry(retry)) = &stored.command.action else { return Err(other()) };
            let entries = || self.entries.iter().map(|entry| entry.0);
            if part == 0 && !entries().eq(retry.entries.iter().copied()) {
                return Err(other());
            }
            for outcome in &retry.outcomes {
                // Two concurrent calls may both have recorded: an outcome that is not next is also in another record.
                if self.entries.get(done.len()).is_some_and(|next| next.0 == outcome.entry) {
                    done.push(outcome.clone());
                }
            }
        }
        Ok(done)
    }

    /// Retries as many as fit one record; with the reason if it stopped earlier.
    async fn some(
        &self,
        log: &LogState,
        drain: &CancellationToken,
        entries: &[StreamSeq],
    ) -> (Vec<RetryOutcome>, Option<Stop>) {
        let (mut outcomes, mut bytes) = (Vec::new(), 0);
        for entry in entries.iter().take(RECORD_OUTCOMES_MAX) {
            if drain.is_cancelled() {
                return (outcomes, Some(Stop::Draining));
            }
            match retry(&log.connection, *entry).await {
                Ok(answer) => outcomes.push(outcome(*entry, answer)),
                Err(problem) => return (outcomes, Some(Stop::Problem(problem))),
            }
            bytes += outcomes.last().map_or(0, RetryOutcome::encoded_len);
            // Another outcome fits in the rest of the message.
            if bytes > ITEMS_BYTES_MAX / 2 {
                break;
            }
        }
        (outcomes, None)
    }

    async fn record(&self, log: &LogState, part: usize, retry: RejectedRetry) -> Result<(), Status> {
        let command = internal::Command {
            request_id: part_id(&self.request_id, part),
            operator: self.operator.clone(),
            reason: self.reason.clone(),
            at_ms: log.connection.server_clock().now().as_millisecond(),
            action: Some(Action::Retry(retry)),
            ..Default::default()
        };
        let stored = commands::append(&log.connection, log.layout, RECORD_SHARD, &command).await;
        stored.map(drop).map_err(|problem| {
            let id = &self.request_id;
            let message = format!("the record could not be stored: {problem}; repeat the call with request_id {id:?}");
            refuse(Code::LogUnavailable, message)
        })
    }

    fn unfinished(&self, problem: &str, done: usize) -> Status {
        let (all, id) = (self.entries.len(), &self.request_id);
        let message = format!(
            "{problem}; {done} of {all} were retried before; call again with request_id {id:?} to continue: accepted requests are not \
             accepted a second time"
        );
        refuse(Code::LogUnavailable, message)
    }
}

/// Reason why a retry stopped.
enum Stop {
    Draining,
    /// A transient problem, as text.
    Problem(String),
}

/// The record of an answer.
fn outcome(entry: StreamSeq, answer: RetriedRejected) -> RetryOutcome {
    let RetriedRejected { id: _, event_id, duplicate, code, detail } = answer;
    let event_id = event_id.parse().map_or_else(|_| Vec::new(), |id: EventId| id.to_vec());
    // Longer than all details of ours.
    RetryOutcome { entry: entry.0, event_id, duplicate, code, detail: cut_reason(&detail) }
}

/// The answer for a record.
fn result(outcome: RetryOutcome) -> RetriedRejected {
    let RetryOutcome { entry, event_id, duplicate, code, detail } = outcome;
    let event_id = EventId::from_slice(&event_id).map_or_else(String::new, |id| id.to_string());
    RetriedRejected { id: entry.to_string(), event_id, duplicate, code, detail }
}

/// Asks a gateway to retry one entry.
///
/// # Errors
///
/// A transient problem, as text. Continuing after one could accept a later request of a workflow before an earlier one.
async fn retry(connection: &Connection, sequence: StreamSeq) -> Result<RetriedRejected, String> {
    let payload = RetryEntry { sequence: sequence.0 }.encode_to_vec();
    gateways::ask(connection, RETRY_SUBJECT, payload, RETRY_TIMEOUT).await
}

/// The entries of a request, in the order in which they were kept.
fn in_order(ids: &[String]) -> Result<Vec<StreamSeq>, Status> {
    if !(1..=RETRIES_MAX).contains(&ids.len()) {
        return Err(refuse(Code::BadQuery, format!("{} ids; give 1 to {RETRIES_MAX}", ids.len())));
    }
    let mut sequences = ids.iter().map(|id| parse_id(id)).collect::<Result<Vec<_>, _>>()?;
    sequences.sort_unstable();
    sequences.dedup();
    Ok(sequences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_go_in_the_order_in_which_requests_were_kept() {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let sequences = in_order(&ids(&["12", "7", "12", "100"])).unwrap();
        assert_eq!(sequences, [StreamSeq(7), StreamSeq(12), StreamSeq(100)]);
        for wrong in [&[][..], &["0"], &["x"], &["7", "-1"], &["7.0"]] {
            assert!(in_order(&ids(wrong)).is_err(), "{wrong:?}");
        }
        assert!(in_order(&vec!["1".to_owned(); RETRIES_MAX + 1]).is_err());
    }
}

//! A retry of refused requests that acts once.
//!
//! First it is recorded on COMMANDS what is to be retried, by whom and why; then entry after entry is given to a gateway, and
//! what became of them is recorded in parts. So whatever was done has a record of who wanted it, also when the admin dies
//! between. The same request id again reads its records: what they tell is not done again, and it goes on with the entry behind
//! them. Of what was done and not recorded any more the gateway knows the event id: it is not accepted a second time.

use std::time::Duration;

use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use weft_index::history::StoredCommand;
use weft_nats::{
    async_nats::{self, client::RequestErrorKind},
    catalog::edit::RECORD_SHARD,
    commands::{self, ITEMS_BYTES_MAX, cut_reason, part_id},
    connect::Connection,
    subject::RETRY_SUBJECT,
};
use weft_proto::{
    ids::{EventId, StreamSeq},
    v1::{self, RejectedRetry, RetriedRejected, RetryEntry, RetryOutcome, command::Action},
};

use super::parse_id;
use crate::{
    auth,
    error::{Code, refuse},
    service::{
        command::request_id,
        state::{Log, draining, reused},
    },
};

/// The most entries of one retry: each takes some milliseconds, one after the other.
const RETRIES_MAX: usize = 1_000;
/// How long a gateway may take for one: longer than it waits for the log itself.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
/// The answers that pass by themselves. Going on behind one could take a later request of a workflow before an earlier one.
const PASSING: [&str; 6] = ["log_unavailable", "log_full", "starting", "overloaded", "draining", "internal"];
/// Outcomes of one record: what is done twice where the admin dies before it is stored.
const RECORD_OUTCOMES_MAX: usize = 100;

/// A retry that somebody asks for.
#[derive(Debug)]
pub(super) struct Retry {
    request_id: String,
    operator: String,
    reason: String,
    /// In the order in which they were kept.
    entries: Vec<StreamSeq>,
}

impl Retry {
    /// The request says who calls.
    ///
    /// # Errors
    ///
    /// BAD_QUERY: the request id or the entries are none.
    pub fn new(request: &Request<v1::RetryRejectedRequest>) -> Result<Self, Status> {
        let v1::RetryRejectedRequest { ids, reason, request_id: given } = request.get_ref();
        Ok(Self {
            request_id: request_id(given)?,
            operator: auth::grant(request)?.operator().to_owned(),
            reason: cut_reason(reason),
            entries: in_order(ids)?,
        })
    }

    /// Records, retries, records; of what was recorded before only tells it. One entry after the other: what passes by itself
    /// ends the call, so that no later request of a workflow overtakes an earlier one.
    ///
    /// # Errors
    ///
    /// ID_REUSED when it was another call; DRAINING, LOG_UNAVAILABLE: to be called again with the same request id.
    pub async fn carry_out(&self, log: &Log, drain: &CancellationToken) -> Result<Vec<RetriedRejected>, Status> {
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

    /// What these records tell; they are of this call, or of none.
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
                // Two calls at once may both have recorded: what is not next was or will be told by another record.
                if self.entries.get(done.len()).is_some_and(|next| next.0 == outcome.entry) {
                    done.push(outcome.clone());
                }
            }
        }
        Ok(done)
    }

    /// As many as fit one record, and why it were no more where that is not the reason.
    async fn some(
        &self,
        log: &Log,
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
            // One more has room in what is left of a message.
            if bytes > ITEMS_BYTES_MAX / 2 {
                break;
            }
        }
        (outcomes, None)
    }

    async fn record(&self, log: &Log, part: usize, retry: RejectedRetry) -> Result<(), Status> {
        let command = v1::Command {
            request_id: part_id(&self.request_id, part),
            operator: self.operator.clone(),
            reason: self.reason.clone(),
            at_ms: log.connection.server_clock().now().as_millisecond(),
            action: Some(Action::Retry(retry)),
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
            "{problem}; {done} of {all} were retried before; call again with request_id {id:?} to go on: what was accepted is not \
             accepted a second time"
        );
        refuse(Code::LogUnavailable, message)
    }
}

/// Why a retry goes no further.
enum Stop {
    Draining,
    /// In words; it passes by itself.
    Problem(String),
}

/// An answer, as it is recorded.
fn outcome(entry: StreamSeq, answer: RetriedRejected) -> RetryOutcome {
    let RetriedRejected { id: _, event_id, duplicate, code, detail } = answer;
    let event_id = event_id.parse().map_or_else(|_| Vec::new(), |id: EventId| id.to_vec());
    // Long enough for each of ours.
    RetryOutcome { entry: entry.0, event_id, duplicate, code, detail: cut_reason(&detail) }
}

/// A record, as it is answered.
fn result(outcome: RetryOutcome) -> RetriedRejected {
    let RetryOutcome { entry, event_id, duplicate, code, detail } = outcome;
    let event_id = EventId::from_slice(&event_id).map_or_else(String::new, |id| id.to_string());
    RetriedRejected { id: entry.to_string(), event_id, duplicate, code, detail }
}

/// Has a gateway retry one entry.
///
/// # Errors
///
/// What passes by itself.
async fn retry(connection: &Connection, sequence: StreamSeq) -> Result<RetriedRejected, String> {
    // While it is disconnected the client queues: the retry would be done when nobody waits for it any more.
    if !connection.is_connected() {
        return Err("nats is not connected".into());
    }
    let payload = RetryEntry { sequence: sequence.0 }.encode_to_vec();
    let request = async_nats::Request::new().payload(payload.into()).timeout(Some(RETRY_TIMEOUT));
    let answer =
        connection.client().send_request(RETRY_SUBJECT, request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => "no gateway is there".to_owned(),
            _ => format!("no gateway answers: {error}"),
        })?;
    let result = RetriedRejected::decode(answer.payload).map_err(|error| format!("a gateway answers {error}"))?;
    if PASSING.contains(&result.code.as_str()) {
        return Err(format!("{}: {}", result.code, result.detail));
    }
    Ok(result)
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

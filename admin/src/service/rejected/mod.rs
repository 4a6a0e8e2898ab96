//! `RejectedService`: the requests that gateways refused, and their second chance.
//!
//! The inbox is read where it lies: it is small, capped, and nothing is derived from it. A retry is a gateway's work; what
//! is asked of it is a sequence, never a content.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tonic::{Request, Response, Status};
use weft_nats::{
    async_nats::{self, client::RequestErrorKind},
    connect::Connection,
    direct,
    subject::{REJECTED_STREAM, RETRY_SUBJECT},
};
use weft_proto::{
    ids::StreamSeq,
    v1::{self, RetriedRejected, RetryEntry, rejected_service_server::RejectedService},
};

use super::{
    events::page_size,
    state::{State, draining},
};
use crate::{
    auth, convert,
    error::{Code, of_direct, refuse},
};

mod scan;

use scan::Filter;

/// The most entries of one retry: each takes some milliseconds, one after the other.
const RETRIES_MAX: usize = 1_000;
/// How long a gateway may take for one: longer than it waits for the log itself.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
/// The answers that pass by themselves. Going on behind one could take a later request of a workflow before an earlier one.
const PASSING: [&str; 6] = ["log_unavailable", "log_full", "starting", "overloaded", "draining", "internal"];

/// `RejectedService` over stream REJECTED.
#[derive(Debug)]
pub(super) struct RejectedRequests {
    state: Arc<State>,
}

impl RejectedRequests {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl RejectedService for RejectedRequests {
    async fn list_rejected(
        &self,
        request: Request<v1::ListRejectedRequest>,
    ) -> Result<Response<v1::ListRejectedResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        auth::check_all_workflows(&grant)?;
        let request = request.into_inner();
        let before = scan::decode_token(&request.page_token)?;
        let limit = page_size(request.page_size, "page_size")?;
        let filter = Filter { sources: grant.sources().to_vec(), ..filter_of(request)? };
        let page = scan::newest(&log.connection, &filter, before, limit).await?;
        let next_page_token = page.next.map(scan::encode_token).unwrap_or_default();
        Ok(Response::new(v1::ListRejectedResponse { rejected: page.entries, next_page_token }))
    }

    async fn get_rejected(&self, request: Request<v1::GetRejectedRequest>) -> Result<Response<v1::Rejected>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        auth::check_all_workflows(&grant)?;
        let sequence = parse_id(&request.into_inner().id)?;
        let unknown = || refuse(Code::NotFound, format!("no refused request {sequence} is kept"));
        let stored = direct::get(&log.connection, REJECTED_STREAM, sequence).await.map_err(of_direct)?;
        // What a key may not see is not there.
        let seen = Filter { sources: grant.sources().to_vec(), ..Filter::default() };
        let entry = stored.as_ref().and_then(scan::decode).filter(|entry| seen.takes(entry)).ok_or_else(unknown)?;
        Ok(Response::new(entry))
    }

    async fn retry_rejected(
        &self,
        request: Request<v1::RetryRejectedRequest>,
    ) -> Result<Response<v1::RetryRejectedResponse>, Status> {
        let log = self.state.log()?;
        let v1::RetryRejectedRequest { ids, reason, request_id } = request.into_inner();
        let sequences = in_order(&ids)?;
        let mut results = Vec::with_capacity(sequences.len());
        for sequence in &sequences {
            if self.state.draining().is_cancelled() {
                return Err(draining());
            }
            match retry(&log.connection, *sequence).await {
                Ok(result) => results.push(result),
                Err(problem) => return Err(unfinished(&problem, results.len(), sequences.len())),
            }
        }
        let accepted = results.iter().filter(|result| result.code.is_empty()).count();
        tracing::info!(request_id, reason, retried = results.len(), accepted, "refused requests were retried");
        Ok(Response::new(v1::RetryRejectedResponse { results }))
    }
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

fn unfinished(problem: &str, done: usize, all: usize) -> Status {
    let message = format!(
        "{problem}; {done} of {all} were retried before; call again: what was accepted is not accepted a second time"
    );
    refuse(Code::LogUnavailable, message)
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

fn parse_id(id: &str) -> Result<StreamSeq, Status> {
    let sequence = id.parse().ok().filter(|sequence| *sequence > 0);
    let wrong = || refuse(Code::BadQuery, format!("{id:?} is not the id of a refused request, which is a number"));
    sequence.map(StreamSeq).ok_or_else(wrong)
}

fn filter_of(request: v1::ListRejectedRequest) -> Result<Filter, Status> {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let source = given(request.source);
    if let Some(source) = source.as_ref().filter(|source| !source.bytes().all(token)) {
        return Err(refuse(Code::BadQuery, format!("source {source:?} is not the name of a source")));
    }
    let since_ms = request.since.map(|since| {
        convert::to_milliseconds(&since)
            .ok_or_else(|| refuse(Code::BadQuery, "since is not a time within years 1 to 9999"))
    });
    Ok(Filter { source, code: given(request.code), since_ms: since_ms.transpose()?, ..Filter::default() })
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

    #[test]
    fn a_source_is_one_token() {
        let filter = |source: &str| filter_of(v1::ListRejectedRequest { source: source.into(), ..Default::default() });
        assert_eq!(filter("shop-1").unwrap().source.as_deref(), Some("shop-1"));
        assert_eq!(filter("").unwrap().source, None);
        for wrong in ["*", ">", "a.b", "a b"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }
}

//! `RejectedService`: requests that gateways refused, and their retries.
//!
//! The inbox is read directly from its stream: it is small, capped, and nothing is derived from it. A gateway retries; it is
//! sent a sequence, never a content. The results are recorded on COMMANDS (`retry`).

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_nats::{direct, subject::REJECTED_STREAM};
use weft_proto::{
    ids::StreamSeq,
    v1::{self, rejected_service_server::RejectedService},
};

use super::{
    paging::{self, page_size},
    state::State,
};
use crate::{
    auth, convert,
    error::{Code, of_direct, refuse},
};

mod retry;
mod scan;
mod withhold;

use retry::Retry;
use scan::Filter;
use withhold::withhold;

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
        let before = paging::decode_seq(&request.page_token)?;
        let limit = page_size(request.page_size, "page_size")?;
        let filter = Filter { sources: grant.sources().to_vec(), ..filter_of(request)? };
        let mut page = scan::newest(&log.connection, &filter, before, limit).await?;
        if !grant.has(v1::Scope::Operate) {
            page.entries = page.entries.into_iter().map(withhold).collect();
        }
        let next_page_token = page.next.map(paging::encode_seq).unwrap_or_default();
        Ok(Response::new(v1::ListRejectedResponse { rejected: page.entries, next_page_token }))
    }

    async fn get_rejected(&self, request: Request<v1::GetRejectedRequest>) -> Result<Response<v1::Rejected>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        auth::check_all_workflows(&grant)?;
        let sequence = parse_id(&request.into_inner().id)?;
        let unknown = || refuse(Code::NotFound, format!("no refused request {sequence} is kept"));
        let stored = direct::get(&log.connection, REJECTED_STREAM, sequence).await.map_err(of_direct)?;
        // NOT_FOUND as well for what the key may not see.
        let seen = Filter { sources: grant.sources().to_vec(), ..Filter::default() };
        let entry = stored.as_ref().and_then(scan::decode).filter(|entry| seen.takes(entry)).ok_or_else(unknown)?;
        Ok(Response::new(if grant.has(v1::Scope::Operate) { entry } else { withhold(entry) }))
    }

    async fn retry_rejected(
        &self,
        request: Request<v1::RetryRejectedRequest>,
    ) -> Result<Response<v1::RetryRejectedResponse>, Status> {
        let log = self.state.log()?;
        let retry = Retry::new(&request)?;
        let results = retry.carry_out(log, self.state.draining()).await?;
        Ok(Response::new(v1::RetryRejectedResponse { results }))
    }
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
    let milliseconds = |name: &str, time: Option<prost_types::Timestamp>| {
        let refused = || refuse(Code::BadQuery, format!("{name} is not a time within years 1 to 9999"));
        time.map(|time| convert::to_milliseconds(&time).ok_or_else(refused)).transpose()
    };
    let since_ms = milliseconds("since", request.since)?;
    let until_ms = milliseconds("until", request.until)?;
    Ok(Filter { source, code: given(request.code), since_ms, until_ms, ..Filter::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

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

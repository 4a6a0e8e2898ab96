//! `AuditService`: the calls that operators have made, from COMMANDS.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_index::history::{AuditEntry, AuditFilter};
use weft_proto::{
    internal::{self, command::Action},
    v1::{self, audit_service_server::AuditService},
};

use super::{
    paging::{self, page_size},
    state::State,
};
use crate::{
    convert,
    error::{Code, of_history, refuse},
};

/// `AuditService` over the history.
#[derive(Debug)]
pub(super) struct Audit {
    state: Arc<State>,
}

impl Audit {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let log = self.state.log()?;
        let request = request.into_inner();
        let before = paging::decode_audit(&request.page_token, log.layout.shards())?;
        let limit = page_size(request.page_size, "page_size")?;
        let filter = filter_of(request)?;
        log.catch_up().await?;
        let page = log.history.audit(filter, before, limit).await.map_err(of_history)?;
        let next_page_token = page.next.as_ref().map(paging::encode_audit).unwrap_or_default();
        let entries = page.entries.into_iter().filter_map(view).collect();
        Ok(Response::new(v1::ListAuditResponse { entries, next_page_token }))
    }
}

fn filter_of(request: v1::ListAuditRequest) -> Result<AuditFilter, Status> {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let milliseconds = |name: &str, time: Option<prost_types::Timestamp>| {
        let refused = || refuse(Code::BadQuery, format!("{name} is not a time within years 1 to 9999"));
        time.map(|time| convert::to_milliseconds(&time).ok_or_else(refused)).transpose()
    };
    Ok(AuditFilter {
        operator: given(request.operator),
        action: given(request.action),
        target: given(request.target),
        request_id: given(request.request_id),
        since_ms: milliseconds("since", request.since)?,
        until_ms: milliseconds("until", request.until)?,
    })
}

/// An entry as it is shown; `None` for one without a command, which no page has.
fn view(entry: AuditEntry) -> Option<v1::AuditEntry> {
    let result = entry.result().into();
    let first = entry.parts.first()?;
    let changes = entry.parts.iter().filter_map(|part| match &part.command.action {
        Some(Action::Catalog(edit)) => Some(edit),
        _ => None,
    });
    Some(v1::AuditEntry {
        id: format!("{}:{}", first.shard.0, first.run.0),
        time: convert::milliseconds(first.command.at_ms),
        operator: first.command.operator.clone(),
        reason: first.command.reason.clone(),
        request_id: first.command.request_id.clone(),
        changes: changes.flat_map(lines).collect(),
        action: entry.action,
        targets: entry.targets,
        target_count: u32::try_from(entry.target_count).unwrap_or(u32::MAX),
        result,
        counts: Some(entry.counts),
    })
}

/// The differences of a change of the catalog; of several entries, each behind its name.
fn lines(edit: &internal::CatalogEdit) -> Vec<String> {
    let test = edit.test.as_ref().map(|test| format!("test: {}", test.message));
    let several = edit.changes.len() > 1;
    let changes = edit.changes.iter().flat_map(|change| {
        let heading = several.then(|| format!("{} {} {}", change.action, change.kind, change.name));
        heading.into_iter().chain(change.diff.iter().cloned())
    });
    changes.chain(test).collect()
}

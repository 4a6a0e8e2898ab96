//! One event of a source on request: signed here as its sender would, verified and accepted by a gateway.

use std::time::Duration;

use prost::Message as _;
use tonic::Status;
use weft_catalog::{Snapshot, change::Refusal, edit::record, entry::Kind};
use weft_nats::subject::SAMPLE_SUBJECT;
use weft_proto::v1;

use super::mutation::{Mutation, of_refusal};
use crate::{
    deliveries::{Deliveries, Sample},
    error::{Code, refuse},
    service::{gateways, state::LogState},
};

/// Time-out of a gateway: longer than its time-out for the log.
const TIMEOUT: Duration = Duration::from_secs(12);
/// The type of a sample, by which receivers may ignore it.
const TYPE: &str = "weft.test";
/// Characters of the request id in the name of the sample's own workflow.
const WORKFLOW_CHARS: usize = 8;

/// Records the call, then hands the sample to a gateway. A repeat hands it over again: it has the same delivery id, so it is
/// accepted once.
///
/// # Errors
///
/// NOT_FOUND; BAD_QUERY: the source takes nothing that can be signed here; LOG_UNAVAILABLE: call again with the same request id.
pub(super) async fn send(
    log: &LogState,
    deliveries: &dyn Deliveries,
    mutation: &Mutation,
    snapshot: &Snapshot,
    asked: &v1::SendSampleRequest,
) -> Result<v1::SendSampleResponse, Status> {
    let missing = || of_refusal(&Refusal::NotFound { kind: Kind::Source, name: asked.source.clone() });
    let source = &snapshot.sources.get(&asked.source).ok_or_else(missing)?.value;
    let id = &mutation.stamp().request_id;
    let own = || format!("sample-{}", id.chars().take(WORKFLOW_CHARS).collect::<String>());
    let workflow = if asked.workflow_id.is_empty() { own() } else { asked.workflow_id.clone() };
    let event_type = if asked.r#type.is_empty() { TYPE } else { &asked.r#type };
    let sample = Sample { id, event_type, workflow: &workflow };
    let signed = deliveries.sign(source, &sample).map_err(|problem| refuse(Code::BadQuery, problem))?;
    let again = |problem: String| {
        refuse(Code::LogUnavailable, format!("{problem}; call again with request_id {id:?}: it is accepted once"))
    };
    if mutation.recorded(log).await?.is_none() {
        let recorded = record(&log.connection, log.layout, mutation.stamp(), 0, mutation.edit()).await;
        recorded.map_err(|_| again("the record could not be stored".to_owned()))?;
    }
    let answer =
        gateways::ask(&log.connection, SAMPLE_SUBJECT, signed.encode_to_vec(), TIMEOUT).await.map_err(again)?;
    let v1::RetriedRejected { event_id, code, detail, .. } = answer;
    Ok(v1::SendSampleResponse { event_id, workflow_id: workflow, code, detail })
}

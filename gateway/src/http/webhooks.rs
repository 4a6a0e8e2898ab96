//! `POST /api/v1/webhooks/{source}[/{workflowId}]`: from a signed request to a receipt.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;
use weft_proto::{
    ids::{EventId, SequenceNumber, WorkflowId},
    v1::Scope,
};
use weft_schemes::Verified;

use crate::{
    admission::Client,
    http::body::Refusal,
    http::error::{Code, Problem},
    http::state::Api,
    identify, metrics,
    rejected::{Refused, RequestOrigin},
    sequencer::{NewEvent, Receipt, SubmitError},
    sources::{LookupError, Source},
};

/// Longest wait for a receipt. The sequencer gives up sooner; this holds in any case.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Header of an answer to a repeat.
const REPLAYED: &str = "idempotent-replayed";

/// The answer to an accepted event.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Receipt)]
pub(crate) struct Accepted {
    /// The event's id.
    #[schema(value_type = uuid::Uuid)]
    event_id: EventId,
    /// Its number in its workflow, from 1.
    #[schema(value_type = u64, minimum = 1)]
    sequence_number: SequenceNumber,
    /// The id of its workflow.
    #[schema(value_type = String)]
    workflow_id: WorkflowId,
    /// The event before it in its workflow.
    #[schema(value_type = Option<uuid::Uuid>, required)]
    previous_event_id: Option<EventId>,
    /// It had been accepted before: this is the first receipt.
    duplicate: bool,
}

/// A webhook whose workflow the source's rule names.
///
/// Authenticated by the source's scheme alone: a signature, or with scheme `api_key` a key with scope `ingest`. The same
/// delivery again gets the first receipt.
#[utoipa::path(
    post,
    path = "/api/v1/webhooks/{source}",
    operation_id = "postWebhook",
    tag = "ingest",
    security((), ("apiKey" = []), ("bearer" = [])),
    params(("source" = String, Path, description = "Name of a configured source")),
    request_body(description = "What the sender signed", content((Value = "application/json"), (String = "*/*"))),
    responses(
        (status = 202, description = "Accepted: on disk, in order, once", body = Accepted),
        (status = 200, description = "Accepted before; or the challenge by which Slack asks whose the address is",
            content((Accepted = "application/json"), (String = "text/plain")),
            headers(("Idempotent-Replayed" = String, description = "true"))),
    )
)]
pub async fn webhook(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    // No source has a name that is not UTF-8.
    let Path(source) = path.map_err(|_| unknown_source())?;
    accept(&api, &source, None, request).await
}

/// A webhook whose workflow the path names.
#[utoipa::path(
    post,
    path = "/api/v1/webhooks/{source}/{workflow}",
    operation_id = "postWebhookToWorkflow",
    tag = "ingest",
    security((), ("apiKey" = []), ("bearer" = [])),
    params(
        ("source" = String, Path, description = "Name of a configured source"),
        ("workflow" = String, Path, description = "The workflow id, percent-encoded; wins over the source's rule"),
    ),
    request_body(description = "What the sender signed", content((Value = "application/json"), (String = "*/*"))),
    responses(
        (status = 202, description = "Accepted: on disk, in order, once", body = Accepted),
        (status = 200, description = "Accepted before; or the challenge by which Slack asks whose the address is",
            content((Accepted = "application/json"), (String = "text/plain")),
            headers(("Idempotent-Replayed" = String, description = "true"))),
    )
)]
pub async fn webhook_with_workflow(
    State(api): State<Arc<Api>>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let Path((source, workflow)) =
        path.map_err(|_| Problem::new(Code::InvalidWorkflow, "the workflow id in the path is not UTF-8"))?;
    if !is_percent_encoded(request.uri().path()) {
        let detail = "the path holds a % that is not followed by two hexadecimal digits; write %25 for a percent sign";
        return Err(Problem::new(Code::InvalidWorkflow, detail));
    }
    accept(&api, &source, Some(&workflow), request).await
}

/// A webhook of a source named `events`: its path is also the path of the route that reads events.
pub async fn events(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    accept(&api, "events", None, request).await
}

/// Result of a request.
#[derive(Debug)]
enum Received {
    Accepted(Receipt),
    /// The provider asks whether the address is its owner's: the text to send back.
    Challenge(String),
}

/// Verify, identify, sequence, answer; keep what is refused.
async fn accept(api: &Api, name: &str, workflow: Option<&str>, request: Request) -> Result<Response, Problem> {
    let began = Instant::now();
    let source = source(api, name)?;
    let (head, body) = request.into_parts();
    match receive(api, &source, workflow, &head, body).await {
        Ok(Received::Accepted(receipt)) => {
            count(name.to_owned(), &receipt);
            ::metrics::histogram!(metrics::RECEIPT_SECONDS).record(began.elapsed());
            Ok(answer(receipt))
        }
        Ok(Received::Challenge(text)) => Ok(text.into_response()),
        Err(refusal) => {
            let to = RequestOrigin::Source(&source.configured);
            api.rejected.keep(&Refused { to, received_at: now(), head: &head, refusal: &refusal });
            Err(refusal.problem)
        }
    }
}

/// From a request to its receipt; a refusal contains the part of the body that had been read.
async fn receive(
    api: &Api,
    source: &Source,
    workflow: Option<&str>,
    head: &Parts,
    body: Body,
) -> Result<Received, Refusal> {
    let from_headers = |problem| Refusal::from_headers(problem, &head.headers);
    let client = head.extensions.get::<Client>().cloned().unwrap_or_default();
    refuse_compressed(&head.headers).map_err(from_headers)?;
    // A key is checked without the body, so the body of a request without a valid key is not read.
    let grant = source.verifier.takes_key().then(|| api.authorize(&client, &head.headers, Scope::Ingest)).transpose();
    let grant = grant.map_err(from_headers)?;
    let held = api.bodies.read(head, body, source.body_bytes_max).await?;
    let body = held.bytes.clone();
    let received = async {
        let received_at = now();
        let verified = match &grant {
            Some(grant) => Verified::of_key(grant.operator()),
            None => source.verifier.verify(&head.headers, &body, received_at)?,
        };
        client.trust();
        api.admission.source(&client, &source.configured.name)?;
        if let Some(challenge) = source.verifier.challenge(&body) {
            return Ok(Received::Challenge(challenge));
        }
        let event =
            event(source, workflow, &head.headers, &body, &verified, received_at, api.bodies.depth_max()).await?;
        if let Some(grant) = &grant {
            grant.check(&event.source, &event.workflow)?;
        }
        // The body counts against the budget until here: the queue of the log has a separate limit.
        drop(held);
        submit(api, event).await.map(Received::Accepted)
    };
    received.await.map_err(|problem| Refusal::from_request(problem, body))
}

/// The source of a name.
///
/// # Errors
///
/// A [`Problem`] with `unknown_source`, or with an internal cause.
pub(crate) fn source(api: &Api, name: &str) -> Result<Arc<Source>, Problem> {
    api.sources.get(name).map_err(|error| match error {
        LookupError::Starting => SubmitError::Starting.into(),
        LookupError::Unknown => unknown_source(),
        LookupError::Broken => Problem::new(Code::Internal, "the source's configuration cannot be used"),
    })
}

/// The event that a verified request to a source stands for.
///
/// # Errors
///
/// A [`Problem`] that the sender can fix.
pub(crate) async fn event(
    source: &Source,
    path_workflow: Option<&str>,
    headers: &HeaderMap,
    body: &Bytes,
    verified: &Verified,
    received_at: Timestamp,
    depth_max: usize,
) -> Result<NewEvent, Problem> {
    let request = identify::Request { path_workflow, headers, body, verified, received_at };
    let mut event = source.rules.identify(&request)?;
    source.rules.check_depth(body, depth_max)?;
    if let Some(pointer) = source.rules.missing_data(&event) {
        tracing::warn!(
            source = event.source,
            pointer,
            "the source's data pointer finds nothing in an event; its receivers get null (reported once a revision)"
        );
    }
    source.schemas.judge(&mut event).await?;
    Ok(event)
}

/// Gives an event its place in the log.
///
/// # Errors
///
/// A [`Problem`]: a reused delivery id, or an internal cause.
pub(crate) async fn submit(api: &Api, event: NewEvent) -> Result<Receipt, Problem> {
    let log = api.log()?;
    let receipt = timeout(ANSWER_TIMEOUT, log.sequencer.submit(event)).await;
    Ok(receipt.unwrap_or(Err(SubmitError::Unavailable))?)
}

/// The time, in the milliseconds that the log, the envelope and people read.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// Counts an accepted or repeated event.
pub(crate) fn count(source: impl Into<::metrics::SharedString>, receipt: &Receipt) {
    let name = if receipt.duplicate { metrics::DUPLICATE } else { metrics::ACCEPTED };
    ::metrics::counter!(name, "source" => source.into()).increment(1);
}

pub(crate) fn answer(receipt: Receipt) -> Response {
    let duplicate = receipt.duplicate;
    let body = Json(Accepted::from(receipt));
    if duplicate {
        (StatusCode::OK, [(REPLAYED, HeaderValue::from_static("true"))], body).into_response()
    } else {
        (StatusCode::ACCEPTED, body).into_response()
    }
}

impl From<Receipt> for Accepted {
    fn from(receipt: Receipt) -> Self {
        Self {
            event_id: receipt.event_id,
            sequence_number: receipt.sequence_number,
            workflow_id: receipt.workflow,
            previous_event_id: receipt.previous,
            duplicate: receipt.duplicate,
        }
    }
}

/// The signature is over what was sent, and `data` is what was signed: a compressed body would reach receivers as such.
pub(crate) fn refuse_compressed(headers: &HeaderMap) -> Result<(), Problem> {
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, "the body has a content-encoding; send it uncompressed"))
}

/// Whether each % of a path begins an escape. Decoders leave others as they are, or not: proxies and we might differ.
fn is_percent_encoded(path: &str) -> bool {
    let mut parts = path.split('%').map(str::as_bytes);
    parts.next();
    parts.all(|part| part.len() >= 2 && part[..2].iter().all(u8::is_ascii_hexdigit))
}

fn unknown_source() -> Problem {
    Problem::new(Code::UnknownSource, "no source of this name; check the path against the configured sources")
}

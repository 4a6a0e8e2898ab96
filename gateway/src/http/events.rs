//! `POST /api/v1/events`: events from callers with an API key, as CloudEvents or as plain JSON.
//!
//! | content type | body |
//! |---|---|
//! | `application/cloudevents+json` | one CloudEvent, structured |
//! | `application/cloudevents-batch+json` | up to [`BATCH_EVENTS_MAX`] of them |
//! | any, with headers `ce-…` | the data of one CloudEvent, binary |
//! | `application/json` | `{type, workflowId, data, id?, time?, source?}` |
//!
//! - `attributes`: the CloudEvents attributes besides the data, in every mode; `binary`, `structured`, `plain`: the modes.
//! - `draft`: an event as a caller describes it, in any mode; `caller`: what the caller may send.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header, request::Parts};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;
use weft_nats::envelope;
use weft_proto::v1::Scope;

use crate::{
    admission::Client,
    http::body::Refusal,
    http::error::{self, Code, Problem},
    http::state::Api,
    http::webhooks::{self, ANSWER_TIMEOUT, Accepted},
    http::wire::PlainEvent,
    metrics,
    rejected::{Refused, RequestOrigin},
    sequencer::{NewEvent, NotTaken, SubmitError},
};

mod attributes;
mod binary;
mod caller;
mod draft;
mod json;
mod plain;
mod structured;
#[cfg(test)]
mod tests;

pub(crate) use caller::Caller;
pub(crate) use draft::{Draft, check_json};

/// Events of one batch: as many as one append takes, so that a batch waits for one or two.
pub const BATCH_EVENTS_MAX: usize = 1000;

const CLOUDEVENTS: &str = "application/cloudevents";
/// Headers in which callers with an API key name deliveries whose event has no id.
const IDEMPOTENCY_KEYS: [&str; 2] = ["idempotency-key", "x-idempotency-key"];

/// How a request describes its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Binary,
    Structured,
    Batch,
    Plain,
}

/// The answer to a batch.
#[derive(Serialize, ToSchema)]
pub(crate) struct Batch {
    /// In the batch's order.
    results: Vec<Outcome>,
}

/// Result of one event of a batch.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Outcome {
    /// The receipt of the event.
    Accepted(Accepted),
    /// Its delivery id was accepted before with another body.
    #[schema(value_type = error::Body)]
    Refused(Problem),
}

/// `POST /api/v1/events`: CloudEvents binary, structured or batch, or plain JSON.
///
/// # Errors
///
/// A [`Problem`]: nothing of the request is accepted, unless its code is `log_unavailable`.
#[utoipa::path(
    post,
    path = "/api/v1/events",
    tag = "ingest",
    security(("apiKey" = []), ("bearer" = [])),
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "The delivery id, where the event names none"),
    ),
    request_body(content(
        (PlainEvent = "application/json"),
        (Value = "application/cloudevents+json"),
        (Vec<Value> = "application/cloudevents-batch+json"),
    )),
    responses(
        (status = 202, description = "Accepted: on disk, in order, once", body = Accepted),
        (status = 200, description = "Accepted before, or what became of each event of a batch",
            content((Accepted = "application/json"), (Batch = "application/json"))),
    )
)]
pub async fn publish(State(api): State<Arc<Api>>, client: Client, request: Request) -> Result<Response, Problem> {
    let began = Instant::now();
    let (head, body) = request.into_parts();
    match receive(&api, &client, &head, body).await {
        Ok(answer) => {
            ::metrics::histogram!(metrics::RECEIPT_SECONDS).record(began.elapsed());
            Ok(answer)
        }
        Err(refusal) => {
            let received_at = webhooks::now();
            api.rejected.keep(&Refused { to: RequestOrigin::Events, received_at, head: &head, refusal: &refusal });
            Err(refusal.problem)
        }
    }
}

/// From a request to its answer; a refusal contains the part of the body that had been read.
async fn receive(api: &Api, client: &Client, head: &Parts, body: Body) -> Result<Response, Refusal> {
    let headers = &head.headers;
    let from_headers = |problem| Refusal::from_headers(problem, headers);
    let caller = Caller::of(api, api.authorize(client, headers, Scope::Ingest).map_err(from_headers)?);
    webhooks::refuse_compressed(headers).map_err(from_headers)?;
    let form = Form::of(headers).map_err(from_headers)?;
    let held = api.bodies.read(head, body, None).await?;
    let body = held.bytes.clone();
    let accepted = async {
        if form == Form::Batch {
            let events = batch(headers, &body, |draft| caller.admit(draft))?;
            drop(held);
            return accept_all(api, events).await;
        }
        let draft = single(form, headers, &body)?;
        drop(held);
        let receipt = webhooks::submit(api, caller.admit(draft)?).await?;
        webhooks::count(metrics::API_SOURCE, &receipt);
        Ok(webhooks::answer(receipt))
    };
    accepted.await.map_err(|problem| Refusal::from_request(problem, body))
}

/// The events of a request as they would be submitted, for any sender. Pure; the entry point of fuzzing.
///
/// # Errors
///
/// A [`Problem`]: what is wrong with the request, or with one of its events.
pub fn read(headers: &HeaderMap, body: &Bytes, received_at: Timestamp) -> Result<Vec<NewEvent>, Problem> {
    let check = |draft: Draft| draft.check(received_at, String::new());
    match Form::of(headers)? {
        Form::Batch => batch(headers, body, check),
        form => Ok(vec![check(single(form, headers, body)?)?]),
    }
}

impl Form {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if let Some(kind) = essence.strip_prefix(CLOUDEVENTS) {
            return match kind {
                "+json" => Ok(Self::Structured),
                "-batch+json" => Ok(Self::Batch),
                _ => Err(unsupported("CloudEvents are taken as JSON, or in binary mode")),
            };
        }
        if binary::is_meant(headers) {
            return Ok(Self::Binary);
        }
        if envelope::is_json(&essence) {
            return Ok(Self::Plain);
        }
        Err(unsupported(
            "send application/json, application/cloudevents+json, application/cloudevents-batch+json, or a CloudEvent in \
             binary mode",
        ))
    }
}

/// The one event of a request.
fn single(form: Form, headers: &HeaderMap, body: &Bytes) -> Result<Draft, Problem> {
    let draft = match form {
        Form::Binary => binary::read(headers, body)?,
        Form::Structured | Form::Batch => structured::read(json::text(body)?)?,
        Form::Plain => plain::read(json::text(body)?)?,
    };
    draft.in_request(headers, idempotency_key(headers)?)
}

/// All events of a batch, each as `admit` takes it.
fn batch(
    headers: &HeaderMap,
    body: &[u8],
    admit: impl Fn(Draft) -> Result<NewEvent, Problem>,
) -> Result<Vec<NewEvent>, Problem> {
    if idempotency_key(headers)?.is_some() {
        let detail = "Idempotency-Key names one event; each event of a batch has its own id";
        return Err(Problem::new(Code::MissingDeliveryId, detail));
    }
    let elements = json::elements(json::text(body)?, BATCH_EVENTS_MAX)?;
    let read = |(index, element): (usize, &str)| {
        let draft = structured::read(element).and_then(|draft| draft.in_request(headers, None));
        draft.and_then(&admit).map_err(|problem| problem.of_event(index))
    };
    elements.into_iter().enumerate().map(read).collect()
}

/// Submits all events of a batch. An event whose id was used before with another body has a problem in its place; any other
/// failure is the answer to the whole batch.
async fn accept_all(api: &Api, events: Vec<NewEvent>) -> Result<Response, Problem> {
    let log = api.log()?;
    let answers = timeout(ANSWER_TIMEOUT, log.sequencer.submit_all(events)).await;
    let answers = answers.unwrap_or(Err(NotTaken { at: None, error: SubmitError::Unavailable }));
    let answers = answers.map_err(|NotTaken { at, error }| {
        let problem = Problem::from(error);
        at.into_iter().fold(problem, Problem::of_event)
    })?;
    let mut results = Vec::with_capacity(answers.len());
    for answer in answers {
        results.push(match answer {
            Ok(receipt) => {
                webhooks::count(metrics::API_SOURCE, &receipt);
                Outcome::Accepted(receipt.into())
            }
            Err(error @ SubmitError::IdReused) => Outcome::Refused(error.into()),
            Err(error) => return Err(error.into()),
        });
    }
    Ok((StatusCode::OK, Json(Batch { results })).into_response())
}

/// The caller's name for this delivery.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let unusable = |detail: &str| Problem::new(Code::MissingDeliveryId, detail);
    let mut key: Option<String> = None;
    for name in IDEMPOTENCY_KEYS {
        for value in headers.get_all(name) {
            let value = value.to_str().map_err(|_| unusable("the Idempotency-Key is not printable ASCII"))?;
            if key.as_deref().is_some_and(|key| key != value) {
                return Err(unusable("the request has two Idempotency-Keys that differ"));
            }
            key = Some(value.to_owned());
        }
    }
    Ok(key)
}

fn unsupported(detail: &str) -> Problem {
    Problem::new(Code::UnsupportedMediaType, detail)
}

fn malformed(detail: impl Into<String>) -> Problem {
    Problem::new(Code::MalformedBody, detail)
}

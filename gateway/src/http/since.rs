//! Reading: a page of the events after a cursor, and one event.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, header};
use tokio::time::timeout;
use weft_catalog::{Matcher, keys::Grant};
use weft_nats::{
    cursor::Cursor,
    direct::{self, DirectError},
    envelope, erasure,
    event::Event,
    scan::{self, Filter, Page},
};
use weft_proto::{
    ids::{EventId, WorkflowId},
    v1::Scope,
};

use crate::{
    admission::Client,
    http::error::{Code, Problem},
    http::state::{Api, LogHandle},
    http::wire,
    sequencer::SubmitError,
    sources::LookupError,
};

/// Events of one page where the query does not say.
const LIMIT_DEFAULT: usize = 100;
/// The most events of one page.
const LIMIT_MAX: usize = 1000;
/// Longest wait for a page.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The parameters of a query, in its order.
pub type Pairs = Vec<(String, String)>;

/// A query.
#[derive(Debug, Default)]
pub struct Wanted {
    /// A cursor or an event id; `None`: from the oldest event kept.
    pub since: Option<String>,
    /// The events that are wanted.
    pub filter: Filter,
    /// The name of a subscription that takes them.
    subscription: Option<String>,
    /// Events of a page.
    limit: usize,
}

/// The events after a cursor, oldest first.
#[utoipa::path(
    get,
    path = "/api/v1/webhooks/events",
    tag = "read",
    security(("apiKey" = []), ("bearer" = [])),
    params(
        ("since" = Option<String>, Query, description = "A cursor, or an event id; absent: from the oldest event kept"),
        ("workflowId" = Option<String>, Query, description = "Only this workflow"),
        ("type" = Option<String>, Query, description = "Only types that this pattern takes; `*` is any run of characters"),
        ("source" = Option<String>, Query, description = "Only this source"),
        ("subscription" = Option<String>, Query, description = "Only what this subscription takes"),
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 where nothing is said"),
    ),
    responses((status = 200, description = "A page", body = wire::Page))
)]
pub async fn since(
    State(api): State<Arc<Api>>,
    client: Client,
    headers: HeaderMap,
    query: Result<Query<Pairs>, QueryRejection>,
) -> Result<Response, Problem> {
    let grant = api.authorize(&client, &headers, Scope::Read)?;
    let wanted = Wanted::read(&api, &grant, pairs(query)?)?;
    let log = api.log()?;
    let page = in_time(async {
        let cursor = match &wanted.since {
            Some(text) => Some(resolve(log, text).await?),
            None => None,
        };
        Ok(scan::scan(&log.connection, log.layout, cursor.as_ref(), &wanted.filter, wanted.limit).await?)
    })
    .await?;
    Ok(json(write_page(&page)))
}

/// One event.
#[utoipa::path(
    get,
    path = "/api/v1/events/{event}",
    tag = "read",
    security(("apiKey" = []), ("bearer" = [])),
    params(("event" = uuid::Uuid, Path, description = "Its id")),
    responses((status = 200, description = "Its envelope", body = wire::Envelope))
)]
pub async fn event(
    State(api): State<Arc<Api>>,
    client: Client,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let grant = api.authorize(&client, &headers, Scope::Read)?;
    let id = path.ok().and_then(|Path(id)| id.parse().ok()).ok_or_else(unknown_event)?;
    one(&api, &grant, id).await
}

/// The event of a delivery.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "read",
    security(("apiKey" = []), ("bearer" = [])),
    params(
        ("source" = String, Query, description = "Who sent it"),
        ("deliveryId" = String, Query, description = "What the sender calls it"),
    ),
    responses((status = 200, description = "Its envelope", body = wire::Envelope))
)]
pub async fn event_of_delivery(
    State(api): State<Arc<Api>>,
    client: Client,
    headers: HeaderMap,
    query: Result<Query<Pairs>, QueryRejection>,
) -> Result<Response, Problem> {
    let grant = api.authorize(&client, &headers, Scope::Read)?;
    let (mut source, mut delivery_id) = (None, None);
    for (name, value) in pairs(query)? {
        match name.as_str() {
            "source" => source = Some(value),
            "deliveryId" => delivery_id = Some(value),
            _ => return Err(unknown_parameter(&name)),
        }
    }
    let (Some(source), Some(delivery_id)) = (source, delivery_id) else {
        return Err(Problem::new(Code::BadQuery, "name both source and deliveryId"));
    };
    one(&api, &grant, EventId::of_delivery(&source, &delivery_id)).await
}

/// An event that the key may not touch is unknown to it.
async fn one(api: &Api, grant: &Grant, id: EventId) -> Result<Response, Problem> {
    let log = api.log()?;
    let may_see = |event: &Event| grant.check(&event.source, &event.workflow).is_ok();
    match in_time(find(log, id)).await? {
        Some(event) if !may_see(&event) => Err(unknown_event()),
        Some(event) if event.is_erased() => Err(Problem::new(Code::Erased, "the payload of the event was erased")),
        Some(event) => Ok(json(envelope::to_json(&event).into())),
        None => Err(unknown_event()),
    }
}

/// An event, or what is left of an erased one.
async fn find(log: &LogHandle, id: EventId) -> Result<Option<Event>, Problem> {
    let unavailable = |error: DirectError| {
        tracing::debug!(%error, "event cannot be read");
        Problem::from(SubmitError::Unavailable)
    };
    let Some((shard, accepted)) = log.sequencer.accepted(id).await? else { return Ok(None) };
    let message = direct::get(&log.connection, &log.layout.events_stream(shard), accepted.seq).await;
    if let Some(message) = message.map_err(unavailable)? {
        return Ok(Event::decode(log.layout, &message).ok().filter(|event| event.id == id));
    }
    let erasure = erasure::find(&log.connection, log.layout, &accepted.workflow, accepted.seq).await;
    Ok(erasure.map_err(unavailable)?.map(|erasure| erasure.event).filter(|event| event.id == id))
}

/// The cursor that a reader names: one it was given, or the event it saw last.
///
/// # Errors
///
/// A [`Problem`] with `bad_cursor`, `cursor_expired` or `log_unavailable`.
pub async fn resolve(log: &LogHandle, text: &str) -> Result<Cursor, Problem> {
    let Ok(id) = text.parse::<EventId>() else {
        return Cursor::parse(text, log.layout)
            .map_err(|error| Problem::new(Code::BadCursor, format!("since is {error}")));
    };
    match log.sequencer.position_of(id).await? {
        Some((shard, seq)) => Ok(scan::behind(&log.connection, log.layout, shard, seq).await?),
        // An unknown and an expired event cannot be distinguished.
        None => Err(Problem::expired(scan::oldest(&log.connection, log.layout).await?)),
    }
}

impl Wanted {
    /// The query, restricted to the rights of its key.
    ///
    /// # Errors
    ///
    /// A [`Problem`] with `bad_query`, `invalid_workflow` or `starting`.
    pub fn read(api: &Api, grant: &Grant, pairs: Pairs) -> Result<Self, Problem> {
        let mut wanted = Self::parse(pairs)?;
        grant.limit(&mut wanted.filter);
        if let Some(name) = &wanted.subscription {
            let unknown = || Problem::new(Code::BadQuery, format!("there is no subscription {name:?}"));
            let subscription = api.sources.subscription(name).map_err(|error| match error {
                LookupError::Starting => SubmitError::Starting.into(),
                LookupError::Unknown | LookupError::Broken => unknown(),
            })?;
            let predicate = Matcher::predicate(&subscription, api.log()?.layout);
            wanted.filter.subscription = Some(predicate.ok_or_else(unknown)?);
        }
        Ok(wanted)
    }

    fn parse(pairs: Pairs) -> Result<Self, Problem> {
        let mut wanted = Self { limit: LIMIT_DEFAULT, ..Self::default() };
        for (name, value) in pairs {
            match name.as_str() {
                // Empty: as if it were not there.
                "since" => wanted.since = Some(value).filter(|text| !text.is_empty()),
                "workflowId" => {
                    let workflow = WorkflowId::new(value)
                        .map_err(|error| Problem::new(Code::InvalidWorkflow, format!("workflowId {error}")))?;
                    wanted.filter.workflow = Some(workflow);
                }
                "type" => wanted.filter.event_type = Some(value),
                "source" => wanted.filter.source = Some(value),
                "subscription" => wanted.subscription = Some(value),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                    let detail = || format!("limit is not a number from 1 to {LIMIT_MAX}");
                    wanted.limit = limit.ok_or_else(|| Problem::new(Code::BadQuery, detail()))?;
                }
                _ => return Err(unknown_parameter(&name)),
            }
        }
        Ok(wanted)
    }
}

/// `{"events":[…],"nextCursor":"…","hasMore":…}`, with the envelopes as they are.
fn write_page(page: &Page) -> Vec<u8> {
    let payloads: usize = page.events.iter().map(|stored| stored.event.payload.len() + 512).sum();
    let mut out = Vec::with_capacity(payloads + 128);
    out.extend_from_slice(b"{\"events\":[");
    for (index, stored) in page.events.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        envelope::write(&stored.event, &mut out);
    }
    // A cursor's text needs no escapes.
    out.extend_from_slice(format!("],\"nextCursor\":\"{}\",\"hasMore\":{}}}", page.next, page.has_more).as_bytes());
    out
}

fn json(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// The parameters of a query.
///
/// # Errors
///
/// A [`Problem`] with `bad_query`.
pub fn pairs(query: Result<Query<Pairs>, QueryRejection>) -> Result<Pairs, Problem> {
    query
        .map(|Query(pairs)| pairs)
        .map_err(|_| Problem::new(Code::BadQuery, "the query is not name=value pairs in UTF-8"))
}

/// An answer that the log gives in time.
///
/// # Errors
///
/// Its own, and a [`Problem`] with `log_unavailable` when it is late.
pub async fn in_time<T>(answer: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let late = || Problem::new(Code::LogUnavailable, "the log did not answer in time; ask again");
    timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| Err(late()))
}

fn unknown_event() -> Problem {
    Problem::new(Code::UnknownEvent, "no event of this id is known; it may have expired")
}

fn unknown_parameter(name: &str) -> Problem {
    Problem::new(Code::BadQuery, format!("{name:?} is not a parameter of this route"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &[(&str, &str)]) -> Result<Wanted, Code> {
        let pairs = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Wanted::parse(pairs).map_err(|problem| problem.code())
    }

    #[test]
    fn a_query_is_read_within_its_bounds() {
        let wanted = parse(&[("since", ""), ("workflowId", "é.*"), ("type", "order.*"), ("source", "shop")]).unwrap();
        assert_eq!((wanted.since, wanted.limit), (None, 100));
        assert_eq!(wanted.filter.workflow.unwrap().as_str(), "é.*");
        assert_eq!(
            (wanted.filter.event_type.as_deref(), wanted.filter.source.as_deref()),
            (Some("order.*"), Some("shop"))
        );
        assert_eq!(parse(&[("limit", "1000")]).unwrap().limit, 1000);
        for limit in ["0", "1001", "-1", "", "ten", "99999999999999999999"] {
            assert_eq!(parse(&[("limit", limit)]).unwrap_err(), Code::BadQuery, "{limit}");
        }
        assert_eq!(parse(&[("workflowId", "")]).unwrap_err(), Code::InvalidWorkflow);
        assert_eq!(parse(&[("sinse", "x")]).unwrap_err(), Code::BadQuery);
    }
}

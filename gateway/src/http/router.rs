//! The routes of the HTTP API.

use std::sync::Arc;

use axum::{
    Router,
    routing::{get, post},
};

use super::{
    access_log,
    error::{Code, Problem},
    events, openapi, since,
    state::Api,
    stream, webhooks,
};
use crate::admission;

#[cfg(test)]
mod tests;

/// The routes.
pub fn router(api: Arc<Api>) -> Router {
    let admission = Arc::clone(&api.admission);
    let routes = Router::new()
        .route("/api/v1/webhooks/events", get(since::since).post(webhooks::events))
        .route("/api/v1/webhooks/events/", get(since::since).post(webhooks::events))
        .route("/api/v1/webhooks/{source}", post(webhooks::webhook))
        .route("/api/v1/webhooks/{source}/", post(webhooks::webhook))
        .route("/api/v1/webhooks/{source}/{workflow}", post(webhooks::webhook_with_workflow))
        .route("/api/v1/webhooks/{source}/{workflow}/", post(webhooks::webhook_with_workflow))
        .route("/api/v1/events", get(since::event_of_delivery).post(events::publish))
        .route("/api/v1/events/", get(since::event_of_delivery).post(events::publish))
        .route("/api/v1/events/stream", get(stream::stream))
        .route("/api/v1/openapi.json", get(openapi::document))
        .route("/api/v1/events/{event}", get(since::event))
        .fallback(async || Problem::new(Code::NotFound, "no such route; the API is below /api/v1"))
        .method_not_allowed_fallback(async || {
            Problem::new(Code::MethodNotAllowed, "the route does not take this method; see header allow")
        })
        .with_state(api);
    access_log::around(admission::around(routes, admission))
}

//! The access log: a line for each request that was answered, for those who ask for it.

use std::time::Instant;

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::Response,
};

/// The target of the lines.
pub const ACCESS_LOG: &str = "weft_gateway::access";

/// Logs what the routes answer.
pub fn around(routes: Router) -> Router {
    routes.layer(middleware::from_fn(log))
}

async fn log(request: Request, next: Next) -> Response {
    // Off by default, and then nothing is copied.
    if !tracing::enabled!(target: ACCESS_LOG, tracing::Level::INFO) {
        return next.run(request).await;
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    // The query is left out, since cursors and filters are in it; the path of a webhook may name a workflow.
    tracing::info!(target: ACCESS_LOG, %method, path, status, duration_ms, "request answered");
    response
}

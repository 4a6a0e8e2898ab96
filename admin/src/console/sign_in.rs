//! `/session`: signs in with a key, says who is signed in, signs out.
//!
//! `POST {"key": "…"}` opens a session and answers what `GET` answers: the operator and the scopes of the key. `DELETE` ends it.

use std::time::Instant;

use axum::{
    Json,
    body::to_bytes,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};
use weft_catalog::keys::{Grant, KeyError, scope_name};
use weft_nats::options::Secret;
use weft_proto::v1::Scope;
use weft_serve::Peer;

use crate::auth::{Guard, origin};

/// Path of the session.
pub const SESSION_PATH: &str = "/session";
/// Maximum size of a sign-in: a key.
const BODY_BYTES_MAX: usize = 4096;

/// The routes.
pub fn route(guard: Guard) -> MethodRouter {
    get(current).post(sign_in).delete(sign_out).with_state(guard)
}

#[derive(Deserialize)]
struct SignIn {
    key: String,
}

/// The operator of a session.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Operator<'a> {
    operator: &'a str,
    /// The scopes of its key.
    scopes: Vec<&'static str>,
    /// Its limits; empty: none.
    sources: &'a [String],
    workflow_prefixes: &'a [String],
}

async fn sign_in(State(guard): State<Guard>, request: Request) -> Response {
    if !origin::is_same(request.headers(), request.uri()) {
        return refuse(StatusCode::FORBIDDEN, "sign in on the console's page");
    }
    let over_tls = origin::is_over_tls(request.headers());
    let client = request.extensions().get::<Peer>().map(|peer| peer.0);
    let Some(key) = given(request).await else {
        return refuse(StatusCode::BAD_REQUEST, "the request is not {\"key\": \"…\"} in JSON");
    };
    match guard.authorize_key(key.expose().as_bytes(), Scope::Read, client) {
        Ok(grant) => {
            let token = guard.sessions().open(key, Instant::now());
            let mut response = operator(&grant);
            put_cookie(&mut response, guard.sessions().set_cookie(Some(token), over_tls));
            response
        }
        Err(status) => of_status(&status),
    }
}

/// The key of a sign-in.
async fn given(request: Request) -> Option<Secret> {
    let body = to_bytes(request.into_body(), BODY_BYTES_MAX).await.ok()?;
    let SignIn { key } = serde_json::from_slice(&body).ok()?;
    Some(Secret::new(key.trim()))
}

async fn current(State(guard): State<Guard>, request: Request) -> Response {
    match guard.authorize_session(&request, Scope::Read) {
        Some(Ok(grant)) => operator(&grant),
        Some(Err(error)) => refuse(StatusCode::UNAUTHORIZED, &error.to_string()),
        None => refuse(StatusCode::UNAUTHORIZED, &KeyError::Missing.to_string()),
    }
}

async fn sign_out(State(guard): State<Guard>, request: Request) -> Response {
    if !origin::is_same(request.headers(), request.uri()) {
        return refuse(StatusCode::FORBIDDEN, "sign out on the console's page");
    }
    if let Some(token) = guard.sessions().token(request.headers()) {
        guard.sessions().close(token);
    }
    let mut response = private(StatusCode::NO_CONTENT.into_response());
    put_cookie(&mut response, guard.sessions().set_cookie(None, origin::is_over_tls(request.headers())));
    response
}

/// The answer to someone who is signed in.
fn operator(grant: &Grant) -> Response {
    let scopes = [Scope::Ingest, Scope::Read, Scope::Operate, Scope::Admin];
    let operator = Operator {
        operator: grant.operator(),
        scopes: scopes.into_iter().filter(|scope| grant.has(*scope)).map(scope_name).collect(),
        sources: grant.sources(),
        workflow_prefixes: grant.workflow_prefixes(),
    };
    private(Json(operator).into_response())
}

fn of_status(status: &Status) -> Response {
    let code = match status.code() {
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    refuse(code, status.message())
}

/// `{"detail": "…"}`.
fn refuse(status: StatusCode, detail: &str) -> Response {
    private((status, Json(serde_json::json!({ "detail": detail }))).into_response())
}

/// Kept in no cache.
fn private(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn put_cookie(response: &mut Response, cookie: String) {
    // Its characters are those of a header.
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
}

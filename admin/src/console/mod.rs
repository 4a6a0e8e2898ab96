//! The web console: its files, and how an operator signs in.
//!
//! The page calls the gRPC services as gRPC-web, with the cookie of its session in place of a key.
//!
//! - `files`: the built page, embedded, with its security headers.
//! - `sign_in`: the route that opens and closes sessions.

use axum::Router;

use crate::auth::Guard;

mod files;
mod sign_in;

pub use sign_in::SESSION_PATH;

/// The services, with the console on the same port.
pub fn with_console(services: Router, guard: Guard) -> Router {
    let services = files::WithFiles { services, page: files::embedded };
    Router::new().route(SESSION_PATH, sign_in::route(guard)).fallback_service(services)
}

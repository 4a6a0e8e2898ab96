//! The built page, embedded into the program.
//!
//! Files under `assets/` have the hash of their content in their name and are cached for good. Every other path that a browser
//! opens is a screen of the page, which reads the path: it is answered with `index.html`.

use std::{
    borrow::Cow,
    convert::Infallible,
    io::Read as _,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse as _, Response},
};
use flate2::read::GzDecoder;
use futures_util::future::{Either, Ready, ready};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use rust_embed::RustEmbed;
use tower::Service;

#[derive(RustEmbed)]
#[folder = "../console/dist"]
struct Dist;

/// Finds a file of the page.
pub type Find = fn(&str) -> Option<Cow<'static, [u8]>>;

/// The files of this program.
pub fn embedded(path: &str) -> Option<Cow<'static, [u8]>> {
    Dist::get(path).map(|file| file.data)
}

/// Scripts, styles and connections of the same origin only; nothing inline, no frames.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
                      connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const SECURITY_HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];
/// Folder of the files whose names change with their content.
const ASSETS: &str = "assets/";
const INDEX: &str = "index.html";
/// The answer of a program that was built without the page.
const ABSENT: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>Weft</title>\
    <h1>This build of weft has no console</h1>\
    <p>The console is built with Node.js 20 or later and npm. In the source folder of weft, run \
    <code>make console</code>, and then build the program again, for example with <code>make build</code>.</p>\
    <p>The gRPC services of this port and the <code>weft</code> command work without it.</p></html>";

/// The services of the port, with the page at every path that a browser may open.
#[derive(Clone)]
pub struct WithFiles {
    pub services: Router,
    pub page: Find,
}

impl Service<Request> for WithFiles {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, <Router as Service<Request>>::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.services, context)
    }

    /// gRPC and gRPC-web calls are POST requests; a browser opens and loads with GET.
    fn call(&mut self, request: Request) -> Self::Future {
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            let path = request.uri().path();
            Either::Left(ready(Ok(respond(self.page, request.method(), path, request.headers()))))
        } else {
            Either::Right(self.services.call(request))
        }
    }
}

/// The answer to a request for a file or a screen.
pub fn respond(find: Find, method: &Method, path: &str, headers: &HeaderMap) -> Response {
    let mut response = match file(find, path.trim_start_matches('/'), headers) {
        Some(response) => response,
        None => (StatusCode::NOT_FOUND, "not found\n").into_response(),
    };
    for (name, value) in SECURITY_HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

fn file(find: Find, path: &str, headers: &HeaderMap) -> Option<Response> {
    if !path.is_empty() && path != INDEX {
        if let Some(response) = found(find, path, headers) {
            return Some(response);
        }
        // A file of the page that does not exist, such as one of an earlier version: not a screen.
        if path.starts_with(ASSETS) || !is_navigation(headers) {
            return None;
        }
    }
    found(find, INDEX, headers).or_else(|| {
        let mut absent = (StatusCode::NOT_FOUND, ABSENT).into_response();
        absent.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        Some(absent)
    })
}

/// A file, as it is kept if the client takes that: text is kept compressed only.
fn found(find: Find, path: &str, headers: &HeaderMap) -> Option<Response> {
    let packed = find(&format!("{path}.gz"));
    let is_packed = packed.is_some() && takes_gzip(headers);
    let body = match packed {
        Some(packed) if !is_packed => Body::from(unpacked(&packed)?),
        Some(bytes) => body_of(bytes),
        None => body_of(find(path)?),
    };
    let mut response = body.into_response();
    let caching = if path.starts_with(ASSETS) { "public, max-age=31536000, immutable" } else { "no-cache" };
    let set = response.headers_mut();
    set.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(path)));
    set.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    set.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if is_packed {
        set.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Some(response)
}

fn body_of(bytes: Cow<'static, [u8]>) -> Body {
    match bytes {
        Cow::Borrowed(bytes) => Body::from(bytes),
        Cow::Owned(bytes) => Body::from(bytes),
    }
}

/// A file of the page, which was compressed when the page was built.
fn unpacked(packed: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Whether a browser opens the path, and does not load it for a page.
fn is_navigation(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    codings.flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = parameters.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "json" | "webmanifest" => "application/json",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, read::GzEncoder};

    use super::*;

    fn page(path: &str) -> Option<Cow<'static, [u8]>> {
        match path {
            "index.html" => Some(Cow::Borrowed(b"<html>")),
            "assets/main-1a2b.js.gz" => Some(Cow::Owned(packed())),
            _ => None,
        }
    }

    fn packed() -> Vec<u8> {
        let mut bytes = Vec::new();
        GzEncoder::new(&b"script"[..], Compression::best()).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn nothing(_: &str) -> Option<Cow<'static, [u8]>> {
        None
    }

    fn headers(values: &[(HeaderName, &'static str)]) -> HeaderMap {
        values.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    async fn get(find: Find, path: &str, values: &[(HeaderName, &'static str)]) -> (StatusCode, HeaderMap, Vec<u8>) {
        let response = respond(find, &Method::GET, path, &headers(values));
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, body.to_vec())
    }

    const HTML: (HeaderName, &str) = (header::ACCEPT, "text/html,application/xhtml+xml");

    #[tokio::test]
    async fn a_deep_link_opens_the_page_and_a_missing_file_does_not() {
        for path in ["/", "/dead-letters", "/events/0b1c", "/index.html"] {
            let (status, set, body) = get(page, path, &[HTML]).await;
            assert_eq!((status, &body[..]), (StatusCode::OK, &b"<html>"[..]), "{path}");
            assert_eq!(set[header::CACHE_CONTROL], "no-cache");
        }
        for (path, accept) in [("/assets/main-old.js", HTML), ("/favicon.ico", (header::ACCEPT, "image/*"))] {
            assert_eq!(get(page, path, &[accept]).await.0, StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[tokio::test]
    async fn every_answer_has_the_policy_and_its_type_is_not_guessed() {
        for path in ["/", "/assets/main-1a2b.js", "/assets/none.js"] {
            let (_, set, _) = get(page, path, &[HTML]).await;
            let policy = set[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
            assert_eq!(set[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        }
    }

    #[tokio::test]
    async fn hashed_files_are_cached_for_good_and_compressed_where_that_is_taken() {
        let path = "/assets/main-1a2b.js";
        let (_, set, body) = get(page, path, &[(header::ACCEPT_ENCODING, "br, gzip")]).await;
        assert_eq!((body, &set[header::CONTENT_ENCODING]), (packed(), &HeaderValue::from_static("gzip")));
        assert_eq!(set[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
        assert!(set[header::CACHE_CONTROL].to_str().unwrap().contains("immutable"));
        for refused in ["identity", "gzip;q=0"] {
            let (_, set, body) = get(page, path, &[(header::ACCEPT_ENCODING, refused)]).await;
            assert_eq!((&body[..], set.get(header::CONTENT_ENCODING)), (&b"script"[..], None));
        }
    }

    #[tokio::test]
    async fn a_build_without_the_page_says_how_to_get_it() {
        let (status, _, body) = get(nothing, "/", &[HTML]).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(String::from_utf8(body).unwrap().contains("make console"));
    }
}

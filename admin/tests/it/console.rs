//! The console's side of the port: files, gRPC-web, and sessions in place of keys.

use http::{StatusCode, header};
use weft_proto::v1::{self, Scope};
use weft_testkit::eventually;

use crate::mesh::{Mesh, PATIENCE, TOKEN};

/// A browser on the console's page.
struct Browser {
    http: reqwest::Client,
    url: String,
    cookie: String,
}

impl Browser {
    fn new(mesh: &Mesh) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { http, url: mesh.admin.url.clone(), cookie: String::new() }
    }

    fn request(&self, method: http::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url)).header(header::COOKIE, &self.cookie);
        request.header("x-weft-console", "1")
    }

    /// Signs in and keeps the cookie; the status and the answer.
    async fn sign_in(&mut self, key: &str) -> (StatusCode, serde_json::Value) {
        let body = serde_json::json!({ "key": key }).to_string();
        let response = self.request(http::Method::POST, "/session").body(body).send().await.unwrap();
        if let Some(cookie) = response.headers().get(header::SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
            self.cookie = cookie.split(';').next().unwrap().to_owned();
        }
        (response.status(), serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }

    async fn is_signed_in(&self) -> bool {
        self.request(http::Method::GET, "/session").send().await.unwrap().status() == StatusCode::OK
    }
}

/// The gRPC status of a call with an empty message.
async fn status(request: reqwest::RequestBuilder) -> u32 {
    let request = request.header(header::CONTENT_TYPE, "application/grpc-web+proto").body(vec![0_u8; 5]);
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/grpc-web+proto");
    let in_header = response.headers().get("grpc-status").map(|value| value.to_str().unwrap().to_owned());
    let body = response.bytes().await.unwrap();
    let body = String::from_utf8_lossy(&body).into_owned();
    let in_trailer = || body.split_once("grpc-status:").unwrap().1.split('\r').next().unwrap().trim().to_owned();
    in_header.unwrap_or_else(in_trailer).parse().unwrap()
}

const EVENTS: &str = "/weft.v1.EventService/EventsSince";
const APPLY: &str = "/weft.v1.CatalogService/Apply";
const OK: u32 = 0;
const PERMISSION_DENIED: u32 = 7;
const UNAUTHENTICATED: u32 = 16;

#[tokio::test]
async fn a_session_authorises_calls_of_the_page_and_of_no_other() {
    let mesh = Mesh::start(1).await;
    let mut browser = Browser::new(&mesh);
    let post = |browser: &Browser| browser.request(http::Method::POST, EVENTS);
    assert_eq!(status(post(&browser)).await, UNAUTHENTICATED);
    assert_eq!(status(post(&browser).bearer_auth(TOKEN)).await, OK, "a key does without a session");
    let (code, operator) = browser.sign_in(TOKEN).await;
    assert_eq!((code, &operator["operator"]), (StatusCode::OK, &"bootstrap".into()));
    assert_eq!(operator["scopes"], serde_json::json!(["ingest", "read", "operate", "admin"]));
    assert_eq!(status(post(&browser)).await, OK);
    assert_eq!(status(post(&browser).header(header::ORIGIN, &browser.url)).await, OK);
    assert_eq!(status(post(&browser).header(header::ORIGIN, "http://127.0.0.1:3000")).await, UNAUTHENTICATED);
    let without = browser.http.post(format!("{}{EVENTS}", browser.url)).header(header::COOKIE, &browser.cookie);
    assert_eq!(status(without).await, UNAUTHENTICATED, "without the page's header");

    let signed_out = browser.request(http::Method::DELETE, "/session").send().await.unwrap();
    assert!(signed_out.headers()[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(status(post(&browser)).await, UNAUTHENTICATED, "the session has ended, though the cookie is sent");
}

#[tokio::test]
async fn a_session_may_do_what_its_key_may_and_ends_with_it() {
    let mesh = Mesh::start(1).await;
    let wanted =
        v1::CreateApiKeyRequest { name: "on call".into(), scopes: vec![Scope::Read.into()], ..Default::default() };
    let made = mesh.admin.catalog().create_api_key(wanted).await.unwrap().into_inner();
    let mut browser = Browser::new(&mesh);
    assert_eq!(browser.sign_in("weft_unknown0_key").await.0, StatusCode::UNAUTHORIZED);
    assert!(eventually(PATIENCE, async || browser.sign_in(&made.key).await.0 == StatusCode::OK).await);
    assert_eq!(status(browser.request(http::Method::POST, EVENTS)).await, OK);
    assert_eq!(status(browser.request(http::Method::POST, APPLY)).await, PERMISSION_DENIED);
    assert!(browser.is_signed_in().await);

    let id = made.view.unwrap().key.unwrap().id;
    mesh.admin.catalog().delete_api_key(v1::DeleteApiKeyRequest { id, ..Default::default() }).await.unwrap();
    let ended = async || status(browser.request(http::Method::POST, EVENTS)).await == UNAUTHENTICATED;
    assert!(eventually(PATIENCE, ended).await);
    assert!(!browser.is_signed_in().await);
}

#[tokio::test]
async fn a_page_of_another_origin_can_neither_sign_in_nor_out() {
    let mesh = Mesh::start(1).await;
    let mut browser = Browser::new(&mesh);
    browser.sign_in(TOKEN).await;
    let body = serde_json::json!({ "key": TOKEN }).to_string();
    let (post, delete) = (http::Method::POST, http::Method::DELETE);
    for request in [browser.request(post, "/session").body(body), browser.request(delete, "/session")] {
        let response = request.header(header::ORIGIN, "https://elsewhere.example").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert!(!response.headers().contains_key(header::SET_COOKIE));
    }
    assert!(browser.is_signed_in().await);
}

/// Files are not behind a key: the page asks for one. It may load nothing from elsewhere.
#[tokio::test]
async fn the_page_is_on_the_port_of_the_services() {
    let mesh = Mesh::start(1).await;
    let browser = Browser::new(&mesh);
    let page =
        browser.request(http::Method::GET, "/dead-letters").header(header::ACCEPT, "text/html").send().await.unwrap();
    assert!(page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("default-src 'none'"));
    assert!(page.text().await.unwrap().contains("Weft"));
}

/// Behind a proxy that ends TLS the cookie is one that browsers never send in clear, and it opens the session all the same.
#[tokio::test]
async fn behind_a_proxy_with_tls_the_cookie_is_secure() {
    let mesh = Mesh::start(1).await;
    let mut browser = Browser::new(&mesh);
    let origin = browser.url.replace("http://", "https://");
    let body = serde_json::json!({ "key": TOKEN }).to_string();
    let request = browser.request(http::Method::POST, "/session").header(header::ORIGIN, origin).body(body);
    let response = request.send().await.unwrap();
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("__Host-") && cookie.contains("; Secure"), "{cookie}");
    browser.cookie = cookie.split(';').next().unwrap().to_owned();
    assert!(browser.is_signed_in().await);
}

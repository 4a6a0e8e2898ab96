//! Access tokens by OAuth 2 client credentials (RFC 6749, section 4.4), for the `authorization` header of destinations.
//!
//! A token is kept until a while before it ends. Destinations with the same settings share it, and at most one request for
//! the next one is under way: while the old one is still valid deliveries use it, else they wait.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, PROXY_AUTHORIZATION, USER_AGENT},
};
use http_body_util::{BodyExt as _, Limited};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use url::form_urlencoded;
use weft_catalog::delivery_url::{DeliveryUrl, InvalidUrl};
use weft_proto::v1::{AttemptClass, OAuth2ClientCredentials};

use super::{
    Failure,
    body::LeaseGuardedBody,
    clients::{ClientSettings, HttpClients, InvalidClient, Pair, is_https},
    credentials::{basic, bearer},
    failure::without_answer,
    request::AGENT,
    tls::Trust,
};
use crate::ownership::LeaseGuard;

/// Timeout of a request for a token.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a response: tokens are headers of a few KiB.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Lifetime of a token where the endpoint states none.
const LIFETIME_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// Maximum lifetime that is relied on.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Time before its end from which a token is replaced, at most a quarter of its lifetime.
const REFRESH_BEFORE: Duration = Duration::from_secs(60);
/// Time for which a failure is the answer for all who wait: an endpoint that is down is asked once in this time.
const FAILURE_TIME: Duration = Duration::from_secs(1);
/// Maximum length of an error code in a message.
const CODE_BYTES_MAX: usize = 64;

/// Why a destination's authentication cannot be used. No text quotes a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuth {
    /// Of a kind that this version does not know.
    #[error("auth is neither bearer, basic nor oauth2")]
    Kind,
    /// It does not fit a header.
    #[error("auth: a token, user or password holds characters that no header can")]
    Characters,
    /// The URL of the token endpoint.
    #[error("auth: token_url: {0}")]
    TokenUrl(#[from] InvalidUrl),
    /// The client for the token endpoint.
    #[error("auth: {0}")]
    Client(#[from] InvalidClient),
}

/// The sources of tokens in use.
#[derive(Debug, Default)]
pub(super) struct TokenSources(Mutex<HashMap<(OAuth2ClientCredentials, ClientSettings), Weak<TokenSource>>>);

impl TokenSources {
    /// The source with these settings, which all destinations share that have them.
    pub fn get(
        &self,
        oauth2: &OAuth2ClientCredentials,
        client: &ClientSettings,
        clients: &HttpClients,
    ) -> Result<Arc<TokenSource>, InvalidAuth> {
        let mut sources = self.0.lock();
        let settings = (oauth2.clone(), client.clone());
        if let Some(source) = sources.get(&settings).and_then(Weak::upgrade) {
            return Ok(source);
        }
        let source = Arc::new(TokenSource::new(oauth2, client, clients)?);
        sources.retain(|_, source| source.strong_count() > 0);
        sources.insert(settings, Arc::downgrade(&source));
        Ok(source)
    }
}

/// Tokens of one client at one endpoint.
#[derive(Debug)]
pub(super) struct TokenSource {
    client: Arc<Pair>,
    url: DeliveryUrl,
    authorization: HeaderValue,
    form: Bytes,
    token: RwLock<Option<Token>>,
    /// Held by the request for the next token.
    last_failure: tokio::sync::Mutex<Option<(Instant, Failure)>>,
}

/// An access token.
#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    refresh_at: Instant,
    ends_at: Instant,
}

impl Token {
    /// Whether it is time to replace it.
    fn is_due(&self) -> bool {
        Instant::now() >= self.refresh_at
    }
}

/// A response of the endpoint (RFC 6749, section 5.1).
#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    token_type: Option<String>,
    /// Seconds; some endpoints write them as text.
    expires_in: Option<serde_json::Value>,
}

/// As [`TokenResponse`] (section 5.2).
#[derive(Deserialize)]
struct ErrorResponse {
    error: String,
}

impl TokenSource {
    fn new(
        oauth2: &OAuth2ClientCredentials,
        client: &ClientSettings,
        clients: &HttpClients,
    ) -> Result<Self, InvalidAuth> {
        let url = DeliveryUrl::parse(&oauth2.token_url)?;
        // The endpoint may be another party's, whose certificate the destination's own authority has not signed.
        let trust = if client.tls.ca.is_empty() { Trust::Own } else { Trust::OwnAndSystem };
        let client = clients.get(&ClientSettings { trust, ..client.clone() })?;
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let authorization = basic(&encoded(&oauth2.client_id), &encoded(&oauth2.client_secret));
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !oauth2.scopes.is_empty() {
            form.append_pair("scope", &oauth2.scopes.join(" "));
        }
        Ok(Self {
            client,
            url,
            authorization: authorization.ok_or(InvalidAuth::Characters)?,
            form: form.finish().into(),
            token: RwLock::default(),
            last_failure: tokio::sync::Mutex::default(),
        })
    }

    pub fn url(&self) -> &DeliveryUrl {
        &self.url
    }

    /// The header with a valid token.
    pub async fn header(self: &Arc<Self>) -> Result<HeaderValue, Failure> {
        let Some(token) = self.valid() else { return self.next().await };
        if token.is_due() && self.may_ask() {
            let source = Arc::clone(self);
            // Ends with the request. No delivery waits for it: an endpoint that hangs would hold up those with a valid token.
            tokio::spawn(async move { source.next().await.map(drop) });
        }
        Ok(token.header)
    }

    /// Whether no request is under way, and none has failed just now.
    fn may_ask(&self) -> bool {
        let last_failure = self.last_failure.try_lock();
        last_failure.is_ok_and(|last| last.as_ref().is_none_or(|(at, _)| at.elapsed() >= FAILURE_TIME))
    }

    /// The header with the next token, from one request for all that wait.
    async fn next(&self) -> Result<HeaderValue, Failure> {
        let mut last_failure = self.last_failure.lock().await;
        // Another request may have ended meanwhile.
        if let Some(token) = self.valid().filter(|token| !token.is_due()) {
            return Ok(token.header);
        }
        if let Some((at, failure)) = &*last_failure
            && at.elapsed() < FAILURE_TIME
        {
            return Err(failure.clone());
        }
        match self.fetch().await {
            Ok(token) => {
                *last_failure = None;
                let header = token.header.clone();
                *self.token.write() = Some(token);
                Ok(header)
            }
            Err(failure) => {
                *last_failure = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Drops the token of a header, unless there is a newer one.
    pub fn drop_token(&self, header: &HeaderValue) {
        let mut token = self.token.write();
        if token.as_ref().is_some_and(|token| token.header == *header) {
            *token = None;
        }
    }

    fn valid(&self) -> Option<Token> {
        let token = self.token.read();
        token.clone().filter(|token| Instant::now() < token.ends_at)
    }

    async fn fetch(&self) -> Result<Token, Failure> {
        let at = self.url.authority();
        let late = || {
            let error = format!("no answer within {} s", TIMEOUT.as_secs());
            Failure::unreachable(AttemptClass::Timeout, error)
        };
        let fetched = timeout(TIMEOUT, self.request()).await.unwrap_or_else(|_| Err(late()));
        fetched.map_err(|failure| {
            let error = format!("no access token from {at}: {}", failure.error);
            Failure { error, ..failure }
        })
    }

    async fn request(&self) -> Result<Token, Failure> {
        let at = self.url.authority();
        let sent_at = Instant::now();
        // No event is in it, so it needs no lease.
        let body = LeaseGuardedBody::new(self.form.clone(), LeaseGuard::unlimited(), Arc::new(AtomicBool::new(false)));
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.uri().clone();
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.authorization.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(authorization) = self.client.proxy.as_ref().and_then(|proxy| proxy.authorization())
            && !is_https(self.url.uri())
        {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        // Tokens are rare: a kept connection would mostly be closed by the endpoint.
        let response = self.client.unpooled.request(request).await.map_err(|error| without_answer(&error, &at))?;
        let (parts, body) = response.into_parts();
        let incomplete = |_| Failure::unreachable(AttemptClass::Protocol, "the response is incomplete or above 64 KiB");
        let body = Limited::new(body, RESPONSE_BYTES_MAX).collect().await.map_err(incomplete)?.to_bytes();
        if parts.status != StatusCode::OK {
            return Err(refusal(parts.status, &body));
        }
        token(&body, sent_at).map_err(|problem| Failure::held(AttemptClass::Protocol, problem))
    }
}

/// An endpoint that issues no token: 4xx concern the configuration, everything else passes.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let code = serde_json::from_slice::<ErrorResponse>(body).map(|response| response.error).unwrap_or_default();
    let is_plain = |code: &str| code.len() <= CODE_BYTES_MAX && code.bytes().all(|byte| byte.is_ascii_graphic());
    let error = if code.is_empty() || !is_plain(&code) {
        format!("status {status}")
    } else {
        format!("status {status}, {code}")
    };
    let is_ours =
        status.is_client_error() && ![StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if is_ours {
        Failure::held(AttemptClass::Protocol, error)
    } else {
        Failure::unreachable(AttemptClass::Protocol, error)
    }
}

fn token(body: &[u8], sent_at: Instant) -> Result<Token, String> {
    let response = serde_json::from_slice::<TokenResponse>(body);
    let response = response.map_err(|_| "the response is not JSON with an access_token".to_owned())?;
    if response.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err("the token is of another type than Bearer".into());
    }
    let header = bearer(&response.access_token).filter(|_| !response.access_token.is_empty());
    let lifetime = response.expires_in.as_ref().and_then(seconds).unwrap_or(LIFETIME_DEFAULT).min(LIFETIME_MAX);
    Ok(Token {
        header: header.ok_or("the token holds characters that no header can")?,
        refresh_at: sent_at + lifetime - REFRESH_BEFORE.min(lifetime / 4),
        ends_at: sent_at + lifetime,
    })
}

fn seconds(value: &serde_json::Value) -> Option<Duration> {
    let seconds = match value {
        serde_json::Value::String(text) => text.parse().ok()?,
        value => value.as_f64()?,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_read_in_every_form_and_bounded() {
        let now = Instant::now();
        let lifetime = |expires_in: &str| {
            let body = format!(r#"{{"access_token":"a.b","token_type":"bearer"{expires_in}}}"#);
            let token = token(body.as_bytes(), now).unwrap();
            assert_eq!(token.header, "Bearer a.b");
            assert!(!format!("{token:?}").contains("a.b"), "it is not shown");
            (token.refresh_at - now, token.ends_at - now)
        };
        let seconds = Duration::from_secs;
        assert_eq!(lifetime(""), (seconds(240), seconds(300)));
        assert_eq!(lifetime(r#","expires_in":3600"#), (seconds(3540), seconds(3600)));
        assert_eq!(lifetime(r#","expires_in":"8""#), (seconds(6), seconds(8)));
        assert_eq!(lifetime(r#","expires_in":0"#), (seconds(0), seconds(0)));
        for odd in [r#","expires_in":null"#, r#","expires_in":-1"#, r#","expires_in":"soon""#, r#","expires_in":[]"#] {
            assert_eq!(lifetime(odd).1, LIFETIME_DEFAULT, "{odd}");
        }
        assert_eq!(lifetime(r#","expires_in":1e300"#).1, LIFETIME_DEFAULT);
        assert_eq!(lifetime(r#","expires_in":1e12"#).1, LIFETIME_MAX);
    }

    #[test]
    fn a_response_without_a_usable_token_says_so() {
        for body in ["", "{}", "[]", r#"{"access_token":""}"#, r#"{"access_token":"a\nb"}"#, r#"{"access_token":7}"#] {
            assert!(token(body.as_bytes(), Instant::now()).is_err(), "{body}");
        }
        let mac = r#"{"access_token":"a","token_type":"mac"}"#;
        assert!(token(mac.as_bytes(), Instant::now()).unwrap_err().contains("Bearer"));
    }

    /// Guards: a refusal by the configuration holds the subscription, an outage is retried; neither uses up a retry.
    #[test]
    fn refusals_are_told_from_outages() {
        use super::super::FailureKind::{Held, Unreachable};
        for (status, body, kind, error) in [
            (401, r#"{"error":"invalid_client"}"#, Held, "status 401 Unauthorized, invalid_client"),
            (400, "<html>", Held, "status 400 Bad Request"),
            (400, "{\"error\":\"a\\nb\"}", Held, "status 400 Bad Request"),
            (429, "", Unreachable, "status 429 Too Many Requests"),
            (503, "", Unreachable, "status 503 Service Unavailable"),
            (302, "", Unreachable, "status 302 Found"),
        ] {
            let failure = refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes());
            assert_eq!((failure.kind, failure.error.as_str()), (kind, error));
        }
    }
}

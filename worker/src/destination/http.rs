//! Webhooks: an HTTP POST, signed by Standard Webhooks.
//!
//! The destination's lists say which statuses accept an event (2xx) and which reject it (400, 413, 415 and 422), except a 413
//! or 503 with `Retry-After`. 410 retires the endpoint. Everything else is retried: other statuses, redirections included,
//! which are never followed, and errors before a response. An address that the configuration does not allow holds the
//! subscription.
//!
//! A request that the receiver has certainly not processed, or that was lost because the receiver closed an idle connection,
//! is repeated at once on another connection, within the attempt and its timeout. So is a request that was answered 401 to an
//! OAuth 2 token, once, with a new token.

use std::{
    pin::pin,
    sync::{Arc, atomic::AtomicBool},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use tokio::time::{Instant, timeout_at};
use weft_catalog::delivery_url::DeliveryUrl;
use weft_proto::v1;

use super::{
    Delivery, DeliveryResult, Destination, Failure, InvalidDestination, PlannedRequest, Stages,
    address::RefusedAddress,
    auth::Authorization,
    body::LeaseGuardedBody,
    clients::{ClientSettings, HttpClient, HttpClients, Pair, is_https},
    connection,
    failure::{Lost, Sent},
    oauth2::TokenSources,
    request::{Content, Template},
    resolver::GuardedResolver,
    response::{self, ResponseRules},
    tls::Trust,
};
use crate::metrics::REPEATED_REQUESTS;

/// Repeats of a request within one attempt: one for a connection that was closed, and one for a receiver that closes several
/// connections at a time. More would loop with a receiver that refuses everything.
const REPEATS_MAX: u32 = 2;

/// A receiver of webhooks.
#[derive(Debug)]
pub struct HttpDestination {
    http: Arc<Pair>,
    url: DeliveryUrl,
    template: Template,
    authorization: Option<Authorization>,
    rules: ResponseRules,
    resolver: GuardedResolver,
}

impl HttpDestination {
    /// A receiver at `http.url`. `is_batched`: several events are one request.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`]: its URL, a secret or another setting is invalid, or TLS is unavailable in this process.
    pub(super) fn new(
        http: &v1::HttpDestination,
        is_batched: bool,
        clients: &HttpClients,
        tokens: &TokenSources,
    ) -> Result<Self, InvalidDestination> {
        let url = DeliveryUrl::parse(&http.url)?;
        let settings =
            ClientSettings { tls: http.tls.clone().unwrap_or_default(), trust: Trust::Own, proxy: http.proxy.clone() };
        let client = clients.get(&settings)?;
        let auth = http.auth.as_ref().map(|auth| Authorization::new(auth, &settings, clients, tokens));
        // In a tunnel only CONNECT is the proxy's.
        let proxy = client.proxy.as_ref().filter(|_| !is_https(url.uri()));
        let proxy_authorization = proxy.and_then(|proxy| proxy.authorization()).cloned();
        Ok(Self {
            template: Template::new(http, is_batched, proxy_authorization)?,
            authorization: auth.transpose()?,
            rules: ResponseRules::new(http).map_err(|problem| InvalidDestination::Http { problem })?,
            resolver: clients.resolver().clone(),
            http: client,
            url,
        })
    }

    /// Delivers events in one request.
    async fn post(&self, first: &Delivery, deliveries: &[Delivery]) -> Result<(u16, Bytes), Failure> {
        let deadline = Instant::now() + first.timeout;
        let content = self.template.content(first, deliveries);
        let header = self.header(first, deadline).await?;
        let outgoing = Outgoing { first, deliveries, content: &content, authorization: header.as_ref() };
        let (mut response, mut sent) = self.exchange_until(deadline, &outgoing).await?;
        // The receiver may have revoked the token before its end.
        if response.status() == StatusCode::UNAUTHORIZED
            && let (Some(authorization), Some(refused)) = (&self.authorization, &header)
            && authorization.refused(refused)
        {
            let header = self.header(first, deadline).await?;
            let outgoing = Outgoing { authorization: header.as_ref(), ..outgoing };
            (response, sent) = self.exchange_until(deadline, &outgoing).await?;
        }
        response::settle(response, &sent, &first.clock, &self.rules).await
    }

    /// The header `authorization` of a request.
    async fn header(&self, delivery: &Delivery, deadline: Instant) -> Result<Option<HeaderValue>, Failure> {
        let Some(authorization) = &self.authorization else { return Ok(None) };
        let header = timeout_at(deadline, authorization.header()).await;
        header.unwrap_or_else(|_| Err(authorization.timed_out(delivery.timeout))).map(Some)
    }

    async fn exchange_until(
        &self,
        deadline: Instant,
        outgoing: &Outgoing<'_>,
    ) -> Result<(Response<Incoming>, Sent), Failure> {
        let (request, mut sent) = self.request(outgoing);
        match timeout_at(deadline, self.exchange(outgoing, request, &mut sent)).await {
            Ok(answered) => Ok((answered?, sent)),
            Err(_) => {
                self.close_idle();
                Err(sent.timed_out(&self.url.authority(), outgoing.first.timeout))
            }
        }
    }

    /// Sends a request, and repeats it, until there is a response or an error that is final. `sent` is the last request.
    async fn exchange(
        &self,
        outgoing: &Outgoing<'_>,
        mut request: Request<LeaseGuardedBody>,
        sent: &mut Sent,
    ) -> Result<Response<Incoming>, Failure> {
        let mut client = &self.http.pooled;
        let mut repeats = 0;
        loop {
            let answer = staged(client.request(request), sent.captured.clone(), &outgoing.first.stages).await;
            let lost = match answer {
                // On a new connection it is the response to the request.
                Ok(response) if repeats > 0 || !sent.is_idle_time_out(response.status()) => return Ok(response),
                Ok(_) => Lost::ConnectionClosed,
                Err(error) => self.lost(sent, &error, repeats)?,
            };
            tracing::debug!(receiver = self.url.authority(), cause = lost.label(), "request repeated");
            metrics::counter!(REPEATED_REQUESTS, "cause" => lost.label()).increment(1);
            if lost == Lost::ConnectionClosed {
                self.close_idle();
            }
            repeats += 1;
            client = self.client_to_repeat_with(sent);
            (request, *sent) = self.request(outgoing);
        }
    }

    /// Why a request that ended with an error is repeated, or its failure.
    fn lost(&self, sent: &Sent, error: &hyper_util::client::legacy::Error, repeats: u32) -> Result<Lost, Failure> {
        let lost = sent.lost(error);
        if lost.is_some() {
            connection::retire(&sent.captured);
        }
        lost.filter(|_| repeats < REPEATS_MAX).ok_or_else(|| sent.failed(error, lost, &self.url.authority()))
    }

    fn close_idle(&self) {
        if let Some(receiver) = self.url.uri().authority() {
            self.http.connections.close_idle(receiver.as_str());
        }
    }

    /// A client that uses another connection than the retired one.
    fn client_to_repeat_with(&self, sent: &Sent) -> &HttpClient {
        match connection::state(&sent.captured) {
            // Other idle connections may be closed as well.
            Some(state) if !state.is_http2() => &self.http.unpooled,
            // All requests to a receiver share a connection, and repeated ones share the next.
            _ => &self.http.pooled,
        }
    }

    fn request(&self, outgoing: &Outgoing<'_>) -> (Request<LeaseGuardedBody>, Sent) {
        let Outgoing { first, deliveries, content, authorization } = *outgoing;
        let headers = self.template.headers(first, deliveries, content, first.clock.now(), authorization);
        let begun = Arc::new(AtomicBool::new(false));
        let body = LeaseGuardedBody::new(content.body.clone(), first.lease.clone(), Arc::clone(&begun));
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.uri().clone();
        *request.headers_mut() = headers;
        let captured = capture_connection(&mut request);
        (request, Sent { captured, begun })
    }
}

/// Waits for the response, and notes when there is a connection and when the response comes.
async fn staged<T, E>(
    response: impl Future<Output = Result<T, E>>,
    mut captured: CaptureConnection,
    stages: &Stages,
) -> Result<T, E> {
    let mut response = pin!(response);
    let answer = tokio::select! {
        biased;
        answer = &mut response => answer,
        is_connected = async { captured.wait_for_connection_metadata().await.is_some() } => {
            if is_connected {
                stages.connected();
            }
            response.await
        }
    };
    if answer.is_ok() {
        stages.answered();
    }
    answer
}

/// Parts of a request, also of a repeated one.
#[derive(Clone, Copy)]
struct Outgoing<'a> {
    first: &'a Delivery,
    deliveries: &'a [Delivery],
    content: &'a Content,
    authorization: Option<&'a HeaderValue>,
}

#[async_trait]
impl Destination for HttpDestination {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        let is_batched = self.template.is_batched();
        let mut result = DeliveryResult { is_attributed: !is_batched, ..DeliveryResult::all(0) };
        let at_a_time = if is_batched { deliveries.len().max(1) } else { 1 };
        for deliveries in deliveries.chunks(at_a_time) {
            let Some(first) = deliveries.first() else { break };
            match self.post(first, deliveries).await {
                Ok((status, response)) => {
                    result.count += deliveries.len();
                    result.status = status;
                    result.response = response;
                }
                Err(failure) => {
                    result.failure = Some(failure);
                    break;
                }
            }
        }
        result
    }

    async fn check(&self) -> Result<(), RefusedAddress> {
        let proxy = self.http.proxy.as_ref().map(|proxy| proxy.url());
        let token_url = self.authorization.as_ref().and_then(Authorization::token_url);
        for url in [Some(&self.url), proxy, token_url].into_iter().flatten() {
            self.resolver.check_url(url).await?;
        }
        Ok(())
    }

    fn planned(&self, deliveries: &[Delivery]) -> PlannedRequest {
        let Some(first) = deliveries.first() else { return PlannedRequest::default() };
        let deliveries = if self.template.is_batched() { deliveries } else { std::slice::from_ref(first) };
        let content = self.template.content(first, deliveries);
        // A token is not asked for: only that there would be one is shown.
        let authorization = self.authorization.as_ref().map(|_| {
            let mut hidden = HeaderValue::from_static("");
            hidden.set_sensitive(true);
            hidden
        });
        let authorization = authorization.as_ref();
        let (request, _) = self.request(&Outgoing { first, deliveries, content: &content, authorization });
        PlannedRequest::of_http(request.method(), request.uri(), request.headers(), content.body.clone())
    }
}

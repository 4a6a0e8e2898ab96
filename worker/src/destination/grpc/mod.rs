//! A user's gRPC service `weft.v1.EventHandler`.
//!
//! Several deliveries are one call. The connection is HTTP/2 and shared by all calls of the destination; addresses, pings,
//! and repeats of requests that the service has certainly not processed are as for webhooks.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tonic::{Code, Status};
use weft_catalog::delivery_url::DeliveryUrl;
use weft_nats::envelope;
use weft_proto::{
    ids::Run,
    v1::{self, AttemptClass, event_handler_client::EventHandlerClient},
};

use self::call::{Call, Progress};
use super::{
    Delivery, DeliveryResult, Destination, Failure, FailureKind, InvalidDestination, NotSent, PlannedRequest,
    address::RefusedAddress,
    auth::Authorization,
    clients::{Chain, ClientSettings, Http2Client, HttpClients},
    connection,
    failure::Lost,
    oauth2::TokenSources,
    resolver::GuardedResolver,
    tls::Trust,
};
use crate::metrics::REPEATED_REQUESTS;

mod call;
mod status;

pub(super) use call::GuardedBody;

/// Path of the method, of `proto/proto/weft/v1/event_handler.proto`.
const METHOD_PATH: &str = "/weft.v1.EventHandler/Handle";
/// Repeats of a call within one attempt: one for a connection that was closed, and one for the next.
const REPEATS_MAX: u32 = 2;
/// The longest response: it holds a number.
const RESPONSE_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// A service.
#[derive(Debug)]
pub struct GrpcDestination {
    subscription: String,
    url: DeliveryUrl,
    client: Http2Client<GuardedBody>,
    resolver: GuardedResolver,
    authorization: Option<Authorization>,
}

impl GrpcDestination {
    /// The service of a subscription.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`]: its URL, TLS or authentication is invalid.
    pub(super) fn new(
        subscription: &v1::Subscription,
        grpc: &v1::GrpcDestination,
        clients: &HttpClients,
        tokens: &TokenSources,
    ) -> Result<Self, InvalidDestination> {
        let tls = grpc.tls.clone().unwrap_or_default();
        let client = clients.http2(&tls)?;
        let settings = ClientSettings { tls, trust: Trust::Own, proxy: None };
        let authorization = |auth| Authorization::new(auth, &settings, clients, tokens);
        Ok(Self {
            subscription: subscription.name.clone(),
            url: DeliveryUrl::parse(&grpc.url)?,
            client,
            resolver: clients.resolver().clone(),
            authorization: grpc.auth.as_ref().map(authorization).transpose()?,
        })
    }

    async fn handle(&self, deliveries: &[Delivery]) -> Result<usize, Failure> {
        let Some(first) = deliveries.first() else { return Ok(0) };
        let request = v1::HandleRequest {
            subscription: self.subscription.clone(),
            deliveries: deliveries.iter().map(delivery).collect(),
        };
        let mut progress = Arc::<Progress>::default();
        let answered = timeout(first.timeout, self.exchange(first, request, &mut progress)).await;
        let answer = match answered {
            Ok(answer) => answer?,
            Err(_) => return Err(self.timed_out(&progress, first.timeout)),
        };
        // More than there are is a mistake that changes nothing.
        Ok(answer.taken.map_or(deliveries.len(), |taken| deliveries.len().min(taken as usize)))
    }

    /// Calls, and repeats the call, until there is an answer or an error that is final. `progress` is of the last call.
    async fn exchange(
        &self,
        first: &Delivery,
        message: v1::HandleRequest,
        progress: &mut Arc<Progress>,
    ) -> Result<v1::HandleResponse, Failure> {
        let (mut repeats, mut token_refused) = (0, false);
        loop {
            *progress = Arc::default();
            let authorization = match &self.authorization {
                Some(authorization) => Some(authorization.header().await?),
                None => None,
            };
            let call = Call::new(self.client.clone(), first.lease.clone(), first.stages.clone());
            *progress = call.progress();
            let mut client = EventHandlerClient::with_origin(call, self.url.uri().clone())
                .max_decoding_message_size(RESPONSE_MESSAGE_BYTES_MAX);
            let mut request = tonic::Request::new(message.clone());
            request.set_timeout(first.timeout);
            let headers = request.metadata_mut().as_mut();
            if let Some(authorization) = &authorization {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            if let Some(traceparent) = &first.event.event.traceparent
                && let Ok(traceparent) = HeaderValue::from_str(traceparent)
            {
                headers.insert(HeaderName::from_static("traceparent"), traceparent);
            }
            let status = match client.handle(request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            // As for HTTP: a token that has been revoked is replaced, once.
            if status.code() == Code::Unauthenticated
                && !std::mem::replace(&mut token_refused, true)
                && let (Some(source), Some(header)) = (&self.authorization, &authorization)
                && source.refused(header)
            {
                continue;
            }
            let lost = self.failed(&status, progress, repeats)?;
            tracing::debug!(receiver = self.url.authority(), cause = lost.label(), "request repeated");
            metrics::counter!(REPEATED_REQUESTS, "cause" => lost.label()).increment(1);
            repeats += 1;
        }
    }

    /// Why a call that failed is repeated, or its failure.
    fn failed(&self, status: &Status, progress: &Progress, repeats: u32) -> Result<Lost, Failure> {
        if progress.is_withheld() {
            return Err(Failure {
                kind: FailureKind::NotSent,
                ..Failure::failed(AttemptClass::Connect, NotSent.to_string())
            });
        }
        let chain = Chain(status);
        if let (Some(error), Some(sent)) = (chain.find::<hyper_util::client::legacy::Error>(), progress.sent()) {
            let lost = sent.lost(error);
            if lost.is_some() {
                connection::retire(&sent.captured);
            }
            return lost
                .filter(|_| repeats < REPEATS_MAX)
                .ok_or_else(|| sent.failed(error, lost, &self.url.authority()));
        }
        if let Some(http_status) = progress.foreign_status() {
            return Err(status::foreign(http_status));
        }
        // An error of the connection after the response's headers.
        if chain.find::<hyper::Error>().is_some() {
            let error = format!("no valid answer from {}: {}", self.url.authority(), chain.innermost());
            return Err(Failure::failed(AttemptClass::Protocol, error));
        }
        Err(status::failure(status))
    }

    fn timed_out(&self, progress: &Progress, timeout: Duration) -> Failure {
        let at = self.url.authority();
        match (progress.sent(), &self.authorization) {
            (Some(sent), _) => sent.timed_out(&at, timeout),
            // A call begins as soon as there is a token.
            (None, Some(authorization)) => authorization.timed_out(timeout),
            (None, None) => Failure::unreachable(
                AttemptClass::Connect,
                format!("no connection to {at} within {} ms", timeout.as_millis()),
            ),
        }
    }
}

#[async_trait]
impl Destination for GrpcDestination {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        match self.handle(deliveries).await {
            Ok(taken) if taken == deliveries.len() => DeliveryResult::all(taken),
            Ok(taken) => DeliveryResult {
                failure: Some(status::partial(taken, deliveries.len())),
                is_attributed: true,
                ..DeliveryResult::all(taken)
            },
            Err(failure) => DeliveryResult::failed(failure),
        }
    }

    async fn check(&self) -> Result<(), RefusedAddress> {
        let token_url = self.authorization.as_ref().and_then(Authorization::token_url);
        for url in [Some(&self.url), token_url].into_iter().flatten() {
            self.resolver.check_url(url).await?;
        }
        Ok(())
    }

    /// The message is shown as JSON, with each event as its envelope.
    fn planned(&self, deliveries: &[Delivery]) -> PlannedRequest {
        let Some(first) = deliveries.first() else { return PlannedRequest::default() };
        let mut headers = vec![
            ("content-type".to_owned(), "application/grpc".to_owned()),
            ("grpc-timeout".to_owned(), format!("{}m", first.timeout.as_millis())),
        ];
        if self.authorization.is_some() {
            headers.push((AUTHORIZATION.to_string(), weft_proto::SECRET_MASK.to_owned()));
        }
        if let Some(traceparent) = &first.event.event.traceparent {
            headers.push(("traceparent".to_owned(), traceparent.clone()));
        }
        PlannedRequest {
            method: "POST".into(),
            target: format!("{}{METHOD_PATH}", self.url.uri().to_string().trim_end_matches('/')),
            headers,
            body: shown(&self.subscription, deliveries),
        }
    }
}

/// The message of a call as JSON.
fn shown(subscription: &str, deliveries: &[Delivery]) -> Bytes {
    let deliveries: Vec<_> = deliveries
        .iter()
        .map(|each| {
            let v1::Delivery { attempt, epoch, lane_previous_event_id, replay, .. } = delivery(each);
            let mut event = Vec::new();
            envelope::write(&each.event.event, &mut event);
            // Byte for byte, as the envelope is.
            let event = String::from_utf8(event).ok().and_then(|event| RawValue::from_string(event).ok());
            ShownDelivery { event, attempt, epoch, lane_previous_event_id, replay }
        })
        .collect();
    serde_json::to_vec(&ShownCall { subscription, deliveries }).unwrap_or_default().into()
}

#[derive(Serialize)]
struct ShownCall<'a> {
    subscription: &'a str,
    deliveries: Vec<ShownDelivery>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownDelivery {
    event: Option<Box<RawValue>>,
    attempt: u32,
    epoch: u64,
    lane_previous_event_id: String,
    replay: bool,
}

fn delivery(delivery: &Delivery) -> v1::Delivery {
    let is_replay = delivery.run != Run::LIVE;
    let previous = delivery.lane_previous.filter(|_| !is_replay);
    v1::Delivery {
        event: Some(envelope::to_message(&delivery.event.event)),
        attempt: delivery.number,
        epoch: delivery.epoch,
        lane_previous_event_id: previous.map(|id| id.to_string()).unwrap_or_default(),
        replay: is_replay,
    }
}

//! Events at gRPC services.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::{HeaderMap, StatusCode};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};
use weft_proto::{
    ids::{Run, SubscriptionUid},
    internal, rpc,
    v1::{
        self, AttemptClass,
        event_handler_server::{EventHandler, EventHandlerServer},
    },
};
use weft_testkit::{Authority, eventually};
use weft_worker::{
    destination::{Delivery, DeliveryResult, Destination, Destinations, FailureKind},
    ownership::LeaseGuard,
};

use crate::{
    http::{delivery, destinations as here},
    support::{Log, PATIENCE, Running},
};

type Answer = dyn Fn(&v1::HandleRequest) -> Result<v1::HandleResponse, Status> + Send + Sync;

/// A service that records what it is called with.
#[derive(Clone)]
struct Handler {
    calls: Arc<Mutex<Vec<(HeaderMap, v1::HandleRequest)>>>,
    answer: Arc<Answer>,
}

#[tonic::async_trait]
impl EventHandler for Handler {
    async fn handle(&self, request: Request<v1::HandleRequest>) -> Result<Response<v1::HandleResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        let message = request.into_inner();
        let answer = (self.answer)(&message);
        self.calls.lock().unwrap().push((headers, message));
        if answer.as_ref().is_err_and(|status| status.message() == SLOW) {
            std::future::pending::<()>().await;
        }
        answer.map(Response::new)
    }
}

/// Message of a status that is never sent.
const SLOW: &str = "slow";

/// A running service.
struct Service {
    address: SocketAddr,
    handler: Handler,
    stop: CancellationToken,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Service {
    async fn start(
        answer: impl Fn(&v1::HandleRequest) -> Result<v1::HandleResponse, Status> + Send + Sync + 'static,
    ) -> Self {
        Self::with(Server::builder(), answer).await
    }

    async fn with(
        mut server: Server,
        answer: impl Fn(&v1::HandleRequest) -> Result<v1::HandleResponse, Status> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = Handler { calls: Arc::default(), answer: Arc::new(answer) };
        let stop = CancellationToken::new();
        let router = server.add_service(EventHandlerServer::new(handler.clone()));
        tokio::spawn(router.serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.clone().cancelled_owned()));
        Self { address, handler, stop }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn destination(&self) -> Arc<dyn Destination> {
        destination(&self.url(), |_| ())
    }

    fn calls(&self) -> Vec<(HeaderMap, v1::HandleRequest)> {
        self.handler.calls.lock().unwrap().clone()
    }
}

fn subscription(url: &str, with: impl FnOnce(&mut v1::GrpcDestination)) -> v1::Subscription {
    let mut grpc = v1::GrpcDestination { url: url.into(), ..Default::default() };
    with(&mut grpc);
    v1::Subscription {
        uid: SubscriptionUid::unique().to_vec(),
        name: "billing".into(),
        destination: Some(v1::Destination { kind: Some(v1::destination::Kind::Grpc(grpc)) }),
        ..Default::default()
    }
}

fn destination(url: &str, with: impl FnOnce(&mut v1::GrpcDestination)) -> Arc<dyn Destination> {
    let destinations = here();
    destinations.make(&subscription(url, with)).unwrap()
}

fn taken(taken: Option<u32>) -> Result<v1::HandleResponse, Status> {
    Ok(v1::HandleResponse { taken })
}

/// With time enough for a busy machine.
fn patient() -> Delivery {
    Delivery { timeout: Duration::from_secs(10), ..delivery() }
}

async fn deliver(destination: &dyn Destination) -> DeliveryResult {
    destination.deliver(&[patient()]).await
}

/// A service is given the events with the facts of their delivery, the token, the deadline, the trace.
#[tokio::test]
async fn a_call_holds_the_events_and_the_facts_of_their_delivery() {
    let service = Service::start(|_| taken(None)).await;
    let to = destination(&service.url(), |grpc| {
        let bearer = v1::BearerAuth { token: "hush".into() };
        grpc.auth = Some(v1::Auth { kind: Some(v1::auth::Kind::Bearer(bearer)) });
    });
    let first = patient();
    let second = Delivery { run: Run(9), ..patient() };
    let result = to.deliver(&[first.clone(), second]).await;
    assert_eq!((result.count, result.failure), (2, None));
    let (headers, call) = &service.calls()[0];
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(header("authorization"), Some("Bearer hush"));
    assert_eq!(header("traceparent"), first.event.event.traceparent.as_deref());
    // The timeout, in any of the units.
    let deadline = header("grpc-timeout").unwrap();
    let number: u64 = deadline[..deadline.len() - 1].parse().unwrap();
    let micros = match &deadline[deadline.len() - 1..] {
        "n" => number / 1000,
        "u" => number,
        "m" => number * 1000,
        "S" => number * 1_000_000,
        unit => panic!("{unit}"),
    };
    assert!((1..=10_000_000).contains(&micros), "{deadline}");
    assert_eq!(call.subscription, "billing");
    let [given, replayed] = &call.deliveries[..] else { panic!("two deliveries") };
    let event = given.event.as_ref().unwrap();
    let sent = &first.event.event;
    assert_eq!((&event.event_id, &event.workflow_id), (&sent.id.to_string(), &"größe 1".to_owned()));
    assert_eq!((event.sequence_number, &event.data[..]), (7, &b"{\"exact\": 1.50}"[..]));
    assert_eq!((given.attempt, given.epoch, given.replay), (3, 9, false));
    assert_eq!(given.lane_previous_event_id, first.lane_previous.unwrap().to_string());
    assert!(replayed.replay && replayed.lane_previous_event_id.is_empty());
}

/// Each status, and what it means for the event.
#[tokio::test]
async fn statuses_are_told_apart() {
    let service = Service::start(|request| {
        let code = request.deliveries[0].attempt as i32;
        Err(Status::new(Code::from(code), "why"))
    })
    .await;
    let to = service.destination();
    for code in 1..=16u16 {
        let attempt = Delivery { number: code.into(), ..patient() };
        let failure = to.deliver(&[attempt]).await.failure.unwrap();
        let kind = match Code::from(i32::from(code)) {
            Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => FailureKind::Rejected,
            Code::Unavailable => FailureKind::Unavailable,
            _ => FailureKind::Failed,
        };
        assert_eq!(
            (failure.kind, failure.class, failure.status),
            (kind, AttemptClass::GrpcStatus, code),
            "{failure:?}"
        );
        assert_eq!(&failure.response[..], b"why");
    }
    assert_eq!(service.calls().len(), 16, "no call was repeated");
}

/// A service that is gone for good pauses its subscription, and one that asks for a wait gets it.
#[tokio::test]
async fn gone_retires_and_retry_info_is_obeyed() {
    let service = Service::start(|_| Err(rpc::refusal(Code::FailedPrecondition, "GONE", "moved", []))).await;
    let failure = deliver(&*service.destination()).await.failure.unwrap();
    assert_eq!(failure.kind, FailureKind::EndpointRetired);
    let service = Service::start(|_| {
        // `google.rpc.Status` with a RetryInfo of 7.5 s, as any library encodes it.
        let delay = prost_types::Duration { seconds: 7, nanos: 500_000_000 };
        let delay = prost::Message::encode_to_vec(&delay);
        let mut info = vec![0x0a, delay.len() as u8];
        info.extend(delay);
        let any = prost_types::Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: info };
        let any = prost::Message::encode_to_vec(&any);
        let mut status = vec![0x08, 8, 0x1a, any.len() as u8];
        status.extend(any);
        Err(Status::with_details(Code::ResourceExhausted, "later", status.into()))
    })
    .await;
    let failure = deliver(&*service.destination()).await.failure.unwrap();
    assert_eq!((failure.kind, failure.retry_after), (FailureKind::Failed, Some(Duration::from_millis(7500))));
}

/// Guards: of a batch, what a service has taken is not repeated, and what it has not is not lost.
#[tokio::test]
async fn a_part_of_a_batch_is_taken() {
    for (answer, count, failed) in
        [(None, 3, false), (Some(3), 3, false), (Some(9), 3, false), (Some(2), 2, true), (Some(0), 0, true)]
    {
        let service = Service::start(move |_| taken(answer)).await;
        let result = service.destination().deliver(&[patient(), patient(), patient()]).await;
        assert_eq!((result.count, result.failure.is_some()), (count, failed), "{answer:?}");
    }
}

/// The timeout holds although the service does not answer, and what it says of the connection is the truth.
#[tokio::test]
async fn a_service_that_does_not_answer_times_out() {
    let service = Service::start(|_| Err(Status::unknown(SLOW))).await;
    let failure = service.destination().deliver(&[delivery()]).await.failure.unwrap();
    assert_eq!((failure.kind, failure.class), (FailureKind::Failed, AttemptClass::Timeout), "{failure:?}");
    let nothing = destination("http://127.0.0.1:1", |_| ());
    let failure = deliver(&*nothing).await.failure.unwrap();
    assert_eq!((failure.kind, failure.class), (FailureKind::Unreachable, AttemptClass::Connect), "{failure:?}");
    // A listener that does not accept.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_address = listener.local_addr().unwrap();
    let silent = destination(&format!("http://{silent_address}"), |_| ());
    let failure = silent.deliver(&[delivery()]).await.failure.unwrap();
    assert!(matches!(failure.class, AttemptClass::Timeout | AttemptClass::Connect), "{failure:?}");
    // The endpoint of its tokens does not answer: the service is not what is missing.
    let oauth2 = v1::OAuth2ClientCredentials {
        token_url: format!("http://{silent_address}/token"),
        client_id: "weft".into(),
        ..Default::default()
    };
    let auth = v1::Auth { kind: Some(v1::auth::Kind::Oauth2(oauth2)) };
    let failure =
        destination(&service.url(), |grpc| grpc.auth = Some(auth)).deliver(&[delivery()]).await.failure.unwrap();
    assert_eq!((failure.kind, failure.class), (FailureKind::Unreachable, AttemptClass::Timeout), "{failure:?}");
    assert_eq!(failure.error, format!("no access token from {silent_address} within 2000 ms"));
}

/// An answer that is not of a gRPC service, such as a proxy's without a route, makes no dead letter.
#[tokio::test]
async fn answers_of_proxies_are_retried() {
    for (status, kind) in [
        (StatusCode::NOT_FOUND, FailureKind::Failed),
        (StatusCode::BAD_REQUEST, FailureKind::Failed),
        (StatusCode::SERVICE_UNAVAILABLE, FailureKind::Unavailable),
    ] {
        let router = axum::Router::new().fallback(move || async move { (status, "no route") });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let failure = deliver(&*destination(&url, |_| ())).await.failure.unwrap();
        assert_eq!((failure.kind, failure.status), (kind, status.as_u16()), "{failure:?}");
        served.abort();
    }
}

/// Guards: no event is sent by an owner whose lease has run out while a connection was made.
#[tokio::test]
async fn nothing_is_sent_without_a_lease() {
    let service = Service::start(|_| taken(None)).await;
    let (sender, until) = watch::channel(Duration::MAX);
    let late = Delivery { lease: LeaseGuard::new(until, CancellationToken::new()), ..patient() };
    sender.send_replace(Duration::ZERO);
    let failure = service.destination().deliver(&[late]).await.failure.unwrap();
    assert_eq!(failure.kind, FailureKind::NotSent);
    assert!(service.calls().is_empty());
}

/// A service that was restarted is called on a new connection, within the attempt.
#[tokio::test]
async fn a_restarted_service_is_called_on_a_new_connection() {
    let service = Service::start(|_| taken(None)).await;
    let to = service.destination();
    assert_eq!(deliver(&*to).await.count, 1);
    let address = service.address;
    drop(service);
    let listener = async || TcpListener::bind(address).await.is_ok();
    assert!(eventually(PATIENCE, listener).await, "the port is free again");
    let listener = TcpListener::bind(address).await.unwrap();
    let handler = Handler { calls: Arc::default(), answer: Arc::new(|_| taken(None)) };
    let router = Server::builder().add_service(EventHandlerServer::new(handler));
    tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
    let delivered = async || deliver(&*to).await.count == 1;
    assert!(eventually(PATIENCE, delivered).await);
}

/// TLS with an own authority, and a client certificate where the service asks for one.
#[tokio::test]
async fn a_service_and_its_caller_know_each_other_by_certificates() {
    let (authority, other) = (Authority::new(), Authority::new());
    let read = |path| fs::read_to_string(path).unwrap();
    let identity = Identity::from_pem(read(authority.cert()), read(authority.key()));
    let tls = ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(read(authority.ca())));
    let service = Service::with(Server::builder().tls_config(tls).unwrap(), |_| taken(None)).await;
    let url = format!("https://localhost:{}", service.address.port());
    let with = |tls: v1::ClientTls| destination(&url, |grpc| grpc.tls = Some(tls));
    let (ca, cert, key) = (read(authority.ca()), read(authority.cert()), read(authority.key()));
    let known = v1::ClientTls { ca: ca.clone(), cert, key };
    assert_eq!(deliver(&*with(known.clone())).await.count, 1);
    let anonymous = deliver(&*with(v1::ClientTls { ca, ..Default::default() })).await.failure.unwrap();
    assert!(!matches!(anonymous.kind, FailureKind::Rejected | FailureKind::EndpointRetired), "{anonymous:?}");
    let foreign = deliver(&*with(v1::ClientTls { ca: read(other.ca()), ..known })).await.failure.unwrap();
    assert_eq!((foreign.kind, foreign.class), (FailureKind::Unreachable, AttemptClass::Tls), "{foreign:?}");
    assert_eq!(service.calls().len(), 1);
}

/// The guard of addresses, at a save and at a delivery.
#[tokio::test]
async fn addresses_of_services_are_checked() {
    let service = Service::start(|_| taken(None)).await;
    for url in [service.url(), format!("http://localhost:{}", service.address.port())] {
        let to = Destinations::new(vec![]).make(&subscription(&url, |_| ())).unwrap();
        to.check().await.unwrap_err();
        let failure = deliver(&*to).await.failure.unwrap();
        assert_eq!((failure.kind, failure.class), (FailureKind::Held, AttemptClass::RefusedAddress), "{failure:?}");
    }
    assert!(service.calls().is_empty());
}

/// P3, P5: from EVENTS to a service that fails now and then: each workflow in order.
#[tokio::test(flavor = "multi_thread")]
async fn delivers_in_order_through_failures() {
    let mut log = Log::start().await;
    let service = Service::start(|request| {
        let delivery = &request.deliveries[0];
        let number = delivery.event.as_ref().unwrap().sequence_number;
        if delivery.attempt == 1 && number % 5 == 0 { Err(Status::internal("flaky")) } else { taken(None) }
    })
    .await;
    let destination = subscription(&service.url(), |_| ()).destination;
    log.subscribe_at("billing", service.address, 1, |subscription| subscription.destination = destination).await;
    log.events(200, 10).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    let outcomes = log.outcomes(200).await;
    worker.stop().await;
    assert!(outcomes.iter().all(|outcome| outcome.kind() == internal::OutcomeKind::Delivered));
    let mut last = std::collections::BTreeMap::<String, u64>::new();
    for (_, call) in service.calls() {
        let event = call.deliveries[0].event.clone().unwrap();
        let last = last.entry(event.workflow_id).or_default();
        assert!(event.sequence_number == *last || event.sequence_number == *last + 1, "out of order");
        *last = event.sequence_number;
    }
    assert_eq!(last.values().sum::<u64>(), 200);
}

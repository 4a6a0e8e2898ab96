//! `weft.v1.IngestService` through the generated client, over a real connection.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::MetadataValue,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use weft_proto::{
    ids::EventId,
    rpc::reason,
    v1::{
        PublishRequest, PublishStreamRequest, PublishStreamResponse, Receipt,
        ingest_service_client::IngestServiceClient,
    },
};

use crate::{
    http::{get, send},
    mesh::{BODY_BYTES_MAX, Mesh, PATIENCE, READ_TOKEN, Running},
};

type Client = IngestServiceClient<InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>>;

async fn channel(gateway: &Running) -> Channel {
    Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap().connect().await.unwrap()
}

/// A client with the tests' key.
async fn client(gateway: &Running) -> Client {
    let keyed: fn(Request<()>) -> _ = |mut request| {
        let key = format!("Bearer {READ_TOKEN}").parse().unwrap();
        request.metadata_mut().insert("authorization", key);
        Ok(request)
    };
    IngestServiceClient::with_interceptor(channel(gateway).await, keyed)
}

fn event(workflow: &str, n: usize) -> PublishRequest {
    PublishRequest {
        workflow_id: workflow.into(),
        r#type: "order.paid".into(),
        source: "orders".into(),
        delivery_id: format!("{workflow}-{n}"),
        data: format!(r#"{{ "n":{n} }}"#).into(),
        ..PublishRequest::default()
    }
}

fn message(event: PublishRequest) -> PublishStreamRequest {
    PublishStreamRequest { event: Some(event) }
}

fn told(status: &Status) -> (Code, String) {
    (status.code(), reason(status).unwrap_or_default())
}

/// The answers to a stream of events: receipts, and how it ended.
async fn publish_all(client: &mut Client, events: Vec<PublishRequest>) -> (Vec<Receipt>, Option<Status>) {
    let answers = client.publish_stream(tokio_stream::iter(events.into_iter().map(message))).await.unwrap();
    tokio::time::timeout(PATIENCE, rest(answers.into_inner())).await.expect("the stream ends")
}

async fn rest(mut answers: Streaming<PublishStreamResponse>) -> (Vec<Receipt>, Option<Status>) {
    let mut receipts = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => receipts.push(answer.receipt.unwrap()),
            Err(status) => return (receipts, Some(status)),
        }
    }
    (receipts, None)
}

/// How many events of a workflow the log holds.
async fn stored(gateway: &Running, workflow: &str) -> usize {
    let query = format!("/api/v1/webhooks/events?limit=1000&workflowId={workflow}");
    send(gateway.address, &get(&query)).await.unwrap().json["events"].as_array().unwrap().len()
}

/// P2, P3: one event, one receipt, the same to a repeat; its data comes out as it went in.
#[tokio::test]
async fn an_event_is_published_once() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let mut client = client(&gateway).await;
    let mut receipts = Vec::new();
    for n in [1, 2, 1] {
        receipts.push(client.publish(event("w", n)).await.unwrap().into_inner().receipt.unwrap());
    }
    let id = |n: usize| EventId::of_delivery("orders", &format!("w-{n}")).to_string();
    let receipt = |n: usize, previous: &str, duplicate| Receipt {
        event_id: id(n),
        sequence_number: n as u64,
        workflow_id: "w".into(),
        previous_event_id: previous.into(),
        duplicate,
    };
    assert_eq!(receipts, [receipt(1, "", false), receipt(2, &id(1), false), receipt(1, "", true)]);
    let other = PublishRequest { data: "{}".into(), ..event("w", 1) };
    let reused = client.publish(other).await.unwrap_err();
    assert_eq!(told(&reused), (Code::AlreadyExists, "ID_REUSED".into()));
    let envelope = send(gateway.address, &get(&format!("/api/v1/events/{}", id(1)))).await.unwrap();
    assert_eq!((envelope.text("source"), &envelope.json["data"]["n"]), ("orders", &1.into()));
    let without = PublishRequest { data: Vec::new().into(), ..event("w", 3) };
    let receipt = client.publish(without).await.unwrap().into_inner().receipt.unwrap();
    let envelope = send(gateway.address, &get(&format!("/api/v1/events/{}", receipt.event_id))).await.unwrap();
    let found = ["data", "dataBase64", "dataContentType"].map(|name| envelope.json.get(name).is_some());
    assert_eq!(found, [false; 3], "{}", envelope.json);
    gateway.drained().await;
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let mut client = client(&gateway).await;
    let large = vec![b'1'; BODY_BYTES_MAX];
    let sized = |data: Vec<u8>| PublishRequest { data: data.into(), ..event("w", 1) };
    assert!(client.publish(sized(large.clone())).await.is_ok(), "exactly the limit");
    for (event, code, wanted) in [
        (PublishRequest::default(), Code::InvalidArgument, "MISSING_TYPE"),
        (PublishRequest { workflow_id: String::new(), ..event("w", 2) }, Code::InvalidArgument, "MISSING_WORKFLOW"),
        (PublishRequest { source: "shop".into(), ..event("w", 2) }, Code::PermissionDenied, "OUT_OF_SCOPE"),
        (sized(b"{".to_vec()), Code::InvalidArgument, "MALFORMED_BODY"),
        (sized([large, vec![b'1']].concat()), Code::InvalidArgument, "BODY_TOO_LARGE"),
        // More than is decoded: gRPC's own code for it is that of `cursor_expired`.
        (sized(vec![b'1'; 2 * BODY_BYTES_MAX]), Code::InvalidArgument, "BODY_TOO_LARGE"),
    ] {
        assert_eq!(told(&client.publish(event).await.unwrap_err()), (code, wanted.to_owned()));
    }
    let (receipts, end) = publish_all(&mut client, vec![event("x", 1), sized(vec![b'1'; 2 * BODY_BYTES_MAX])]).await;
    assert_eq!(receipts.len(), 1);
    let end = end.expect("it is refused");
    assert_eq!((end.code(), reason(&end).as_deref()), (Code::InvalidArgument, Some("BODY_TOO_LARGE")));
    let strangers = IngestServiceClient::new(channel(&gateway).await);
    let (mut without, mut with_wrong, mut with_other) = (strangers.clone(), strangers.clone(), strangers);
    let missing = without.publish(event("w", 3)).await.unwrap_err();
    assert_eq!(told(&missing), (Code::Unauthenticated, "KEY_MISSING".into()));
    let keyed = |name: &'static str, key: &'static str| {
        let mut request = Request::new(event("w", 3));
        request.metadata_mut().insert(name, MetadataValue::from_static(key));
        request
    };
    let invalid = with_wrong.publish(keyed("x-api-key", "wrong")).await.unwrap_err();
    assert_eq!(told(&invalid), (Code::Unauthenticated, "KEY_INVALID".into()));
    assert!(with_other.publish(keyed("x-api-key", READ_TOKEN)).await.is_ok());
    let streamed = without.publish_stream(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(told(&streamed), (Code::Unauthenticated, "KEY_MISSING".into()));
}

/// P3: receipts come in the order of the events, on one shard and on several, and each workflow is numbered in that order.
#[tokio::test]
async fn a_stream_is_answered_in_order() {
    for shards in [1, 3] {
        let mesh = Mesh::start(shards).await;
        let gateway = mesh.gateway().await;
        let mut client = client(&gateway).await;
        let sent: Vec<_> = (0..600).map(|n| event(&format!("w-{}", n % 7), n)).collect();
        let (receipts, end) = publish_all(&mut client, sent.clone()).await;
        assert!(end.is_none(), "{end:?}");
        for (n, (event, receipt)) in sent.iter().zip(&receipts).enumerate() {
            let id = EventId::of_delivery("orders", &event.delivery_id).to_string();
            assert_eq!((&receipt.event_id, receipt.sequence_number), (&id, n as u64 / 7 + 1));
        }
        let (again, _) = publish_all(&mut client, sent).await;
        assert!(again.len() == 600 && again.iter().all(|receipt| receipt.duplicate));
        gateway.drained().await;
    }
}

/// The first refusal is the last answer, and no event after it is accepted: neither after a refusal by the gateway nor
/// after one by the log.
#[tokio::test]
async fn a_refusal_ends_its_stream() {
    for shards in [1, 3] {
        let mesh = Mesh::start(shards).await;
        let gateway = mesh.gateway().await;
        let mut client = client(&gateway).await;
        client.publish(event("taken", 1)).await.unwrap();
        let reused = PublishRequest { data: "{}".into(), ..event("taken", 1) };
        let invalid = PublishRequest { r#type: String::new(), ..event("x", 1) };
        for (round, bad, wanted) in
            [("a", invalid, (Code::InvalidArgument, "MISSING_TYPE")), ("b", reused, (Code::AlreadyExists, "ID_REUSED"))]
        {
            let mut sent: Vec<_> = (0..200).map(|n| event(round, n)).collect();
            sent.insert(150, bad);
            let (receipts, end) = publish_all(&mut client, sent).await;
            assert_eq!(receipts.len(), 150);
            let end = end.expect("it is refused");
            assert_eq!((end.code(), reason(&end).as_deref()), (wanted.0, Some(wanted.1)));
            assert_eq!(stored(&gateway, round).await, 150, "{shards} shards");
        }
        assert_eq!(stored(&gateway, "taken").await, 1);
    }
}

/// A gateway that drains answers what it has taken, says that it goes, and goes.
#[tokio::test]
async fn draining_ends_a_stream_behind_its_receipts() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let mut client = client(&gateway).await;
    let (send, sent) = mpsc::channel(8);
    let answers = client.publish_stream(ReceiverStream::new(sent)).await.unwrap();
    let mut answers = answers.into_inner();
    for n in 0..3 {
        send.send(message(event("w", n))).await.unwrap();
    }
    assert!(answers.next().await.unwrap().is_ok());
    gateway.drain.cancel();
    let (receipts, end) = tokio::time::timeout(PATIENCE, rest(answers)).await.expect("the stream ends");
    assert!(receipts.len() <= 2);
    assert_eq!(told(&end.expect("the status states the reason")), (Code::Unavailable, "DRAINING".into()));
    gateway.drained().await;
    let other = mesh.gateway().await;
    assert_eq!(stored(&other, "w").await, 1 + receipts.len(), "what was accepted was answered");
}

/// While nothing is answered only so much is taken, and what was not answered is sent again and stands once, in order.
#[tokio::test]
async fn a_stream_takes_what_it_may_have_on_its_way() {
    const EVENTS: usize = 2_000;
    let mesh = Mesh::start(1).await;
    let mut gateway = mesh.gateway().await;
    let mut client = client(&gateway).await;
    let large = format!("\"{}\"", "x".repeat(16 * 1024));
    let sized = move |n| PublishRequest { data: large.clone().into(), ..event("w", n) };
    mesh.server.pause();
    let taken = Arc::new(AtomicUsize::new(0));
    let (counted, wanted) = (Arc::clone(&taken), sized.clone());
    let counting = tokio_stream::iter((0..EVENTS).map(move |n| {
        counted.fetch_add(1, Ordering::Relaxed);
        message(wanted(n))
    }));
    let answers = client.publish_stream(counting).await.unwrap();
    let (receipts, end) = tokio::time::timeout(PATIENCE, rest(answers.into_inner())).await.expect("the stream ends");
    assert_eq!(told(&end.expect("the log does not answer")).0, Code::Unavailable);
    // 256 of them, what HTTP/2's windows hold, and what either end has in its buffers.
    let taken = taken.load(Ordering::Relaxed);
    assert!((256..EVENTS / 2).contains(&taken), "{taken} were taken");
    assert!(receipts.is_empty());
    mesh.server.resume();
    gateway.ready().await;
    let mut next = 0;
    while next < 300 {
        let (receipts, _) = publish_all(&mut client, (next..300).map(&sized).collect()).await;
        for receipt in receipts {
            next += 1;
            assert_eq!(receipt.sequence_number, next as u64, "in order, without a hole");
        }
    }
}

/// The services that load balancers and `grpcurl` use.
#[tokio::test]
async fn health_and_reflection_are_served() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let channel = channel(&gateway).await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "weft.v1.IngestService"] {
        let asked = HealthCheckRequest { service: service.into() };
        let serving = || async { health.clone().check(asked.clone()).await.unwrap().into_inner().status() };
        let served = weft_testkit::eventually(PATIENCE, async || serving().await == ServingStatus::Serving).await;
        assert!(served, "{service:?}");
    }
    let list = MessageRequest::ListServices(String::new());
    let asked = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut reflection = ServerReflectionClient::new(channel);
    let mut answers = reflection.server_reflection_info(tokio_stream::once(asked)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"weft.v1.IngestService"), "{names:?}");
    health.check(HealthCheckRequest { service: "weft.v1.AdminService".into() }).await.unwrap_err();
}

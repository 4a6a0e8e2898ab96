//! The admin as a component: who may call, what it says while something is missing, what ends it.

use std::sync::Arc;

use tonic::{Code, Request, Status, service::Interceptor};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use weft_admin::{Admin, AdminOptions, service::RunError};
use weft_nats::options::Secret;
use weft_proto::v1::{self, event_service_client::EventServiceClient, ingest_service_client::IngestServiceClient};
use weft_testkit::{TestServer, eventually};
use weft_tls::BindError;

use crate::mesh::{Bearer, Mesh, PATIENCE, Receivers, Running, TOKEN, bearer, reason};

async fn health(admin: &Running) -> ServingStatus {
    health_of(admin, "weft.v1.EventService").await
}

async fn health_of(admin: &Running, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.into() };
    HealthClient::new(admin.channel()).check(request).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn services_need_the_token_and_health_and_reflection_do_not() {
    let mesh = Mesh::start(1).await;
    for (token, expected) in [("", "KEY_MISSING"), ("Basic eDp5", "KEY_MISSING"), ("Bearer other", "KEY_INVALID")] {
        let mut client = EventServiceClient::with_interceptor(mesh.admin.channel(), Bearer(token.to_owned()));
        let answer = client.events_since(v1::EventsSinceRequest::default()).await;
        assert_eq!(reason(answer), (Code::Unauthenticated, expected.into()), "{token:?}");
    }
    assert!(mesh.admin.events().events_since(v1::EventsSinceRequest::default()).await.is_ok());
    assert!(eventually(PATIENCE, async || health(&mesh.admin).await == ServingStatus::Serving).await);

    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = tokio_stream::once(request);
    let mut answers =
        ServerReflectionClient::new(mesh.admin.channel()).server_reflection_info(requests).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(services)) = answer else { panic!("a list: {answer:?}") };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    for service in
        ["weft.v1.EventService", "weft.v1.DeadLetterService", "weft.v1.RejectedService", "grpc.health.v1.Health"]
    {
        assert!(names.contains(&service), "{names:?}");
    }
    for elsewhere in ["weft.v1.IngestService", "weft.v1.EventHandler"] {
        assert!(!names.contains(&elsewhere), "{names:?}");
    }
    for noun in ["Event", "DeadLetter", "Rejected", "Workflow", "Replay", "Shard", "Catalog", "Audit"] {
        let health = health_of(&mesh.admin, &format!("weft.v1.{noun}Service")).await;
        assert_eq!(health, ServingStatus::Serving, "{noun}");
    }
}

/// Sends the key in `x-api-key`.
#[derive(Clone)]
struct ApiKey(&'static str);

impl Interceptor for ApiKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("x-api-key", self.0.parse().unwrap());
        Ok(request)
    }
}

/// A key is taken from `x-api-key` as at the gateway, and what the gRPC library refuses has a reason as everything else.
#[tokio::test]
async fn every_refusal_has_a_reason() {
    let mesh = Mesh::start(1).await;
    let mut client = EventServiceClient::with_interceptor(mesh.admin.channel(), ApiKey(TOKEN));
    assert!(client.events_since(v1::EventsSinceRequest::default()).await.is_ok());
    let mut client = EventServiceClient::with_interceptor(mesh.admin.channel(), ApiKey("other"));
    let answer = client.events_since(v1::EventsSinceRequest::default()).await;
    assert_eq!(reason(answer), (Code::Unauthenticated, "KEY_INVALID".into()));

    let large = v1::GetEventRequest { event_id: "x".repeat(5_000_000), ..Default::default() };
    let answer = mesh.admin.events().get_event(large).await;
    assert_eq!(reason(answer), (Code::InvalidArgument, "BODY_TOO_LARGE".into()));
    let mut ingest = IngestServiceClient::with_interceptor(mesh.admin.channel(), bearer(TOKEN));
    let answer = ingest.publish(v1::PublishRequest::default()).await;
    assert_eq!(reason(answer), (Code::Unimplemented, "NOT_IMPLEMENTED".into()));
    let unknown = HealthCheckRequest { service: "weft.v1.Other".into() };
    let answer = HealthClient::new(mesh.admin.channel()).check(unknown).await;
    assert_eq!(reason(answer), (Code::NotFound, "NOT_FOUND".into()));
}

/// An absent server passes: the admin stays up, says what it waits for, and heals itself.
#[tokio::test]
async fn without_a_server_it_waits_and_says_so() {
    let server = TestServer::start().await;
    server.kill();
    let folder = tempfile::tempdir().unwrap();
    let mut admin = Running::start(&server.options(), 1, folder.path()).await;
    let told = admin.missing.wait_for(|missing| missing.as_deref() == Some("nats: not connected"));
    tokio::time::timeout(PATIENCE, told).await.expect("says so").unwrap();
    let answer = admin.events().events_since(v1::EventsSinceRequest::default()).await;
    assert_eq!(reason(answer), (Code::Unavailable, "STARTING".into()));
    assert_eq!(health(&admin).await, ServingStatus::NotServing);
    server.restart().await;
    admin.ready().await;
    assert!(admin.events().events_since(v1::EventsSinceRequest::default()).await.is_ok());

    server.kill();
    let told = admin.missing.wait_for(Option::is_some);
    tokio::time::timeout(PATIENCE, told).await.expect("says so").unwrap();
    let list = admin.dead_letters().list_dead_letters(v1::ListDeadLettersRequest::default()).await;
    assert_eq!(reason(list), (Code::Unavailable, "LOG_UNAVAILABLE".into()));
    server.restart().await;
    admin.ready().await;
    assert!(admin.dead_letters().list_dead_letters(v1::ListDeadLettersRequest::default()).await.is_ok());
    admin.stop().await.unwrap();
}

#[tokio::test]
async fn what_does_not_pass_ends_it_in_one_line() {
    let mesh = Mesh::start(1).await;
    let file = mesh.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below_a_file = Running::start(&mesh.server.options(), 1, &file.join("admin")).await;
    let error = below_a_file.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Folder { .. }), "{error}");
    let other_shards = Running::start(&mesh.server.options(), 4, &mesh.folder.path().join("other")).await;
    let error = other_shards.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Log(_)) && error.to_string().contains("shards"), "{error}");
    assert!(!error.to_string().contains('\n'));

    let taken = AdminOptions {
        listen: mesh.admin.url.trim_start_matches("http://").parse().unwrap(),
        ..AdminOptions::default()
    };
    let refused = Admin::bind(taken, Secret::new(TOKEN), Arc::new(Receivers::default())).await;
    assert!(matches!(refused, Err(BindError::Listen(error)) if error.kind() == std::io::ErrorKind::AddrInUse));
}

//! gRPC, on the port of the HTTP API: `weft.v1.IngestService`, reflection, and `grpc.health.v1`.
//!
//! - `publish`: the calls; `publish_stream`: events of a stream on their way, in order; `status`: refusals.

use std::sync::Arc;

use axum::{
    Router,
    middleware::map_response,
    response::{IntoResponse, Response},
};
use tonic::{Status, server::NamedService, service::interceptor::InterceptedService};
use weft_proto::{rpc, v1::ingest_service_server::IngestServiceServer};
use weft_role::readiness::Health;

use crate::{admission, http::state::Api};

mod event;
mod publish;
mod publish_stream;
mod status;

use publish::{Ingest, KeyHolders};

/// Overhead of a message: names of some hundred bytes each, and a media type.
const MESSAGE_OVERHEAD_BYTES: usize = 16 * 1024;

/// The routes of the services, and their health reporter, which starts as not ready.
pub async fn routes(api: &Arc<Api>) -> (Router, Health) {
    let (health, health_server) = Health::new([<IngestServiceServer<Ingest> as NamedService>::NAME]).await;
    let message_bytes_max = api.bodies.bytes_max().saturating_add(MESSAGE_OVERHEAD_BYTES);
    let ingest = IngestServiceServer::new(Ingest::new(Arc::clone(api))).max_decoding_message_size(message_bytes_max);
    // Before anything is read of a message: what strangers send is not kept in memory.
    let ingest = InterceptedService::new(ingest, KeyHolders::new(Arc::clone(api)));
    let mut router = routed(routed(Router::new(), ingest), health_server);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(weft_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(<IngestServiceServer<Ingest> as NamedService>::NAME)
            .with_service_name("grpc.health.v1.Health")
    };
    // The descriptors are compiled in: a failure shows in every test, and costs only the reflection.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => router = routed(routed(router, v1), v1alpha),
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "reflection is not served"),
    }
    let router =
        router.layer(map_response(async |response: Response| match Status::from_header_map(response.headers()) {
            Some(status) if status.code() != tonic::Code::Ok && status.details().is_empty() => {
                rpc::with_reason(status::of_transport(status)).into_http()
            }
            _ => response,
        }));
    (admission::around(router, Arc::clone(&api.admission)), health)
}

/// With a service at the path that gRPC gives it.
fn routed<S>(router: Router, service: S) -> Router
where
    S: tower::Service<
            http::Request<axum::body::Body>,
            Response: IntoResponse,
            Error = std::convert::Infallible,
            Future: Send,
        > + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
{
    router.route_service(&format!("/{}/{{method}}", S::NAME), service)
}

//! `weft.v1.IngestService`.

use std::{pin::Pin, sync::Arc, time::Instant};

use futures_util::Stream;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming, service::Interceptor};
use weft_proto::v1::{
    PublishRequest, PublishResponse, PublishStreamRequest, PublishStreamResponse, Scope,
    ingest_service_server::IngestService,
};

use super::{
    event::{admit, written},
    publish_stream,
};
use crate::{
    admission::Client,
    http::{
        error::{Code, Problem},
        state::Api,
        webhooks,
    },
    metrics,
};

/// Streams at a time. Each may hold the beginning of a message of the largest size: as much as bodies may, by default,
/// if a quarter of them did so at once.
const STREAMS_MAX: usize = 1024;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Ingest {
    api: Arc<Api>,
    streams: Arc<Semaphore>,
}

/// Admits callers whose key may send events.
#[derive(Debug, Clone)]
pub(super) struct KeyHolders {
    api: Arc<Api>,
}

impl KeyHolders {
    pub fn new(api: Arc<Api>) -> Self {
        Self { api }
    }
}

impl Interceptor for KeyHolders {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let client = request.extensions().get::<Client>().cloned().unwrap_or_default();
        self.api.authorize(&client, request.metadata().as_ref(), Scope::Ingest)?;
        Ok(request)
    }
}

impl Ingest {
    pub fn new(api: Arc<Api>) -> Self {
        Self { api, streams: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }
}

#[tonic::async_trait]
impl IngestService for Ingest {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        let began = Instant::now();
        let (metadata, _, event) = request.into_parts();
        let event = admit(&self.api, metadata.as_ref(), event)?;
        let receipt = webhooks::submit(&self.api, event).await?;
        webhooks::count(metrics::API_SOURCE, &receipt);
        ::metrics::histogram!(metrics::RECEIPT_SECONDS).record(began.elapsed());
        Ok(Response::new(PublishResponse { receipt: Some(written(receipt)) }))
    }

    type PublishStreamStream = Pin<Box<dyn Stream<Item = Result<PublishStreamResponse, Status>> + Send>>;

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let full = |_| Problem::new(Code::Overloaded, format!("{STREAMS_MAX} streams are open; try again later"));
        let place = Arc::clone(&self.streams).try_acquire_owned().map_err(full)?;
        let line = self.api.log()?.sequencer.publish_stream();
        let (metadata, _, sent) = request.into_parts();
        let answers = publish_stream::answers(Arc::clone(&self.api), metadata.into_headers(), line, sent, place);
        Ok(Response::new(Box::pin(answers)))
    }
}

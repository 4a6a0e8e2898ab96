//! `weft.v1.IngestService`.

use std::{pin::Pin, sync::Arc, time::Instant};

use futures_util::Stream;
use http::HeaderMap;
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming, service::Interceptor};
use weft_proto::v1::{
    self, PublishRequest, PublishResponse, PublishStreamRequest, PublishStreamResponse, Scope,
    ingest_service_server::IngestService,
};

use super::publish_stream;
use crate::{
    admission::Client,
    auth::authorize,
    http::error::{Code, Problem},
    http::events::{Caller, Draft, check_json},
    http::state::Api,
    http::webhooks,
    identify, metrics,
    sequencer::{NewEvent, Receipt},
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

/// Lets in whoever has a key to send events with.
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

/// The event of a message, if its sender may send it: the key is looked at again for each, so that one that is revoked
/// ends its streams.
pub(super) fn admit(api: &Api, headers: &HeaderMap, event: PublishRequest) -> Result<NewEvent, Problem> {
    let caller = Caller::of(api, authorize(&api.keys, headers, Scope::Ingest)?);
    let bytes_max = api.bodies.bytes_max();
    if event.data.len() > bytes_max {
        return Err(Problem::new(Code::BodyTooLarge, format!("the data is larger than {bytes_max} bytes")));
    }
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let content_type = given(event.data_content_type).unwrap_or_else(|| weft_nats::event::JSON.to_owned());
    check_json(&content_type, &event.data)?;
    let time = event.time.map(|time| {
        let time = Timestamp::new(time.seconds, time.nanos);
        time.map_err(|_| Problem::new(Code::MalformedBody, "time is not a time"))
    });
    caller.admit(Draft {
        delivery_id: given(event.delivery_id),
        source: given(event.source),
        event_type: given(event.r#type),
        workflow: given(event.workflow_id),
        time: time.transpose()?,
        traceparent: identify::traceparent(headers),
        kept_headers: Vec::new(),
        content_type,
        data: event.data,
    })
}

pub(super) fn written(receipt: Receipt) -> v1::Receipt {
    v1::Receipt {
        event_id: receipt.event_id.to_string(),
        sequence_number: receipt.sequence_number.0,
        workflow_id: receipt.workflow.to_string(),
        previous_event_id: receipt.previous.map(|id| id.to_string()).unwrap_or_default(),
        duplicate: receipt.duplicate,
    }
}

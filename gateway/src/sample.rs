//! Signed samples, which an admin hands over: each is verified, read and accepted as a request that came over HTTP.
//!
//! A caller without a secret of the source can have nothing accepted here that the webhook would refuse.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use weft_nats::{connect::Connection, subject::SAMPLE_SUBJECT};
use weft_proto::{ids::EventId, internal::SignedSample};

use crate::{
    http::{
        error::{Code, Problem},
        state::Api,
        webhooks,
    },
    requests,
    sequencer::Receipt,
};

/// Takes samples until `closing`.
pub async fn serve(api: Arc<Api>, connection: Connection, closing: CancellationToken) {
    let take = |request: Bytes| {
        // What cannot be read names no source.
        let sample = SignedSample::decode(request).unwrap_or_default();
        let api = Arc::clone(&api);
        async move { (sample.id.clone(), take(&api, sample).await) }
    };
    requests::serve(&connection, SAMPLE_SUBJECT, take, closing).await;
}

async fn take(api: &Api, sample: SignedSample) -> Result<Receipt, Problem> {
    let source = webhooks::source(api, &sample.source)?;
    let headers = headers(&sample)?;
    let path_workflow = Some(sample.path_workflow_id.as_str()).filter(|workflow| !workflow.is_empty());
    let (body, received_at) = (Bytes::from(sample.body), webhooks::now());
    let verified = source.verifier.verify(&headers, &body, received_at)?;
    let depth_max = api.bodies.depth_max();
    let event = webhooks::event(&source, path_workflow, &headers, &body, &verified, received_at, depth_max);
    let mut event = event.await?;
    if event.delivery_id.is_none() {
        // Handed over twice, it is accepted once.
        event.id = EventId::of_delivery(&event.source, &format!("sample/{}", sample.id));
    }
    let receipt = webhooks::submit(api, event).await?;
    webhooks::count(source.configured.name.clone(), &receipt);
    Ok(receipt)
}

fn headers(sample: &SignedSample) -> Result<HeaderMap, Problem> {
    let invalid = || Problem::new(Code::MalformedBody, "a header of the sample is not one of HTTP");
    let mut headers = HeaderMap::new();
    for header in &sample.headers {
        let name: HeaderName = header.name.parse().map_err(|_| invalid())?;
        headers.append(name, HeaderValue::from_str(&header.value).map_err(|_| invalid())?);
    }
    Ok(headers)
}

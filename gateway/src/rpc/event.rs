//! Events and receipts as gRPC messages.

use http::HeaderMap;
use jiff::Timestamp;
use weft_proto::v1::{self, PublishRequest, Scope};

use crate::{
    auth::authorize,
    http::error::{Code, Problem},
    http::events::{Caller, Draft, check_json},
    http::state::Api,
    identify,
    sequencer::{NewEvent, Receipt},
};
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

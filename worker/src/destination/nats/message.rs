//! An event as a message: the CloudEvents NATS binding, as in EVENTS, with the facts of its delivery.

use bytes::Bytes;
use weft_nats::{
    envelope,
    event::{self, Event},
    headers::Headers,
};
use weft_proto::ids::Run;

use super::super::Delivery;

/// Id of the subscription that stored the message.
pub(super) const SUBSCRIPTION_UID: &str = "weft-subscription-id";
/// Present on redrives and replays.
pub(super) const REPLAY: &str = "weft-replay";

/// The headers of one attempt.
pub(super) fn headers(delivery: &Delivery, subscription: &str, uid: &str) -> Headers {
    let mut headers = event::delivered_headers(&delivery.event.event);
    headers.put("weft-subscription", subscription);
    headers.put(SUBSCRIPTION_UID, uid);
    if delivery.run == Run::LIVE {
        if let Some(previous) = delivery.lane_previous {
            headers.put("weft-lane-previous-event-id", previous);
        }
    } else {
        headers.put(REPLAY, "true");
    }
    headers.put("weft-attempt", delivery.number);
    headers.put("weft-epoch", delivery.epoch);
    headers
}

/// The event's data. Data that is missing is `null`, as in the envelope.
pub(super) fn payload(event: &Event) -> Bytes {
    envelope::data_of(event).unwrap_or_else(|| Bytes::from_static(b"null"))
}

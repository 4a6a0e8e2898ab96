//! Where each scheme's senders put what identifies an event, for sources that do not say it themselves.

use http::HeaderName;
use weft_proto::v1::verification::Scheme;

use super::{DeliveryId, Place};

static GITHUB_DELIVERY: [HeaderName; 1] = [HeaderName::from_static("x-github-delivery")];
static GITHUB_EVENT: [HeaderName; 1] = [HeaderName::from_static("x-github-event")];
/// Shopify names the event, and each delivery of it to a subscription; one event may be delivered more than once. Its newer
/// events leave the `x-` out, and name the delivery only.
static SHOPIFY_ID: [HeaderName; 3] = [
    HeaderName::from_static("x-shopify-event-id"),
    HeaderName::from_static("x-shopify-webhook-id"),
    HeaderName::from_static("shopify-webhook-id"),
];
static SHOPIFY_TOPIC: [HeaderName; 2] =
    [HeaderName::from_static("x-shopify-topic"), HeaderName::from_static("shopify-topic")];

/// Where the delivery id is. `None`: the scheme knows none, so the source must say.
///
/// Those of GitHub and Shopify stand in headers that nobody signs. They tell a repeat from a new delivery, not that a
/// request is fresh.
pub(super) fn delivery_id(scheme: Option<&Scheme>) -> Option<DeliveryId> {
    match scheme? {
        Scheme::Standard(_) => Some(DeliveryId::Signed),
        Scheme::Github(_) => Some(DeliveryId::At(Place::AnyHeader(&GITHUB_DELIVERY))),
        Scheme::Stripe(_) => Some(DeliveryId::At(Place::Pointer("/id".into()))),
        Scheme::Slack(_) => Some(DeliveryId::At(Place::Pointer("/event_id".into()))),
        Scheme::Shopify(_) => Some(DeliveryId::At(Place::AnyHeader(&SHOPIFY_ID))),
        Scheme::Hmac(_) | Scheme::ApiKey(_) | Scheme::None(_) => None,
    }
}

/// Whether the same body under another id is a replay: these schemes do not sign ids, and their bodies say what happened and
/// when, so that no two events have the same one.
pub(super) fn replay_guard(scheme: Option<&Scheme>) -> bool {
    matches!(scheme, Some(Scheme::Github(_) | Scheme::Shopify(_)))
}

/// Where the type is.
pub(super) fn event_type(scheme: Option<&Scheme>) -> Place {
    match scheme {
        Some(Scheme::Github(_)) => Place::AnyHeader(&GITHUB_EVENT),
        Some(Scheme::Shopify(_)) => Place::AnyHeader(&SHOPIFY_TOPIC),
        Some(Scheme::Slack(_)) => Place::Pointer("/event/type".into()),
        _ => Place::Pointer("/type".into()),
    }
}

/// Whether a known delivery with another body gets the first receipt. The big providers repeat a delivery with what is
/// not the event changed, such as the number of the attempt, and take a 409 for a failure.
pub(super) fn receipt_on_id_reuse(scheme: Option<&Scheme>) -> bool {
    matches!(scheme, Some(Scheme::Github(_) | Scheme::Stripe(_) | Scheme::Slack(_) | Scheme::Shopify(_)))
}

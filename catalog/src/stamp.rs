//! Author of a change of an entry, its reason and its request: headers of the message that holds the change.
//!
//! Change and stamp are one message, so there is never one without the other: a call that broke off after its write is
//! recognised by its request id when it comes again, and its audit record is completed.

use std::borrow::Cow;

use async_nats::HeaderMap;
use weft_nats::{
    event::{escape, unescape},
    message::Stored,
};
use weft_proto::ids::SubscriptionUid;

use super::{
    change::Action,
    snapshot::{Author, Removal},
};

pub(super) const REQUEST_ID: &str = "weft-request-id";
const OPERATOR: &str = "weft-operator";
const REASON: &str = "weft-reason";
pub(super) const ACTION: &str = "weft-action";
/// For people who look with the tools of NATS: whether an entry is removed.
pub(super) const KV_OPERATION: &str = "KV-Operation";
/// Of a subscription's removal: its uid.
pub(super) const UID: &str = "weft-uid";
/// The headers that are authenticated with the value, in this order. Part of the form of sealed values. An empty header counts
/// as a missing one.
pub(super) const SEALED: [&str; 5] = [REQUEST_ID, OPERATOR, REASON, ACTION, UID];

/// Author of a change, its reason and its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Names the request: the same id acts once.
    pub request_id: String,
    /// The id of a key, or `bootstrap`.
    pub operator: String,
    /// For people.
    pub reason: String,
}

impl Stamp {
    /// The headers of a change.
    pub(super) fn headers(&self, action: Action) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let values = [
            (REQUEST_ID, self.request_id.as_str()),
            (OPERATOR, &self.operator),
            (REASON, &self.reason),
            (ACTION, action.as_str()),
        ];
        for (name, value) in values.into_iter().filter(|(_, value)| !value.is_empty()) {
            headers.insert(name, escape(value).into_owned());
        }
        headers
    }
}

/// The stamp of an entry that is resealed: as it was, but for the request, which has not written it.
pub(super) fn kept(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in [OPERATOR, REASON, ACTION, UID, KV_OPERATION] {
        if let Some(value) = headers.get(name) {
            kept.insert(name, value.clone());
        }
    }
    kept
}

/// Author and reason of the removal that a message makes.
pub(super) fn removal(message: &Stored) -> Removal {
    let text = |name| text(&message.headers, name).unwrap_or_default();
    Removal { operator: text(OPERATOR), reason: text(REASON), revision: message.seq.0 }
}

/// Author of a message that counts.
pub(super) fn author_of(headers: &HeaderMap) -> Author {
    let is_creator = text(headers, ACTION).as_deref() == Some(Action::Created.as_str());
    Author { operator: text(headers, OPERATOR).unwrap_or_default(), is_creator }
}

/// The subscription that a removal is of, where it says so: later messages may have pushed out the entry itself.
pub(super) fn removed_uid(headers: &HeaderMap) -> Option<Vec<u8>> {
    text(headers, UID)?.parse().ok().map(SubscriptionUid::to_vec)
}

pub(super) fn text(headers: &HeaderMap, name: &'static str) -> Option<String> {
    unescape(headers.get(name)?.as_str()).map(Cow::into_owned)
}

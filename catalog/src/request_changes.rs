//! Changes that one request has made, found again while the bucket is read.

use std::sync::Arc;

use weft_nats::message::Stored;
use weft_proto::{internal, v1};

use super::{
    diff::diff,
    entry::{Entry, Kind},
    reading::Reading,
    snapshot::Snapshot,
    stamp::{ACTION, REQUEST_ID, text},
};

/// Gathers what one request has written while the bucket is read.
#[derive(Debug)]
pub(super) struct RequestChanges<'a> {
    request_id: &'a str,
    pub written: Vec<internal::CatalogChange>,
}

impl<'a> RequestChanges<'a> {
    pub fn new(request_id: &'a str) -> Self {
        Self { request_id, written: Vec::new() }
    }

    /// The request.
    pub fn request_id(&self) -> &str {
        self.request_id
    }

    /// Takes a message of the bucket, and notes it when this request has written it.
    pub fn apply(&mut self, reading: &mut Reading, message: &Stored) {
        let key = reading.entry_of(message).and_then(|key| key.split_once('.'));
        let kind = key.and_then(|(kind, name)| Some((Kind::parse(kind)?, name)));
        let Some((kind, name)) =
            kind.filter(|_| text(&message.headers, REQUEST_ID).as_deref() == Some(self.request_id))
        else {
            reading.apply(message);
            return;
        };
        let diff = match kind {
            Kind::Source => difference::<v1::Source>(name, reading, message),
            Kind::Subscription => difference::<v1::Subscription>(name, reading, message),
            Kind::Key => difference::<v1::ApiKey>(name, reading, message),
        };
        // A message that does not count says nothing of who wrote it either.
        let Some(diff) = diff else { return };
        self.written.push(internal::CatalogChange {
            kind: kind.as_str().to_owned(),
            name: name.to_owned(),
            action: text(&message.headers, ACTION).unwrap_or_default(),
            revision: message.seq.0,
            diff,
        });
    }
}

/// Difference that a message makes to an entry; `None`: it does not count.
fn difference<T: Entry>(name: &str, reading: &mut Reading, message: &Stored) -> Option<Vec<String>> {
    let find = |snapshot: &Snapshot| T::all(snapshot).get(name).map(|entry| Arc::clone(&entry.value));
    let before = find(&reading.snapshot);
    reading.apply(message).then(|| diff(before.as_deref(), find(&reading.snapshot).as_deref()))
}

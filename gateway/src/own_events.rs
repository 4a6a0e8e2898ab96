//! The mesh's own events, which an admin asks a gateway to take. They are appended like any other.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use tokio_util::sync::CancellationToken;
use weft_nats::{
    connect::Connection,
    event::{JSON, OWN_SOURCE},
    subject::OWN_EVENTS_SUBJECT,
};

use crate::{
    http::{
        error::{Code, Problem},
        events,
        state::Api,
        webhooks,
    },
    requests,
    sequencer::{NewEvent, Receipt},
};

/// The verifier of these events, as their header says.
const VERIFIED_BY: &str = "mesh";

/// Takes events until `closing`.
pub async fn serve(api: Arc<Api>, connection: Connection, closing: CancellationToken) {
    let take = |body: Bytes| {
        let event = read(&body);
        let id = event.as_ref().ok().and_then(|event| event.delivery_id.clone()).unwrap_or_default();
        let api = Arc::clone(&api);
        async move { (id, take(&api, event).await) }
    };
    requests::serve(&connection, OWN_EVENTS_SUBJECT, take, closing).await;
}

async fn take(api: &Api, event: Result<NewEvent, Problem>) -> Result<Receipt, Problem> {
    let receipt = webhooks::submit(api, event?).await?;
    webhooks::count(OWN_SOURCE, &receipt);
    Ok(receipt)
}

/// The event in the form of the events API, of the mesh's own source and with an id: a repeat is recognised by it.
fn read(body: &Bytes) -> Result<NewEvent, Problem> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    let mut events = events::read(&headers, body, webhooks::now())?;
    let event = events.pop().filter(|event| event.source == OWN_SOURCE && event.delivery_id.is_some());
    let event = event.ok_or_else(|| Problem::new(Code::OutOfScope, "not an event of the mesh's own, with an id"))?;
    Ok(NewEvent { verified_by: VERIFIED_BY.to_owned(), ..event })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_of_the_own_source_with_an_id_are_taken() {
        let of = |body: &'static str| read(&Bytes::from_static(body.as_bytes()));
        let event =
            of(r#"{"type":"weft.lane.late","workflowId":"weft:a","source":"weft","id":"1","data":{}}"#).unwrap();
        assert_eq!((event.source.as_str(), event.verified_by.as_str()), ("weft", "mesh"));
        for refused in [
            r#"{"type":"t","workflowId":"weft:a","source":"shop","id":"1","data":{}}"#,
            r#"{"type":"t","workflowId":"weft:a","source":"weft","data":{}}"#,
            "{}",
            "",
        ] {
            assert!(of(refused).is_err(), "{refused}");
        }
    }
}

//! Events whose payload was erased, as a sender and a reader see them.

use jiff::Timestamp;
use weft_index::receipts::body_digest;
use weft_nats::{
    append::publish,
    direct,
    erasure::{Author, Erasure, remove},
    event::{Event, StoredEvent},
    subject::Layout,
};
use weft_proto::ids::StreamSeq;

use crate::{
    http::{Answer, get, send, webhook},
    mesh::{Mesh, Running},
};

const BODY: &str = r#"{"workflow":"a","type":"order.paid","mail":"jane@example.org"}"#;

async fn publish_event(to: &Running, id: &str, body: &str) -> Answer {
    send(to.address, &webhook("shop", id, body)).await.unwrap()
}

/// Erases the event at `seq`, as an admin does.
async fn erase(mesh: &Mesh, seq: u64) {
    let layout = Layout::new(1);
    let message = direct::get(&mesh.connection, "EVENTS", StreamSeq(seq)).await.unwrap().unwrap();
    let event = Event::decode(layout, &message).unwrap();
    let digest = body_digest(&event.workflow, &event.event_type, &event.payload);
    let stored = StoredEvent { seq: message.seq, stored_at: message.stored_at, event };
    let by = Author {
        operator: "ab12cd34".into(),
        reason: "asked for".into(),
        request_id: "r-1".into(),
        at: Timestamp::now(),
    };
    let erasure = Erasure::new(stored, digest, Erasure::replay_key_of(&message), by);
    publish(&mesh.connection, &erasure.encode(layout)).await.unwrap();
    remove(&mesh.connection, "EVENTS", message.seq).await.unwrap();
    remove(&mesh.connection, "EVENTS", message.seq).await.expect("a second removal is nothing");
}

/// P2, P3: a repeat gets the first receipt, other bodies are refused, numbers continue, and a reader gets 410 and a tombstone;
/// of a gateway that was there and of one that reads the log from its beginning.
#[tokio::test]
async fn an_erased_event_keeps_its_receipt_and_has_no_payload() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    // An older event stays: cursors before the oldest one that is kept have expired, whether it was erased or dropped.
    let oldest = BODY.replace("\"workflow\":\"a\"", "\"workflow\":\"b\"").replace("jane", "joan");
    assert_eq!(publish_event(&gateway, "evt_0", &oldest).await.status, 202);
    let first = publish_event(&gateway, "evt_1", BODY).await;
    assert_eq!(publish_event(&gateway, "evt_2", BODY).await.status, 202);
    erase(&mesh, 2).await;
    // The newest event of its workflow, too.
    erase(&mesh, 3).await;
    for gateway in [gateway, mesh.gateway().await] {
        let repeat = publish_event(&gateway, "evt_1", BODY).await;
        assert_eq!((repeat.status, repeat.json["duplicate"].as_bool()), (200, Some(true)), "{repeat:?}");
        for field in ["eventId", "sequenceNumber", "previousEventId", "workflowId"] {
            assert_eq!(repeat.json[field], first.json[field], "{field}");
        }
        let other = publish_event(&gateway, "evt_1", &BODY.replace("jane", "john")).await;
        assert_eq!((other.status, other.code()), (409, "id_reused"));
        let event = send(gateway.address, &get(&format!("/api/v1/events/{}", first.text("eventId")))).await.unwrap();
        assert_eq!((event.status, event.code()), (410, "erased"));
        let page = send(gateway.address, &get("/api/v1/webhooks/events?limit=10")).await.unwrap();
        let erased: Vec<_> =
            page.json["events"].as_array().unwrap().iter().filter(|event| event["erased"] == true).collect();
        assert_eq!(erased.len(), 2, "{page:?}");
        assert_eq!((&erased[0]["eventId"], &erased[0]["sequenceNumber"]), (&first.json["eventId"], &1.into()));
        assert!(!format!("{page:?}").contains("jane"), "{page:?}");
        let behind = format!("/api/v1/webhooks/events?since={}", first.text("eventId"));
        assert_eq!(send(gateway.address, &get(&behind)).await.unwrap().status, 200, "its id is still a cursor");
    }
    let next = publish_event(&mesh.gateway().await, "evt_3", BODY).await;
    assert_eq!((next.status, &next.json["sequenceNumber"]), (202, &3.into()), "{next:?}");
}

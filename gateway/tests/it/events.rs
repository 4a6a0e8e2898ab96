//! `POST /api/v1/events`, from a request to the log.

use std::collections::HashMap;

use serde_json::{Value, json};
use weft_nats::{streams, subject::Layout};
use weft_proto::ids::{EventId, ShardId};

use crate::{
    http::{Answer, Request, events, get, send},
    mesh::{Mesh, Running},
};

const BATCH: [(&str, &str); 1] = [("content-type", "application/cloudevents-batch+json")];
const PLAIN: [(&str, &str); 1] = [("content-type", "application/json")];

fn cloudevent(id: &str, workflow: &str, data: impl Into<Value>) -> Value {
    json!({ "specversion": "1.0", "id": id, "source": "orders", "type": "order.paid", "partitionkey": workflow,
            "data": data.into() })
}

async fn publish(gateway: &Running, request: Request) -> Answer {
    send(gateway.address, &request).await.unwrap()
}

async fn batch(gateway: &Running, batch: &[Value]) -> Answer {
    publish(gateway, events(&BATCH, json!(batch).to_string())).await
}

/// The messages of the log.
async fn stored(mesh: &Mesh) -> u64 {
    let stream = Layout::new(1).events_stream(ShardId(0));
    streams::state(&mesh.connection, &stream).await.unwrap().last.0
}

/// P2, P3: in every mode an event gets its number, its repeat the first receipt, and its data comes out as it went in.
#[tokio::test]
async fn every_mode_is_accepted_and_repeated() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let data = r#"{ "b" : 1.50, "a":2 }"#;
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "evt-1"),
        ("ce-source", "orders"),
        ("ce-type", "order.paid"),
        ("ce-partitionkey", "w"),
        ("content-type", "application/json"),
    ];
    let structured = cloudevent("evt-2", "w", 0).to_string().replace(r#""data":0"#, &format!(r#""data":{data}"#));
    let plain = format!(r#"{{"type":"order.paid","workflowId":"w","source":"orders","data":{data}}}"#);
    let requests = [
        events(&binary, data),
        events(&[("content-type", "application/cloudevents+json")], structured),
        events(&[PLAIN[0], ("idempotency-key", "evt-3")], plain),
    ];
    let mut previous = Value::Null;
    for (n, request) in (1..).zip(&requests) {
        let first = send(gateway.address, request).await.unwrap();
        let id = EventId::of_delivery("orders", &format!("evt-{n}")).to_string();
        assert_eq!(first.status, 202, "{first:?}");
        assert_eq!(
            first.json,
            json!({ "eventId": id, "sequenceNumber": n, "workflowId": "w", "previousEventId": previous,
                    "duplicate": false })
        );
        let again = send(gateway.address, request).await.unwrap();
        assert_eq!((again.status, again.headers["idempotent-replayed"].as_str()), (200, "true"));
        assert_eq!((&again.json["eventId"], &again.json["duplicate"]), (&first.json["eventId"], &true.into()));
        let envelope = send(gateway.address, &get(&format!("/api/v1/events/{id}"))).await.unwrap();
        assert_eq!(envelope.json["data"], serde_json::from_str::<Value>(data).unwrap());
        assert_eq!((envelope.text("source"), envelope.text("type")), ("orders", "order.paid"));
        previous = first.json["eventId"].clone();
    }
    let other = publish(&gateway, events(&binary, "{}")).await;
    assert_eq!((other.status, other.code()), (409, "id_reused"));
    assert_eq!(stored(&mesh).await, 3);
    gateway.drained().await;
}

/// P3: a batch of the largest size over 20 workflows, on one shard and on three: receipts in its order, each workflow
/// numbered in its order, and the whole of it again is the same receipts.
#[tokio::test]
async fn a_batch_keeps_its_order() {
    for shards in [1, 3] {
        let mesh = Mesh::start(shards).await;
        let gateway = mesh.gateway().await;
        let sent: Vec<_> =
            (0..1000).map(|n| cloudevent(&format!("evt-{n}"), &format!("w-{}", n * 7 % 20), n)).collect();
        let first = batch(&gateway, &sent).await;
        assert_eq!(first.status, 200, "{first:?}");
        let results = first.json["results"].as_array().unwrap();
        assert_eq!(results.len(), 1000);
        let mut heads: HashMap<&str, (u64, &Value)> = HashMap::new();
        for (event, result) in sent.iter().zip(results) {
            let id = EventId::of_delivery("orders", event["id"].as_str().unwrap()).to_string();
            let workflow = event["partitionkey"].as_str().unwrap();
            let (number, previous) = heads.get(workflow).map_or((1, &Value::Null), |(number, id)| (number + 1, *id));
            assert_eq!(
                *result,
                json!({ "eventId": id, "sequenceNumber": number, "workflowId": workflow,
                        "previousEventId": previous, "duplicate": false })
            );
            heads.insert(workflow, (number, &result["eventId"]));
        }
        let again = batch(&gateway, &sent).await;
        for (first, again) in results.iter().zip(again.json["results"].as_array().unwrap()) {
            assert_eq!((&again["sequenceNumber"], &again["duplicate"]), (&first["sequenceNumber"], &true.into()));
        }
        gateway.drained().await;
    }
}

/// An id that stands for another body has a problem in its place, and nothing else suffers; one that is there twice is a
/// repeat.
#[tokio::test]
async fn a_reused_id_is_told_in_its_place() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    assert_eq!(batch(&gateway, &[cloudevent("b", "w", 0)]).await.status, 200);
    let sent = [
        cloudevent("a", "w", 1),
        cloudevent("b", "w", 2),
        cloudevent("a", "w", 1),
        cloudevent("a", "w", 3),
        cloudevent("c", "w", 4),
    ];
    let answer = batch(&gateway, &sent).await;
    assert_eq!(answer.status, 200);
    let results = answer.json["results"].as_array().unwrap();
    for reused in [1, 3] {
        assert_eq!((&results[reused]["code"], &results[reused]["status"]), (&"id_reused".into(), &409.into()));
    }
    assert_eq!((&results[2]["eventId"], &results[2]["duplicate"]), (&results[0]["eventId"], &true.into()));
    assert_eq!((&results[0]["sequenceNumber"], &results[4]["sequenceNumber"]), (&2.into(), &3.into()));
    assert_eq!(stored(&mesh).await, 3);
}

/// Nothing of a batch with a bad event is accepted, and nothing without a key.
#[tokio::test]
async fn what_is_refused_leaves_no_trace() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let bad = batch(&gateway, &[cloudevent("a", "w", 1), cloudevent("b", "", 1)]).await;
    assert_eq!((bad.status, bad.code()), (400, "invalid_workflow"));
    assert!(bad.text("detail").starts_with("event 1: "), "{bad:?}");
    let mut taken = cloudevent("a", "w", 1);
    taken["source"] = "shop".into();
    let taken = batch(&gateway, &[cloudevent("c", "w", 1), taken]).await;
    assert_eq!((taken.status, taken.code()), (403, "out_of_scope"));
    let mut keyless = events(&PLAIN, r#"{"type":"t","workflowId":"w"}"#);
    keyless.head = keyless.head.replace("x-api-key", "x-no-key");
    let keyless = publish(&gateway, keyless).await;
    assert_eq!((keyless.status, keyless.code()), (401, "key_missing"));
    let empty = batch(&gateway, &[]).await;
    assert_eq!((empty.status, empty.json), (200, json!({ "results": [] })));
    assert_eq!(stored(&mesh).await, 0);
}

/// A CloudEvent may have no data, in each of its forms: then what is read has no member for it. Plain JSON says `null`.
#[tokio::test]
async fn an_event_without_data_is_read_without_data() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let attributes =
        |id: &str| json!({ "specversion": "1.0", "id": id, "source": "orders", "type": "t", "partitionkey": "w" });
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "evt-1"),
        ("ce-source", "orders"),
        ("ce-type", "t"),
        ("ce-partitionkey", "w"),
    ];
    let structured = [("content-type", "application/cloudevents+json")];
    publish(&gateway, events(&binary, "")).await;
    publish(&gateway, events(&structured, attributes("evt-2").to_string())).await;
    batch(&gateway, &[attributes("evt-3")]).await;
    let plain = r#"{"type":"t","workflowId":"w","source":"orders","id":"evt-4"}"#;
    publish(&gateway, events(&PLAIN, plain)).await;
    for n in 1..=4 {
        let id = EventId::of_delivery("orders", &format!("evt-{n}"));
        let read = publish(&gateway, get(&format!("/api/v1/events/{id}"))).await;
        assert_eq!(read.status, 200);
        let found: Vec<_> = ["data", "dataBase64", "dataContentType"].map(|name| read.json.get(name).cloned()).into();
        assert_eq!(found, [(n == 4).then_some(Value::Null), None, None], "evt-{n}: {}", read.json);
    }
}

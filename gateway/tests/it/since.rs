//! Reading what was missed.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::Value;
use weft_proto::ids::EventId;

use crate::{
    http::{Answer, get, send, webhook},
    mesh::Mesh,
};

async fn publish(to: SocketAddr, workflow: &str, n: u64) -> Answer {
    let body = format!(r#"{{ "workflow":"{workflow}", "type":"order.{n}", "n": {n}.50 }}"#);
    let answer = send(to, &webhook("shop", &format!("{workflow}-{n}"), &body)).await.unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    answer
}

async fn since(to: SocketAddr, query: &str) -> Answer {
    send(to, &get(&format!("/api/v1/webhooks/events?{query}"))).await.unwrap()
}

/// The delivery ids of a page, in order.
fn deliveries(page: &Answer) -> Vec<&str> {
    assert_eq!(page.status, 200, "{page:?}");
    page.json["events"].as_array().unwrap().iter().map(|event| event["deliveryId"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pages_hold_everything_once_and_in_order() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    for n in 1..=5 {
        publish(gateway.address, "a", n).await;
        publish(gateway.address, "b", n).await;
    }
    let first = since(gateway.address, "limit=4").await;
    assert_eq!(deliveries(&first), ["a-1", "b-1", "a-2", "b-2"]);
    assert_eq!(first.json["hasMore"], true);
    let second = since(gateway.address, &format!("since={}&limit=6", first.text("nextCursor"))).await;
    assert_eq!(deliveries(&second), ["a-3", "b-3", "a-4", "b-4", "a-5", "b-5"]);
    assert_eq!(second.json["hasMore"], false);
    let end = format!("since={}", second.text("nextCursor"));
    assert!(deliveries(&since(gateway.address, &end).await).is_empty());
    // What comes later comes behind the same cursor.
    publish(gateway.address, "c", 1).await;
    assert_eq!(deliveries(&since(gateway.address, &end).await), ["c-1"]);
}

/// The last event seen is a cursor too, and filters take what they say.
#[tokio::test]
async fn an_event_id_is_a_cursor_and_filters_hold() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    for n in 1..=3 {
        publish(gateway.address, "a", n).await;
        publish(gateway.address, "b", n).await;
    }
    let seen = EventId::of_delivery("shop", "a-2");
    let page = async |query: &str| since(gateway.address, &format!("since={seen}&{query}")).await;
    assert_eq!(deliveries(&page("").await), ["b-2", "a-3", "b-3"]);
    assert_eq!(deliveries(&page("workflowId=a").await), ["a-3"]);
    assert_eq!(deliveries(&page("type=*.2").await), ["b-2"]);
    assert_eq!(deliveries(&page("source=shop&limit=1").await), ["b-2"]);
    assert!(deliveries(&page("source=other").await).is_empty());
    // A page of one workflow says exactly whether there is more of it.
    let exact = since(gateway.address, "workflowId=a&limit=3").await;
    assert_eq!((deliveries(&exact).len(), &exact.json["hasMore"]), (3, &Value::Bool(false)));
}

/// The envelope is the contract's, and `data` is the sender's text to the byte.
#[tokio::test]
async fn one_event_is_found_by_its_id_and_by_its_delivery() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let first = publish(gateway.address, "a", 1).await;
    let second = publish(gateway.address, "a", 2).await;
    let id = second.text("eventId");
    let by_id = send(gateway.address, &get(&format!("/api/v1/events/{id}"))).await.unwrap();
    assert_eq!(by_id.json["previousEventId"], first.json["eventId"]);
    assert_eq!((by_id.text("type"), by_id.text("source"), by_id.text("deliveryId")), ("order.2", "shop", "a-2"));
    assert_eq!(by_id.json["data"], serde_json::json!({"workflow": "a", "type": "order.2", "n": 2.50}));
    let by_delivery = send(gateway.address, &get("/api/v1/events?source=shop&deliveryId=a-2")).await.unwrap();
    assert_eq!(by_delivery.json, by_id.json);
    for unknown in ["/api/v1/events/nonsense".into(), format!("/api/v1/events/{}", EventId::unique())] {
        let answer = send(gateway.address, &get(&unknown)).await.unwrap();
        assert_eq!((answer.status, answer.code()), (404, "unknown_event"));
    }
}

#[tokio::test]
async fn a_cursor_is_bad_unknown_or_expired() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let bad = since(gateway.address, "since=c1_nonsense").await;
    assert_eq!((bad.status, bad.code()), (400, "bad_cursor"));
    for n in 1..=4 {
        publish(gateway.address, "a", n).await;
    }
    let early = since(gateway.address, "limit=1").await;
    mesh.connection.jetstream().get_stream("EVENTS").await.unwrap().purge().sequence(4).await.unwrap();
    let unknown = EventId::unique().to_string();
    for gone in [early.text("nextCursor"), &unknown] {
        let expired = since(gateway.address, &format!("since={gone}")).await;
        assert_eq!((expired.status, expired.code()), (410, "cursor_expired"));
        let rest = since(gateway.address, &format!("since={}", expired.text("oldestCursor"))).await;
        assert_eq!(deliveries(&rest), ["a-4"]);
    }
    // No cursor at all: from the oldest kept.
    assert_eq!(deliveries(&since(gateway.address, "").await), ["a-4"]);
}

/// Over several shards every event comes once, and each workflow's in order of their numbers.
#[tokio::test]
async fn shards_are_read_as_one() {
    let mesh = Mesh::start(3).await;
    let gateway = mesh.gateway().await;
    let workflows = ["a", "b", "c", "d", "e"];
    for n in 1..=4 {
        for workflow in workflows {
            publish(gateway.address, workflow, n).await;
        }
    }
    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut query = "limit=3".to_owned();
    loop {
        let page = since(gateway.address, &query).await;
        assert_eq!(page.status, 200, "{page:?}");
        for event in page.json["events"].as_array().unwrap() {
            let numbers = seen.entry(event["workflowId"].as_str().unwrap().to_owned()).or_default();
            numbers.push(event["sequenceNumber"].as_u64().unwrap());
        }
        if page.json["hasMore"] == false {
            break;
        }
        query = format!("limit=3&since={}", page.text("nextCursor"));
    }
    assert_eq!(seen, workflows.map(|workflow| (workflow.to_owned(), vec![1, 2, 3, 4])).into());
    // An event id positions its own shard exactly; the others may repeat, but nothing is left out.
    let behind = since(gateway.address, &format!("since={}", EventId::of_delivery("shop", "c-3"))).await;
    let found = deliveries(&behind);
    assert!(found.contains(&"c-4") && !found.contains(&"c-3"), "{found:?}");
    assert!(["a-4", "b-4", "d-4", "e-4"].iter().all(|later| found.contains(later)), "{found:?}");
}

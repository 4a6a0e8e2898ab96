//! From a signed request to a receipt.

use std::collections::BTreeSet;

use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use weft_nats::{streams, subject::Layout};
use weft_proto::ids::{EventId, ShardId};

use crate::{
    http::{self, Request, get, send, webhook},
    mesh::{BODY_BYTES_MAX, Mesh},
};

fn order(workflow: &str, n: u32) -> String {
    serde_json::json!({ "type": "order.paid", "workflow": workflow, "n": n }).to_string()
}

/// P2, P3: numbers from 1, each with its predecessor; the repeat of a delivery gets the first receipt.
#[tokio::test]
async fn an_event_gets_its_number_and_a_repeat_the_first_receipt() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let first = send(gateway.address, &webhook("shop", "evt_1", &order("w", 1))).await.unwrap();
    assert_eq!(first.status, 202, "{first:?}");
    assert_eq!(first.headers["content-type"], "application/json");
    assert_eq!(
        first.json,
        serde_json::json!({
            "eventId": EventId::of_delivery("shop", "evt_1").to_string(),
            "sequenceNumber": 1, "workflowId": "w", "previousEventId": null, "duplicate": false,
        })
    );
    let second = send(gateway.address, &webhook("shop", "evt_2", &order("w", 2))).await.unwrap();
    assert_eq!((second.status, &second.json["sequenceNumber"]), (202, &2.into()));
    assert_eq!(second.json["previousEventId"], first.json["eventId"]);

    let again = send(gateway.address, &webhook("shop", "evt_1", &order("w", 1))).await.unwrap();
    assert_eq!((again.status, again.headers["idempotent-replayed"].as_str()), (200, "true"));
    let mut receipt = first.json.clone();
    receipt["duplicate"] = true.into();
    assert_eq!(again.json, receipt);

    let other = send(gateway.address, &webhook("shop", "evt_1", &order("w", 3))).await.unwrap();
    assert_eq!((other.status, other.code()), (409, "id_reused"));
    gateway.drained().await;
}

/// P2: of many senders of one delivery at the same moment, at two gateways, one gets 202 and all get one receipt.
#[tokio::test]
async fn one_delivery_from_many_senders_is_accepted_once() {
    let mesh = Mesh::start(1).await;
    let gateways = [mesh.gateway().await, mesh.gateway().await];
    let request = webhook("shop/w", "evt_1", &order("w", 1));
    let sending = (0..32).map(|n| {
        let (to, request) = (gateways[n % 2].address, request.clone());
        tokio::spawn(async move { send(to, &request).await.unwrap() })
    });
    let mut statuses = Vec::new();
    for answer in sending.collect::<Vec<_>>() {
        let answer = answer.await.unwrap();
        assert_eq!(answer.json["sequenceNumber"], 1, "{answer:?}");
        statuses.push(answer.status);
    }
    statuses.sort_unstable();
    assert_eq!((statuses[31], statuses[30]), (202, 200), "{statuses:?}");
}

/// A sender that hangs up before its answer does not cancel the append; when it sends again it gets the receipt.
#[tokio::test]
async fn a_sender_that_hangs_up_and_sends_again_gets_the_first_receipt() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let mut receipts = BTreeSet::new();
    for n in 1..=20 {
        let request = webhook("shop", &format!("evt_{n}"), &order("w", n));
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(request.head.as_bytes()).await.unwrap();
        socket.write_all(&request.body).await.unwrap();
        drop(socket);
        let answer = send(gateway.address, &request).await.unwrap();
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        receipts.insert(answer.json["sequenceNumber"].as_u64().unwrap());
    }
    assert_eq!(receipts, (1..=20).collect());
    let stream = Layout::new(1).events_stream(ShardId(0));
    assert_eq!(streams::state(&mesh.connection, &stream).await.unwrap().last.0, 20);
}

/// A body of exactly the limit is taken; one byte more is 413 to a sender that writes all before it reads, and NATS,
/// which closes connections over its own limit, notices nothing.
#[tokio::test]
async fn the_body_limit_is_exact_and_spares_nats() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let body = |bytes: usize| {
        let frame = r#"{"type":"t","workflow":"w","filler":""}"#;
        frame.replace(r#""""#, &format!("\"{}\"", "x".repeat(bytes - frame.len())))
    };
    let taken = send(gateway.address, &webhook("shop", "evt_1", &body(BODY_BYTES_MAX))).await.unwrap();
    assert_eq!(taken.status, 202, "{taken:?}");
    let mut request = webhook("shop", "evt_2", &body(BODY_BYTES_MAX + 1));
    assert_eq!(send(gateway.address, &request).await.unwrap().code(), "body_too_large");
    // The same without saying so first: in chunks.
    request.head =
        request.head.replace(&format!("content-length: {}", request.body.len()), "transfer-encoding: chunked");
    request.body = [format!("{:x}\r\n", request.body.len()).as_bytes(), &request.body, b"\r\n0\r\n\r\n"].concat();
    assert_eq!(send(gateway.address, &request).await.unwrap().code(), "body_too_large");
    let after = send(gateway.address, &webhook("shop", "evt_3", &order("w", 3))).await.unwrap();
    assert_eq!(after.json["sequenceNumber"], 2);
}

/// For every workflow id, events are numbered separately and found again under the same id.
#[tokio::test]
async fn odd_workflow_ids_survive() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let long = "x".repeat(128);
    for (n, (encoded, plain)) in [
        ("order.42", "order.42"),
        ("%2A", "*"),
        ("%3E", ">"),
        ("a%20b", "a b"),
        ("%C3%A9.%3E", "é.>"),
        ("a%2Fb", "a/b"),
        (&long, &long),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = send(gateway.address, &webhook(&format!("shop/{encoded}"), &format!("evt_{n}"), &order("-", 1)))
            .await
            .unwrap();
        assert_eq!((answer.status, answer.text("workflowId")), (202, plain));
        assert_eq!(answer.json["sequenceNumber"], 1);
        let found =
            send(gateway.address, &get(&format!("/api/v1/webhooks/events?workflowId={encoded}"))).await.unwrap();
        assert_eq!(found.json["events"].as_array().map(Vec::len), Some(1), "{found:?}");
        assert_eq!(found.json["events"][0]["workflowId"], plain);
    }
    let invalid = send(gateway.address, &webhook("shop/%00", "evt_x", &order("-", 1))).await.unwrap();
    assert_eq!((invalid.status, invalid.code()), (400, "invalid_workflow"));
}

/// A refused request leaves no trace in the log.
#[tokio::test]
async fn refused_requests_append_nothing() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let good = webhook("shop", "evt_1", &order("w", 1));
    let with = |head: &dyn Fn(String) -> String| Request { head: head(good.head.clone()), body: good.body.clone() };
    let unsigned = with(&|head| head.replace("webhook-signature", "x-signature"));
    let forged = Request { body: order("w", 2).into(), ..good.clone() };
    let not_json = webhook("shop", "evt_2", "{");
    let unlisted = webhook("unlisted", "evt_3", &order("w", 1));
    for (request, code) in [
        (unsigned, "signature_missing"),
        (forged, "signature_invalid"),
        (not_json, "malformed_body"),
        (unlisted, "unknown_source"),
    ] {
        assert_eq!(http::send(gateway.address, &request).await.unwrap().code(), code);
    }
    let stream = Layout::new(1).events_stream(ShardId(0));
    assert_eq!(streams::state(&mesh.connection, &stream).await.unwrap().last.0, 0);
}

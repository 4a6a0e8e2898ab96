//! A wrong secret in the configuration, from the sender's first 401 to the last event taken after all.

use bytes::Bytes;
use weft_services::{
    mesh::{SOURCE, Up, Wiring, secret},
    receiver::{Answer, Receiver},
};
use weft_testkit::eventually;

use crate::{
    commands::Operator,
    mesh::{PATIENCE, program, provide_tls},
};

/// Refused requests: below what is kept in one second, so that none is left out.
const REFUSED: u64 = 6;

/// Requests that were refused because of the operator's mistake are delivered once it is corrected, each workflow in the
/// order of its sender; and a second retry changes nothing.
#[tokio::test]
async fn an_operator_mends_a_secret_and_retries_what_it_refused() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let wiring = Wiring::new();
    let listen = ([127, 0, 0, 1], 0).into();
    let receiver = Receiver::start(listen, &wiring.receiver_secret, |_| Answer::OK).await.unwrap();
    let operator = Operator { data: &data, gateway: String::new(), secret: &wiring.sender_secret };
    let mistaken = Wiring { sender_secret: secret(), ..wiring.clone() };
    let mut up = Up::start(&program(), folder.path(), &mistaken.config(Some(&receiver.url()))).await.unwrap();
    let sender = up.sender().unwrap();
    for n in 0..REFUSED {
        let body = Bytes::from(format!(r#"{{"type":"order.changed","data":{{"n":{n}}}}}"#));
        let (workflow, id) = (format!("order-{}", n % 2), format!("evt_{n}"));
        let refused = sender.send(SOURCE, Some(&workflow), &wiring.signing(), &id, None, body).await.unwrap();
        assert_eq!(refused.status, 401);
    }
    let listed = async || operator.lines(&["rejected", "list"]).await.len() as u64 == REFUSED;
    assert!(eventually(PATIENCE, listed).await);
    let entries = operator.lines(&["rejected", "list", "--source", SOURCE, "--reason-code", "signature_invalid"]).await;
    let newest = &entries[0];
    assert_eq!(
        (newest["path"].as_str(), newest["code"].as_str()),
        (Some("/api/v1/webhooks/shop/order-1"), Some("signature_invalid"))
    );
    let id = newest["id"].as_str().unwrap();
    let whole = operator.lines(&["rejected", "get", id]).await;
    assert_eq!(whole[0]["body"], r#"{"type":"order.changed","data":{"n":5}}"#);
    let planned = operator.lines(&["rejected", "retry", "--all", "--dry-run"]).await;
    assert_eq!(planned.len() as u64, REFUSED);
    let early = operator.answer(&["rejected", "retry", id]).await;
    assert_eq!(early.status.code(), Some(1), "still refused");
    assert!(String::from_utf8_lossy(&early.stdout).contains("signature_invalid"));
    up.stop().await.unwrap();

    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
    let retried = operator.lines(&["rejected", "retry", "--source", SOURCE, "--yes", "--reason", "fixed"]).await;
    let results: Vec<_> = retried.iter().map(|row| row["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["accepted"; REFUSED as usize]);
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() as u64 >= REFUSED).await);
    for workflow in 0..2 {
        let workflow = format!("order-{workflow}");
        let arrivals = receiver.arrivals();
        let numbers: Vec<_> = arrivals.iter().filter(|arrival| arrival.workflow_id == workflow).collect();
        let sequence: Vec<_> = numbers.iter().map(|arrival| arrival.sequence_number).collect();
        assert_eq!(sequence, [1, 2, 3]);
        let tailed =
            operator.lines(&["event", "tail", "--from-beginning", "--workflow", &workflow, "--limit", "3"]).await;
        let sent: Vec<_> = tailed.iter().map(|event| event["data"]["data"]["n"].as_u64().unwrap() / 2).collect();
        assert_eq!(sent, [0, 1, 2], "in the order in which they were sent");
    }
    let again = operator.lines(&["rejected", "retry", id]).await;
    assert_eq!(again[0]["result"], "duplicate");
    assert_eq!(operator.code(&["rejected", "get", "4711"]).await, Some(3));
    assert_eq!(operator.code(&["rejected", "retry"]).await, Some(2));
    assert_eq!(operator.code(&["rejected", "retry", "x"]).await, Some(2));
    up.stop().await.unwrap();
    assert_eq!(operator.run(&["rejected", "list"]).await.status.code(), Some(4));
}

//! `weft up`, from nothing to a delivery and an orderly end.

use std::{fs, os::unix::fs::PermissionsExt as _};

use bytes::Bytes;
use weft_services::{
    mesh::{Up, Wiring},
    receiver::{Answer, Arrival, Receiver},
};
use weft_testkit::eventually;

use crate::mesh::{PATIENCE, accepted, program, provide_tls};

pub async fn http(url: &str) -> (u16, String) {
    let response = reqwest::get(url).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn a_mesh_starts_delivers_and_drains() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let listen = ([127, 0, 0, 1], 0).into();
    let receiver = Receiver::start(listen, &wiring.receiver_secret, |_| Answer::OK).await.unwrap();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();

    let ops = up.endpoints.get("ops").unwrap().to_owned();
    assert_eq!(http(&format!("{ops}/healthz")).await.0, 200);
    let ready = async || http(&format!("{ops}/readyz")).await == (200, "ready\n".into());
    assert!(eventually(PATIENCE, ready).await, "{:?}", http(&format!("{ops}/readyz")).await);
    for name in ["client", "tail"] {
        let path = up.endpoints.get(name).unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{path}");
    }

    let sender = up.sender().unwrap();
    let body = Bytes::from_static(br#"{"type":"order.paid","data":{"total":1.50}}"#);
    let (first, refused) = accepted(&sender, &wiring, "order-1", "evt_1", body.clone()).await;
    let (again, _) = accepted(&sender, &wiring, "order-1", "evt_1", body).await;
    assert!(first.status == 202 || refused > 0, "{first:?}");
    assert_eq!((again.status, again.replayed), (200, true));
    let receipt = first.receipt().unwrap();
    assert_eq!(again.receipt().map(|receipt| receipt.event_id), Some(receipt.event_id.clone()));
    assert!(receiver.until(PATIENCE, |arrivals| !arrivals.is_empty()).await);
    let arrivals = receiver.arrivals();
    let is_first = |arrival: &Arrival| (&arrival.event_id, arrival.sequence_number) == (&receipt.event_id, 1);
    assert!(arrivals.iter().all(is_first), "one event, although it was sent twice: {arrivals:?}");
    assert!(arrivals[0].signed);
    assert!(http(&format!("{ops}/metrics")).await.1.contains("weft_gateway_events_accepted_total"));

    assert_eq!(up.stop().await.unwrap().code(), Some(0));
    let log = fs::read_to_string(folder.path().join("weft.log")).unwrap();
    assert!(!log.contains(&wiring.sender_secret) && !log.contains(&wiring.receiver_secret));
}

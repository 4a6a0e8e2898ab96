//! Samples that an admin hands over.

use jiff::Timestamp;
use prost::Message as _;
use standardwebhooks::Webhook;
use weft_nats::{connect::Connection, subject::SAMPLE_SUBJECT};
use weft_proto::{
    internal::{SampleHeader, SignedSample},
    v1::{DeliveryIdRule, NoneScheme, RetriedRejected, Verification, delivery_id_rule, verification::Scheme},
};

use crate::{
    http::SECRET,
    mesh::{Mesh, shop},
};

const BODY: &str = r#"{"type":"order.paid","workflow":"w"}"#;

/// A sample that was signed at `at`.
fn signed(id: &str, at: i64, body: &str) -> SignedSample {
    let signature = Webhook::new(SECRET).unwrap().sign(id, at, BODY.as_bytes()).unwrap();
    let headers = [("webhook-id", id), ("webhook-timestamp", &at.to_string()), ("webhook-signature", &signature)];
    let headers = headers.map(|(name, value)| SampleHeader { name: name.into(), value: value.into() }).to_vec();
    SignedSample { source: "shop".into(), headers, body: body.into(), id: id.into(), ..SignedSample::default() }
}

async fn taken(connection: &Connection, sample: &SignedSample) -> RetriedRejected {
    let answer = connection.client().request(SAMPLE_SUBJECT, sample.encode_to_vec().into()).await.unwrap();
    RetriedRejected::decode(answer.payload).unwrap()
}

/// A sample is verified as a webhook is: signature, freshness and all. No caller without the secret has anything accepted by it.
#[tokio::test]
async fn a_sample_is_verified_as_a_webhook_is() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let now = Timestamp::now().as_second();
    let accepted = taken(&mesh.connection, &signed("evt_1", now, BODY)).await;
    assert_eq!(
        (accepted.id.as_str(), accepted.code.as_str(), accepted.duplicate),
        ("evt_1", "", false),
        "{accepted:?}"
    );
    let again = taken(&mesh.connection, &signed("evt_1", now + 1, BODY)).await;
    assert_eq!((again.duplicate, &again.event_id), (true, &accepted.event_id), "it is accepted once");
    for (sample, code) in [
        (signed("evt_2", now, r#"{"type":"order.void","workflow":"w"}"#), "signature_invalid"),
        (signed("evt_2", now - 86_400, BODY), "timestamp_out_of_window"),
        (SignedSample { headers: Vec::new(), ..signed("evt_2", now, BODY) }, "signature_missing"),
        (SignedSample { source: "other".into(), ..signed("evt_2", now, BODY) }, "unknown_source"),
        (SignedSample::default(), "unknown_source"),
    ] {
        let refused = taken(&mesh.connection, &sample).await;
        assert_eq!((refused.code.as_str(), refused.event_id.as_str()), (code, ""), "{refused:?}");
    }
    gateway.drained().await;
}

/// Also of a source without delivery ids a sample is accepted once.
#[tokio::test]
async fn a_sample_without_a_delivery_id_is_accepted_once() {
    let mesh = Mesh::start(1).await;
    let unsigned = Verification { scheme: Some(Scheme::None(NoneScheme {})) };
    let without_id = DeliveryIdRule { from: Some(delivery_id_rule::From::None(true)) };
    let source = weft_proto::v1::Source {
        name: "open".into(),
        verification: Some(unsigned),
        delivery_id: Some(without_id),
        ..shop()
    };
    mesh.add(&source).await;
    let gateway = mesh.gateway().await;
    let sample = SignedSample { source: "open".into(), body: BODY.into(), id: "s-1".into(), ..Default::default() };
    let first = taken(&mesh.connection, &sample).await;
    let again = taken(&mesh.connection, &sample).await;
    assert_eq!((first.duplicate, again.duplicate, &again.event_id), (false, true, &first.event_id), "{first:?}");
    gateway.drained().await;
}

//! Signed samples: recorded, handed to a gateway, and once however often they are asked for.

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use weft_nats::subject::{RETRY_QUEUE, SAMPLE_SUBJECT};
use weft_proto::{internal::SignedSample, v1::RetriedRejected};

use super::*;

/// A stand-in for a gateway, which answers with these codes, one after the other, and reports what it is handed.
async fn gateway(mesh: &Mesh, codes: &'static [&'static str]) -> mpsc::UnboundedReceiver<SignedSample> {
    let client = mesh.server.connection("gateway").await.client().clone();
    let mut requests = client.queue_subscribe(SAMPLE_SUBJECT, RETRY_QUEUE.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    let (told, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for code in codes {
            let request = requests.next().await.unwrap();
            let sample = SignedSample::decode(request.payload).unwrap();
            let event_id = if code.is_empty() { "e" } else { "" }.to_owned();
            let answer =
                RetriedRejected { id: sample.id.clone(), event_id, code: (*code).to_owned(), ..Default::default() };
            told.send(sample).unwrap();
            client.publish(request.reply.unwrap(), answer.encode_to_vec().into()).await.unwrap();
            client.flush().await.unwrap();
        }
    });
    asked
}

/// A sample is recorded before it is handed over, and a repeat of the call hands over the same one without another record.
#[tokio::test]
async fn a_sample_is_recorded_once_and_repeats_hand_over_the_same() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    client.create_source(create_source("shop", "made")).await.unwrap();
    let send = |source: &str| {
        let (source, reason, request_id) = (source.to_owned(), "a try".to_owned(), "request-1".to_owned());
        let request =
            v1::SendSampleRequest { source, r#type: "order.paid".into(), reason, request_id, ..Default::default() };
        let mut client = client.clone();
        async move { client.send_sample(request).await }
    };
    let message = refused(send("shop").await, Code::Unavailable, "LOG_UNAVAILABLE");
    assert!(message.contains("no gateway") && message.contains("request-1"), "{message}");
    let mut handed = gateway(&mesh, &["starting", "", "schema_invalid"]).await;
    refused(send("shop").await, Code::Unavailable, "LOG_UNAVAILABLE");
    let accepted = send("shop").await.unwrap().into_inner();
    assert_eq!((accepted.event_id.as_str(), accepted.workflow_id.as_str()), ("e", "sample-request-"));
    let refusal = send("shop").await.unwrap().into_inner();
    assert_eq!((refusal.event_id.as_str(), refusal.code.as_str()), ("", "schema_invalid"));
    let samples = [handed.recv().await.unwrap(), handed.recv().await.unwrap(), handed.recv().await.unwrap()];
    assert!(samples.iter().all(|sample| *sample == samples[0] && sample.id == "request-1"), "{samples:?}");
    assert_eq!(samples[0].body, b"order.paid sample-request-");

    let records = records(&mesh).await;
    let told: Vec<_> = records.iter().map(|(command, edit)| (edit.method.as_str(), command.reason.as_str())).collect();
    assert_eq!(told, [("CreateSource", "a new shop"), ("SendSample", "a try")]);
    assert_eq!(records[1].1.name, "shop");
    refused(send("other").await, Code::NotFound, "NOT_FOUND");
}

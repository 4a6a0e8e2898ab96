//! An embedded worker.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use weft_proto::v1::{self, AttemptClass};
use weft_testkit::{eventually, master_key};
use weft_worker::{
    Worker, WorkerOptions,
    destination::{Delivery, DeliveryResult, Destination, Failure},
};

use crate::support::{LEASE, Log, PATIENCE, Receiver, spec};

/// Remembers what it was given: workflow, number, attempt. Refuses each event once.
#[derive(Debug, Clone, Default)]
struct Remember(Arc<Mutex<Vec<(String, u64, u32)>>>);

#[async_trait]
impl Destination for Remember {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        for (taken, delivery) in deliveries.iter().enumerate() {
            let event = &delivery.event.event;
            let entry = (event.workflow.to_string(), event.sequence_number.0, delivery.number);
            self.0.lock().unwrap().push(entry);
            if delivery.number == 1 {
                let failure = Failure::failed(AttemptClass::Protocol, "not yet");
                return DeliveryResult { count: taken, ..DeliveryResult::failed(failure) };
            }
        }
        DeliveryResult::all(deliveries.len())
    }
}

/// P3 for code as for a URL: in order, retried, each settled once.
#[tokio::test(flavor = "multi_thread")]
async fn code_is_delivered_to_in_order() {
    let mut log = Log::start().await;
    let unused = Receiver::start(|_| 200).await;
    let custom = v1::destination::Kind::Custom(v1::CustomDestination { name: "remember".into() });
    let with = |subscription: &mut v1::Subscription| {
        subscription.destination = Some(v1::Destination { kind: Some(custom) });
    };
    log.subscribe_with("embedded", &unused, 1, with).await;
    log.events(20, 2).await;
    let (folder, seen, drain) = (tempfile::tempdir().unwrap(), Remember::default(), CancellationToken::new());
    let worker = Worker::builder()
        .nats_options(log.server.options())
        .master_key(master_key())
        .log(spec())
        .folder(folder.path())
        .options(WorkerOptions { concurrency: 8, lease: LEASE, ..WorkerOptions::default() })
        .destination("remember", seen.clone());
    let running = tokio::spawn(worker.run(drain.clone()));
    assert!(eventually(PATIENCE, async || seen.0.lock().unwrap().len() == 40).await);
    drain.cancel();
    running.await.unwrap().unwrap();
    for workflow in ["w0", "w1"] {
        let seen = seen.0.lock().unwrap();
        let of_workflow = seen.iter().filter(|(of, ..)| of == workflow).map(|(_, number, attempt)| (*number, *attempt));
        let expected: Vec<_> = (1..=10).flat_map(|number| [(number, 1), (number, 2)]).collect();
        assert_eq!(of_workflow.collect::<Vec<_>>(), expected);
    }
    assert_eq!(log.outcomes(20).await.len(), 20, "P5: exactly one outcome per event");
}

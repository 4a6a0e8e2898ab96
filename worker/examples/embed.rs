//! A worker embedded in a program, which delivers to code instead of to a URL.
//!
//! Start a mesh without a worker, with one key for all, and this program:
//!
//! ```text
//! export WEFT_MASTER_KEY=…                # 32 bytes in base64, the same for all
//! nats-server -js &
//! WEFT_NATS__URL=nats://127.0.0.1:4222 weft gateway &
//! WEFT_NATS__URL=nats://127.0.0.1:4222 weft admin &
//! cargo run -p weft-worker --example embed
//! ```
//!
//! then let a subscription's events go to it, with `weft apply -f weft.toml`:
//!
//! ```toml
//! [[subscription]]
//! name = "printer"
//! destination = { type = "custom", name = "print" }
//! ```
//!
//! Events of one workflow come in order, one at a time; those of different workflows come at the same time.

use std::{env, error::Error};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use weft_catalog::MasterKey;
use weft_proto::v1::AttemptClass;
use weft_worker::{
    Worker,
    destination::{Delivery, DeliveryResult, Destination, Failure, FailureKind},
};

/// Prints what it is given. What it refuses is tried again, by the subscription's retry policy.
#[derive(Debug)]
struct Print;

#[async_trait]
impl Destination for Print {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        for (taken, delivery) in deliveries.iter().enumerate() {
            let event = &delivery.event.event;
            let Ok(text) = std::str::from_utf8(&event.payload) else {
                let failure =
                    Failure { kind: FailureKind::Rejected, ..Failure::failed(AttemptClass::Protocol, "not text") };
                return DeliveryResult { count: taken, ..DeliveryResult::failed(failure) };
            };
            println!("{} #{} {}: {text}", event.workflow, event.sequence_number, event.event_type);
        }
        DeliveryResult::all(deliveries.len())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("WEFT_NATS__URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".into());
    let key = MasterKey::parse(&env::var("WEFT_MASTER_KEY")?)?;
    let drain = CancellationToken::new();
    let stopped = drain.clone();
    tokio::spawn(async move {
        // Without signals there is nothing to wait for but the end.
        if tokio::signal::ctrl_c().await.is_ok() {
            stopped.cancel();
        }
    });
    let folder = env::temp_dir().join("weft-embed");
    Worker::builder().nats(url).master_key(key).folder(folder).destination("print", Print).run(drain).await?;
    Ok(())
}

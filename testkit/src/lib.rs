//! The parts that the tests of several crates share: real nats-servers, disks that are small, certificates, events, and the
//! judge of the order in which events arrive.
//!
//! A dev-dependency only, with few dependencies. Each crate's tests start its own role with it. Unit tests of `nats`,
//! `catalog` and `tls` see these crates' types twice, as their own and as this crate's, and use of it only what names no type of
//! their own.

use std::time::{Duration, Instant};

use weft_catalog::MasterKey;

mod authority;
mod cluster;
mod consumers;
mod disk;
pub mod event;
mod log;
mod node;
pub mod order;
mod proxy;
mod server;
pub mod users;

pub use authority::Authority;
pub use cluster::TestCluster;
pub use consumers::{add_consumers, consumer_names, try_add_consumer};
pub use disk::SmallDisk;
pub use event::event;
pub use log::{TestLog, spec};
pub use proxy::Proxy;
pub use server::{StoreBackup, TestServer, TestServerBuilder};

/// How long anything may take before it counts as never, on a machine that runs many tests at once.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// The master key of test meshes as a text: always the same, so that all processes that share a server have it.
pub const MASTER_KEY: &str = "dGVzdCB0ZXN0IHRlc3QgdGVzdCB0ZXN0IHRlc3QgdGU=";

/// [`MASTER_KEY`] as a key.
///
/// # Panics
///
/// Never: the text is one.
pub fn master_key() -> MasterKey {
    MasterKey::parse(MASTER_KEY).expect("base64 of 32 bytes")
}

/// Waits until `condition` holds; `false` when it still does not after `patience`.
#[must_use = "a condition that never came must fail the test"]
pub async fn eventually<C: AsyncFnMut() -> bool>(patience: Duration, mut condition: C) -> bool {
    let start = Instant::now();
    loop {
        if condition().await {
            return true;
        }
        if start.elapsed() > patience {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
}

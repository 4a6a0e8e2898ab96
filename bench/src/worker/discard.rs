//! A worker whose destination does nothing, in a separate process.

use std::path::PathBuf;

use weft_worker::{
    Worker,
    destination::{Delivery, DeliveryResult, Destination},
};

use weft_services::{
    config::{CatalogOptions, Config},
    data::DataFolder,
    failure::Failure,
    signal, telemetry,
};

/// The destination's name.
const NAME: &str = "discard";
/// The destination, as a configuration writes it.
pub const DESTINATION: &str = r#"{ type = "custom", name = "discard" }"#;

/// `weft bench discard`: started by `weft bench worker`.
#[derive(Debug, clap::Args)]
pub struct DiscardArgs {
    /// The configuration
    #[arg(long)]
    config: PathBuf,
    /// The data folder
    #[arg(long)]
    data: PathBuf,
    /// Never finish a delivery
    #[arg(long)]
    hold: bool,
}

/// Accepts every delivery at once, or never answers.
#[derive(Debug)]
struct Discard {
    hold: bool,
}

#[tonic::async_trait]
impl Destination for Discard {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        if self.hold {
            std::future::pending::<()>().await;
        }
        DeliveryResult::all(deliveries.len())
    }
}

/// Delivers until a signal.
///
/// # Errors
///
/// [`Failure`]: what ends a worker.
pub async fn run(args: DiscardArgs) -> Result<(), Failure> {
    let config = Config::load(Some(&args.config), Some(&args.data)).map_err(|error| Failure::of(&error))?;
    let data = DataFolder::open(&config.data)?;
    let drain = signal::drain_token().map_err(|error| Failure::of(&error))?;
    let worker = Worker::builder()
        .nats_options(config.nats)
        .master_key(data.master_key(&CatalogOptions::default())?)
        .log(config.spec)
        .folder(data.role("worker"))
        .options(config.worker)
        .destination(NAME, Discard { hold: args.hold });
    // As in a role: what is counted costs something.
    let metrics = telemetry::record_metrics()?;
    let upkeep = async move {
        loop {
            tokio::time::sleep(telemetry::UPKEEP_INTERVAL).await;
            metrics.run_upkeep();
        }
    };
    tokio::select! {
        ended = worker.run(drain) => ended.map_err(|error| Failure::of(&error)),
        () = upkeep => Ok(()),
    }
}

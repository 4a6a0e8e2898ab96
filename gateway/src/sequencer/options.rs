//! Options of a sequencer.

use std::{path::PathBuf, time::Duration};

use tokio::sync::watch;
use weft_catalog::MasterKey;
use weft_index::receipts::Horizons;
use weft_nats::streams::LogSpec;

/// How long a submission waits for its receipt. Below the request deadline of senders, above the ack time-out of an
/// append, so that one lost ack still ends in a receipt.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Events that may wait in one shard: some tenths of a second of the highest rate. More would only be answered late.
const QUEUE_EVENTS_MAX: usize = 10_000;

/// Options of the sequencers of a gateway.
#[derive(Debug, Clone)]
pub struct SequencerOptions {
    /// Where the receipts lie, a file for each shard.
    pub folder: PathBuf,
    /// For how long a delivery is known.
    pub dedup_horizon: Duration,
    /// Time for which the number of an idle workflow is remembered.
    pub remember_workflows: Duration,
    /// How long EVENTS keeps a message.
    pub retention: Duration,
    /// The largest message that the log takes, headers included, in bytes.
    pub message_bytes_max: usize,
    /// How long a submission waits for its receipt.
    pub submit_timeout: Duration,
    /// Events that may wait in one shard; at least 1.
    pub queue_events_max: usize,
    /// True if one of several gateways appends for all. Otherwise each appends for itself, which is correct and slower.
    pub forwards: bool,
    /// The mesh's, by which gateways know each other.
    pub master_key: MasterKey,
    /// Why the log cannot be written at the moment, where that is known.
    pub storage: Option<watch::Receiver<Option<String>>>,
}

impl SequencerOptions {
    /// As the log is configured, with the receipts in `folder`.
    pub fn new(folder: PathBuf, spec: &LogSpec, master_key: MasterKey) -> Self {
        Self {
            folder,
            dedup_horizon: spec.log.dedup_horizon.0,
            remember_workflows: spec.log.remember_workflows.0,
            retention: spec.log.retention.0,
            message_bytes_max: usize::try_from(spec.message_bytes_max()).unwrap_or(usize::MAX),
            submit_timeout: SUBMIT_TIMEOUT,
            queue_events_max: QUEUE_EVENTS_MAX,
            forwards: true,
            master_key,
            storage: None,
        }
    }

    /// Why the log cannot be written at the moment.
    pub(super) fn storage_problem(&self) -> Option<String> {
        self.storage.as_ref().and_then(|storage| storage.borrow().clone())
    }

    pub(super) fn horizons(&self) -> Horizons {
        Horizons::new(self.dedup_horizon, self.remember_workflows)
    }
}

//! A worker that can be stopped or aborted.

use std::path::Path;

use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use weft_catalog::Catalog;
use weft_nats::{connect::Connection, options::Span};
use weft_worker::{Worker, WorkerOptions};

use super::{Log, PATIENCE};

/// Longer than a busy machine holds up a worker, which would lose its shards: what it has delivered and not committed would
/// come again.
pub const LEASE: Span = Span::secs(15);
/// For tests in which a lease runs out.
pub const SHORT_LEASE: Span = Span::secs(2);

/// A worker in a separate runtime, so that it can be aborted with everything that it has started.
pub struct Running {
    missing: watch::Receiver<Option<String>>,
    drain: CancellationToken,
    task: JoinHandle<Result<(), weft_worker::service::RunError>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Running {
    pub fn start(log: &Log, folder: &Path) -> Self {
        Self::start_with(log, folder, |worker| worker)
    }

    pub fn start_with(log: &Log, folder: &Path, with: impl FnOnce(Worker) -> Worker) -> Self {
        Self::start_leased(log, folder, LEASE, with)
    }

    /// As [`start_with`](Self::start_with), with leases that live for this time.
    pub fn start_leased(log: &Log, folder: &Path, lease: Span, with: impl FnOnce(Worker) -> Worker) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let nats = log.server.options();
        let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
        let options = WorkerOptions { concurrency: 64, lease, allow_networks, ..WorkerOptions::default() };
        let worker = with(Worker::new(options));
        let drain = CancellationToken::new();
        let (missing_sender, missing) = watch::channel(None);
        let (drained, folder, spec) = (drain.clone(), folder.to_owned(), log.spec.clone());
        let task = runtime.spawn(async move {
            let connection = Connection::connect(&nats, "worker").await.unwrap();
            worker
                .run(Catalog::new(connection, weft_testkit::master_key()), spec, folder, missing_sender, drained)
                .await
        });
        Self { missing, drain, task, runtime: Some(runtime) }
    }

    /// Waits until what it says to be missing is as wanted.
    pub async fn until_missing(&mut self, wanted: impl Fn(Option<&str>) -> bool) -> Option<String> {
        let found = self.missing.wait_for(|missing| wanted(missing.as_deref()));
        tokio::time::timeout(PATIENCE, found).await.expect("it says so").unwrap().clone()
    }

    /// The reason why it is not ready now.
    pub fn missing(&self) -> Option<String> {
        self.missing.borrow().clone()
    }

    /// Drains it.
    pub async fn stop(mut self) {
        self.drain.cancel();
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("it drains").unwrap().unwrap();
    }

    /// Ends it in the midst of things: nothing of it runs on, its lease is not given back.
    pub async fn abort(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || drop(runtime)).await.unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

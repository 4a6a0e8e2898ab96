//! Endpoints for monitoring: `/healthz`, `/readyz`, `/metrics`.

use std::{fmt::Write as _, net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, routing::get};
use http::StatusCode;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use weft_nats::conditions::Conditions;
use weft_serve::Connections;
use weft_tls::Listener;

use crate::telemetry::UPKEEP_INTERVAL;

/// Connections at a time: some probes and scrapers.
const CONNECTIONS_MAX: usize = 128;
/// The part of the process's descriptors that they may take.
const DESCRIPTORS_PART: u64 = 32;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 8;

/// Readiness of each part of the process: what it waits for; `None` while it is ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    parts: Vec<(&'static str, watch::Receiver<Option<String>>)>,
    conditions: Conditions,
}

impl Readiness {
    /// Adds a part, which waits for its start. It reports its state through the sender.
    pub fn add(&mut self, name: &'static str) -> watch::Sender<Option<String>> {
        let (sender, receiver) = watch::channel(Some("not started".to_owned()));
        self.parts.push((name, receiver));
        sender
    }

    /// Conditions that leave the process ready and that an operator should know of. A part sets them through a clone.
    pub fn conditions(&self) -> Conditions {
        self.conditions.clone()
    }

    /// The missing parts, a line each; empty when the process is ready. A part that has ended counts as missing.
    pub fn missing(&self) -> Vec<String> {
        let missing = |(name, receiver): &(&str, watch::Receiver<Option<String>>)| {
            let waits_for = receiver.borrow().clone();
            let waits_for = waits_for.or_else(|| receiver.has_changed().is_err().then(|| "ended".to_owned()))?;
            Some(format!("{name}: {waits_for}"))
        };
        self.parts.iter().filter_map(missing).collect()
    }

    /// Waits until every part is ready.
    pub async fn ready(&self) {
        while !self.missing().is_empty() {
            for (_, part) in &self.parts {
                // A part that has ended is never ready again.
                if part.has_changed().is_err() || part.clone().wait_for(Option::is_none).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// The endpoints, bound and not served yet.
#[derive(Debug)]
pub struct Ops {
    listener: Listener,
}

#[derive(Clone)]
struct Shared {
    readiness: Arc<Readiness>,
    metrics: PrometheusHandle,
}

impl Ops {
    /// Binds the port.
    ///
    /// # Errors
    ///
    /// The error of the system, such as a port in use.
    pub async fn bind(listen: SocketAddr) -> std::io::Result<Self> {
        let tcp = TcpListener::bind(listen).await?;
        let local_addr = tcp.local_addr()?;
        Ok(Self { listener: Listener { tcp, local_addr, acceptor: None } })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr
    }

    /// Serves until `stop`, which comes last: a draining process still reports its state.
    pub async fn serve(self, readiness: Readiness, metrics: PrometheusHandle, stop: CancellationToken) {
        let shared = Shared { readiness: Arc::new(readiness), metrics: metrics.clone() };
        let router = Router::new()
            .route("/", get(|| async { "/healthz\n/readyz\n/metrics\n" }))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(|State(shared): State<Shared>| async move { shared.metrics.render() }))
            .with_state(shared);
        let upkeep = async {
            let mut ticks = interval(UPKEEP_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                metrics.run_upkeep();
            }
        };
        let connections = Connections::within_descriptors(CONNECTIONS_MAX, DESCRIPTORS_PART);
        let port = weft_serve::Options { streams: STREAMS_MAX, ..weft_serve::Options::new("ops", connections) };
        tokio::select! {
            () = weft_serve::serve(self.listener, router, port, stop.clone()) => {}
            () = upkeep => {}
            // Probes come again; none needs its answer.
            () = stop.cancelled() => {}
        }
    }
}

async fn readyz(State(shared): State<Shared>) -> (StatusCode, String) {
    answer(&shared.readiness)
}

/// The missing parts, or `ready`; then degraded conditions, which do not change the status.
fn answer(readiness: &Readiness) -> (StatusCode, String) {
    let missing = readiness.missing();
    let mut text = String::new();
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Into a string nothing fails.
    if missing.is_empty() {
        let _ = writeln!(text, "ready");
    }
    for line in missing {
        let _ = writeln!(text, "{line}");
    }
    for line in readiness.conditions.lines() {
        let _ = writeln!(text, "degraded: {line}");
    }
    (status, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_degraded_process_is_ready_and_says_what_is_wrong() {
        let mut readiness = Readiness::default();
        let worker = readiness.add("worker");
        worker.send_replace(None);
        let conditions = readiness.conditions();
        conditions.set("shard 0: copies", Some("2 wait".into()));
        assert_eq!(answer(&readiness), (StatusCode::OK, "ready\ndegraded: shard 0: copies: 2 wait\n".into()));
        worker.send_replace(Some("nats: not connected".into()));
        let (status, text) = answer(&readiness);
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "worker: nats: not connected\ndegraded: shard 0: copies: 2 wait\n");
    }

    /// Connections that say nothing, or half of a request, do not keep a probe out.
    #[tokio::test]
    async fn idle_connections_do_not_stop_probes() {
        use tokio::{
            io::{AsyncReadExt as _, AsyncWriteExt as _},
            net::TcpStream,
        };
        let ops = Ops::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, stop) = (ops.local_addr(), CancellationToken::new());
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        let serving = tokio::spawn(ops.serve(Readiness::default(), metrics, stop.clone()));
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX * 2 {
            let mut connection = TcpStream::connect(address).await.unwrap();
            // Those that make room for others are closed already.
            let _ = connection.write_all(b"GET /readyz HT").await;
            idle.push(connection);
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET /healthz HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let read = probe.read_to_string(&mut answer);
        tokio::time::timeout(std::time::Duration::from_secs(10), read).await.expect("an answer").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{answer}");
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_process_is_ready_when_every_part_is() {
        let mut readiness = Readiness::default();
        let (gateway, worker) = (readiness.add("gateway"), readiness.add("worker"));
        gateway.send_replace(None);
        assert_eq!(readiness.missing(), ["worker: not started"]);
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        worker.send_replace(None);
        tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await.unwrap().unwrap();
        drop(worker);
        assert_eq!(readiness.missing(), ["worker: ended"]);
    }
}

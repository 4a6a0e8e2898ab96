//! A mesh of separate processes, each of which can be killed and started again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use weft_catalog::Catalog;
use weft_nats::{
    options::{LogOptions, MaxBytes},
    streams::{self, LogSpec},
};
use weft_services::{
    apply::apply,
    config::Config,
    mesh::{RoleProcess, SOURCE, Wiring},
    receiver::{Answer, Arrival, Receiver},
    sender::{self, Receipt, Sender},
};

pub use weft_testkit::PATIENCE;
use weft_testkit::{MASTER_KEY, TestServer, master_key};
use weft_worker::ownership::WorkerId;

use crate::order;

/// Bodies of the default size.
const BODY_BYTES_MAX: u64 = 1024 * 1024;
/// How often a refused event is sent again before that counts as never.
const POSTS_MAX: usize = 1200;

/// The `weft` binary.
pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_weft").into()
}

/// nats-server, gateway, worker, admin and receiver.
pub struct Mesh {
    /// The server, without accounts.
    pub server: TestServer,
    pub gateway: RoleProcess,
    pub worker: RoleProcess,
    pub admin: RoleProcess,
    pub receiver: Receiver,
    pub wiring: Wiring,
    log: LogOptions,
    folder: TempDir,
}

impl Mesh {
    /// Starts everything, ready to be sent to; the receiver answers by `rule`.
    pub async fn start(rule: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Self {
        Self::with(Wiring::new(), rule).await
    }

    /// As [`start`](Self::start), with another wiring.
    pub async fn with(wiring: Wiring, rule: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Self {
        Self::sharded(1, wiring, rule).await
    }

    /// As [`with`](Self::with), on a log with this number of shards.
    pub async fn sharded(
        shards: u32,
        wiring: Wiring,
        rule: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::on(LogOptions { shards, ..LogOptions::default() }, wiring, rule).await
    }

    /// As [`with`](Self::with), on a log with these options.
    pub async fn on(
        log: LogOptions,
        wiring: Wiring,
        rule: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::with_variables(log, |_| Vec::new(), wiring, rule).await
    }

    /// As [`on`](Self::on), with further variables for the processes of each role.
    pub async fn with_variables(
        log: LogOptions,
        variables: impl Fn(&str) -> Vec<(String, String)>,
        wiring: Wiring,
        rule: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
    ) -> Self {
        provide_tls();
        let server = TestServer::start().await;
        let folder = tempfile::tempdir().unwrap();
        let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, rule).await.unwrap();
        let connection = server.connection("test").await;
        let spec = LogSpec { log: log.clone(), body_bytes_max: BODY_BYTES_MAX, ..LogSpec::default() };
        let layout = streams::ensure(&connection, &spec).await.unwrap();
        let text = wiring.config(Some(&receiver.url()));
        let config = Config::parse(Path::new("weft.toml"), text, [], None).unwrap();
        apply(&Catalog::new(connection, master_key()), layout, &config.catalog, "test").await.unwrap();
        let role = |name| role_of(&log, name, name, &server, folder.path(), variables(name));
        let (mut gateway, mut worker, mut admin) = (role("gateway"), role("worker"), role("admin"));
        for process in [&mut gateway, &mut worker, &mut admin] {
            process.ready().await.unwrap();
        }
        Self { server, gateway, worker, admin, receiver, wiring, log, folder }
    }

    /// Another process of a role, with a separate folder, ready.
    pub async fn another(&self, role_name: &str, instance: &str) -> RoleProcess {
        let mut process = role_of(&self.log, role_name, instance, &self.server, self.folder.path(), Vec::new());
        process.ready().await.unwrap();
        process
    }

    /// The parent of the instances' folders.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The id of a worker's process.
    pub fn worker_id(&self, instance: &str) -> WorkerId {
        let path = self.folder().join(instance).join("data/worker/worker.id");
        WorkerId(std::fs::read_to_string(path).unwrap().trim().to_owned())
    }

    /// A sender to the gateway.
    pub fn sender(&self) -> Sender {
        sender_to(&self.gateway)
    }

    /// Posts one event until it is accepted, as a sender does: after any other answer, or none, it is repeated with the
    /// same delivery id.
    pub async fn send(&self, workflow: &str, delivery_id: &str) -> Receipt {
        send(&self.sender(), &self.wiring, workflow, delivery_id).await
    }

    /// Waits until every workflow's events were taken, and judges the order of everything.
    pub async fn assert_delivered(&self, events: &BTreeMap<String, u64>) {
        let all = |arrivals: &[Arrival]| {
            let taken = |arrival: &&Arrival| (200..300).contains(&arrival.status);
            let mut last = BTreeMap::<&str, u64>::new();
            for arrival in arrivals.iter().filter(taken) {
                let last = last.entry(&arrival.workflow_id).or_default();
                *last = arrival.sequence_number.max(*last);
            }
            events.iter().all(|(workflow, count)| last.get(workflow.as_str()) == Some(count))
        };
        self.receiver.until(PATIENCE, all).await;
        if let Err(problem) = order::check(&self.receiver.arrivals(), events) {
            panic!("{problem}");
        }
    }
}

/// A role's process against a server.
pub fn role(role: &str, instance: &str, server: &TestServer, folder: &Path) -> RoleProcess {
    role_of(&LogOptions::default(), role, instance, server, folder, Vec::new())
}

/// As [`role`], on a log like this, with further variables.
fn role_of(
    log: &LogOptions,
    role: &str,
    instance: &str,
    server: &TestServer,
    folder: &Path,
    variables: Vec<(String, String)>,
) -> RoleProcess {
    role_at(log, role, instance, server.url(), folder, variables)
}

/// As [`role_of`], against the servers at `url`.
pub fn role_at(
    log: &LogOptions,
    role: &str,
    instance: &str,
    url: &str,
    folder: &Path,
    variables: Vec<(String, String)>,
) -> RoleProcess {
    let mut env = vec![
        ("WEFT_NATS__URL".to_owned(), url.to_owned()),
        ("WEFT_MASTER_KEY".to_owned(), MASTER_KEY.to_owned()),
        ("WEFT_WORKER__ALLOW_NETWORKS".to_owned(), "127.0.0.0/8".to_owned()),
        ("WEFT_LOG__SHARDS".to_owned(), log.shards.to_string()),
        ("WEFT_LOG__REPLICAS".to_owned(), log.replicas.to_string()),
    ];
    if let MaxBytes::Bytes(bytes) = log.max_bytes {
        env.push(("WEFT_LOG__MAX_BYTES".to_owned(), format!("{bytes}B")));
    }
    env.extend(variables);
    RoleProcess::start(&program(), role, &folder.join(instance), env).unwrap()
}

/// A sender to a gateway's process.
pub fn sender_to(gateway: &RoleProcess) -> Sender {
    provide_tls();
    let address = gateway.variable("WEFT_GATEWAY__LISTEN").unwrap();
    Sender::new(&format!("http://{address}")).unwrap()
}

/// As [`Mesh::send`], through any sender.
pub async fn send(sender: &Sender, wiring: &Wiring, workflow: &str, delivery_id: &str) -> Receipt {
    let (answer, _) = accepted(sender, wiring, workflow, delivery_id, body_of(delivery_id)).await;
    answer.receipt().unwrap()
}

/// As [`send`], with this body. The answer that has the receipt, and how many requests had none before: each of them may
/// have been stored all the same, and then the answer is 200.
pub async fn accepted(
    sender: &Sender,
    wiring: &Wiring,
    workflow: &str,
    delivery_id: &str,
    body: Bytes,
) -> (sender::Answer, usize) {
    for refused in 0..POSTS_MAX {
        match sender.send(SOURCE, Some(workflow), &wiring.signing(), delivery_id, None, body.clone()).await {
            Ok(answer) if answer.receipt().is_some() => return (answer, refused),
            Ok(answer) => assert_eq!(answer.status, 503, "{:?}", answer.detail()),
            // The gateway is gone, for now.
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{delivery_id} was never accepted");
}

fn body_of(delivery_id: &str) -> Bytes {
    Bytes::from(format!(r#"{{"type":"order.changed","data":{{"id":"{delivery_id}"}}}}"#))
}

/// Posts one event, once.
pub async fn post(
    sender: &Sender,
    wiring: &Wiring,
    workflow: &str,
    delivery_id: &str,
) -> Result<sender::Answer, String> {
    sender.send(SOURCE, Some(workflow), &wiring.signing(), delivery_id, None, body_of(delivery_id)).await
}

/// The setup that `main` does for the binary.
pub fn provide_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

//! A nats-server and gateways on it.

use std::{net::SocketAddr, path::Path};

use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use weft_catalog::Catalog;
use weft_gateway::{Gateway, GatewayOptions, service::RunError};
use weft_nats::{connect::Connection, options::Secret, streams::LogSpec};
use weft_proto::v1::{Rule, Source, StandardScheme, Verification, rule, verification::Scheme};
pub use weft_testkit::{PATIENCE, spec};
use weft_testkit::{TestLog, TestServer, master_key};

use crate::http::SECRET;

/// The bootstrap key, with which the tests read.
pub const READ_TOKEN: &str = "reading";
/// The largest body that these gateways take: the default.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A nats-server with a log and the source `shop`, and gateways.
pub struct Mesh {
    pub server: TestServer,
    pub connection: Connection,
    pub spec: LogSpec,
}

/// A gateway that runs.
pub struct Running {
    pub address: SocketAddr,
    pub missing: watch::Receiver<Option<String>>,
    pub drain: CancellationToken,
    pub task: JoinHandle<Result<(), RunError>>,
    _folder: TempDir,
}

/// Takes its workflow from `/workflow` and its type from `/type`.
pub fn shop() -> Source {
    let scheme = Scheme::Standard(StandardScheme { secrets: vec![SECRET.into()], tolerance_ms: None });
    Source {
        name: "shop".into(),
        verification: Some(Verification { scheme: Some(scheme) }),
        workflow: Some(Rule { from: Some(rule::From::Pointer("/workflow".into())) }),
        ..Source::default()
    }
}

impl Mesh {
    pub async fn start(shards: u32) -> Self {
        let TestLog { server, connection, spec, .. } = TestLog::of(spec(shards)).await;
        let mesh = Self { server, connection, spec };
        mesh.add(&shop()).await;
        mesh
    }

    /// Adds a source. Gateways that start from now on have it when they are ready.
    pub async fn add(&self, source: &Source) {
        Catalog::new(self.connection.clone(), master_key()).put_source(source, 0).await.unwrap();
    }

    /// A gateway that is ready.
    pub async fn gateway(&self) -> Running {
        let mut gateway = self.unready_gateway().await;
        gateway.ready().await;
        gateway
    }

    /// A gateway that is ready, with these options.
    pub async fn gateway_with(&self, options: GatewayOptions) -> Running {
        let mut gateway = run_with(options, self.server.connection("gateway").await, self.spec.clone()).await;
        gateway.ready().await;
        gateway
    }

    /// A gateway that has bound its port.
    pub async fn unready_gateway(&self) -> Running {
        run(self.server.connection("gateway").await, self.spec.clone()).await
    }
}

/// Runs a gateway on a free port and a fresh folder.
pub async fn run(connection: Connection, spec: LogSpec) -> Running {
    run_with(GatewayOptions::default(), connection, spec).await
}

/// As [`run`], with these options.
pub async fn run_with(options: GatewayOptions, connection: Connection, spec: LogSpec) -> Running {
    let folder = TempDir::new().unwrap();
    let options = GatewayOptions { listen: "127.0.0.1:0".parse().unwrap(), ..options };
    let gateway = Gateway::bind(options).await.unwrap();
    let address = gateway.local_addr();
    let (told, missing) = watch::channel(Some("start".to_owned()));
    let drain = CancellationToken::new();
    let path = Path::to_path_buf(folder.path());
    let token = Some(Secret::new(READ_TOKEN));
    let task =
        tokio::spawn(gateway.run(Catalog::new(connection, master_key()), spec, path, token, told, drain.clone()));
    Running { address, missing, drain, task, _folder: folder }
}

impl Running {
    /// Waits until nothing is missing.
    pub async fn ready(&mut self) {
        self.missing_is(Option::is_none).await;
    }

    /// Waits until what is missing fits.
    pub async fn missing_is(&mut self, fits: impl FnMut(&Option<String>) -> bool) {
        let fitting = tokio::time::timeout(PATIENCE, self.missing.wait_for(fits)).await;
        let fitted = fitting.is_ok_and(|fitting| fitting.is_ok());
        assert!(fitted, "missing: {:?}", *self.missing.borrow());
    }

    /// Drains it and waits for its end.
    pub async fn drained(self) {
        self.drain.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("ends in time").unwrap().unwrap();
    }
}

//! Three nats-servers that form a cluster, for streams with three replicas. Single nodes can be paused and killed.

use std::{fs, path::Path};

use weft_nats::{
    async_nats::jetstream::stream,
    connect::Connection,
    options::{MESSAGE_OVERHEAD_BYTES, NatsOptions},
    server::free_port,
    streams::{self, EnsureError, LogSpec},
    subject::Layout,
};

use crate::{PATIENCE, eventually, node::Node};

/// Nodes of a cluster.
const NODES: usize = 3;

/// A cluster for one test, without users. Clients stay with the nodes that they were given.
#[derive(Debug)]
pub struct TestCluster {
    nodes: Vec<Node>,
    urls: Vec<String>,
}

impl TestCluster {
    /// Starts three servers and waits until streams with three replicas can be made.
    ///
    /// # Panics
    ///
    /// When there is no nats-server new enough, or they form no cluster in time.
    pub async fn start() -> Self {
        let routes = free_ports();
        let nodes: Vec<_> = (0..NODES).map(|node| Node::new(|folder| configure(folder, node, &routes))).collect();
        nodes.iter().for_each(Node::launch);
        let mut urls = Vec::with_capacity(NODES);
        for node in &nodes {
            urls.push(format!("nats://127.0.0.1:{}", node.serves().await));
        }
        let cluster = Self { nodes, urls };
        let connection = cluster.connection("start").await;
        let probe = stream::Config { name: "PROBE".into(), num_replicas: NODES, ..stream::Config::default() };
        let made = async || connection.jetstream().create_stream(probe.clone()).await.is_ok();
        assert!(eventually(PATIENCE, made).await, "the servers form no cluster");
        let removed = async || connection.jetstream().delete_stream("PROBE").await.is_ok();
        assert!(eventually(PATIENCE, removed).await, "the cluster has a leader");
        cluster
    }

    /// The URL of one node; the same after a restart.
    pub fn url(&self, node: usize) -> &str {
        &self.urls[node]
    }

    /// The folder of one node's store.
    pub fn folder(&self, node: usize) -> &Path {
        self.nodes[node].folder()
    }

    /// Options for a client to connect to any of the nodes.
    pub fn options(&self) -> NatsOptions {
        NatsOptions { url: Some(self.urls.join(",")), ..NatsOptions::default() }
    }

    /// A connection to any of the nodes.
    ///
    /// # Panics
    ///
    /// When none answers in time.
    pub async fn connection(&self, name: &str) -> Connection {
        connect(&self.options(), name).await
    }

    /// A connection to one node only.
    ///
    /// # Panics
    ///
    /// When it does not answer in time.
    pub async fn connection_to(&self, node: usize, name: &str) -> Connection {
        connect(&NatsOptions { url: Some(self.urls[node].clone()), ..NatsOptions::default() }, name).await
    }

    /// Makes the log with three replicas.
    ///
    /// # Panics
    ///
    /// When it cannot be made in time.
    pub async fn ensure(&self, connection: &Connection, spec: &mut LogSpec) -> Layout {
        spec.log.replicas = NODES as _;
        let mut layout = None;
        let ensured = async || match streams::ensure(connection, spec).await {
            Ok(ensured) => {
                layout = Some(ensured);
                true
            }
            Err(EnsureError::Unavailable(_)) => false,
            Err(error @ EnsureError::Mismatch(_)) => panic!("{error}"),
        };
        assert!(eventually(PATIENCE, ensured).await, "the log can be made");
        layout.expect("it was made")
    }

    /// The node that leads a stream.
    ///
    /// # Panics
    ///
    /// When the stream has no leader for long.
    pub async fn leader(&self, connection: &Connection, stream: &str) -> usize {
        let mut leader = None;
        let led = async || {
            let view = streams::leader_view(connection, stream).await.ok();
            let name = view.and_then(|view| view.leader);
            leader = (0..NODES).find(|node| name.as_deref() == Some(&name_of(*node)));
            leader.is_some()
        };
        assert!(eventually(PATIENCE, led).await, "{stream} has a leader");
        leader.expect("it was found")
    }

    /// The other nodes.
    pub fn others(&self, node: usize) -> impl Iterator<Item = usize> + use<> {
        (0..NODES).filter(move |other| *other != node)
    }

    /// Stops a node in its tracks (SIGSTOP).
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn pause(&self, node: usize) {
        self.nodes[node].pause();
    }

    /// Lets a paused node continue (SIGCONT).
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn resume(&self, node: usize) {
        self.nodes[node].resume();
    }

    /// Ends a node at once (SIGKILL).
    pub fn kill(&self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a node again, on the same ports and store, and waits until it serves clients.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn restart(&self, node: usize) {
        self.nodes[node].start().await;
    }
}

async fn connect(options: &NatsOptions, name: &str) -> Connection {
    let connection = Connection::connect(options, name).await.expect("sound options");
    tokio::time::timeout(PATIENCE, connection.connected()).await.expect("the server answers");
    connection
}

fn name_of(node: usize) -> String {
    format!("n{node}")
}

/// Ports that are unused at this moment: servers of a cluster must know each other's before they start.
fn free_ports() -> Vec<u16> {
    (0..NODES).map(|_| free_port().expect("the loopback has free ports")).collect()
}

fn configure(folder: &Path, node: usize, routes: &[u16]) {
    let store = folder.join("store");
    let max_payload = (1 << 20) + MESSAGE_OVERHEAD_BYTES;
    let name = name_of(node);
    let port = routes[node];
    let routes: Vec<_> = routes.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect();
    let routes = routes.join(", ");
    let config = format!(
        "server_name: {name}\nhost: 127.0.0.1\nmax_payload: {max_payload}\n\
         jetstream {{ store_dir: {store:?}, sync_interval: always }}\n\
         cluster {{ name: test, listen: \"127.0.0.1:{port}\", no_advertise: true, routes: [{routes}] }}\n"
    );
    fs::write(folder.join("nats.conf"), config).expect("the folder is ours");
}

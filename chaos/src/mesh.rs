//! The processes of the mesh and their configuration.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::sync::Mutex;

use crate::{
    network::{Listeners, Mode, Network},
    plan::Node,
    process::{Process, Spec},
    wall_clock::WallClocks,
};

/// Key that the catalog is sealed with: the mesh guards nothing.
const MASTER_KEY: &str = "Y2hhb3MgY2hhb3MgY2hhb3MgY2hhb3MgY2hhb3MgISE=";
/// Token of the admin.
pub const TOKEN: &str = "weft_chaos_chaos_chaos_chaos_chaos_chaos";
/// Bytes of the largest message: a body of the default size and its headers.
const PAYLOAD_BYTES_MAX: u32 = 1_179_648;

/// How the mesh is built.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Number of servers, and of replicas.
    pub servers: usize,
    /// Shards of the log.
    pub shards: u32,
    /// Folder of all data and logs.
    pub folder: PathBuf,
    /// The weft binary.
    pub weft: PathBuf,
    /// The nats-server binary.
    pub nats_server: PathBuf,
    /// How the processes are joined.
    pub network: Mode,
}

/// All processes.
#[derive(Debug)]
pub struct Mesh {
    /// Their network.
    pub network: Network,
    /// Their layout.
    pub layout: Layout,
    processes: BTreeMap<Node, Mutex<Process>>,
    client: reqwest::Client,
}

/// All roles.
pub fn roles() -> Vec<Node> {
    vec![Node::Gateway(0), Node::Gateway(1), Node::Worker(0), Node::Worker(1), Node::Admin]
}

impl Mesh {
    /// Writes all configurations; starts nothing.
    pub async fn prepare(layout: Layout, clocks: Option<&WallClocks>) -> anyhow::Result<Self> {
        let nodes: Vec<Node> = (0..layout.servers).map(Node::Server).chain(roles()).collect();
        let network = Network::start(layout.network, &nodes).await?;
        let mut processes = BTreeMap::new();
        for number in 0..layout.servers {
            processes.insert(Node::Server(number), Mutex::new(Process::new(server(&layout, &network, number)?)));
        }
        for role in roles() {
            let mut spec = role_spec(&layout, &network, role)?;
            if let Some(clocks) = clocks {
                spec.env.extend(clocks.environment(role)?);
            }
            processes.insert(role, Mutex::new(Process::new(spec)));
        }
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        Ok(Self { network, layout, processes, client })
    }

    /// Starts every process.
    pub async fn start(&self) -> anyhow::Result<()> {
        for process in self.processes.values() {
            process.lock().await.start()?;
        }
        Ok(())
    }

    /// A process.
    pub fn process(&self, node: Node) -> &Mutex<Process> {
        &self.processes[&node]
    }

    /// All processes.
    pub fn processes(&self) -> impl Iterator<Item = (Node, &Mutex<Process>)> {
        self.processes.iter().map(|(node, process)| (*node, process))
    }

    /// Waits until all roles are ready.
    ///
    /// # Errors
    ///
    /// Which roles are not within `patience`, and what they say.
    pub async fn ready(&self, patience: Duration) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let mut missing = Vec::new();
            for role in roles() {
                if let Err(problem) = self.is_ready(role).await {
                    missing.push(format!("{role}: {problem:#}"));
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                bail!("{}", missing.join("; "));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The roles' answers on `/readyz`.
    pub async fn said(&self) -> Vec<(Node, String)> {
        let mut said = Vec::new();
        for role in roles() {
            let url = format!("http://{}/readyz", self.network.listeners(role).other);
            if let Ok(response) = self.client.get(url).send().await {
                said.push((role, response.text().await.unwrap_or_default()));
            }
        }
        said
    }

    async fn is_ready(&self, role: Node) -> anyhow::Result<()> {
        let operations = self.network.listeners(role).other;
        let response = self.client.get(format!("http://{operations}/readyz")).send().await.context("no answer")?;
        let status = response.status();
        let body = response.text().await.unwrap_or_default();
        anyhow::ensure!(status.is_success(), "{status}: {}", body.trim().replace('\n', ", "));
        Ok(())
    }

    /// The addresses of the servers.
    pub fn servers(&self) -> Vec<String> {
        let address = |server| format!("nats://{}", self.network.listeners(Node::Server(server)).api);
        (0..self.layout.servers).map(address).collect()
    }

    /// Names of the EVENTS streams.
    pub fn events_streams(&self) -> Vec<String> {
        match self.layout.shards {
            1 => vec!["EVENTS".to_owned()],
            shards => (0..shards).map(|shard| format!("EVENTS_{shard}")).collect(),
        }
    }

    /// Kills every process.
    pub async fn end(&self) {
        for process in self.processes.values() {
            let _ = process.lock().await.kill().await;
        }
    }
}

/// Folder of a server's store.
pub fn store(folder: &Path, server: usize) -> PathBuf {
    folder.join(format!("nats{server}/store"))
}

/// Starts a program in a process's part of the network, so that it dies with the driver.
fn launched(layout: &Layout, network: &Network, node: Node, program: &Path, args: &[&str]) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let mut command = network.prefix(node);
    command.extend([text(&layout.weft), "launch".to_owned(), text(program)]);
    command.extend(args.iter().map(|arg| (*arg).to_owned()));
    command
}

fn server(layout: &Layout, network: &Network, number: usize) -> anyhow::Result<Spec> {
    let name = Node::Server(number).to_string();
    let folder = layout.folder.join(&name);
    let store = store(&layout.folder, number);
    fs::create_dir_all(&store)?;
    let Listeners { api: client, other: route } = network.listeners(Node::Server(number));
    let mut config = format!(
        "server_name: {name}\nlisten: \"{client}\"\nmax_payload: {PAYLOAD_BYTES_MAX}\nping_interval: 5s\n\
         jetstream {{ store_dir: {store:?}, sync_interval: always, max_file_store: 16GB, max_memory_store: 256MB }}\n"
    );
    if layout.servers > 1 {
        let routes: Vec<_> =
            network.dialled(Node::Server(number)).iter().map(|address| format!("\"nats://{address}\"")).collect();
        // Each pair of servers has its own way; a route that they learn of from each other would go around it.
        config.push_str(&format!(
            "cluster {{ name: chaos, listen: \"{route}\", no_advertise: true, {} routes: [{}] }}\n",
            network.advertise(),
            routes.join(", ")
        ));
    }
    let file = folder.join("nats.conf");
    fs::write(&file, config)?;
    Ok(Spec {
        command: launched(
            layout,
            network,
            Node::Server(number),
            &layout.nats_server,
            &["--config", &file.display().to_string()],
        ),
        env: Vec::new(),
        log: layout.folder.join(format!("{name}.log")),
        name,
    })
}

fn role_spec(layout: &Layout, network: &Network, role: Node) -> anyhow::Result<Spec> {
    let name = role.to_string();
    let folder = layout.folder.join(&name);
    fs::create_dir_all(&folder)?;
    let Listeners { api, other: operations } = network.listeners(role);
    let urls: Vec<_> = network.dialled(role).iter().map(|address| format!("nats://{address}")).collect();
    let section = match role {
        Node::Gateway(_) => format!("[gateway]\nlisten = \"{api}\"\n"),
        Node::Worker(_) => String::new(),
        Node::Admin | Node::Server(_) => format!("[admin]\nlisten = \"{api}\"\ntoken = \"{TOKEN}\"\n"),
    };
    // The admin looks at the destinations of subscriptions as the workers do.
    let networks = "[worker]\nallow_networks = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n";
    let config = format!(
        "data = {:?}\n[nats]\nurl = \"{}\"\n[ops]\nlisten = \"{operations}\"\n[log]\nshards = {}\nreplicas = {}\n{networks}{section}",
        folder.join("data").display().to_string(),
        urls.join(","),
        layout.shards,
        layout.servers,
    );
    let file = folder.join("weft.toml");
    fs::write(&file, config)?;
    let command = match role {
        Node::Gateway(_) => "gateway",
        Node::Worker(_) => "worker",
        Node::Admin | Node::Server(_) => "admin",
    };
    Ok(Spec {
        command: launched(layout, network, role, &layout.weft, &[command, "--config", &file.display().to_string()]),
        env: vec![("WEFT_MASTER_KEY".into(), MASTER_KEY.into())],
        log: layout.folder.join(format!("{name}.log")),
        name,
    })
}

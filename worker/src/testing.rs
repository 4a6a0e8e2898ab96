//! A real PostgreSQL for tests: on a free port, in a separate folder, gone when it is dropped and when the test is killed. It
//! can be killed and started again.

use std::{
    ffi::OsStr,
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long a server may take to serve. Generous: a machine that runs many tests at once is slow.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);
/// The folder of `initdb` and `postgres`.
const BIN: &str = "WEFT_POSTGRES_BIN";
/// Where Debian installs each version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// A server with a superuser `weft` and a database `weft`, for one test.
#[derive(Debug)]
pub struct TestPostgres {
    server: Option<Child>,
    port: u16,
    options: Vec<String>,
    folder: TempDir,
}

/// None of this fails on a machine that can run tests.
#[expect(clippy::missing_panics_doc, reason = "of tests")]
impl TestPostgres {
    /// A server. What it writes survives kills, but not a power cut.
    pub async fn start() -> Self {
        Self::with(&["fsync=off"]).await
    }

    /// A server with these settings.
    pub async fn with(settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        if let Some((user, group)) = account() {
            chown(folder.path(), Some(user), Some(group)).expect("root may");
        }
        let data = folder.path().join("data");
        let made = command("initdb")
            .args(["--username=weft", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--pgdata"])
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let options = settings.iter().flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]).collect();
        let mut postgres = Self { server: None, port: free_port(), options, folder };
        postgres.restart().await;
        let created = postgres.connect("postgres").await.expect("it serves");
        created.batch_execute("CREATE DATABASE weft").await.expect("a database");
        postgres
    }

    /// The connection string of the database.
    pub fn dsn(&self) -> String {
        self.dsn_of("weft")
    }

    /// The connection string of a database.
    pub fn dsn_of(&self, database: &str) -> String {
        format!("postgres://weft@127.0.0.1:{}/{database}", self.port)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Kills it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().and_then(|()| server.wait()).expect("a child");
        }
    }

    /// Starts it on the same data and port, and waits until it serves.
    pub async fn restart(&mut self) {
        self.kill();
        let began = Instant::now();
        loop {
            let exited = self.server.as_mut().is_none_or(|server| server.try_wait().expect("a child").is_some());
            // Also while processes of the killed server still end.
            if exited {
                self.server = Some(self.spawn());
            }
            if self.connect("postgres").await.is_ok() {
                return;
            }
            assert!(began.elapsed() < START_PATIENCE, "PostgreSQL does not serve: {}", self.log());
            tokio::time::sleep(POLL).await;
        }
    }

    fn spawn(&self) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a file");
        command("postgres")
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(&self.options)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("postgres runs")
    }

    /// Text of its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// A copy of a file that the server may read, such as a key.
    pub fn install(&self, file: &Path) -> PathBuf {
        let copy = self.folder.path().join(file.file_name().expect("a file"));
        fs::copy(file, &copy).expect("the folder is ours");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).expect("it is ours");
        if let Some((user, group)) = account() {
            chown(&copy, Some(user), Some(group)).expect("root may");
        }
        copy
    }

    async fn connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.dsn_of(database), NoTls).await?;
        // Ends with its client.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Replaces the settings, from the next start.
    pub fn set(&mut self, settings: &[&str]) {
        self.options = settings.iter().flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]).collect();
    }

    /// Runs statements in the database, which may fail.
    ///
    /// # Errors
    ///
    /// The error of the first statement that fails.
    pub async fn try_query(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.connect("weft").await?.batch_execute(sql).await
    }

    /// Runs statements in the database. Returns the rows of all, each value as text, `-` for null.
    pub async fn query(&self, sql: &str) -> Vec<Vec<String>> {
        let client = self.connect("weft").await.expect("it serves");
        let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let value = |column| row.get(column).unwrap_or("-").to_owned();
                Some((0..row.len()).map(value).collect())
            }
            _ => None,
        });
        rows.collect()
    }
}

impl Drop for TestPostgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program of PostgreSQL, which refuses to run as root, and which ends when this process does.
fn command(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL");
    if let Some((user, group)) = account() {
        command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
    }
    command.arg("--").arg(folder().join(name)).current_dir("/").env_clear().env("TZ", "UTC");
    command
}

/// An unprivileged account of every system.
const UNPRIVILEGED: &str = "daemon";

/// The account to run as where this process is root.
fn account() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").expect("accounts");
    let of = |name: &str| {
        let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2).map(str::parse);
        Some((ids.next()?.ok()?, ids.next()?.ok()?))
    };
    Some(of("postgres").or_else(|| of(UNPRIVILEGED)).expect("an account that is not root's"))
}

fn folder() -> PathBuf {
    let holds = |folder: &Path| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    if let Some(folder) = std::env::var_os(BIN).map(PathBuf::from) {
        assert!(holds(&folder), "{BIN}: {} does not hold initdb and postgres", folder.display());
        return folder;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|folder| holds(folder));
    let version = |folder: &Path| folder.file_name().and_then(OsStr::to_str)?.parse::<u32>().ok();
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let newest = versions.filter(|folder| holds(&folder.join("bin"))).max_by_key(|folder| version(folder));
    on_path.or(newest.map(|folder| folder.join("bin"))).unwrap_or_else(|| {
        panic!("PostgreSQL is missing: apt-get install postgresql, or name the folder of initdb and postgres in {BIN}")
    })
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

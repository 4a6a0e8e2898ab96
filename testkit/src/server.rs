//! A real nats-server for tests: on a free port, with a separate store, gone when it is dropped and when the test is
//! killed. It can be killed, restarted on the same store and port, and paused.

use std::{fmt::Write as _, fs, path::Path};

use tempfile::TempDir;
use weft_nats::{
    connect::Connection,
    options::{MESSAGE_OVERHEAD_BYTES, NatsOptions},
};

use crate::{
    PATIENCE,
    node::{Node, copy_folder},
};

/// A server for one test, without users.
#[derive(Debug)]
pub struct TestServer {
    node: Node,
    url: String,
}

/// A copy of a server's store.
#[derive(Debug)]
pub struct StoreBackup {
    folder: TempDir,
}

/// Settings of a test server.
#[derive(Debug, Clone)]
pub struct TestServerBuilder {
    max_payload: u64,
    config: String,
}

impl TestServerBuilder {
    /// The server's `max_payload` in bytes. Default: 1 MiB + 128 KiB.
    #[must_use]
    pub fn max_payload(mut self, bytes: u64) -> Self {
        self.max_payload = bytes;
        self
    }

    /// Lines added to the server's configuration file.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    /// Starts the server and waits until it serves.
    ///
    /// # Panics
    ///
    /// When there is no nats-server new enough, or it does not start.
    pub async fn start(self) -> TestServer {
        let node = Node::new(|folder| write_config(folder, &self));
        let port = node.start().await;
        TestServer { url: format!("nats://127.0.0.1:{port}"), node }
    }
}

impl TestServer {
    /// A server with the defaults: `sync_interval: always`, `max_payload` for bodies of 1 MiB.
    ///
    /// # Panics
    ///
    /// As [`TestServerBuilder::start`].
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A builder for a server with other settings.
    pub fn builder() -> TestServerBuilder {
        TestServerBuilder { max_payload: (1 << 20) + MESSAGE_OVERHEAD_BYTES, config: String::new() }
    }

    /// `nats://127.0.0.1:<port>`; the same after a restart.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder that holds all of its files.
    pub fn folder(&self) -> &Path {
        self.node.folder()
    }

    /// Options for a client to connect.
    pub fn options(&self) -> NatsOptions {
        NatsOptions { url: Some(self.url.clone()), ..NatsOptions::default() }
    }

    /// A connection that is there.
    ///
    /// # Panics
    ///
    /// When the server does not answer in time.
    pub async fn connection(&self, name: &str) -> Connection {
        let connection = Connection::connect(&self.options(), name).await.expect("sound options");
        tokio::time::timeout(PATIENCE, connection.connected()).await.expect("the server answers");
        connection
    }

    /// Ends the server at once (SIGKILL) and waits until it is gone.
    pub fn kill(&self) {
        self.node.kill();
    }

    /// Starts the server again, on the same port and store, and waits until it serves; one that runs is killed first.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn restart(&self) {
        self.node.start().await;
    }

    /// Copies the server's store, as a backup would. The server is killed and started again.
    ///
    /// # Panics
    ///
    /// When the store cannot be copied, or the server does not start.
    pub async fn backup(&self) -> StoreBackup {
        self.kill();
        let folder = tempfile::tempdir().expect("a temporary folder");
        copy_folder(&self.folder().join("store"), &folder.path().join("store"));
        self.restart().await;
        StoreBackup { folder }
    }

    /// Replaces the server's store by a backup: every stream is as it was then, and has the creation time that it had.
    ///
    /// # Panics
    ///
    /// When the store cannot be replaced, or the server does not start.
    pub async fn restore(&self, backup: &StoreBackup) {
        self.kill();
        let store = self.folder().join("store");
        fs::remove_dir_all(&store).expect("the folder is ours");
        copy_folder(&backup.folder.path().join("store"), &store);
        self.restart().await;
    }

    /// Copies a stream's files into `folder`. The server must have been killed.
    ///
    /// # Panics
    ///
    /// When there is no such stream.
    pub fn copy_stream(&self, stream: &str, folder: &Path) {
        copy_folder(&self.stream_folder(stream), folder);
    }

    /// Puts the files of `folder` in the place of a stream's. The server must have been killed.
    ///
    /// # Panics
    ///
    /// When the files cannot be written.
    pub fn restore_stream(&self, stream: &str, folder: &Path) {
        let place = self.stream_folder(stream);
        match fs::remove_dir_all(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", place.display()),
            _ => copy_folder(folder, &place),
        }
    }

    fn stream_folder(&self, stream: &str) -> std::path::PathBuf {
        self.folder().join("store/jetstream/$G/streams").join(stream)
    }

    /// Stops the server in its tracks (SIGSTOP): connections stay open and nothing answers. Returns when all its threads
    /// stand still.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn pause(&self) {
        self.node.pause();
    }

    /// Lets a paused server continue (SIGCONT).
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn resume(&self) {
        self.node.resume();
    }
}

fn write_config(folder: &Path, builder: &TestServerBuilder) {
    let mut config = String::new();
    let store = folder.join("store");
    writeln!(config, "host: 127.0.0.1\nmax_payload: {}", builder.max_payload).expect("a text takes all");
    writeln!(config, "jetstream {{ store_dir: {store:?}, sync_interval: always }}").expect("a text takes all");
    config.push_str(&builder.config);
    fs::write(folder.join("nats.conf"), config).expect("the folder is ours");
}

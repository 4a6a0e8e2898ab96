//! A TCP proxy in front of a server, which can cut its clients off as a network does: without a FIN.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Bytes that are passed on at a time.
const CHUNK: usize = 16 * 1024;

/// A proxy on a separate port. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    cut: Arc<watch::Sender<bool>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts to pass on connections to `target`, as `nats://host:port` or `host:port`.
    ///
    /// # Panics
    ///
    /// When the loopback has no free port.
    pub async fn start(target: &str) -> Self {
        let target = target.trim_start_matches("nats://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let cut = Arc::new(watch::Sender::new(false));
        let state = cut.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Ends with either side, or after the proxy.
                tokio::spawn(pass_on(client, target.clone(), state.subscribe()));
            }
        });
        Self { address, cut, accepting }
    }

    /// The URL that clients connect to.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// From now on nothing passes, in neither direction, and no connection ends.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// New connections pass again; those that were cut are closed.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes on both directions until one side ends. A connection that was cut passes nothing any more, and is closed once
/// the cut is repaired.
async fn pass_on(client: TcpStream, target: String, mut cut: watch::Receiver<bool>) {
    let until_cut = {
        let mut cut = cut.clone();
        async move { cut.wait_for(|cut| *cut).await.is_ok() }
    };
    let (mut from_client, mut to_client) = client.into_split();
    let passing = async {
        let Ok(server) = TcpStream::connect(target).await else { return };
        let (mut from_server, mut to_server) = server.into_split();
        tokio::select! {
            () = copy(&mut from_client, &mut to_server) => {}
            () = copy(&mut from_server, &mut to_client) => {}
        }
    };
    // What is passed on is dropped with the future; the client's side stays open until the cut is repaired.
    tokio::select! {
        biased;
        was_cut = until_cut => if !was_cut { return },
        () = passing => return,
    }
    let _ = cut.wait_for(|cut| !*cut).await;
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                let Some(passed) = chunk.get(..read) else { return };
                if to.write_all(passed).await.is_err() {
                    return;
                }
            }
        }
    }
}

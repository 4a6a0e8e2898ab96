//! A TCP proxy between two processes that can hold either direction and delay both.
//!
//! A held direction loses nothing: as behind a packet filter, the bytes wait for the end of the cut, unless one of the two
//! ends closes the connection before. The end of a connection does not pass a held direction either, so that the other
//! side gets no FIN.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 32 * 1024;
/// Chunks under way in one direction of a connection: bounds the memory of a delayed or held connection to 2 MiB.
const CHUNKS_MAX: usize = 64;

/// State of one direction.
#[derive(Debug, Clone, Copy, Default)]
struct Gate {
    /// Number of cuts that hold it.
    holds: u32,
    delay: Duration,
}

/// A proxy from one process to another.
#[derive(Debug)]
pub struct Link {
    /// Where the first process connects.
    pub address: SocketAddr,
    forward: watch::Sender<Gate>,
    backward: watch::Sender<Gate>,
    task: JoinHandle<()>,
}

/// Directions of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the process that connects.
    Forward,
    /// To the process that connects.
    Backward,
}

impl Link {
    /// Listens on a free port of loopback and passes connections on to `target`.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("a proxy")?;
        let address = listener.local_addr()?;
        let (forward, backward) = (watch::Sender::new(Gate::default()), watch::Sender::new(Gate::default()));
        let gates = (forward.subscribe(), backward.subscribe());
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => drop(tokio::spawn(connection(client, target, gates.clone()))),
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        Ok(Self { address, forward, backward, task })
    }

    /// Holds a direction; holds are counted.
    pub fn hold(&self, direction: Direction) {
        self.gate(direction).send_modify(|gate| gate.holds += 1);
    }

    /// Takes one hold of a direction back.
    pub fn release(&self, direction: Direction) {
        self.gate(direction).send_modify(|gate| gate.holds = gate.holds.saturating_sub(1));
    }

    /// Delays both directions.
    pub fn delay(&self, delay: Duration) {
        for gate in [&self.forward, &self.backward] {
            gate.send_modify(|gate| gate.delay = delay);
        }
    }

    fn gate(&self, direction: Direction) -> &watch::Sender<Gate> {
        match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection attempt needs both directions: SYN and its answer.
async fn connection(client: TcpStream, target: SocketAddr, gates: (watch::Receiver<Gate>, watch::Receiver<Gate>)) {
    let (mut forward, mut backward) = gates;
    until_open(&mut forward).await;
    until_open(&mut backward).await;
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Latency is what the gate says, not what the kernel gathers.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::join!(copy(client_read, server_write, forward), copy(server_read, client_write, backward));
}

async fn until_open(gate: &mut watch::Receiver<Gate>) {
    // An ended link has no cuts.
    let _ = gate.wait_for(|gate| gate.holds == 0).await;
}

/// Passes one direction on, until it ends; the end is passed on, too.
async fn copy(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, mut gate: watch::Receiver<Gate>) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let entry = gate.clone();
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + entry.borrow().delay;
            if sender.send((due, buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = chunks.recv().await {
            sleep_until(due).await;
            until_open(&mut gate).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        until_open(&mut gate).await;
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

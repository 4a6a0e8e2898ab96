//! A load generator that costs little: signed webhooks over bare HTTP/1.1 connections.
//!
//! The measured processes share the machine with it, so it does the minimum: a request is one write, an answer is
//! read up to its announced length, and only status and length are parsed.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::sleep_until,
};

use super::{http1, latency::Latencies};
use weft_services::mesh::SOURCE;

/// The events to send.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Where to.
    pub to: SocketAddr,
    /// The sender's secret, `whsec_…`.
    pub secret: String,
    /// Prefix of delivery ids; runs with different ones do not repeat each other's.
    pub prefix: String,
    /// Workflows that the events are spread over, at random; 1: one hot workflow.
    pub workflows: u64,
    /// Bytes of each body.
    pub payload: usize,
}

impl Traffic {
    /// To the gateway at `url`, signed with the source's secret.
    ///
    /// # Errors
    ///
    /// When the URL holds no address.
    pub fn new(url: &str, secret: &str, prefix: &str, workflows: u64, payload: usize) -> anyhow::Result<Self> {
        let to = url.strip_prefix("http://").context("not an http address")?.parse()?;
        Ok(Self { to, secret: secret.to_owned(), prefix: prefix.to_owned(), workflows, payload })
    }
}

/// Result of a load.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// From the first byte written to the last byte read; in an open loop from when the request was due.
    pub latencies: Latencies,
    /// How long it took in all.
    pub elapsed: Duration,
}

impl Outcome {
    /// Accepted events a second.
    pub fn rate(&self) -> f64 {
        self.latencies.count() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }
}

/// One connection of a sender.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    traffic: Arc<Traffic>,
    key: Hmac<Sha256>,
    /// The number of the next event, shared by all connections of a run.
    next: Arc<AtomicU64>,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// No process listens, or the secret is invalid.
    pub async fn open(traffic: Arc<Traffic>, next: Arc<AtomicU64>) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(traffic.to).await.with_context(|| traffic.to.to_string())?;
        socket.set_nodelay(true)?;
        let secret = traffic.secret.strip_prefix("whsec_").unwrap_or(&traffic.secret);
        let key = BASE64_STANDARD.decode(secret).context("the secret is not base64")?;
        let key = Hmac::new_from_slice(&key).map_err(|_| anyhow!("the secret is no key"))?;
        Ok(Self { socket, traffic, key, next, request: Vec::new(), answer: Vec::new() })
    }

    /// Sends the next event and reads the answer; its status.
    ///
    /// # Errors
    ///
    /// When the connection breaks, or the answer is none.
    pub async fn exchange(&mut self) -> anyhow::Result<u16> {
        self.write_request();
        self.socket.write_all(&self.request).await?;
        self.read_answer().await
    }

    /// Sends the next event byte by byte group, with a pause between them, and reads the answer; its status.
    ///
    /// # Errors
    ///
    /// As [`exchange`](Self::exchange).
    pub async fn exchange_slowly(&mut self, pieces: usize, pause: Duration) -> anyhow::Result<u16> {
        self.write_request();
        let request = std::mem::take(&mut self.request);
        for piece in request.chunks(request.len().div_ceil(pieces.max(1)).max(1)) {
            self.socket.write_all(piece).await?;
            tokio::time::sleep(pause).await;
        }
        self.request = request;
        self.read_answer().await
    }

    fn write_request(&mut self) {
        use std::io::Write as _;
        let Traffic { prefix, workflows, payload, .. } = &*self.traffic;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let workflow = rand::random::<u64>() % workflows.max(&1);
        let at = Timestamp::now().as_second();
        let start = format!(r#"{{"type":"bench.accept","data":{{"id":"{prefix}-{number}","pad":""#);
        let pad = payload.saturating_sub(start.len() + 3);
        let mut mac = self.key.clone();
        mac.update(format!("{prefix}-{number}.{at}.").as_bytes());
        let mut body = Vec::with_capacity(start.len() + pad + 3);
        body.extend_from_slice(start.as_bytes());
        body.resize(start.len() + pad, b'x');
        body.extend_from_slice(br#""}}"#);
        mac.update(&body);
        let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
        self.request.clear();
        // Into memory: nothing that could fail.
        let _ = write!(
            self.request,
            "POST /api/v1/webhooks/{SOURCE}/w-{workflow} HTTP/1.1\r\nhost: weft\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nwebhook-id: {prefix}-{number}\r\nwebhook-timestamp: {at}\r\n\
             webhook-signature: v1,{signature}\r\n\r\n",
            body.len()
        );
        self.request.extend_from_slice(&body);
    }

    async fn read_answer(&mut self) -> anyhow::Result<u16> {
        self.answer.clear();
        loop {
            if self.socket.read_buf(&mut self.answer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if let Some((status, length)) = parse(&self.answer)? {
                if self.answer.len() > length {
                    bail!("more came than was announced");
                }
                if self.answer.len() == length {
                    return Ok(status);
                }
            }
        }
    }
}

/// Status and whole length of an answer, once its head is there.
fn parse(answer: &[u8]) -> anyhow::Result<Option<(u16, usize)>> {
    let Some(message) = http1::message(answer)? else { return Ok(None) };
    let status = message.first_line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok(Some((status, message.end)))
}

/// A closed loop: each connection sends its next event when it has the answer to the last, for `time`.
///
/// # Errors
///
/// When a connection breaks, or an event is not answered with `status`.
pub async fn closed(traffic: Traffic, connections: usize, time: Duration, status: u16) -> anyhow::Result<Outcome> {
    let (traffic, next) = (Arc::new(traffic), Arc::new(AtomicU64::new(0)));
    let mut senders = JoinSet::new();
    let mut opened = Vec::with_capacity(connections);
    for _ in 0..connections {
        opened.push(Connection::open(traffic.clone(), next.clone()).await?);
    }
    let started = Instant::now();
    for mut connection in opened {
        senders.spawn(async move {
            let mut latencies = Latencies::new();
            while started.elapsed() < time {
                let sent = Instant::now();
                let answered = connection.exchange().await?;
                if answered != status {
                    let answer = String::from_utf8_lossy(&connection.answer).into_owned();
                    bail!("answered {answered} instead of {status}: {answer}");
                }
                latencies.record(sent.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let latencies = gather(senders).await?;
    Ok(Outcome { latencies, elapsed: started.elapsed() })
}

/// An open loop: `rate` events a second for `warm_up`, of which none counts, and for `time`, spread evenly over the
/// connections, each event at its time independent of the others. An event whose connection still waits for an earlier
/// answer is late, and its lateness counts.
///
/// # Errors
///
/// As [`closed`].
pub async fn open(
    traffic: Traffic,
    connections: usize,
    rate: u64,
    (warm_up, time): (Duration, Duration),
    status: u16,
) -> anyhow::Result<Outcome> {
    let (traffic, next) = (Arc::new(traffic), Arc::new(AtomicU64::new(0)));
    let mut senders = JoinSet::new();
    let mut opened = Vec::with_capacity(connections);
    for _ in 0..connections {
        opened.push(Connection::open(traffic.clone(), next.clone()).await?);
    }
    let started = Instant::now();
    let between = Duration::from_secs(1).mul_f64(connections as f64 / rate.max(1) as f64);
    for (index, mut connection) in opened.into_iter().enumerate() {
        let offset = between.mul_f64(index as f64 / connections as f64);
        senders.spawn(async move {
            let mut latencies = Latencies::new();
            let mut due = started + offset;
            while due < started + warm_up + time {
                sleep_until(due.into()).await;
                let answered = connection.exchange().await?;
                if answered != status {
                    bail!("answered {answered} instead of {status}");
                }
                if due >= started + warm_up {
                    latencies.record(due.elapsed());
                }
                due += between;
            }
            anyhow::Ok(latencies)
        });
    }
    let latencies = gather(senders).await?;
    Ok(Outcome { latencies, elapsed: started.elapsed().saturating_sub(warm_up) })
}

async fn gather(mut senders: JoinSet<anyhow::Result<Latencies>>) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new();
    while let Some(sender) = senders.join_next().await {
        latencies.add(&sender??);
    }
    Ok(latencies)
}

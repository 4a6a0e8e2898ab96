//! A receiver of deliveries that costs little: bare HTTP/1.1, nothing verified. It answers by a rule and counts.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::bail;
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use super::http1;

/// Interval of the looks at the progress.
const LOOK: Duration = Duration::from_millis(2);

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// When its first byte was read.
    pub first_byte_at: Timestamp,
    /// Body of the request.
    pub body: &'a [u8],
}

/// A rule: the status that a request is answered with.
type Rule = dyn Fn(Request<'_>) -> u16 + Send + Sync;

/// Runs until it is dropped.
#[derive(Debug)]
pub struct BareReceiver {
    address: SocketAddr,
    answered: Arc<AtomicU64>,
    _server: AbortOnDropHandle<()>,
}

impl BareReceiver {
    /// Listens at a free port of loopback.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn start(rule: impl Fn(Request<'_>) -> u16 + Send + Sync + 'static) -> anyhow::Result<Self> {
        Self::answering_after(Duration::ZERO, rule).await
    }

    /// As [`start`](Self::start), with this time between a request and its answer.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn answering_after(
        delay: Duration,
        rule: impl Fn(Request<'_>) -> u16 + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let answered = Arc::new(AtomicU64::new(0));
        let (rule, counted): (Arc<Rule>, _) = (Arc::new(rule), Arc::clone(&answered));
        // Its connections end when their clients do.
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, delay, Arc::clone(&rule), Arc::clone(&counted)));
            }
        });
        Ok(Self { address, answered, _server: AbortOnDropHandle::new(server) })
    }

    /// `http://<address>/`.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Events of the requests answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until requests with this number of events have been answered.
    ///
    /// # Errors
    ///
    /// When none has come for `patience`.
    pub async fn until(&self, count: u64, patience: Duration) -> anyhow::Result<()> {
        let (mut seen, mut since) = (self.answered(), Instant::now());
        while seen < count {
            sleep(LOOK).await;
            let now = self.answered();
            if now > seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > patience {
                bail!("{now} events of {count} have come, and none for {} s", patience.as_secs());
            }
        }
        Ok(())
    }
}

/// One connection. Who breaks it off or says what makes no sense is not answered.
async fn serve(
    mut socket: TcpStream,
    delay: Duration,
    rule: Arc<Rule>,
    answered: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let mut buffer = Vec::new();
    let mut first_byte_at = Timestamp::now();
    loop {
        let begins = buffer.is_empty();
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        if begins {
            first_byte_at = Timestamp::now();
        }
        let Some(message) = http1::message(&buffer)?.filter(|message| message.end <= buffer.len()) else { continue };
        let status = rule(Request { first_byte_at, body: &buffer[message.body_at..message.end] });
        let (end, events) = (message.end, http1::number(message.headers, "weft-batch-size").unwrap_or(1));
        buffer.drain(..end);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        socket.write_all(format!("HTTP/1.1 {status} \r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
        answered.fetch_add(events as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_by_the_rule_and_counted() {
        let receiver = BareReceiver::start(|request| if request.body == b"ab" { 500 } else { 200 }).await.unwrap();
        let mut socket = TcpStream::connect(receiver.address).await.unwrap();
        for (body, status) in [("ab", "500"), ("c", "200")] {
            let request = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 128];
            let read = socket.read(&mut answer).await.unwrap();
            let answer = std::str::from_utf8(&answer[..read]).unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
        }
        receiver.until(2, Duration::from_secs(10)).await.unwrap();
    }
}

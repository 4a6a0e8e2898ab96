//! Connections to receivers, with the state that decides whether one may be used again and whether a request that failed
//! on one may be repeated.
//!
//! A receiver may close an idle HTTP/1.1 connection at any time, also while a request is on its way to it. So a connection
//! is closed from this side before receivers commonly close it, or before this receiver states that it will.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{future::BoxFuture, task::AtomicWaker};
use http::{Extensions, Uri, uri::Scheme};
use hyper_util::{
    client::legacy::connect::{CaptureConnection, Connected, Connection},
    rt::TokioIo,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until, timeout},
};
use tower::Service;

/// Idle timeout of an HTTP/1.1 connection where the receiver states none: below the 5 s of Node.js, Apache and
/// uvicorn.
const IDLE_DEFAULT: Duration = Duration::from_secs(4);
/// Longest idle timeout, also where the receiver keeps connections longer.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(60);
/// Margin by which a connection is closed before the receiver closes it: the time of a request on its way.
const IDLE_MARGIN: Duration = Duration::from_secs(1);

/// State of one connection, shared by the connection and the requests on it.
#[derive(Debug, Default)]
pub(super) struct ConnectionState {
    is_http2: AtomicBool,
    /// Whether it has carried a response.
    has_answered: AtomicBool,
    usage: Mutex<Usage>,
    /// The task that drives the connection.
    driver: AtomicWaker,
}

/// Use of a connection. An HTTP/1.1 connection is free for the next request once the response's last byte is read, which is
/// before the task of the first request reports that it is idle.
#[derive(Debug, Default)]
struct Usage {
    /// Whether something was written and nothing read since.
    is_unanswered: bool,
    /// When an idle connection closes; `None`: it is in use.
    closes_at: Option<Instant>,
}

impl ConnectionState {
    /// A response has arrived.
    pub fn answered(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
    }

    /// A response was read to its end, so that the connection is idle if it is HTTP/1.1 and no other request was written to it
    /// since. `keep_alive`: the value of the response's `Keep-Alive` header.
    pub fn idle(&self, keep_alive: Option<&str>) {
        let time = keep_alive.and_then(keep_alive_timeout).map_or(IDLE_DEFAULT, idle_time);
        let mut usage = self.usage();
        if !usage.is_unanswered {
            usage.closes_at = Some(Instant::now() + time);
            drop(usage);
            self.driver.wake();
        }
    }

    /// Whether a request that failed without a response may have been lost because the receiver closed the connection before it
    /// received the request: the connection has carried responses, but no byte since the request was written.
    pub fn may_have_been_closed_before(&self) -> bool {
        let untouched = self.is_http2() || self.usage().is_unanswered;
        self.has_answered.load(Ordering::Relaxed) && untouched
    }

    /// Whether a response with status 408 may be that of a receiver that closes an idle connection, not the response to the
    /// request that was on its way (RFC 9110, section 15.5.9).
    pub fn may_have_timed_out_idle(&self) -> bool {
        !self.is_http2() && self.has_answered.load(Ordering::Relaxed)
    }

    /// Closes it if it is idle.
    fn close_if_idle(&self) {
        let mut usage = self.usage();
        if usage.closes_at.is_some() {
            usage.closes_at = Some(Instant::now());
            drop(usage);
            self.driver.wake();
        }
    }

    /// Whether it is HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock()
    }
}

/// The open connections of each receiver, by host and port.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<HashMap<String, Vec<Weak<ConnectionState>>>>);

impl Connections {
    fn add(&self, receiver: String, state: &Arc<ConnectionState>) {
        let mut receivers = self.0.lock();
        if !receivers.contains_key(&receiver) {
            // Those of receivers that are no longer called.
            receivers.retain(|_, states| states.iter().any(|state| state.strong_count() > 0));
        }
        let states = receivers.entry(receiver).or_default();
        states.retain(|state| state.strong_count() > 0);
        states.push(Arc::downgrade(state));
    }

    /// Closes the idle HTTP/1.1 connections of a receiver: one of them was dead, and its cause, such as a restart or a middlebox
    /// that has dropped its state, applies to the others as well.
    pub fn close_idle(&self, receiver: &str) {
        let receivers = self.0.lock();
        let states = receivers.get(receiver).into_iter().flatten();
        states.filter_map(Weak::upgrade).for_each(|state| state.close_if_idle());
    }
}

/// The state of the connection that a request went to; `None`: there was none.
pub(super) fn state(captured: &CaptureConnection) -> Option<Arc<ConnectionState>> {
    let mut extras = Extensions::new();
    captured.connection_metadata().as_ref()?.get_extras(&mut extras);
    extras.remove::<Arc<ConnectionState>>()
}

/// Prevents reuse of the connection that a request went to.
pub(super) fn retire(captured: &CaptureConnection) {
    if let Some(connected) = captured.connection_metadata().as_ref() {
        connected.poison();
    }
}

/// The seconds in `Keep-Alive: timeout=5, max=1000`.
fn keep_alive_timeout(header: &str) -> Option<Duration> {
    header.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("timeout").then(|| value.parse().ok().map(Duration::from_secs))?
    })
}

/// The idle timeout of a connection whose receiver keeps it for `timeout`.
fn idle_time(timeout: Duration) -> Duration {
    timeout.saturating_sub(IDLE_MARGIN).max(timeout / 2).min(IDLE_MAX)
}

/// Timeout of a connection until it can take requests, with the handshakes of TLS and of a proxy. The client continues to
/// connect in the background when the attempt has got another connection.
const CONNECTING_MAX: Duration = Duration::from_secs(30);

/// A connector whose connections have a [`ConnectionState`].
#[derive(Debug, Clone)]
pub(super) struct TrackingConnector<C> {
    pub inner: C,
    pub connections: Arc<Connections>,
    /// Whether connections go to a forward proxy, so that requests for `http` are in absolute form.
    pub is_proxied: bool,
    /// Whether they are HTTP/2 without negotiation.
    pub is_http2: bool,
}

impl<C> Service<Uri> for TrackingConnector<C>
where
    C: Service<Uri>,
    C::Response: Connection,
    C::Error: From<io::Error>,
    C::Future: Send + 'static,
{
    type Response = TokioIo<TrackedConnection<TokioIo<C::Response>>>;
    type Error = C::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let receiver = uri.authority().map(ToString::to_string).unwrap_or_default();
        let is_absolute = self.is_proxied && uri.scheme() == Some(&Scheme::HTTP);
        let (connecting, connections) = (self.inner.call(uri), Arc::clone(&self.connections));
        let is_http2 = self.is_http2;
        Box::pin(async move {
            let connected = timeout(CONNECTING_MAX, connecting).await;
            let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "the connection was not ready in time");
            let connection = TrackedConnection::new(connected.map_err(slow)??, is_absolute);
            connection.state.is_http2.fetch_or(is_http2, Ordering::Relaxed);
            connections.add(receiver, &connection.state);
            Ok(TokioIo::new(connection))
        })
    }
}

/// A connection that reports reads and writes to its [`ConnectionState`], and ends at its idle timeout.
#[derive(Debug)]
pub(super) struct TrackedConnection<T> {
    inner: T,
    state: Arc<ConnectionState>,
    idle: Pin<Box<Sleep>>,
    is_absolute: bool,
}

impl<T: Connection> TrackedConnection<TokioIo<T>> {
    fn new(inner: T, is_absolute: bool) -> Self {
        let state = ConnectionState::default();
        state.is_http2.store(inner.connected().is_negotiated_h2(), Ordering::Relaxed);
        let idle = Box::pin(sleep_until(Instant::now()));
        Self { inner: TokioIo::new(inner), state: Arc::new(state), idle, is_absolute }
    }
}

impl<T: Connection> Connection for TrackedConnection<T> {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.is_absolute).extra(Arc::clone(&self.state))
    }
}

impl<T> TrackedConnection<T> {
    /// Ready at the idle timeout.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.state.driver.register(cx.waker());
        let closes_at = self.state.usage().closes_at;
        let Some(closes_at) = closes_at.filter(|_| !self.state.is_http2()) else { return Poll::Pending };
        // The timer has a resolution of a millisecond, within which a request may be written.
        if closes_at <= Instant::now() {
            return Poll::Ready(());
        }
        if self.idle.deadline() != closes_at {
            self.idle.as_mut().reset(closes_at);
        }
        self.idle.as_mut().poll(cx)
    }

    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) {
            *self.state.usage() = Usage { is_unanswered: true, closes_at: None };
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TrackedConnection<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                if buffer.filled().len() > before {
                    self.state.usage().is_unanswered = false;
                }
                Poll::Ready(read)
            }
            // Ready without a byte is the end of the connection.
            Poll::Pending => self.poll_idle(cx).map(Ok),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TrackedConnection<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wrote(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.wrote(&written);
        written
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    type Client = TrackedConnection<TokioIo<TokioIo<TcpStream>>>;

    async fn connected() -> (Client, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (receiver, _) = listener.accept().await.expect("the same connection");
        (TrackedConnection::new(TokioIo::new(client), false), receiver)
    }

    async fn exchange(client: &mut Client, receiver: &mut TcpStream) {
        client.write_all(b"request").await.expect("a request is written");
        receiver.write_all(b"response").await.expect("a response is written");
        client.read_exact(&mut [0; 8]).await.expect("the response is read");
    }

    /// Guards: a receiver that accepts connections and never completes a handshake holds none for ever: the client continues
    /// to connect when the attempt has ended.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_never_ready_is_given_up() {
        let never = tower::service_fn(|_: Uri| std::future::pending::<io::Result<TokioIo<TcpStream>>>());
        let connections = Arc::default();
        let mut connector = TrackingConnector { inner: never, connections, is_proxied: false, is_http2: false };
        let began = Instant::now();
        let connected = timeout(10 * CONNECTING_MAX, connector.call(Uri::from_static("https://receiver.test/"))).await;
        let error = connected.expect("it ends").map(drop).expect_err("no connection");
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, CONNECTING_MAX));
    }

    /// Guards: one attempt is one request. A connection that carries a request is not closed as an idle one, since the
    /// request would be repeated though the receiver has it.
    #[tokio::test]
    async fn a_connection_that_is_used_again_before_it_is_said_to_be_idle_stays_open() {
        let (mut client, mut receiver) = connected().await;
        exchange(&mut client, &mut receiver).await;
        client.write_all(b"request").await.expect("the next request is written");
        // The task of the first request reports it only now.
        client.state.idle(None);
        client.state.close_if_idle();
        let mut buffer = [0; 8];
        assert!(poll!(Box::pin(client.read(&mut buffer))).is_pending(), "closed under the second request");
        receiver.write_all(b"response").await.expect("a response is written");
        assert_eq!(client.read(&mut buffer).await.expect("a response is read"), 8);
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_when_another_one_turns_out_to_be_dead() {
        let (mut client, mut receiver) = connected().await;
        exchange(&mut client, &mut receiver).await;
        client.state.idle(None);
        let mut buffer = [0; 8];
        assert!(poll!(Box::pin(client.read(&mut buffer))).is_pending(), "closed too early");
        client.state.close_if_idle();
        assert_eq!(client.read(&mut buffer).await.expect("its end is read"), 0);
    }
}

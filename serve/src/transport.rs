//! The byte stream below hyper.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use crate::{
    connection_limit::ConnectionPermit,
    framing::Framing,
    request::{Answer, Malformed, to_bytes},
};

/// Size of the buffer for discarded bytes.
const DISCARD_BYTES: usize = 8 * 1024;

/// State that a connection's byte stream and its requests share.
pub(crate) struct Wire {
    permit: ConnectionPermit,
    framing: Mutex<Framing>,
    /// Whether the client may still be sending a body that no route reads.
    unread: AtomicBool,
    answer: Answer,
    linger: Linger,
}

/// Duration of a lingering close: RFC 9112 section 9.6 asks a server that has not read everything to continue reading, since
/// closing would reset the connection and the client would not see the answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linger {
    /// Maximum.
    pub total: Duration,
    /// Maximum without a byte.
    pub idle: Duration,
}

impl Wire {
    pub fn new(permit: ConnectionPermit, answer: Answer, linger: Linger) -> Self {
        Self { permit, framing: Mutex::default(), unread: AtomicBool::new(false), answer, linger }
    }

    pub fn permit(&self) -> &ConnectionPermit {
        &self.permit
    }

    /// Whether the framing of the next request is in conflict; asked once for each.
    pub fn next_conflict(&self) -> bool {
        // hyper reads this request only after the earlier body.
        self.unread.store(false, Ordering::Relaxed);
        self.framing().pop_conflict().unwrap_or_default()
    }

    /// A request's body was dropped before its end.
    pub fn leave_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    /// The answer to a request that reaches no route.
    pub fn answer(&self, malformed: Malformed) -> http::Response<bytes::Bytes> {
        (self.answer)(self.permit.address(), malformed)
    }

    fn framing(&self) -> MutexGuard<'_, Framing> {
        self.framing.lock()
    }
}

/// A byte stream below hyper: framing is observed, and hyper's automatic answers are replaced.
pub(crate) struct Transport<S> {
    stream: S,
    wire: Arc<Wire>,
    /// An answer that replaces hyper's, and the number of bytes written.
    replacement: Vec<u8>,
    written: usize,
    closing: Closing,
}

enum Closing {
    Open,
    Lingering { total: Pin<Box<Sleep>>, idle: Pin<Box<Sleep>> },
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport<S> {
    pub fn new(stream: S, wire: Arc<Wire>) -> Self {
        Self { stream, wire, replacement: Vec::new(), written: 0, closing: Closing::Open }
    }

    /// Replaces hyper's automatic answer.
    fn replace(&mut self, bytes: &[u8]) -> bool {
        // hyper answers automatically only between requests; bytes within one are a route's.
        if !self.wire.permit.is_idle() || self.wire.framing().is_http_2() {
            return false;
        }
        let Some(malformed) = automatic(bytes) else { return false };
        self.wire.leave_unread();
        self.replacement = to_bytes(&self.wire.answer(malformed));
        self.written = 0;
        true
    }

    fn poll_replacement(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.replacement.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.replacement[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and discards until the client has closed or the linger time is over.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Closing::Lingering { total, idle } = &mut self.closing else { return Poll::Ready(()) };
        loop {
            if total.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            let mut bytes = [MaybeUninit::uninit(); DISCARD_BYTES];
            let mut bytes = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut bytes) {
                Poll::Ready(Ok(())) if !bytes.filled().is_empty() => {
                    idle.as_mut().reset(Instant::now() + self.wire.linger.idle);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return idle.as_mut().poll(context),
            }
        }
    }
}

/// The reason, if these bytes are hyper's automatic answer to a head that it cannot read.
fn automatic(bytes: &[u8]) -> Option<Malformed> {
    let empty = bytes.ends_with(b"\r\n\r\n") && bytes.windows(21).any(|window| window == b"\r\ncontent-length: 0\r\n");
    let status = bytes.strip_prefix(b"HTTP/1.1 ").or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?.get(..4)?;
    match status {
        b"400 " if empty => Some(Malformed::Unreadable),
        b"431 " | b"414 " if empty => Some(Malformed::HeadTooLarge),
        _ => None,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.wire.framing().read(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_replacement(context))?;
        if self.replace(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_replacement(context))?;
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        if let (Some(only), None) = (filled.next(), filled.next())
            && self.replace(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.closing, Closing::Open) {
            ready!(self.poll_replacement(context))?;
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            if !self.wire.unread.load(Ordering::Relaxed) || self.wire.framing().is_http_2() {
                return Poll::Ready(Ok(()));
            }
            let Linger { total, idle } = self.wire.linger;
            let (total, idle) = (Box::pin(sleep(total)), Box::pin(sleep(idle)));
            self.closing = Closing::Lingering { total, idle };
        }
        self.poll_linger(context).map(Ok)
    }
}

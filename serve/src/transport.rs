//! The byte stream below hyper.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use crate::{
    framing::Framing,
    places::Place,
    request::{Answer, Malformed, to_bytes},
};

/// Bytes thrown away with one read.
const DISCARD_BYTES: usize = 8 * 1024;

/// What a connection's byte stream and its requests know of each other.
pub(crate) struct Wire {
    place: Place,
    framing: Mutex<Framing>,
    /// Whether the client may still be sending what nobody will read.
    unread: AtomicBool,
    answer: Answer,
    linger: Linger,
}

/// How long a connection lingers: RFC 9112 section 9.6 asks a server that has not read everything to go on reading, since
/// closing would reset the connection and the client would never see the answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linger {
    /// At the most.
    pub total: Duration,
    /// While nothing comes.
    pub idle: Duration,
}

impl Wire {
    pub fn new(place: Place, answer: Answer, linger: Linger) -> Self {
        Self { place, framing: Mutex::default(), unread: AtomicBool::new(false), answer, linger }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether the framing of the next request is in conflict; asked once for each.
    pub fn next_conflict(&self) -> bool {
        // An earlier body has been read, or hyper would not have come to this request.
        self.unread.store(false, Ordering::Relaxed);
        self.framing().pop_conflict().unwrap_or_default()
    }

    /// A request's body was dropped before its end.
    pub fn leave_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    /// The answer to a request that reaches no route.
    pub fn answer(&self, malformed: Malformed) -> http::Response<bytes::Bytes> {
        (self.answer)(self.place.address(), malformed)
    }

    fn framing(&self) -> MutexGuard<'_, Framing> {
        self.framing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A byte stream that is observed.
pub(crate) struct Transport<S> {
    stream: S,
    wire: Arc<Wire>,
    /// An answer in place of hyper's, and how much of it was written.
    own: Vec<u8>,
    written: usize,
    closing: Closing,
}

enum Closing {
    Open,
    Lingering { total: Pin<Box<Sleep>>, idle: Pin<Box<Sleep>> },
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport<S> {
    pub fn new(stream: S, wire: Arc<Wire>) -> Self {
        Self { stream, wire, own: Vec::new(), written: 0, closing: Closing::Open }
    }

    /// Takes hyper's own answer and puts ours in its place.
    fn replace(&mut self, bytes: &[u8]) -> bool {
        // hyper answers by itself between requests only; what is sent within one is ours.
        if !self.wire.place.is_idle() || self.wire.framing().is_http_2() {
            return false;
        }
        let Some(malformed) = automatic(bytes) else { return false };
        self.wire.leave_unread();
        self.own = to_bytes(&self.wire.answer(malformed));
        self.written = 0;
        true
    }

    fn poll_own(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.own.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.own[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and throws away until the client has closed, or for as long as a connection lingers.
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

/// hyper's own answer to a head that it cannot read.
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
        ready!(self.poll_own(context))?;
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
        ready!(self.poll_own(context))?;
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
        ready!(self.poll_own(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.closing, Closing::Open) {
            ready!(self.poll_own(context))?;
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

//! Spans of a distributed trace, as roles make them; the process exports them, if it is configured to.
//!
//! The context of a trace travels in `traceparent` (W3C Trace Context): of a request into the event's headers, and from there to
//! the worker. A process without an exporter makes no spans, and changes no `traceparent`.

use std::{fmt, sync::OnceLock};

use jiff::Timestamp;
use tokio::sync::mpsc;

/// Spans that may wait for the exporter; later ones are dropped and counted.
pub const QUEUE_SPANS: usize = 8192;
/// Spans that were dropped since the exporter did not keep up.
pub const DROPPED: &str = "weft_trace_spans_dropped_total";

/// Where spans go, once per process.
static EXPORT: OnceLock<Export> = OnceLock::new();

#[derive(Debug)]
struct Export {
    spans: mpsc::Sender<Span>,
    /// The part of traces without a sender's context that is recorded, in 2^-32.
    sample: u64,
}

/// Identity of a span, as `traceparent` carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Context {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span in it.
    pub span_id: [u8; 8],
    /// Whether it is recorded.
    pub sampled: bool,
}

/// A finished span.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Name of the operation.
    pub name: &'static str,
    /// Its place among others.
    pub kind: Kind,
    /// Trace and span.
    pub context: Context,
    /// The span that it is a part of.
    pub parent: Option<[u8; 8]>,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Ids and results.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Place of a span among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A part of the process's work.
    Internal,
    /// It answers a request.
    Server,
    /// It makes a request.
    Client,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl Context {
    /// The context of a `traceparent` of version 00; `None`: it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_known = version == "00" && parts.next().is_none();
        let flags = bytes::<1>(flags)?;
        let context = Self { trace_id: bytes(trace)?, span_id: bytes(span)?, sampled: flags[0] & 1 == 1 };
        Some(context).filter(|context| is_known && context.trace_id != [0; 16] && context.span_id != [0; 8])
    }

    /// A part of this span, with a new identity.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: rand::random(), ..*self }
    }

    fn root(sampled: bool) -> Self {
        Self { trace_id: rand::random(), span_id: rand::random(), sampled }
    }
}

/// As `traceparent`.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.sampled))
    }
}

/// `N` bytes in lower-case hex.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != 2 * N || !is_hex {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// Exports spans from now on: those that the receiver gives. `sample`: the part of traces without a sender's context that is
/// recorded, from 0 to 1. `None`: the process exports already.
pub fn export(sample: f64) -> Option<mpsc::Receiver<Span>> {
    let (spans, exported) = mpsc::channel(QUEUE_SPANS);
    // Within the bounds of 64 bits.
    let sample = (sample.clamp(0.0, 1.0) * 4_294_967_296.0) as u64;
    EXPORT.set(Export { spans, sample }).ok().map(|()| exported)
}

/// Whether spans are exported.
pub fn is_exported() -> bool {
    EXPORT.get().is_some()
}

/// The context of a new span of a request with this `traceparent`, and the sender's span. `None`: nothing is exported.
pub fn begin(traceparent: Option<&str>) -> Option<(Context, Option<[u8; 8]>)> {
    let export = EXPORT.get()?;
    Some(match traceparent.and_then(Context::parse) {
        Some(sender) => (sender.child(), Some(sender.span_id)),
        None => (Context::root(u64::from(rand::random::<u32>()) < export.sample), None),
    })
}

/// The context that an event was stored with, if its spans are recorded.
pub fn recorded(traceparent: Option<&str>) -> Option<Context> {
    EXPORT.get()?;
    Context::parse(traceparent?).filter(|context| context.sampled)
}

/// Exports a span, if its trace is recorded. Never waits.
pub fn record(span: Span) {
    let Some(export) = EXPORT.get().filter(|_| span.context.sampled) else { return };
    if export.spans.try_send(span).is_err() {
        metrics::counter!(DROPPED).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_survives_and_anything_else_is_none() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = Context::parse(text).unwrap();
        assert_eq!((context.to_string().as_str(), context.sampled), (text, true));
        let child = context.child();
        assert!(child.trace_id == context.trace_id && child.span_id != context.span_id && child.sampled);
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-éf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(Context::parse(wrong), None, "{wrong}");
        }
    }

    /// Nothing is made where nothing is exported.
    #[test]
    fn without_an_exporter_there_are_no_spans() {
        assert!(!is_exported() && begin(None).is_none());
        assert!(recorded(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")).is_none());
    }
}

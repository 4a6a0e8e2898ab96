//! The part of OTLP 1 that is sent: `opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest`.
//!
//! Field numbers are those of the specification; messages and fields that are not sent are left out.

use weft_nats::position::nanos;
use weft_role::traces::{self, Kind};

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Spans by the process that made them.
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

/// `ResourceSpans`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceSpans {
    /// The process.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    /// The process's spans.
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

/// `Resource`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    /// Its name and version.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// `ScopeSpans`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ScopeSpans {
    /// The spans.
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

/// `Span`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Span {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    /// 8 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    /// 8 bytes, or none.
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    /// Name of the operation.
    #[prost(string, tag = "5")]
    pub name: String,
    /// 1 internal, 2 server, 3 client.
    #[prost(int32, tag = "6")]
    pub kind: i32,
    /// Unix nanoseconds.
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    /// Unix nanoseconds.
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    /// Ids and results.
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    /// Absent: not set.
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
}

/// `Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// Why it failed.
    #[prost(string, tag = "2")]
    pub message: String,
    /// 2: error.
    #[prost(int32, tag = "3")]
    pub code: i32,
}

/// `KeyValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// The name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

/// `AnyValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnyValue {
    /// The value.
    #[prost(oneof = "any_value::Value", tags = "1, 3")]
    pub value: Option<any_value::Value>,
}

/// The kinds of values.
pub mod any_value {
    /// A value.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Value {
        /// `string_value`.
        #[prost(string, tag = "1")]
        Text(String),
        /// `int_value`.
        #[prost(int64, tag = "3")]
        Number(i64),
    }
}

/// `STATUS_CODE_ERROR`.
const ERROR: i32 = 2;

/// The request that exports these spans.
pub fn request(spans: Vec<traces::Span>) -> Request {
    let text = |text: &str| traces::Value::Text(text.to_owned());
    let attributes = vec![
        attribute("service.name", text("weft")),
        attribute("service.version", text(env!("CARGO_PKG_VERSION"))),
        attribute("process.pid", traces::Value::Number(std::process::id().into())),
    ];
    let scope_spans = vec![ScopeSpans { spans: spans.into_iter().map(span).collect() }];
    Request { resource_spans: vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }] }
}

fn span(span: traces::Span) -> Span {
    Span {
        trace_id: span.context.trace_id.to_vec(),
        span_id: span.context.span_id.to_vec(),
        parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: span.name.to_owned(),
        kind: match span.kind {
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
        },
        start_time_unix_nano: nanos(span.start).max(0).unsigned_abs(),
        // Clocks of two processes may differ: no span ends before it began.
        end_time_unix_nano: nanos(span.end.max(span.start)).max(0).unsigned_abs(),
        attributes: span.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
        status: span.error.map(|message| Status { message, code: ERROR }),
    }
}

fn attribute(key: &str, value: traces::Value) -> KeyValue {
    let value = match value {
        traces::Value::Text(text) => any_value::Value::Text(text),
        traces::Value::Number(number) => any_value::Value::Number(i64::try_from(number).unwrap_or(i64::MAX)),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

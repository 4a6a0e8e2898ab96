//! Identification of an event: delivery id, workflow, type and time of a verified request, by the rules of its source.
//!
//! Pure: a request and a time in, an event to be numbered out. It runs after verification, so it is the first to read
//! the body.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use weft_nats::{envelope, event};
use weft_proto::{
    ids::{DELIVERY_ID_BYTES_MAX, EventId, InvalidId, WorkflowId},
    v1::{
        self, BodyKind, NoneScheme, OnIdReuse, ReplayGuard, Source, delivery_id_rule::From as DeliveryFrom,
        rule::From as RuleFrom,
    },
};
use weft_schema::pointer;
use weft_schemes::{IdLocation, Location, Verified, WebhookScheme};

use crate::sequencer::NewEvent;

#[cfg(test)]
mod tests;
mod visible;

pub(crate) use visible::{is_visible, workflow as visible_workflow};

/// The longest type, in bytes.
pub const TYPE_BYTES_MAX: usize = 256;
/// The most that kept headers may weigh, names and values: with percent-encoding they stay below the 64 KiB that NATS
/// takes as headers of one message.
pub const KEPT_HEADERS_BYTES_MAX: usize = 16 * 1024;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// How the events of one source are read out of its requests.
#[derive(Debug)]
pub struct Rules {
    source: String,
    delivery_id: DeliveryId,
    workflow: Option<Place>,
    event_type: Place,
    data_pointer: String,
    /// An event without data at the pointer has been reported.
    missing_data_reported: AtomicBool,
    json: bool,
    keep_headers: Vec<HeaderName>,
    receipt_on_id_reuse: bool,
    replay_guard: bool,
}

/// Where a value is taken from.
#[derive(Debug)]
enum Place {
    Pointer(String),
    Header(HeaderName),
    /// The first of these that is there.
    AnyHeader(&'static [HeaderName]),
    Fixed(String),
}

#[derive(Debug)]
enum DeliveryId {
    /// The one that the scheme signs.
    Signed,
    At(Place),
    /// Of the body.
    Digest,
    None,
}

/// A request that has been verified.
#[derive(Debug)]
pub struct Request<'a> {
    /// The workflow that the path names.
    pub path_workflow: Option<&'a str>,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Its raw body.
    pub body: &'a Bytes,
    /// The signed part.
    pub verified: &'a Verified,
    /// When it was received.
    pub received_at: Timestamp,
}

/// Why a request is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentifyError {
    /// The source takes JSON and this is none.
    #[error("the body is not one JSON value in UTF-8")]
    MalformedBody,
    /// The source takes JSON and this is a form.
    #[error("the body is a form and the source takes JSON; choose application/json as the content type at the sender")]
    FormBody,
    /// The JSON is nested too deeply for receivers to read.
    #[error("the body's JSON is nested more than {max} levels deep")]
    TooDeep {
        /// The most levels.
        max: usize,
    },
    /// Neither path nor rule names a workflow.
    #[error("no workflow id {place}; name it there or in the path")]
    MissingWorkflow {
        /// Where it was looked for.
        place: String,
    },
    /// The workflow id breaks a rule.
    #[error("the workflow id {0}")]
    InvalidWorkflow(InvalidId),
    /// No type, or one that breaks a rule.
    #[error("no type of 1 to {TYPE_BYTES_MAX} bytes without invisible characters {place}")]
    MissingType {
        /// Where it was looked for.
        place: String,
    },
    /// No delivery id, or one that breaks a rule.
    #[error("no delivery id of 1 to {DELIVERY_ID_BYTES_MAX} printable ASCII characters {place}")]
    MissingDeliveryId {
        /// Where it was looked for.
        place: String,
    },
    /// The headers that the source keeps are too large.
    #[error("the headers that the source keeps are larger than {KEPT_HEADERS_BYTES_MAX} bytes")]
    HeadersTooLarge,
}

impl Rules {
    /// Reads the rules of a source.
    ///
    /// # Errors
    ///
    /// In one line, what is wrong and what would be right.
    pub fn compile(source: &Source) -> Result<Self, String> {
        let scheme = source.verification.as_ref().and_then(|verification| verification.scheme.as_ref());
        // The verifier refuses a source without one.
        let scheme = scheme.map_or(&NoneScheme {} as &dyn WebhookScheme, weft_schemes::of);
        let event_type = place("type", source.r#type.as_ref())?;
        let event_type = event_type.unwrap_or_else(|| Place::of(scheme.event_type()));
        if !pointer::is_pointer(&source.data_pointer) {
            return Err(format!("data = {:?} is not an RFC 6901 pointer such as /data", source.data_pointer));
        }
        let keep_headers = source
            .keep_headers
            .iter()
            .map(|name| name.parse().map_err(|_| format!("keep_headers: {name:?} is not the name of a header")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            source: source.name.clone(),
            delivery_id: delivery_id(source, scheme)?,
            workflow: place("workflow", source.workflow.as_ref())?,
            event_type,
            data_pointer: source.data_pointer.clone(),
            missing_data_reported: AtomicBool::new(false),
            json: source.body() != BodyKind::Any,
            keep_headers,
            receipt_on_id_reuse: match source.on_id_reuse() {
                OnIdReuse::Receipt => true,
                OnIdReuse::Conflict => false,
                OnIdReuse::Unspecified => scheme.receipt_on_id_reuse(),
            },
            replay_guard: match source.replay_guard() {
                ReplayGuard::Body => true,
                ReplayGuard::Off => false,
                ReplayGuard::Unspecified => scheme.replay_guard(),
            },
        })
    }

    /// Checks how deeply a body's JSON is nested.
    ///
    /// # Errors
    ///
    /// [`IdentifyError::TooDeep`].
    pub fn check_depth(&self, body: &[u8], max: usize) -> Result<(), IdentifyError> {
        if self.json && pointer::depth(body) > max { Err(IdentifyError::TooDeep { max }) } else { Ok(()) }
    }

    /// The event that a request stands for.
    ///
    /// # Errors
    ///
    /// [`IdentifyError`].
    pub fn identify(&self, request: &Request<'_>) -> Result<NewEvent, IdentifyError> {
        if self.json && !pointer::is_json(request.body) {
            let form = header_text(request.headers, &http::header::CONTENT_TYPE).is_some_and(|text| is_form(&text));
            return Err(if form { IdentifyError::FormBody } else { IdentifyError::MalformedBody });
        }
        let workflow = self.workflow(request)?;
        let event_type = self.event_type(request)?;
        let delivery_id = self.delivery_id(request)?;
        Ok(NewEvent {
            id: delivery_id.as_deref().map_or_else(EventId::unique, |id| EventId::of_delivery(&self.source, id)),
            workflow,
            event_type,
            source: self.source.clone(),
            time: request.verified.timestamp.unwrap_or(request.received_at),
            received_at: request.received_at,
            delivery_id,
            content_type: self.content_type(request.headers),
            data_pointer: self.data_pointer.clone(),
            verified_by: request.verified.by(),
            traceparent: traceparent(request.headers),
            quarantine: None,
            kept_headers: self.kept_headers(request.headers)?,
            payload: request.body.clone(),
            receipt_on_id_reuse: self.receipt_on_id_reuse,
            replay_guard: self.replay_guard,
        })
    }

    /// The data pointer, where it finds nothing in an event: its receivers get `null`. Only for the first such event, so that
    /// a source with a wrong pointer is reported once.
    pub fn missing_data(&self, event: &NewEvent) -> Option<&str> {
        let pointer = self.data_pointer.as_str();
        let is_missing = !pointer.is_empty()
            && self.json
            && !self.missing_data_reported.load(Ordering::Relaxed)
            && pointer::find(&event.payload, pointer).is_none();
        (is_missing && !self.missing_data_reported.swap(true, Ordering::Relaxed)).then_some(pointer)
    }

    fn workflow(&self, request: &Request<'_>) -> Result<WorkflowId, IdentifyError> {
        let named = match (request.path_workflow, &self.workflow) {
            (Some(path), _) => Some(path.to_owned()),
            (None, Some(place)) => place.read(request),
            (None, None) => None,
        };
        let named = named.ok_or_else(|| IdentifyError::MissingWorkflow { place: describe(self.workflow.as_ref()) })?;
        visible_workflow(named).map_err(IdentifyError::InvalidWorkflow)
    }

    fn event_type(&self, request: &Request<'_>) -> Result<String, IdentifyError> {
        self.event_type
            .read(request)
            .filter(|text| is_type(text))
            .ok_or_else(|| IdentifyError::MissingType { place: self.event_type.to_string() })
    }

    fn delivery_id(&self, request: &Request<'_>) -> Result<Option<String>, IdentifyError> {
        let (found, place) = match &self.delivery_id {
            DeliveryId::None => return Ok(None),
            DeliveryId::Digest => return Ok(Some(hex::encode(Sha256::digest(request.body)))),
            DeliveryId::Signed => (request.verified.id.clone(), "among the signed headers".to_owned()),
            DeliveryId::At(place) => (place.read(request), place.to_string()),
        };
        found.filter(|id| is_delivery_id(id)).map(Some).ok_or(IdentifyError::MissingDeliveryId { place })
    }

    /// If the body is known to be JSON, it gets a JSON media type, even if the sender names another one.
    fn content_type(&self, headers: &HeaderMap) -> String {
        let named = header_text(headers, &http::header::CONTENT_TYPE);
        match named {
            Some(named) if !self.json || envelope::is_json(&named) => named,
            _ if self.json => event::JSON.to_owned(),
            _ => "application/octet-stream".to_owned(),
        }
    }

    fn kept_headers(&self, headers: &HeaderMap) -> Result<Vec<(String, String)>, IdentifyError> {
        let kept: Vec<_> = self
            .keep_headers
            .iter()
            .filter_map(|name| Some((name.as_str().to_owned(), header_text(headers, name)?)))
            .collect();
        let bytes: usize = kept.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > KEPT_HEADERS_BYTES_MAX { Err(IdentifyError::HeadersTooLarge) } else { Ok(kept) }
    }
}

impl Place {
    fn read(&self, request: &Request<'_>) -> Option<String> {
        match self {
            Self::Pointer(pointer) => pointer::scalar(request.body, pointer).map(Into::into),
            Self::Header(name) => header_text(request.headers, name),
            Self::AnyHeader(names) => names.iter().find_map(|name| header_text(request.headers, name)),
            Self::Fixed(text) => Some(text.clone()),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pointer(pointer) if pointer.is_empty() => f.write_str("as the whole body"),
            Self::Pointer(pointer) => write!(f, "at {pointer} of the body"),
            Self::Header(name) => write!(f, "in header {name}"),
            Self::AnyHeader(names) => {
                let names: Vec<_> = names.iter().map(HeaderName::as_str).collect();
                write!(f, "in header {}", names.join(" or "))
            }
            Self::Fixed(_) => f.write_str("in the source's rule"),
        }
    }
}

fn describe(place: Option<&Place>) -> String {
    place.map_or_else(|| "by a rule of the source".to_owned(), Place::to_string)
}

/// Compiles a rule; `None` where there is none.
fn place(key: &str, rule: Option<&v1::Rule>) -> Result<Option<Place>, String> {
    rule.and_then(|rule| rule.from.as_ref())
        .map(|from| match from {
            RuleFrom::Pointer(pointer) => pointer_place(key, pointer),
            RuleFrom::Header(name) => header_place(key, name),
            RuleFrom::Fixed(text) => Ok(Place::Fixed(text.clone())),
        })
        .transpose()
}

fn pointer_place(key: &str, text: &str) -> Result<Place, String> {
    if pointer::is_pointer(text) {
        Ok(Place::Pointer(text.to_owned()))
    } else {
        Err(format!("{key}: {text:?} is not an RFC 6901 pointer such as /data/id"))
    }
}

fn header_place(key: &str, name: &str) -> Result<Place, String> {
    name.parse().map(Place::Header).map_err(|_| format!("{key}: {name:?} is not the name of a header"))
}

/// The rule of a source, or its scheme's own.
fn delivery_id(source: &Source, scheme: &dyn WebhookScheme) -> Result<DeliveryId, String> {
    match source.delivery_id.as_ref().and_then(|rule| rule.from.as_ref()) {
        Some(DeliveryFrom::Header(name)) => Ok(match header_place("delivery_id", name)? {
            // The header may belong to the other header family, which the sender did not sign.
            Place::Header(name) if scheme.signs_id_in(&name) => DeliveryId::Signed,
            place => DeliveryId::At(place),
        }),
        Some(DeliveryFrom::Pointer(pointer)) => pointer_place("delivery_id", pointer).map(DeliveryId::At),
        Some(DeliveryFrom::Digest(_)) => Ok(DeliveryId::Digest),
        Some(DeliveryFrom::None(_)) => Ok(DeliveryId::None),
        None => scheme
            .delivery_id()
            .map(DeliveryId::of)
            .ok_or_else(|| "delivery_id: the scheme defines none; name a header or a pointer, digest, or none".into()),
    }
}

impl Place {
    fn of(location: Location) -> Self {
        match location {
            Location::Pointer(pointer) => Self::Pointer(pointer.into()),
            Location::Header(names) => Self::AnyHeader(names),
        }
    }
}

impl DeliveryId {
    fn of(location: IdLocation) -> Self {
        match location {
            IdLocation::Signed => Self::Signed,
            IdLocation::At(location) => Self::At(Place::of(location)),
        }
    }
}

/// A header's value where it is text; the first of several.
fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok().map(str::to_owned)
}

/// The W3C trace context of a request, where it has its form; any other is dropped, as the recommendation says.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<String> {
    header_text(headers, &TRACEPARENT).filter(|text| is_traceparent(text))
}

/// Whether a text has the form of a W3C trace context.
pub(crate) fn is_traceparent(text: &str) -> bool {
    let hex = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    hex && text.split('-').map(str::len).eq([2, 32, 16, 2])
}

/// Whether a media type is that of a form.
fn is_form(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    ["application/x-www-form-urlencoded", "multipart/form-data"].iter().any(|form| essence.eq_ignore_ascii_case(form))
}

/// Whether a text can be a type.
pub(crate) fn is_type(text: &str) -> bool {
    (1..=TYPE_BYTES_MAX).contains(&text.len()) && is_visible(text)
}

/// Whether a text can be a delivery id.
pub(crate) fn is_delivery_id(text: &str) -> bool {
    (1..=DELIVERY_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

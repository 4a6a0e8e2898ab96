//! A CloudEvent as one JSON object, attributes and data together.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use weft_nats::{envelope, event};
use weft_schema::pointer;

use super::{Draft, attributes::Attributes, check_json, json, malformed};
use crate::http::error::Problem;

const DATA: &str = "data";
const DATA_BASE64: &str = "data_base64";

/// Reads one. Its data is copied out: a small one does not keep a large body in memory while it waits.
pub(super) fn read(text: &str) -> Result<Draft, Problem> {
    let mut members = json::members(text)?;
    let (data, encoded) = (members.remove(DATA), members.remove(DATA_BASE64));
    let mut attributes = Attributes::default();
    for (name, value) in members {
        if let Some(value) = json::scalar(&name, value)? {
            attributes.insert(&name, value)?;
        }
    }
    // What the specification says of an event that names none.
    let content_type = attributes.take("datacontenttype").unwrap_or_else(|| event::JSON.to_owned());
    let data = match (data, encoded) {
        (Some(_), Some(_)) => return Err(malformed("both data and data_base64 are there; send one")),
        (Some(data), None) if envelope::is_json(&content_type) => Bytes::copy_from_slice(data.as_bytes()),
        (Some(data), None) => plain_text(data)?,
        (None, Some(encoded)) => {
            let data = pointer::scalar(encoded.as_bytes(), "").and_then(|text| STANDARD.decode(text.as_bytes()).ok());
            let data = Bytes::from(data.ok_or_else(|| malformed("data_base64 is not a string in base64"))?);
            check_json(&content_type, &data)?;
            data
        }
        (None, None) => Bytes::new(),
    };
    attributes.draft(content_type, data)
}

/// Data that is not JSON stands in a string.
fn plain_text(data: &str) -> Result<Bytes, Problem> {
    let text = data.starts_with('"').then(|| pointer::scalar(data.as_bytes(), "")).flatten();
    let text = text.ok_or_else(|| malformed("datacontenttype is not JSON, and data is not a string"))?;
    Ok(Bytes::from(text.into_owned()))
}

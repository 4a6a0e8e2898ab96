//! Values of an event, as text: the server converts them to the type of the column or parameter. Pure.

use std::error::Error;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use weft_nats::{envelope, event::Event};

use super::sql::Field;

/// The values of an event, in the order of [`Field::ALL`].
#[derive(Debug, Clone)]
pub(super) struct Row([Option<String>; Field::ALL.len()]);

/// A value as text; `None`: null.
#[derive(Debug)]
pub(super) struct Text<'a>(pub Option<&'a str>);

impl Row {
    pub fn new(event: &Event) -> Self {
        Self(Field::ALL.map(|field| value(event, field)))
    }

    pub fn get(&self, field: Field) -> Option<&str> {
        self.0[field as usize].as_deref()
    }
}

fn value(event: &Event, field: Field) -> Option<String> {
    Some(match field {
        Field::EventId => event.id.to_string(),
        Field::WorkflowId => event.workflow.as_str().to_owned(),
        Field::SequenceNumber => event.sequence_number.to_string(),
        Field::PreviousEventId => event.previous?.to_string(),
        Field::Type => event.event_type.clone(),
        Field::Source => event.source.clone(),
        Field::Time => event.time.to_string(),
        Field::ReceivedAt => event.received_at.to_string(),
        Field::Data => return data(event),
    })
}

/// `data` of the envelope; of a body that is not JSON an object with the envelope's `dataContentType` and `dataBase64`.
fn data(event: &Event) -> Option<String> {
    if event.payload.is_empty() {
        return None;
    }
    if envelope::has_json(event) {
        let data = envelope::data_of(event)?;
        // JSON is UTF-8.
        return String::from_utf8(data.to_vec()).ok();
    }
    let data = serde_json::json!({
        "dataContentType": event.content_type,
        "dataBase64": BASE64_STANDARD.encode(&event.payload),
    });
    Some(data.to_string())
}

/// The literal of an array of one field's values.
pub(super) fn array(rows: &[Row], field: Field) -> String {
    let mut literal = String::from("{");
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            literal.push(',');
        }
        let Some(value) = row.get(field) else {
            literal.push_str("NULL");
            continue;
        };
        literal.push('"');
        let mut rest = value;
        while let Some(at) = rest.find(['"', '\\']) {
            literal.push_str(&rest[..at]);
            literal.push('\\');
            literal.push_str(&rest[at..=at]);
            rest = &rest[at + 1..];
        }
        literal.push_str(rest);
        literal.push('"');
    }
    literal.push('}');
    literal
}

impl ToSql for Text<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Some(text) = self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

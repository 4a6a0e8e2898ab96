//! HMAC-SHA256 over a text that the configuration spells: header, prefix, encoding, and a template such as
//! `{timestamp}.{body}`. For senders that sign, but by no standard.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::{HmacScheme, SignatureEncoding, verification::Scheme};

use crate::{
    Form, Verified, Verify, VerifyError, WebhookScheme,
    keys::Keys,
    secrets::{check_literal, not_a_pair},
    verify::{check_window, required, tolerance, unix_seconds},
};

/// The template where the configuration gives none.
const TEMPLATE_DEFAULT: &str = "{body}";

pub(crate) const FORM: Form = Form {
    name: "hmac",
    keys: &["secrets", "tolerance", "header", "prefix", "encoding", "template", "timestamp_header", "id_header"],
    build: |settings| {
        Scheme::Hmac(HmacScheme {
            secrets: settings.secrets,
            header: settings.header,
            prefix: settings.prefix,
            encoding: settings.encoding.into(),
            template: settings.template.unwrap_or_else(|| TEMPLATE_DEFAULT.into()),
            timestamp_header: settings.timestamp_header,
            id_header: settings.id_header,
            tolerance_ms: settings.tolerance_ms,
        })
    },
};

impl WebhookScheme for HmacScheme {
    fn name(&self) -> &'static str {
        FORM.name
    }

    fn secrets(&self) -> Option<&Vec<String>> {
        Some(&self.secrets)
    }

    fn secrets_mut(&mut self) -> Option<&mut Vec<String>> {
        Some(&mut self.secrets)
    }

    fn tolerance_ms(&self) -> Option<u64> {
        self.tolerance_ms
    }

    fn check_secret(&self, text: &str) -> Result<(), String> {
        check_literal(text, not_a_pair)
    }

    fn signing_headers(&self) -> Vec<&str> {
        vec![&self.header, &self.timestamp_header, &self.id_header]
    }

    fn compile(&self) -> Result<Box<dyn Verify>, String> {
        Template::compile(self).map(|template| Box::new(template) as Box<dyn Verify>)
    }
}

/// A piece of the signed text.
#[derive(Debug, PartialEq, Eq)]
enum Segment {
    Text(String),
    Id,
    Timestamp,
    Body,
}

#[derive(Debug)]
struct Template {
    keys: Keys,
    header: HeaderName,
    prefix: String,
    encoding: SignatureEncoding,
    segments: Vec<Segment>,
    /// The header that `{id}` stands for, where the template has it.
    id: Option<HeaderName>,
    /// The header that `{timestamp}` stands for, where the template has it.
    timestamp: Option<HeaderName>,
    tolerance: Duration,
}

impl Template {
    fn compile(scheme: &HmacScheme) -> Result<Self, String> {
        let template = if scheme.template.is_empty() { TEMPLATE_DEFAULT } else { &scheme.template };
        let segments = parse(template)?;
        if !segments.contains(&Segment::Body) {
            return Err(format!("template {template:?} does not sign the body; it must contain {{body}}"));
        }
        // Where an id begins and ends must be plain, or one signed text could be cut in two ways.
        let runs_on = |pair: &[Segment]| match pair {
            [Segment::Id, next] => !matches!(next, Segment::Text(_)),
            [previous, Segment::Id] => !matches!(previous, Segment::Text(_)),
            _ => false,
        };
        if segments.windows(2).any(runs_on) {
            return Err(format!(
                "template {template:?} must have text, such as a full stop, between {{id}} and the rest"
            ));
        }
        Ok(Self {
            keys: Keys::new(&scheme.secrets)?,
            header: header_name("header", &scheme.header)?,
            prefix: scheme.prefix.clone(),
            encoding: scheme.encoding(),
            id: placeholder(&segments, &Segment::Id, "id_header", &scheme.id_header)?,
            timestamp: placeholder(&segments, &Segment::Timestamp, "timestamp_header", &scheme.timestamp_header)?,
            segments,
            tolerance: tolerance(scheme.tolerance_ms),
        })
    }

    /// An id must not contain what sets it apart from the rest.
    fn check_id(&self, id: Option<&str>) -> Result<(), VerifyError> {
        let (Some(header), Some(id)) = (&self.id, id) else { return Ok(()) };
        let border = |pair: &[Segment]| match pair {
            [Segment::Id, Segment::Text(next)] => next.chars().next(),
            [Segment::Text(previous), Segment::Id] => previous.chars().next_back(),
            _ => None,
        };
        if self.segments.windows(2).filter_map(border).any(|border| id.contains(border)) {
            let rule = "must not contain the character that sets it apart in the signed text";
            return Err(VerifyError::Malformed { header: header.clone(), rule });
        }
        Ok(())
    }

    fn decode(&self, encoded: &str) -> Option<Vec<u8>> {
        match self.encoding {
            SignatureEncoding::Unspecified | SignatureEncoding::Hex => hex::decode(encoded).ok(),
            SignatureEncoding::Base64 => STANDARD.decode(encoded).ok(),
        }
    }
}

impl Verify for Template {
    fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Verified, VerifyError> {
        let signature = required(headers, &self.header)?;
        let id = self.id.as_ref().map(|header| required(headers, header)).transpose()?;
        let timestamp = self.timestamp.as_ref().map(|header| required(headers, header)).transpose()?;
        self.check_id(id)?;
        let tag = signature.strip_prefix(&self.prefix).and_then(|encoded| self.decode(encoded));
        let tag = tag.ok_or(VerifyError::Invalid)?;
        let parts = self.segments.iter().map(|segment| match segment {
            Segment::Text(text) => text.as_bytes(),
            Segment::Id => id.unwrap_or_default().as_bytes(),
            Segment::Timestamp => timestamp.unwrap_or_default().as_bytes(),
            Segment::Body => body,
        });
        let secret = self.keys.signer(parts, &[tag]).ok_or(VerifyError::Invalid)?;
        let timestamp = match (&self.timestamp, timestamp) {
            (Some(header), Some(text)) => {
                let timestamp = unix_seconds(header, text)?;
                check_window(timestamp, now, self.tolerance)?;
                Some(timestamp)
            }
            _ => None,
        };
        Ok(Verified::signed(FORM.name, secret, id, timestamp))
    }
}

/// Cuts a template at its placeholders.
fn parse(template: &str) -> Result<Vec<Segment>, String> {
    let mut segments = Vec::new();
    let mut rest = template;
    while let Some((text, tail)) = rest.split_once('{') {
        if !text.is_empty() {
            segments.push(Segment::Text(text.to_owned()));
        }
        let (name, tail) =
            tail.split_once('}').ok_or_else(|| format!("template {template:?} has a {{ without its }}"))?;
        segments.push(match name {
            "id" => Segment::Id,
            "timestamp" => Segment::Timestamp,
            "body" => Segment::Body,
            _ => return Err(format!("template {template:?}: {{{name}}} is none of {{id}}, {{timestamp}}, {{body}}")),
        });
        rest = tail;
    }
    if !rest.is_empty() {
        segments.push(Segment::Text(rest.to_owned()));
    }
    Ok(segments)
}

/// The header of a placeholder: needed where the template has it, refused where it would count for nothing.
fn placeholder(
    segments: &[Segment],
    wanted: &Segment,
    key: &str,
    configured: &str,
) -> Result<Option<HeaderName>, String> {
    if segments.contains(wanted) {
        return header_name(key, configured).map(Some);
    }
    if configured.is_empty() {
        return Ok(None);
    }
    let name = key.trim_end_matches("_header");
    Err(format!("{key} is not signed unless the template contains {{{name}}}; add it or leave {key} out"))
}

fn header_name(key: &str, configured: &str) -> Result<HeaderName, String> {
    configured.parse().map_err(|_| format!("{key} = {configured:?} is not the name of a header"))
}

//! A refused request, and what became of a retry, as they are printed.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use weft_proto::v1;

use crate::command::{
    output::Row,
    view::{Time, when},
};

/// A refused request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rejected {
    id: String,
    received_at: Option<Time>,
    source: String,
    code: String,
    detail: String,
    method: String,
    path: String,
    client: String,
    headers: Vec<Header>,
    body_size: u64,
    truncated: bool,
    redacted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

#[derive(Debug, Serialize)]
struct Header {
    name: String,
    value: String,
}

impl Rejected {
    /// As in a list, which has no bodies.
    pub fn listed(entry: v1::Rejected) -> Self {
        Self {
            received_at: Time::of(entry.received_at.as_ref()),
            id: entry.id,
            source: entry.source,
            code: entry.code,
            detail: entry.detail,
            method: entry.method,
            path: entry.path,
            client: entry.client,
            headers: entry
                .headers
                .into_iter()
                .map(|header| Header { name: header.name, value: header.value })
                .collect(),
            body_size: entry.body_size,
            truncated: entry.truncated,
            redacted: entry.redacted,
            body: None,
            body_base64: None,
        }
    }

    /// With its body: as text where it is one.
    pub fn whole(mut entry: v1::Rejected) -> Self {
        let (body, body_base64) = match String::from_utf8(std::mem::take(&mut entry.body)) {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
        };
        Self { body, body_base64, ..Self::listed(entry) }
    }

    /// For people: how it was answered, and the request.
    pub fn human(&self) -> String {
        let mut text = format!(
            "id         {}\nreceived   {}\nsource     {}\nclient     {}\nrefused    {}: {}\n\n{} {}\n",
            self.id,
            when(self.received_at.as_ref()),
            self.source,
            self.client,
            self.code,
            self.detail,
            self.method,
            self.path,
        );
        for Header { name, value } in &self.headers {
            // A text takes all.
            let _ = writeln!(text, "{name}: {value}");
        }
        if let Some(body) = self.body.as_ref().or(self.body_base64.as_ref()) {
            let _ = write!(text, "\n{body}");
        }
        if self.truncated {
            let _ = write!(text, "\n[only the beginning; the body has {} bytes]", self.body_size);
        }
        text
    }
}

impl Row for Rejected {
    const HEADINGS: &'static [&'static str] = &["ID", "RECEIVED", "SOURCE", "CODE", "PATH", "CLIENT", "BYTES"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            when(self.received_at.as_ref()),
            self.source.clone(),
            self.code.clone(),
            self.path.clone(),
            self.client.clone(),
            self.body_size.to_string(),
        ]
    }
}

/// Result of a retry.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Retried {
    id: String,
    /// `accepted`, `duplicate`, or `refused`.
    result: &'static str,
    event_id: Option<String>,
    code: Option<String>,
    detail: Option<String>,
}

impl From<v1::RetriedRejected> for Retried {
    fn from(retried: v1::RetriedRejected) -> Self {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let result = match (retried.code.is_empty(), retried.duplicate) {
            (false, _) => "refused",
            (true, true) => "duplicate",
            (true, false) => "accepted",
        };
        Self {
            id: retried.id,
            result,
            event_id: given(retried.event_id),
            code: given(retried.code),
            detail: given(retried.detail),
        }
    }
}

impl Row for Retried {
    const HEADINGS: &'static [&'static str] = &["ID", "RESULT", "EVENT", "CODE", "DETAIL"];

    fn cells(&self) -> Vec<String> {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        vec![self.id.clone(), self.result.to_owned(), text(&self.event_id), text(&self.code), text(&self.detail)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(body: &[u8]) -> v1::Rejected {
        v1::Rejected {
            id: "7".into(),
            code: "signature_invalid".into(),
            body: body.to_vec(),
            ..v1::Rejected::default()
        }
    }

    #[test]
    fn a_body_is_text_or_base64() {
        let value = |body: &[u8]| serde_json::to_value(Rejected::whole(entry(body))).unwrap();
        assert_eq!(value(b"{\"a\": 1.50}")["body"], "{\"a\": 1.50}");
        assert_eq!(value(b"\xff")["bodyBase64"], "/w==");
        assert_eq!(value(b"\xff").get("body"), None);
        assert_eq!(serde_json::to_value(Rejected::listed(entry(b"x"))).unwrap().get("body"), None);
    }
}

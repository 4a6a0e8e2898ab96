//! The context attributes of a CloudEvent 1.0, and what they are to us.
//!
//! | attribute | is |
//! |---|---|
//! | `id` | the delivery id |
//! | `source`, `type`, `time` | the same |
//! | `partitionkey`, else `workflowid`, else `subject` | the workflow |
//! | `datacontenttype` | the data's media type |
//! | `traceparent` | the trace context |
//! | others, `subject` too | kept with the event, as header `ce-<name>` |

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Draft, json, malformed};
use crate::{http::error::Problem, identify};

const SPECVERSION: &str = "1.0";
/// The longest name of an attribute: twice what the specification recommends.
const NAME_BYTES_MAX: usize = 40;
/// Where the workflow stands, the first that is there. The first two stand for nothing else, so they are not kept.
const WORKFLOW: [&str; 2] = ["partitionkey", "workflowid"];
const SUBJECT: &str = "subject";
/// Reserved attribute names.
const DATA: [&str; 2] = ["data", "data_base64"];

/// Attributes by name.
#[derive(Debug, Default)]
pub(super) struct Attributes(BTreeMap<String, String>);

impl Attributes {
    /// One more.
    pub fn insert(&mut self, name: &str, value: String) -> Result<(), Problem> {
        let proper = (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !proper || DATA.contains(&name) {
            let name = json::quoted(name);
            return Err(malformed(format!("{name} cannot be an attribute; their names are of a to z and 0 to 9")));
        }
        if value.contains(char::is_control) {
            return Err(malformed(format!("attribute {name} holds a control character")));
        }
        if self.0.insert(name.to_owned(), value).is_some() {
            return Err(malformed(format!("attribute {name} is there twice")));
        }
        Ok(())
    }

    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// The event that has these attributes and this data.
    pub fn draft(mut self, content_type: String, data: Bytes) -> Result<Draft, Problem> {
        match self.take("specversion").as_deref() {
            Some(SPECVERSION) => {}
            Some(other) => {
                return Err(malformed(format!("specversion {} is not {SPECVERSION}", json::quoted(other))));
            }
            None => return Err(malformed(format!("attribute specversion is missing; send {SPECVERSION}"))),
        }
        let source = self.take("source").ok_or_else(|| malformed("attribute source is missing"))?;
        // Without one it is refused as unusable.
        let delivery_id = Some(self.take("id").unwrap_or_default());
        let workflow = WORKFLOW.iter().find_map(|name| self.take(name)).or_else(|| self.0.get(SUBJECT).cloned());
        Ok(Draft {
            delivery_id,
            source: Some(source),
            event_type: self.take("type"),
            workflow,
            time: self.take("time").map(|text| json::time(&text)).transpose()?,
            traceparent: self.take("traceparent").filter(|text| identify::is_traceparent(text)),
            kept_headers: self.0.into_iter().map(|(name, value)| (format!("ce-{name}"), value)).collect(),
            content_type,
            data,
        })
    }
}

//! `[[source]]` as people write it, and the source of the catalog that it stands for.

use bytesize::ByteSize;
use serde::Deserialize;
use toml::Value;
use weft_nats::options::{SecretRef, Span};
use weft_proto::v1::{
    self, BodyKind, DeliveryIdRule, OnIdReuse, ReplayGuard, Rule, SignatureEncoding, Source, Verification,
    delivery_id_rule, rule, verification,
};
use weft_schemes::{Form, Settings, TOLERANCE_DEFAULT};

use super::{KeyPath, Problem, Secrets, data_schema::SchemaForm};

#[derive(Debug, Deserialize)]
pub(super) struct SourceForm {
    name: String,
    verify: VerifyForm,
    delivery_id: Option<Value>,
    workflow: Option<RuleForm>,
    r#type: Option<RuleForm>,
    data: Option<DataForm>,
    #[serde(default)]
    body: BodyForm,
    max_body: Option<ByteSize>,
    on_id_reuse: Option<ReuseForm>,
    replay_guard: Option<GuardForm>,
    #[serde(default)]
    keep_headers: Vec<String>,
    payload_retention: Option<Span>,
    #[serde(default)]
    schema: Vec<SchemaForm>,
}

#[derive(Debug, Deserialize)]
struct VerifyForm {
    scheme: String,
    #[serde(default)]
    secrets: Vec<SecretRef>,
    tolerance: Option<Span>,
    #[serde(default)]
    header: String,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    encoding: EncodingForm,
    template: Option<String>,
    #[serde(default)]
    timestamp_header: String,
    #[serde(default)]
    id_header: String,
    #[serde(default)]
    allow_unsigned: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingForm {
    #[default]
    Hex,
    Base64,
}

#[derive(Debug, Deserialize)]
struct RuleForm {
    pointer: Option<String>,
    header: Option<String>,
    fixed: Option<String>,
}

#[derive(Debug, Deserialize)]
struct DataForm {
    pointer: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BodyForm {
    #[default]
    Json,
    Any,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ReuseForm {
    Conflict,
    Receipt,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum GuardForm {
    Body,
    Off,
}

impl SourceForm {
    /// The source, with its secrets.
    pub(super) fn into_source(self, path: &KeyPath, secrets: &mut Secrets) -> Result<Source, Problem> {
        if self.max_body.is_some_and(|size| size.as_u64() == 0) {
            return Err((
                path.key("max_body"),
                "0 would refuse every request; leave it out for [gateway] max_body".into(),
            ));
        }
        if self.payload_retention.is_some_and(|span| span.0.is_zero()) {
            let problem = "0 would erase every payload at once; leave it out to keep them";
            return Err((path.key("payload_retention"), problem.into()));
        }
        let scheme = self.verify.into_scheme(&path.key("verify"), secrets)?;
        let delivery_id = delivery_id(self.delivery_id, &path.key("delivery_id"))?;
        let on_id_reuse = match self.on_id_reuse {
            Some(ReuseForm::Conflict) => OnIdReuse::Conflict,
            Some(ReuseForm::Receipt) => OnIdReuse::Receipt,
            None if weft_schemes::of(&scheme).receipt_on_id_reuse() => OnIdReuse::Receipt,
            None => OnIdReuse::Conflict,
        };
        let replay_guard = match self.replay_guard {
            Some(GuardForm::Body) => ReplayGuard::Body,
            Some(GuardForm::Off) => ReplayGuard::Off,
            None => ReplayGuard::Unspecified,
        };
        let body = match self.body {
            BodyForm::Json => BodyKind::Json,
            BodyForm::Any => BodyKind::Any,
        };
        let schemas = self.schema.into_iter().enumerate();
        let schemas = schemas.map(|(index, form)| form.into_rule(&path.key("schema").index(index)));
        Ok(Source {
            name: self.name,
            verification: Some(Verification { scheme: Some(scheme) }),
            delivery_id,
            workflow: self.workflow.map(|form| form.into_rule(&path.key("workflow"))).transpose()?,
            r#type: self.r#type.map(|form| form.into_rule(&path.key("type"))).transpose()?,
            data_pointer: self.data.map(|data| data.pointer).unwrap_or_default(),
            body: body.into(),
            on_id_reuse: on_id_reuse.into(),
            keep_headers: self.keep_headers,
            schemas: schemas.collect::<Result<_, _>>()?,
            max_body_bytes: self.max_body.map_or(0, |size| size.as_u64()),
            replay_guard: replay_guard.into(),
            payload_retention_ms: self.payload_retention.map_or(0, millis),
        })
    }
}

impl VerifyForm {
    fn into_scheme(self, path: &KeyPath, secrets: &mut Secrets) -> Result<verification::Scheme, Problem> {
        let form = weft_schemes::FORMS.into_iter().find(|form| form.name == self.scheme).ok_or_else(|| {
            (path.key("scheme"), format!("unknown scheme {:?}; known: {}", self.scheme, weft_schemes::names()))
        })?;
        self.check_keys(form, path)?;
        if form.keys.contains(&"allow_unsigned") && !self.allow_unsigned {
            let scheme = form.name;
            let problem =
                format!("scheme {scheme:?} takes events from anyone; say allow_unsigned = true if that is meant");
            return Err((path.key("scheme"), problem));
        }
        Ok((form.build)(Settings {
            secrets: secrets.resolve_all(&path.key("secrets"), &self.secrets)?,
            tolerance_ms: Some(millis(self.tolerance.unwrap_or(Span(TOLERANCE_DEFAULT)))),
            header: self.header,
            prefix: self.prefix,
            encoding: match self.encoding {
                EncodingForm::Hex => SignatureEncoding::Hex,
                EncodingForm::Base64 => SignatureEncoding::Base64,
            },
            template: self.template,
            timestamp_header: self.timestamp_header,
            id_header: self.id_header,
        }))
    }

    /// A key that the scheme does not read would only seem to protect.
    fn check_keys(&self, form: &Form, path: &KeyPath) -> Result<(), Problem> {
        let given = [
            ("header", !self.header.is_empty()),
            ("prefix", !self.prefix.is_empty()),
            ("template", self.template.is_some()),
            ("timestamp_header", !self.timestamp_header.is_empty()),
            ("id_header", !self.id_header.is_empty()),
            ("tolerance", self.tolerance.is_some()),
            ("secrets", !self.secrets.is_empty()),
            ("allow_unsigned", self.allow_unsigned),
        ];
        match given.iter().find(|(key, given)| *given && !form.keys.contains(key)) {
            Some((key, _)) => Err((path.key(*key), format!("scheme {:?} does not read it; remove it", form.name))),
            None => Ok(()),
        }
    }
}

impl RuleForm {
    fn into_rule(self, path: &KeyPath) -> Result<Rule, Problem> {
        let from = match (self.pointer, self.header, self.fixed) {
            (Some(pointer), None, None) => rule::From::Pointer(pointer),
            (None, Some(header), None) => rule::From::Header(header),
            (None, None, Some(fixed)) => rule::From::Fixed(fixed),
            _ => return Err((path.clone(), "say exactly one of pointer, header and fixed".into())),
        };
        Ok(Rule { from: Some(from) })
    }
}

fn delivery_id(value: Option<Value>, path: &KeyPath) -> Result<Option<DeliveryIdRule>, Problem> {
    use delivery_id_rule::From;
    let wrong = || (path.clone(), "say { header = … }, { pointer = … }, \"digest\" or \"none\"".to_owned());
    let from = match value {
        None => return Ok(None),
        Some(Value::String(word)) if word == "digest" => From::Digest(true),
        Some(Value::String(word)) if word == "none" => From::None(true),
        Some(Value::Table(table)) => match (table.get("header"), table.get("pointer")) {
            (Some(Value::String(header)), None) => From::Header(header.clone()),
            (None, Some(Value::String(pointer))) => From::Pointer(pointer.clone()),
            _ => return Err(wrong()),
        },
        Some(_) => return Err(wrong()),
    };
    Ok(Some(v1::DeliveryIdRule { from: Some(from) }))
}

/// Whole milliseconds; a span beyond 584 million years counts as that.
pub(super) fn millis(span: Span) -> u64 {
    u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)
}

//! `destination = { … }` of a subscription as people write it.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use url::Url;
use weft_nats::options::{SecretRef, Span};
use weft_proto::v1::{
    Auth, BasicAuth, BearerAuth, ClientTls, CustomDestination, Destination, GrpcDestination, HttpDestination,
    HttpFormat, HttpHeader, HttpProxy, HttpSignature, NatsDestination, OAuth2ClientCredentials, PostgresColumn,
    PostgresDestination, auth, destination::Kind,
};

use super::{KeyPath, Problem, Secrets, source::millis};

#[derive(Debug, Deserialize)]
pub(super) struct DestinationForm {
    r#type: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    url: String,
    secret: Option<SecretRef>,
    #[serde(default)]
    secrets: Vec<SecretRef>,
    #[serde(default)]
    signature: SignatureForm,
    #[serde(default)]
    format: FormatForm,
    #[serde(default)]
    headers: BTreeMap<String, SecretRef>,
    ca: Option<SecretRef>,
    cert: Option<SecretRef>,
    key: Option<SecretRef>,
    proxy: Option<SecretRef>,
    auth: Option<AuthForm>,
    #[serde(default)]
    success: Vec<StatusForm>,
    #[serde(default)]
    permanent: Vec<StatusForm>,
    retry_after_max: Option<Span>,
    #[serde(default)]
    subject: String,
    #[serde(default)]
    stream: String,
    creds: Option<SecretRef>,
    #[serde(default)]
    shards: Vec<SecretRef>,
    #[serde(default)]
    table: String,
    #[serde(default)]
    create: bool,
    #[serde(default)]
    sql: String,
    #[serde(default)]
    columns: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SignatureForm {
    #[default]
    V1,
    V1a,
    None,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FormatForm {
    #[default]
    Envelope,
    Cloudevents,
    Raw,
}

/// One of its keys.
#[derive(Debug, Deserialize)]
struct AuthForm {
    bearer: Option<SecretRef>,
    basic: Option<BasicForm>,
    oauth2: Option<OAuth2Form>,
}

#[derive(Debug, Deserialize)]
struct BasicForm {
    user: String,
    password: SecretRef,
}

#[derive(Debug, Deserialize)]
struct OAuth2Form {
    token_url: String,
    client_id: String,
    client_secret: SecretRef,
    #[serde(default)]
    scopes: Vec<String>,
}

/// `404`, `"404"` or `"4xx"`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum StatusForm {
    Number(u16),
    Text(String),
}

impl DestinationForm {
    pub(super) fn into_destination(self, path: &KeyPath, secrets: &mut Secrets) -> Result<Destination, Problem> {
        let kind = match self.r#type.as_str() {
            "http" => Kind::Http(self.into_http(path, secrets)?),
            "grpc" => Kind::Grpc(self.into_grpc(path, secrets)?),
            "nats" => Kind::Nats(self.into_nats(path, secrets)?),
            "custom" => Kind::Custom(CustomDestination { name: self.name }),
            "postgres" => Kind::Postgres(self.into_postgres(path, secrets)?),
            other => {
                let problem = format!("unknown type {other:?}; known: http, grpc, nats, postgres, custom");
                return Err((path.key("type"), problem));
            }
        };
        Ok(Destination { kind: Some(kind) })
    }

    fn into_http(self, path: &KeyPath, secrets: &mut Secrets) -> Result<HttpDestination, Problem> {
        let mut keys = Vec::new();
        if let Some(secret) = &self.secret {
            keys.push(secrets.resolve(&path.key("secret"), secret)?);
        }
        keys.extend(secrets.resolve_all(&path.key("secrets"), &self.secrets)?);
        let headers = self.headers.iter().map(|(name, value)| {
            // Most are no secrets, so that one in clear is no reason to warn.
            let secret = resolve(&path.key("headers").key(name), value)?;
            Ok(HttpHeader { name: name.clone(), secret })
        });
        let retry_after_max = self.retry_after_max.map(millis);
        if retry_after_max == Some(0) {
            return Err((path.key("retry_after_max"), "must be above 0".into()));
        }
        Ok(HttpDestination {
            url: self.url,
            secrets: keys,
            format: match self.format {
                FormatForm::Envelope => HttpFormat::Envelope,
                FormatForm::Cloudevents => HttpFormat::Cloudevents,
                FormatForm::Raw => HttpFormat::Raw,
            }
            .into(),
            signature: match self.signature {
                // Also that of subscriptions of earlier versions.
                SignatureForm::V1 => HttpSignature::Unspecified,
                SignatureForm::V1a => HttpSignature::V1a,
                SignatureForm::None => HttpSignature::None,
            }
            .into(),
            headers: headers.collect::<Result<_, Problem>>()?,
            tls: into_tls([self.ca, self.cert, self.key], path, secrets)?,
            proxy: self.proxy.map(|proxy| into_proxy(&proxy, &path.key("proxy"), secrets)).transpose()?,
            auth: self.auth.map(|auth| auth.into_auth(&path.key("auth"), secrets)).transpose()?,
            success: self.success.into_iter().map(StatusForm::into_text).collect(),
            permanent: self.permanent.into_iter().map(StatusForm::into_text).collect(),
            retry_after_max_ms: retry_after_max.unwrap_or_default(),
        })
    }
}

impl DestinationForm {
    fn into_grpc(self, path: &KeyPath, secrets: &mut Secrets) -> Result<GrpcDestination, Problem> {
        Ok(GrpcDestination {
            url: self.url,
            tls: into_tls([self.ca, self.cert, self.key], path, secrets)?,
            auth: self.auth.map(|auth| auth.into_auth(&path.key("auth"), secrets)).transpose()?,
        })
    }

    fn into_postgres(self, path: &KeyPath, secrets: &mut Secrets) -> Result<PostgresDestination, Problem> {
        Ok(PostgresDestination {
            dsns: secrets.resolve_all(&path.key("shards"), &self.shards)?,
            table: self.table,
            create: self.create,
            sql: self.sql,
            columns: self.columns.into_iter().map(|(field, column)| PostgresColumn { field, column }).collect(),
        })
    }

    fn into_nats(self, path: &KeyPath, secrets: &mut Secrets) -> Result<NatsDestination, Problem> {
        let creds = self.creds.map(|creds| secrets.resolve(&path.key("creds"), &creds)).transpose()?;
        Ok(NatsDestination {
            subject: self.subject,
            stream: self.stream,
            url: self.url,
            creds: creds.unwrap_or_default(),
            tls: into_tls([self.ca, self.cert, self.key], path, secrets)?,
        })
    }
}

impl StatusForm {
    fn into_text(self) -> String {
        match self {
            Self::Number(status) => status.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl AuthForm {
    fn into_auth(self, path: &KeyPath, secrets: &mut Secrets) -> Result<Auth, Problem> {
        let kind = match self {
            Self { bearer: Some(token), basic: None, oauth2: None } => {
                auth::Kind::Bearer(BearerAuth { token: secrets.resolve(&path.key("bearer"), &token)? })
            }
            Self { bearer: None, basic: Some(BasicForm { user, password }), oauth2: None } => {
                let password = secrets.resolve(&path.key("basic").key("password"), &password)?;
                auth::Kind::Basic(BasicAuth { user, password })
            }
            Self { bearer: None, basic: None, oauth2: Some(oauth2) } => {
                let OAuth2Form { token_url, client_id, client_secret, scopes } = oauth2;
                let client_secret = secrets.resolve(&path.key("oauth2").key("client_secret"), &client_secret)?;
                auth::Kind::Oauth2(OAuth2ClientCredentials { token_url, client_id, client_secret, scopes })
            }
            _ => return Err((path.clone(), "give one of bearer, basic and oauth2".into())),
        };
        Ok(Auth { kind: Some(kind) })
    }
}

/// Absent without any of `ca`, `cert` and `key`.
fn into_tls(
    [ca, cert, key]: [Option<SecretRef>; 3],
    path: &KeyPath,
    secrets: &mut Secrets,
) -> Result<Option<ClientTls>, Problem> {
    // Certificates are public.
    let public =
        |name: &str, pem: Option<SecretRef>| pem.map_or(Ok(String::new()), |pem| resolve(&path.key(name), &pem));
    let (ca, cert) = (public("ca", ca)?, public("cert", cert)?);
    let key = key.map_or(Ok(String::new()), |key| secrets.resolve(&path.key("key"), &key))?;
    let tls = ClientTls { ca, cert, key };
    Ok((tls != ClientTls::default()).then_some(tls))
}

/// The proxy of a URL, whose user and password are kept apart from it.
fn into_proxy(proxy: &SecretRef, path: &KeyPath, secrets: &mut Secrets) -> Result<HttpProxy, Problem> {
    let text = resolve(path, proxy)?;
    let no_url = || (path.clone(), "proxy is not of the form http://host:port".to_owned());
    let mut url = Url::parse(&text).map_err(|_| no_url())?;
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| no_url());
    let (user, password) = (decoded(url.username())?, decoded(url.password().unwrap_or_default())?);
    if !password.is_empty() {
        secrets.note(path, Some(proxy));
    }
    if !url.username().is_empty() || url.password().is_some() {
        url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| no_url())?;
        return Ok(HttpProxy { url: url.into(), user, password });
    }
    Ok(HttpProxy { url: text, user, password })
}

/// The text that a reference stands for; it may be shown.
fn resolve(path: &KeyPath, text: &SecretRef) -> Result<String, Problem> {
    text.resolve().map(|text| text.expose().to_owned()).map_err(|problem| (path.clone(), problem))
}

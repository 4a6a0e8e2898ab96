//! `weft.toml`: read, overlaid with the environment variables of the same keys, checked, and converted into the options of each
//! role.
//!
//! A wrong configuration ends the process with one line that says where (file and line, or variable), what, and what
//! would be right. The options of each section live in the crates that read them; what is here is only what the file
//! adds: sources and subscriptions as people write them, and the rules that span sections.

mod data_schema;
mod destination;
mod document;
mod effective;
mod key_path;
mod schema;
mod source;
mod subscription;
mod validate;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use weft_admin::AdminOptions;
use weft_catalog::{delivery_url::DeliveryUrl, nats_url::NatsUrl};
use weft_gateway::GatewayOptions;
use weft_nats::{
    options::{DeadLetterOptions, LogOptions, NatsOptions, RejectedOptions, SecretRef},
    streams::LogSpec,
};
use weft_proto::v1::{Auth, HttpDestination, auth, destination::Kind};
use weft_worker::{WorkerOptions, destination::postgres};

use crate::{telemetry::LogOutputOptions, traces::TracesOptions};
use document::Document;
pub use effective::Setting;
use key_path::KeyPath;
use source::SourceForm;
use subscription::SubscriptionForm;
pub(crate) use subscription::into_rate;
pub use weft_catalog::{Desired as DesiredCatalog, DesiredSubscription, Start};

/// The file that is read where none is named, if it is there.
pub const FILE_DEFAULT: &str = "weft.toml";
/// The data folder where none is named.
pub const DATA_DEFAULT: &str = "./weft-data";

/// Error of a configuration, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: {source}; name another file with --config")]
    Read {
        /// The file.
        file: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A value is invalid.
    #[error("{place}: {problem}")]
    At {
        /// File and line, or the environment variable.
        place: String,
        /// The fault and the correct form.
        problem: String,
    },
}

/// `[ops]`: health, readiness and metrics.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpsOptions {
    /// Where they are served. None: the role's own default.
    pub listen: Option<SocketAddr>,
}

/// `[catalog]`: how it is sealed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CatalogOptions {
    /// The master keys: the first one seals, all of them open. None: the one of the environment or of the data folder.
    pub master_keys: Vec<SecretRef>,
}

/// A whole, valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data folder.
    pub data: PathBuf,
    /// `[nats]`.
    pub nats: NatsOptions,
    /// `[ops]`.
    pub ops: OpsOptions,
    /// `[log_output]`.
    pub log_output: LogOutputOptions,
    /// `[traces]`.
    pub traces: TracesOptions,
    /// `[log]`, `[dead_letters]`, `[rejected]`, and what follows for the streams.
    pub spec: LogSpec,
    /// `[gateway]`.
    pub gateway: GatewayOptions,
    /// `[worker]`.
    pub worker: WorkerOptions,
    /// `[admin]`.
    pub admin: AdminOptions,
    /// `[catalog]`.
    pub sealing: CatalogOptions,
    /// `[[source]]` and `[[subscription]]`.
    pub catalog: DesiredCatalog,
    /// Secrets that stand in the file in clear, by key.
    pub clear_secrets: Vec<String>,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    data: Option<PathBuf>,
    nats: NatsOptions,
    ops: OpsOptions,
    log_output: LogOutputOptions,
    traces: TracesOptions,
    log: LogOptions,
    dead_letters: DeadLetterOptions,
    rejected: RejectedOptions,
    gateway: GatewayOptions,
    worker: WorkerOptions,
    admin: AdminOptions,
    catalog: CatalogOptions,
    source: Vec<SourceForm>,
    subscription: Vec<SubscriptionForm>,
}

/// Something wrong with the value at a path.
type Problem = (KeyPath, String);

impl Config {
    /// Reads the configuration: `file`, else `./weft.toml` where there is one, else the defaults; then the environment.
    /// `data` replaces the file's data folder.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(file: Option<&Path>, data: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, text) = Self::read(file)?;
        Self::parse(path, text, Self::variables()?, data)
    }

    /// The file's text; empty where none is named and the default one is missing.
    fn read(file: Option<&Path>) -> Result<(&Path, String), ConfigError> {
        let path = file.unwrap_or(Path::new(FILE_DEFAULT));
        match std::fs::read_to_string(path) {
            Ok(text) => Ok((path, text)),
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok((path, String::new())),
            Err(source) => Err(ConfigError::Read { file: path.to_owned(), source }),
        }
    }

    /// The ports of the receivers that the file names, and of their proxies and token endpoints: with `weft up` they may be on this machine. Subscriptions that are
    /// created by other means may not call other ports of it.
    pub fn loopback_ports(&self) -> Vec<u16> {
        let subscriptions = &self.catalog.subscriptions;
        let kinds = subscriptions.iter().filter_map(|wanted| wanted.value.destination.as_ref()?.kind.as_ref());
        let port = |url: &String| Some(DeliveryUrl::parse(url).ok()?.port());
        let ports = kinds.flat_map(|kind| match kind {
            Kind::Http(http) => {
                [Some(&http.url), proxy_url(http), token_url(http.auth.as_ref())].map(|url| url.and_then(port)).to_vec()
            }
            Kind::Grpc(grpc) => vec![port(&grpc.url), token_url(grpc.auth.as_ref()).and_then(port)],
            Kind::Nats(nats) => vec![NatsUrl::parse(&nats.url).ok().map(|url| url.port())],
            Kind::Postgres(postgres) => postgres.dsns.iter().flat_map(|dsn| postgres::ports(dsn)).map(Some).collect(),
            Kind::Custom(_) => Vec::new(),
        });
        ports.flatten().collect()
    }

    /// The environment's variables for us, by name.
    ///
    /// # Errors
    ///
    /// [`ConfigError::At`]: one is not UTF-8.
    pub fn variables() -> Result<Vec<(String, String)>, ConfigError> {
        let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let ours = variables.filter(|(name, _)| name.starts_with("WEFT_"));
        ours.map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(ConfigError::At { place: name, problem: "is not UTF-8".into() }),
        })
        .collect()
    }

    /// As [`load`](Self::load), from a text and variables.
    ///
    /// # Errors
    ///
    /// [`ConfigError::At`].
    pub fn parse(
        file: &Path,
        text: String,
        variables: impl IntoIterator<Item = (String, String)>,
        data: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let mut document = Document::parse(file, text)?;
        document.overlay(variables)?;
        document.check_keys()?;
        let written: File = serde_path_to_error::deserialize(document.table().clone()).map_err(|error| {
            let path = KeyPath::from(error.path());
            let inner = error.into_inner();
            // The parser's message quotes the value.
            let problem = if path.may_hold_secret() {
                "is of the wrong kind: one secret is a text, several are a list of texts".to_owned()
            } else {
                inner.message().lines().collect::<Vec<_>>().join(" ")
            };
            ConfigError::At { place: document.place(&path), problem: format!("{path}: {problem}") }
        })?;
        Self::from_file(written, data).map_err(|(path, problem)| {
            let place = document.place(&path);
            ConfigError::At { place, problem: format!("{path}: {problem}") }
        })
    }

    fn from_file(file: File, data: Option<&Path>) -> Result<Self, Problem> {
        let mut secrets = Secrets::default();
        let mut catalog = DesiredCatalog::default();
        for (index, form) in file.source.into_iter().enumerate() {
            let path = KeyPath::default().key("source").index(index);
            catalog.sources.push(form.into_source(&path, &mut secrets)?);
        }
        for (index, form) in file.subscription.into_iter().enumerate() {
            let path = KeyPath::default().key("subscription").index(index);
            catalog.subscriptions.push(form.into_subscription(&path, &mut secrets)?);
        }
        secrets.note(&KeyPath::default().key("admin").key("token"), file.admin.token.as_ref());
        secrets.note(&KeyPath::default().key("nats").key("password"), file.nats.password.as_ref());
        let master_keys = KeyPath::default().key("catalog").key("master_keys");
        for (index, key) in file.catalog.master_keys.iter().enumerate() {
            secrets.note(&master_keys.index(index), Some(key));
        }
        for (section, tls) in [("gateway", &file.gateway.tls), ("admin", &file.admin.tls)] {
            secrets.note(&KeyPath::default().key(section).key("tls").key("key"), tls.key.as_ref());
        }
        let spec = LogSpec {
            log: file.log,
            dead_letters: file.dead_letters,
            rejected: file.rejected,
            body_bytes_max: file.gateway.max_body.as_u64(),
            auto_bytes_max: None,
            new_log: false,
        };
        let config = Self {
            data: data.map(Path::to_owned).or(file.data).unwrap_or_else(|| DATA_DEFAULT.into()),
            nats: file.nats,
            ops: file.ops,
            log_output: file.log_output,
            traces: file.traces,
            spec,
            gateway: file.gateway,
            worker: file.worker,
            admin: file.admin,
            sealing: file.catalog,
            catalog,
            clear_secrets: secrets.clear,
        };
        validate::check(&config)?;
        Ok(config)
    }

    /// Warns of secrets that stand in the file in clear.
    pub fn warn(&self) {
        if !self.clear_secrets.is_empty() {
            let keys = self.clear_secrets.join(", ");
            tracing::warn!(keys, "secrets stand in the configuration in clear; env:NAME or file:PATH keep them out");
        }
    }
}

fn proxy_url(http: &HttpDestination) -> Option<&String> {
    Some(&http.proxy.as_ref()?.url)
}

fn token_url(auth: Option<&Auth>) -> Option<&String> {
    match auth?.kind.as_ref()? {
        auth::Kind::Oauth2(oauth2) => Some(&oauth2.token_url),
        auth::Kind::Bearer(_) | auth::Kind::Basic(_) => None,
    }
}

/// Resolves secrets and notes which of them stand in clear.
#[derive(Debug, Default)]
struct Secrets {
    clear: Vec<String>,
}

impl Secrets {
    fn note(&mut self, path: &KeyPath, secret: Option<&SecretRef>) {
        if matches!(secret, Some(SecretRef::Clear(_))) {
            self.clear.push(path.to_string());
        }
    }

    fn resolve(&mut self, path: &KeyPath, secret: &SecretRef) -> Result<String, Problem> {
        self.note(path, Some(secret));
        match secret.resolve() {
            Ok(secret) => Ok(secret.expose().to_owned()),
            Err(problem) => Err((path.clone(), problem)),
        }
    }

    fn resolve_all(&mut self, path: &KeyPath, secrets: &[SecretRef]) -> Result<Vec<String>, Problem> {
        secrets.iter().enumerate().map(|(index, secret)| self.resolve(&path.index(index), secret)).collect()
    }
}

#[cfg(test)]
mod tests;

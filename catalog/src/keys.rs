//! API keys: how they are made, and what the caller of one may do. Roles that are asked over HTTP or gRPC decide by this
//! alone.
//!
//! Keys are in the catalog, so one that is made, narrowed or revoked counts within a second. Of a key only the digest
//! is kept; digests are compared in constant time, and reveal nothing of a key's length either. The bootstrap key,
//! which stands in the configuration and not in the catalog, may do everything.
//!
//! - `make`: a new key; [`uses`]: when each was used last.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::{sync::watch, time::sleep};
use weft_nats::{options::Secret, scan::Filter};
use weft_proto::{
    ids::WorkflowId,
    v1::{ApiKey, Scope},
};

use super::snapshot::Snapshot;

mod make;
#[cfg(test)]
mod tests;
pub mod uses;

pub use make::{KEY_ID_CHARS, make};
use uses::Uses;

/// Prefix of every key of the catalog.
const PREFIX: &str = "weft_";
/// Operator's name in the audit log for a caller with the bootstrap key.
const BOOTSTRAP: &str = "bootstrap";

/// The keys of the mesh.
#[derive(Debug)]
pub struct Keys {
    /// Digest of the bootstrap key.
    bootstrap: Option<[u8; 32]>,
    catalog: watch::Receiver<Arc<Snapshot>>,
    uses: Arc<Uses>,
}

/// Why a caller may not do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No key was sent.
    #[error("a key is needed; send it as Authorization: Bearer")]
    Missing,
    /// No key of this mesh.
    #[error("the key is not known; check that it is of this mesh and not revoked")]
    Unknown,
    /// It was one.
    #[error("the key has expired; ask for a new one")]
    Expired,
    /// The catalog has not been read to its end: a key that is not in it may be one all the same.
    #[error("the keys have not been read yet; send again")]
    Starting,
    /// The key may not do such things.
    #[error("the key does not have scope {}", scope_name(*.0))]
    ScopeMissing(Scope),
    /// The key is limited to other sources.
    #[error("the key may not touch this source")]
    Source,
    /// The key is limited to other workflows.
    #[error("the key may not touch this workflow")]
    Workflow,
    /// The key is limited, and what it asks for cannot be.
    #[error("the key is limited to some sources or workflows, and this concerns all; use a key without limits")]
    Limited,
}

/// Rights of the caller of one request.
#[derive(Debug, Clone)]
pub struct Grant {
    /// `None`: the bootstrap key.
    key: Option<Arc<ApiKey>>,
    catalog: watch::Receiver<Arc<Snapshot>>,
}

impl Keys {
    /// The keys of a catalog that is being watched, and the bootstrap key. Without one, or with an empty one, only those of
    /// the catalog count.
    pub fn new(bootstrap: Option<&Secret>, catalog: watch::Receiver<Arc<Snapshot>>) -> Self {
        let bootstrap = bootstrap.filter(|key| !key.expose().is_empty()).map(|key| Sha256::digest(key.expose()).into());
        Self { bootstrap, catalog, uses: Arc::default() }
    }

    /// The uses that are noted here.
    pub fn uses(&self) -> &Arc<Uses> {
        &self.uses
    }

    /// Rights of the caller that sent this key, provided that the key has a scope. The use of the key is noted.
    ///
    /// # Errors
    ///
    /// [`KeyError`], nothing of limits.
    pub fn authorize(&self, given: Option<&[u8]>, scope: Scope) -> Result<Grant, KeyError> {
        let given = given.ok_or(KeyError::Missing)?;
        let digest: [u8; 32] = Sha256::digest(given).into();
        if self.bootstrap.is_some_and(|wanted| wanted.ct_eq(&digest).into()) {
            return Ok(Grant { key: None, catalog: self.catalog.clone() });
        }
        let snapshot = self.catalog.borrow().clone();
        let known = id_of(given).and_then(|id| snapshot.keys.get(id)).map(|key| &key.value);
        let Some(key) = known.filter(|key| key.digest.ct_eq(&digest).into()) else {
            return Err(if snapshot.complete { KeyError::Unknown } else { KeyError::Starting });
        };
        let now = Timestamp::now();
        if key.expires_at_ms != 0 && key.expires_at_ms <= now.as_millisecond() {
            return Err(KeyError::Expired);
        }
        if !has_scope(key, scope) {
            return Err(KeyError::ScopeMissing(scope));
        }
        self.uses.note(&key.id, now);
        Ok(Grant { key: Some(Arc::clone(key)), catalog: self.catalog.clone() })
    }
}

impl Grant {
    /// The key's id; `None`: the bootstrap key.
    pub fn key_id(&self) -> Option<&str> {
        self.key.as_ref().map(|key| key.id.as_str())
    }

    /// Whether the caller may change the catalog, and so see what else is hidden: the bootstrap key, or a key with the scope
    /// `admin`.
    pub fn is_admin(&self) -> bool {
        self.key.as_ref().is_none_or(|key| has_scope(key, Scope::Admin))
    }

    /// Operator's name in the audit log: the key's id, or `bootstrap`.
    pub fn operator(&self) -> &str {
        self.key_id().unwrap_or(BOOTSTRAP)
    }

    /// Whether it has a scope.
    pub fn has(&self, scope: Scope) -> bool {
        self.key.as_ref().is_none_or(|key| has_scope(key, scope))
    }

    /// The sources that it is limited to; empty: all.
    pub fn sources(&self) -> &[String] {
        self.key.as_ref().map_or(&[], |key| &key.sources)
    }

    /// Prefixes of the workflows that it is limited to; empty: all.
    pub fn workflow_prefixes(&self) -> &[String] {
        self.key.as_ref().map_or(&[], |key| &key.workflow_prefixes)
    }

    /// Leaves of what a filter takes only what it may touch.
    pub fn limit(&self, filter: &mut Filter) {
        filter.sources = self.sources().to_vec();
        filter.workflow_prefixes = self.workflow_prefixes().to_vec();
    }

    /// Refuses what it may not touch.
    ///
    /// # Errors
    ///
    /// [`KeyError::Source`], [`KeyError::Workflow`].
    pub fn check(&self, source: &str, workflow: &WorkflowId) -> Result<(), KeyError> {
        let sources = self.sources();
        if !sources.is_empty() && !sources.iter().any(|name| name == source) {
            return Err(KeyError::Source);
        }
        self.check_workflow(workflow)
    }

    /// Refuses a workflow that it may not touch; the sources of its events do not count.
    ///
    /// # Errors
    ///
    /// [`KeyError::Workflow`].
    pub fn check_workflow(&self, workflow: &WorkflowId) -> Result<(), KeyError> {
        let prefixes = self.workflow_prefixes();
        if !prefixes.is_empty() && !prefixes.iter().any(|prefix| workflow.as_str().starts_with(prefix.as_str())) {
            return Err(KeyError::Workflow);
        }
        Ok(())
    }

    /// Refuses a caller whose key is limited in any way.
    ///
    /// # Errors
    ///
    /// [`KeyError::Limited`].
    pub fn check_unlimited(&self) -> Result<(), KeyError> {
        let unlimited = self.sources().is_empty() && self.workflow_prefixes().is_empty();
        if unlimited { Ok(()) } else { Err(KeyError::Limited) }
    }

    /// Waits until it no longer holds: its key is revoked, changed, or has expired. For what outlives its request.
    pub async fn ended(mut self) {
        let Some(key) = &self.key else { return std::future::pending().await };
        let expired = async {
            match key.expires_at_ms {
                0 => std::future::pending().await,
                at => sleep_until_time(at).await,
            }
        };
        let same = |snapshot: &Arc<Snapshot>| snapshot.keys.get(&key.id).is_some_and(|now| now.value == *key);
        let changed = async {
            // A catalog without a sender belongs to a process that ends.
            if self.catalog.wait_for(|snapshot| snapshot.complete && !same(snapshot)).await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = expired => {}
            () = changed => {}
        }
    }
}

/// The longest single sleep: a clock that is set meanwhile is noticed within it.
const SLEEP_MAX: Duration = Duration::from_secs(60);

async fn sleep_until_time(at_ms: i64) {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(at_ms).unwrap_or(0));
    while let Ok(left) = at.duration_since(SystemTime::now()) {
        sleep(left.min(SLEEP_MAX)).await;
    }
}

fn has_scope(key: &ApiKey, wanted: Scope) -> bool {
    key.scopes().any(|scope| scope == wanted || scope == Scope::Admin)
}

/// Name of a scope.
pub const fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Ingest => "ingest",
        Scope::Read => "read",
        Scope::Operate => "operate",
        Scope::Admin => "admin",
        Scope::Unspecified => "unknown",
    }
}

/// The key of an `Authorization` header's value; the scheme's name is case-insensitive.
pub fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// The part of `weft_<id>_<secret>` that names the key.
fn id_of(key: &[u8]) -> Option<&str> {
    let (id, rest) = key.strip_prefix(PREFIX.as_bytes())?.split_at_checked(KEY_ID_CHARS)?;
    rest.starts_with(b"_").then_some(())?;
    std::str::from_utf8(id).ok()
}

//! Who may call: an API key in `x-api-key` or as a bearer token, and what it may touch.
//!
//! Keys are in the catalog, so one that is made or revoked counts within a second. Of a key only the digest is kept;
//! digests are compared in constant time, and tell nothing of a key's length either. The bootstrap key, which stands in
//! the configuration and not in the catalog, may do everything.

use std::sync::Arc;

use http::{HeaderMap, header};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use weft_nats::{catalog::Snapshot, options::Secret, scan::Filter};
use weft_proto::{
    ids::WorkflowId,
    v1::{ApiKey, Scope},
};

use crate::{
    error::{Code, Problem},
    verify::Verified,
};

#[cfg(test)]
mod tests;

const API_KEY: &str = "x-api-key";
/// What every key of the catalog begins with.
const PREFIX: &[u8] = b"weft_";
/// Characters of the part that names the key.
const ID_CHARS: usize = 8;

/// The keys of the mesh.
#[derive(Debug)]
pub struct Keys {
    /// Digest of the bootstrap key.
    bootstrap: Option<[u8; 32]>,
    catalog: watch::Receiver<Arc<Snapshot>>,
}

/// What the caller of one request may do.
#[derive(Debug, Clone)]
pub struct Grant {
    /// `None`: the bootstrap key.
    key: Option<Arc<ApiKey>>,
}

impl Keys {
    /// The keys of a catalog that is being watched, and the bootstrap key. Without one, or with an empty one, only those of
    /// the catalog count.
    pub fn new(bootstrap: Option<&Secret>, catalog: watch::Receiver<Arc<Snapshot>>) -> Self {
        let bootstrap = bootstrap.filter(|key| !key.expose().is_empty()).map(|key| Sha256::digest(key.expose()).into());
        Self { bootstrap, catalog }
    }

    /// What a request with these headers may do, provided that its key has a scope.
    ///
    /// # Errors
    ///
    /// A [`Problem`] with `key_missing`, `key_invalid`, `scope_missing`, or `starting` while the catalog is not there.
    pub fn authorize(&self, headers: &HeaderMap, scope: Scope) -> Result<Grant, Problem> {
        let Some(given) = given(headers) else {
            let detail = "a key is needed; send it as x-api-key or as Authorization: Bearer";
            return Err(Problem::new(Code::KeyMissing, detail));
        };
        let digest: [u8; 32] = Sha256::digest(given).into();
        if self.bootstrap.is_some_and(|wanted| wanted.ct_eq(&digest).into()) {
            return Ok(Grant { key: None });
        }
        let snapshot = self.catalog.borrow().clone();
        let known = id_of(given).and_then(|id| snapshot.keys.get(id));
        let Some(key) = known.map(|key| &key.value).filter(|key| key.digest.ct_eq(&digest).into()) else {
            return Err(if snapshot.complete {
                Problem::new(Code::KeyInvalid, "the key is not known; check that it is of this mesh and not revoked")
            } else {
                Problem::new(Code::Starting, "the gateway has not read the keys yet; send again")
            });
        };
        if key.expires_at_ms != 0 && key.expires_at_ms <= Timestamp::now().as_millisecond() {
            return Err(Problem::new(Code::KeyInvalid, "the key has expired; ask for a new one"));
        }
        if !has_scope(key, scope) {
            let detail = format!("the key does not have scope {}", scope_name(scope));
            return Err(Problem::new(Code::ScopeMissing, detail));
        }
        Ok(Grant { key: Some(Arc::clone(key)) })
    }
}

impl Grant {
    /// The key's id; `None`: the bootstrap key.
    pub fn key_id(&self) -> Option<&str> {
        self.key.as_ref().map(|key| key.id.as_str())
    }

    /// The key's id, or `bootstrap`.
    pub fn name(&self) -> &str {
        self.key_id().unwrap_or("bootstrap")
    }

    /// What is written beside an event about who sent it: `api_key/<id>`.
    pub fn verified_by(&self) -> String {
        Verified::of_key(self.name()).by()
    }

    /// Whether it may touch events of a source.
    pub fn allows_source(&self, source: &str) -> bool {
        self.key.as_ref().is_none_or(|key| key.sources.is_empty() || key.sources.iter().any(|name| name == source))
    }

    /// Whether it may touch a workflow.
    pub fn allows_workflow(&self, workflow: &WorkflowId) -> bool {
        self.key.as_ref().is_none_or(|key| {
            key.workflow_prefixes.is_empty()
                || key.workflow_prefixes.iter().any(|prefix| workflow.as_str().starts_with(prefix.as_str()))
        })
    }

    /// Leaves of what a filter takes only what it may touch.
    pub fn limit(&self, filter: &mut Filter) {
        if let Some(key) = &self.key {
            filter.sources.clone_from(&key.sources);
            filter.workflow_prefixes.clone_from(&key.workflow_prefixes);
        }
    }

    /// Refuses what it may not touch.
    ///
    /// # Errors
    ///
    /// A [`Problem`] with `out_of_scope`.
    pub fn check(&self, source: &str, workflow: &WorkflowId) -> Result<(), Problem> {
        if !self.allows_source(source) {
            return Err(Problem::new(Code::OutOfScope, "the key may not touch this source"));
        }
        if !self.allows_workflow(workflow) {
            return Err(Problem::new(Code::OutOfScope, "the key may not touch this workflow"));
        }
        Ok(())
    }
}

fn has_scope(key: &ApiKey, wanted: Scope) -> bool {
    key.scopes().any(|scope| scope == wanted || scope == Scope::Admin)
}

fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Ingest => "ingest",
        Scope::Read => "read",
        Scope::Operate => "operate",
        Scope::Admin => "admin",
        Scope::Unspecified => "unknown",
    }
}

/// The key of a request.
fn given(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get(API_KEY) {
        return Some(key.as_bytes());
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// The part of `weft_<id>_<secret>` that names the key.
fn id_of(key: &[u8]) -> Option<&str> {
    let (id, rest) = key.strip_prefix(PREFIX)?.split_at_checked(ID_CHARS)?;
    rest.starts_with(b"_").then_some(())?;
    std::str::from_utf8(id).ok()
}

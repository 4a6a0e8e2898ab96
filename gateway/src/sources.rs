//! The sources of the catalog, compiled when they are first asked for and again when their revision has changed.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;
use weft_catalog::{Revised, Snapshot, source_warnings};
use weft_proto::v1;
use weft_schemes::Verifier;

use crate::{
    identify::Rules,
    schema::{Schemas, Turns},
};

/// A source that requests can be checked against.
#[derive(Debug)]
pub struct Source {
    /// As the catalog has it.
    pub configured: Arc<v1::Source>,
    /// How its requests are verified.
    pub verifier: Verifier,
    /// How they are read.
    pub rules: Rules,
    /// Schemas of their data.
    pub schemas: Schemas,
    /// The largest body that it may send, in bytes; `None`: what the gateway takes.
    pub body_bytes_max: Option<usize>,
}

/// Why there is no source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupError {
    /// The catalog has not been read to its end.
    Starting,
    /// The catalog has none of this name.
    Unknown,
    /// It has one that makes no sense to this gateway; the log says why.
    Broken,
}

/// Looks sources up.
#[derive(Debug)]
pub struct Sources {
    catalog: watch::Receiver<Arc<Snapshot>>,
    /// Only names that the catalog has, so it is as bounded as that.
    compiled: Mutex<HashMap<String, Compiled>>,
    /// Shared by the schemas of all sources.
    turns: Turns,
}

#[derive(Debug)]
struct Compiled {
    revision: u64,
    source: Option<Arc<Source>>,
}

impl Sources {
    /// The sources of a catalog that is being watched.
    pub fn new(catalog: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self { catalog, compiled: Mutex::default(), turns: Turns::default() }
    }

    /// The catalog that they are looked up in.
    pub fn catalog(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.catalog.clone()
    }

    /// Missing part of the catalog, for people; `None`: sources can be looked up.
    pub fn missing(&self) -> Option<String> {
        self.catalog.borrow().missing()
    }

    /// A subscription, as the catalog has it at this moment.
    ///
    /// # Errors
    ///
    /// [`LookupError`], never `Broken`.
    pub fn subscription(&self, name: &str) -> Result<Arc<v1::Subscription>, LookupError> {
        let snapshot = self.catalog.borrow();
        let absent = if snapshot.complete { LookupError::Unknown } else { LookupError::Starting };
        snapshot.subscriptions.get(name).map(|found| Arc::clone(&found.value)).ok_or(absent)
    }

    /// The source of a name, as the catalog has it at this moment.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub fn get(&self, name: &str) -> Result<Arc<Source>, LookupError> {
        let snapshot = self.catalog.borrow().clone();
        let Some(configured) = snapshot.sources.get(name) else {
            return Err(if snapshot.complete { LookupError::Unknown } else { LookupError::Starting });
        };
        // Nothing in here can panic half-way through a change.
        let mut compiled = self.compiled.lock();
        if let Some(known) = compiled.get(name)
            && known.revision == configured.revision
        {
            return known.source.clone().ok_or(LookupError::Broken);
        }
        let source = compile(configured, &self.turns);
        compiled.retain(|name, _| snapshot.sources.contains_key(name));
        compiled.insert(name.to_owned(), Compiled { revision: configured.revision, source: source.clone() });
        source.ok_or(LookupError::Broken)
    }
}

fn compile(configured: &Revised<Arc<v1::Source>>, turns: &Turns) -> Option<Arc<Source>> {
    let source = &configured.value;
    let verifier = Verifier::compile(source).map_err(|error| error.to_string());
    let rules = Rules::compile(source);
    let schemas = Schemas::compile(source, turns.clone());
    match (verifier, rules, schemas) {
        (Ok(verifier), Ok(rules), Ok(schemas)) => {
            for warning in source_warnings(source) {
                tracing::warn!(source = source.name, revision = configured.revision, warning, "source is weak");
            }
            let body_bytes_max = usize::try_from(source.max_body_bytes).unwrap_or(usize::MAX);
            let body_bytes_max = Some(body_bytes_max).filter(|bytes| *bytes > 0);
            let configured = Arc::clone(source);
            Some(Arc::new(Source { configured, verifier, rules, schemas, body_bytes_max }))
        }
        (Err(problem), ..) | (_, Err(problem), _) | (.., Err(problem)) => {
            tracing::error!(source = source.name, revision = configured.revision, problem, "source cannot be used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::{DeliveryIdRule, NoneScheme, Verification, delivery_id_rule, verification::Scheme};

    use super::*;

    fn source(name: &str, usable: bool) -> v1::Source {
        v1::Source {
            name: name.into(),
            verification: usable.then_some(Verification { scheme: Some(Scheme::None(NoneScheme {})) }),
            delivery_id: Some(DeliveryIdRule { from: Some(delivery_id_rule::From::Digest(true)) }),
            ..v1::Source::default()
        }
    }

    fn snapshot(complete: bool, sources: &[(&str, u64, bool)]) -> Arc<Snapshot> {
        let sources = sources
            .iter()
            .map(|(name, revision, usable)| {
                ((*name).to_owned(), Revised { revision: *revision, value: Arc::new(source(name, *usable)) })
            })
            .collect();
        Arc::new(Snapshot { complete, sources, ..Snapshot::default() })
    }

    /// A source that is missing from a catalog that has not been read to its end is not unknown.
    #[test]
    fn a_source_is_unknown_only_when_the_catalog_is_complete() {
        let (catalog, watched) = watch::channel(snapshot(false, &[("shop", 1, true)]));
        let sources = Sources::new(watched);
        assert!(sources.get("shop").is_ok());
        assert_eq!(sources.get("other").unwrap_err(), LookupError::Starting);
        catalog.send_replace(snapshot(true, &[("shop", 1, true)]));
        assert_eq!(sources.get("other").unwrap_err(), LookupError::Unknown);
    }

    #[test]
    fn a_source_is_compiled_once_a_revision() {
        let (catalog, watched) = watch::channel(snapshot(true, &[("shop", 1, true)]));
        let sources = Sources::new(watched);
        let first = sources.get("shop").unwrap();
        assert!(Arc::ptr_eq(&first, &sources.get("shop").unwrap()));
        catalog.send_replace(snapshot(true, &[("shop", 2, true)]));
        assert!(!Arc::ptr_eq(&first, &sources.get("shop").unwrap()));
        catalog.send_replace(snapshot(true, &[("shop", 3, false)]));
        assert_eq!(sources.get("shop").unwrap_err(), LookupError::Broken);
        catalog.send_replace(snapshot(true, &[]));
        assert_eq!(sources.get("shop").unwrap_err(), LookupError::Unknown);
    }
}

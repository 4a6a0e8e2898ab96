//! State shared by the routes.

use std::sync::{Arc, OnceLock};

use http::HeaderMap;
use tokio_util::sync::CancellationToken;
use weft_catalog::keys::{Grant, Keys};
use weft_nats::{connect::Connection, subject::Layout, tail::Tails};
use weft_proto::v1::Scope;

use super::{body, error::Problem, open_streams::EventStreams};
use crate::{
    admission::{Admission, Client},
    auth,
    rejected::Inbox,
    sequencer::{Sequencer, SubmitError},
    sources::Sources,
};

/// State that the routes share.
#[derive(Debug)]
pub struct Api {
    /// The sources.
    pub sources: Sources,
    /// API keys.
    pub keys: Keys,
    /// Rate limits.
    pub admission: Arc<Admission>,
    /// The open event streams.
    pub streams: EventStreams,
    /// How bodies are read.
    pub bodies: body::Reader,
    /// Where refused requests are kept.
    pub rejected: Inbox,
    /// Set once, when the log is there.
    log: OnceLock<LogHandle>,
}

/// The log, once it is there.
#[derive(Debug)]
pub struct LogHandle {
    /// Where events are read.
    pub connection: Connection,
    /// How the log is cut.
    pub layout: Layout,
    /// Live streams of events, which share one reader per shard.
    pub tails: Tails,
    /// Where events get their number.
    pub sequencer: Sequencer,
}

impl Api {
    /// Without a log: every route that needs it answers 503 until [`open`](Self::open).
    /// `closing` ends the event streams.
    pub fn new(
        sources: Sources,
        keys: Keys,
        admission: Admission,
        limits: body::Limits,
        closing: CancellationToken,
    ) -> Self {
        let (streams, bodies) = (EventStreams::new(closing), body::Reader::new(limits));
        let rejected = Inbox::new(sources.catalog());
        let admission = Arc::new(admission.with_budget(bodies.budget().clone()));
        Self { sources, keys, admission, streams, bodies, rejected, log: OnceLock::new() }
    }

    /// The rights of a request whose key must have a scope; it counts against the limit of the key.
    ///
    /// # Errors
    ///
    /// A [`Problem`], as [`auth::authorize`], or with `rate_limited`.
    pub fn authorize(&self, client: &Client, headers: &HeaderMap, scope: Scope) -> Result<Grant, Problem> {
        let grant = auth::authorize(&self.keys, headers, scope)?;
        client.trust();
        self.admission.key(client, &grant)?;
        Ok(grant)
    }

    /// Cancelled when streams must end.
    pub fn closing(&self) -> &CancellationToken {
        self.streams.closing()
    }

    /// The log is there. Only the first call counts.
    pub fn open(&self, log: LogHandle) {
        if self.log.set(log).is_err() {
            tracing::debug!("log was opened before");
        }
    }

    /// The log.
    ///
    /// # Errors
    ///
    /// A [`Problem`] with `starting` while it is not there.
    pub fn log(&self) -> Result<&LogHandle, Problem> {
        self.log.get().ok_or_else(|| SubmitError::Starting.into())
    }
}

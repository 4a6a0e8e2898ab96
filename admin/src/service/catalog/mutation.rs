//! A change of the catalog that acts once.
//!
//! First the history is asked whether a call of this request id has been recorded: then nothing is done, and the answer
//! is the present entry. Otherwise it is decided, written with its stamp and recorded (`weft_catalog::edit` documents
//! the order). Two admins with the same id at the same moment agree by the revision and the stamp.

use tonic::{Request, Status};
use weft_catalog::{
    Locate, LocateError, Orphan, Snapshot, Stamp,
    change::{Change, Refusal},
    edit::{Call, EditError, Edited, Editor},
    orphans,
};
use weft_nats::commands::cut_reason;
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq},
    internal::{self, command::Action},
};

use crate::{
    as_of,
    auth::grant,
    error::{Code, refuse},
    service::{
        HISTORY_TIMEOUT,
        command::request_id,
        state::{LogState, reused},
    },
};

/// A requested mutation.
#[derive(Debug)]
pub(super) struct Mutation {
    stamp: Stamp,
    method: &'static str,
    name: String,
}

impl Mutation {
    /// A mutation by a call of `method` that names `name`.
    ///
    /// # Errors
    ///
    /// BAD_QUERY: the request id is invalid.
    pub fn new<T>(
        request: &Request<T>,
        method: &'static str,
        name: &str,
        given_id: &str,
        reason: &str,
    ) -> Result<Self, Status> {
        let stamp = Stamp {
            request_id: request_id(given_id)?,
            operator: grant(request)?.operator().to_owned(),
            reason: cut_reason(reason),
        };
        Ok(Self { stamp, method, name: name.to_owned() })
    }

    /// Operator, reason and request id.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Its record, without changes.
    pub fn edit(&self) -> internal::CatalogEdit {
        internal::CatalogEdit {
            method: self.method.to_owned(),
            name: self.name.clone(),
            changes: Vec::new(),
            test: None,
        }
    }

    /// Decides, writes and records; or returns the result of the first call of this request.
    ///
    /// # Errors
    ///
    /// The refusal, or LOG_UNAVAILABLE.
    pub async fn carry_out(
        &self,
        log: &LogState,
        decide: impl Fn(&Snapshot, &[internal::CatalogChange]) -> Result<Vec<Change>, Refusal>,
    ) -> Result<Edited, Status> {
        if let Some(edit) = self.recorded(log).await? {
            let snapshot = log.snapshot().await?;
            return Ok(Edited { snapshot, changes: edit.changes });
        }
        let editor = Editor::new(log.catalog.clone(), log.layout, log.clone());
        let call = Call { method: self.method, name: &self.name, recorded_idle: true };
        editor.edit(&self.stamp, call, decide).await.map_err(of_edit)
    }

    /// As [`carry_out`](Self::carry_out), for a single entry: nothing is left to do once this request has written it.
    ///
    /// # Errors
    ///
    /// As [`carry_out`](Self::carry_out).
    pub async fn change(
        &self,
        log: &LogState,
        decide: impl Fn(&Snapshot) -> Result<Option<Change>, Refusal>,
    ) -> Result<Edited, Status> {
        let once = |snapshot: &Snapshot, written: &[internal::CatalogChange]| match written {
            [] => Ok(decide(snapshot)?.into_iter().collect()),
            _ => Ok(Vec::new()),
        };
        self.carry_out(log, once).await
    }

    /// The record of a call with this request id.
    ///
    /// # Errors
    ///
    /// ID_REUSED if it was another call; STARTING, LOG_UNAVAILABLE.
    pub async fn recorded(&self, log: &LogState) -> Result<Option<internal::CatalogEdit>, Status> {
        let stored = log.recorded(&self.stamp.request_id).await?;
        let mut whole: Option<internal::CatalogEdit> = None;
        for command in stored {
            let edit = match command.command.action {
                Some(Action::Catalog(edit)) if edit.method == self.method && edit.name == self.name => edit,
                _ => return Err(reused(&self.stamp.request_id, command.command.at_ms)),
            };
            match &mut whole {
                Some(whole) => {
                    whole.changes.extend(edit.changes);
                    whole.test = edit.test.or(whole.test.take());
                }
                None => whole = Some(edit),
            }
        }
        Ok(whole)
    }
}

/// Places of events, by the history.
impl Locate for LogState {
    async fn locate(&self, id: EventId) -> Result<Option<(ShardId, StreamSeq)>, LocateError> {
        let unavailable = |problem: String| LocateError::Unavailable(problem);
        if let Some(place) = self.history.position_of(id).await.map_err(|error| unavailable(error.to_string()))? {
            return Ok(Some(place));
        }
        self.catch_up().await.map_err(|status| unavailable(status.message().to_owned()))?;
        let place = self.history.position_of(id).await.map_err(|error| unavailable(error.to_string()))?;
        match as_of::lag() {
            Some(lag) if place.is_none() => Err(unavailable(format!("event {id} is not known; {lag}"))),
            _ => Ok(place),
        }
    }

    async fn orphan(&self, name: &str, snapshot: &Snapshot) -> Result<Option<Orphan>, LocateError> {
        let open = self.history.unknown_subscriptions_now(snapshot, HISTORY_TIMEOUT).await;
        let open = open.map_err(|error| LocateError::Unavailable(error.to_string()))?;
        Ok(orphans(&open, snapshot, self.layout).into_iter().find(|orphan| orphan.name == name))
    }
}

/// Status of an error of an edit.
pub(super) fn of_edit(error: EditError) -> Status {
    let message = error.to_string();
    match error {
        EditError::Refused(refusal) => of_refusal(&refusal),
        EditError::Start(_) => refuse(Code::BadQuery, message),
        EditError::Unavailable(_) | EditError::Unrecorded(_) => refuse(Code::LogUnavailable, message),
    }
}

/// Status of a refused change.
pub(super) fn of_refusal(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::NotFound { .. } => Code::NotFound,
        Refusal::Exists { .. } => Code::AlreadyExists,
        Refusal::Conflict { .. } => Code::Conflict,
        Refusal::Invalid { .. } => Code::InvalidEntry,
    };
    refuse(code, refusal.to_string())
}

//! Redriving dead letters: selected here, commanded on COMMANDS, carried out by the shards' owners, followed in the
//! history.
//!
//! A request becomes one command a shard, or several where it names many. Its request id is the commands' id, so a call
//! that is repeated under the same id commands nothing and tells of what the first one commanded. A call that fails
//! between two of its commands has acted partly, and says so.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    pin::Pin,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_index::history::{DeadLetter, PART_SEPARATOR, StoredCommand, status::DeadLetterStatus};
use weft_nats::catalog::keys::Grant;
use weft_proto::v1::{self, command::Action};

use super::{
    dead_letters::{filter_of, limited, parse_id, sees},
    state::Log,
};
use crate::error::{Code, of_history, refuse};

mod command;
mod progress;

use progress::Progress;

/// What `RedriveDeadLetters` answers.
pub(super) type Responses = Pin<Box<dyn Stream<Item = Result<v1::RedriveDeadLettersResponse, Status>> + Send>>;

/// The most dead letters of one request: what is held in memory while it is followed, some 20 MB.
const SELECTED_MAX: usize = 100_000;
/// Dead letters of one look into the history.
const PAGE: usize = 1_000;
/// The longest request id, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// How long a command's way into the history may take; in rest some milliseconds.
pub(super) const COMMAND_PATIENCE: Duration = Duration::from_secs(5);

/// Selects, commands, and tells how it goes.
///
/// # Errors
///
/// BAD_QUERY, NOT_FOUND for an unknown id, LOG_UNAVAILABLE, STARTING.
pub(super) async fn redrive(
    log: &Log,
    grant: &Grant,
    request: v1::RedriveDeadLettersRequest,
    draining: CancellationToken,
    place: OwnedSemaphorePermit,
) -> Result<Responses, Status> {
    let request_id = request_id(&request.request_id)?;
    let what = Selection::of(&request)?;
    log.catch_up().await?;
    if request.dry_run {
        return Ok(dry_run(&request_id, what.select(log, grant).await?));
    }
    let mut commands = log.history.request(request_id.clone()).await.map_err(of_history)?;
    if commands.iter().any(|stored| !matches!(stored.command.action, Some(Action::Redrive(_)))) {
        return Err(refuse(Code::IdReused, "request_id was used for another call; use a new one"));
    }
    if commands.is_empty() {
        let selected = what.select(log, grant).await?;
        commands = command_all(log, &request_id, grant.operator(), &request.reason, &selected).await?;
    }
    Ok(Progress::new(log.history.clone(), request_id, &commands, draining, place).into_responses())
}

/// Appends the commands for all of these and waits until the history knows them.
async fn command_all(
    log: &Log,
    request_id: &str,
    operator: &str,
    reason: &str,
    selected: &[DeadLetter],
) -> Result<Vec<StoredCommand>, Status> {
    let now = Timestamp::now();
    for (shard, command) in command::cut(request_id, operator, reason, now, selected) {
        let run = command::append(log, shard, &command).await?;
        log.history.reach_command(shard, run, COMMAND_PATIENCE).await.map_err(of_history)?;
    }
    // As they are stored: a call of the same id elsewhere may have been faster.
    log.history.request(request_id.to_owned()).await.map_err(of_history)
}

/// The id that the caller gave, or a new one.
pub(super) fn request_id(given: &str) -> Result<String, Status> {
    if given.is_empty() {
        return Ok(uuid::Uuid::now_v7().to_string());
    }
    let fits = given.len() <= REQUEST_ID_BYTES_MAX
        && given.bytes().all(|byte| byte.is_ascii_graphic() && char::from(byte) != PART_SEPARATOR);
    let problem =
        || format!("request_id is not 1 to {REQUEST_ID_BYTES_MAX} visible ASCII characters without {PART_SEPARATOR:?}");
    if fits { Ok(given.to_owned()) } else { Err(refuse(Code::BadQuery, problem())) }
}

/// Which dead letters a request names.
#[derive(Debug, PartialEq)]
enum Selection {
    Ids(Vec<String>),
    Filter(v1::DeadLetterFilter),
}

impl Selection {
    fn of(request: &v1::RedriveDeadLettersRequest) -> Result<Self, Status> {
        let selection = match (request.ids.is_empty(), &request.filter, request.all) {
            (false, None, false) => Self::Ids(request.ids.clone()),
            (true, Some(filter), false) => Self::Filter(filter.clone()),
            (true, None, true) => Self::Filter(v1::DeadLetterFilter::default()),
            _ => return Err(refuse(Code::BadQuery, "give ids, or a filter, or all; exactly one of them")),
        };
        if let Self::Filter(filter) = &selection
            && filter.statuses.iter().any(|status| status != DeadLetterStatus::Open.as_str())
        {
            return Err(refuse(Code::BadQuery, "filter.statuses: only open dead letters are redriven; leave it out"));
        }
        Ok(selection)
    }

    /// The dead letters, in the order of their events: a redriven lane goes in its order, too. Of ids also those that
    /// are not open: their shard's owner says that they are not.
    async fn select(self, log: &Log, grant: &Grant) -> Result<Vec<DeadLetter>, Status> {
        let found = match self {
            Self::Ids(ids) => by_id(log, grant, &ids).await?,
            Self::Filter(filter) => by_filter(log, grant, filter).await?,
        };
        let mut selected = BTreeMap::new();
        for dead_letter in found {
            let place = &dead_letter.place;
            if let Entry::Vacant(entry) = selected.entry((place.shard, place.seq, place.uid)) {
                entry.insert(dead_letter);
            }
        }
        Ok(selected.into_values().collect())
    }
}

async fn by_id(log: &Log, grant: &Grant, ids: &[String]) -> Result<Vec<DeadLetter>, Status> {
    check_count(ids.len())?;
    let parsed = ids.iter().map(|id| parse_id(id)).collect::<Result<Vec<_>, _>>()?;
    let found = log.history.find_dead_letters(parsed).await.map_err(of_history)?;
    let unknown = |id: &String| refuse(Code::NotFound, format!("no dead letter {id} is kept; nothing was redriven"));
    let seen = |found: Option<DeadLetter>| found.filter(|found| sees(grant, found));
    found.into_iter().zip(ids).map(|(found, id)| seen(found).ok_or_else(|| unknown(id))).collect()
}

async fn by_filter(log: &Log, grant: &Grant, filter: v1::DeadLetterFilter) -> Result<Vec<DeadLetter>, Status> {
    let filter = limited(grant, filter_of(filter)?);
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = log.history.dead_letters(filter.clone(), after, PAGE).await.map_err(of_history)?;
        found.extend(page.dead_letters);
        check_count(found.len())?;
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
    }
}

fn check_count(selected: usize) -> Result<(), Status> {
    let problem = || format!("more than {SELECTED_MAX} dead letters are selected; redrive them in narrower parts");
    if selected <= SELECTED_MAX { Ok(()) } else { Err(refuse(Code::BadQuery, problem())) }
}

/// What a redrive would name, and nothing done about it.
fn dry_run(request_id: &str, selected: Vec<DeadLetter>) -> Responses {
    let first = v1::RedriveDeadLettersResponse {
        selected: u32::try_from(selected.len()).unwrap_or(u32::MAX),
        request_id: request_id.to_owned(),
        ..Default::default()
    };
    let each = first.clone();
    let items = selected.into_iter().map(move |dead_letter| v1::RedriveDeadLettersResponse {
        id: format!("{}:{}", dead_letter.place.subscription, dead_letter.place.event),
        status: dead_letter.status.as_str().to_owned(),
        ..each.clone()
    });
    stream::iter(std::iter::once(first).chain(items).map(Ok)).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_selects_in_one_way() {
        let request = v1::RedriveDeadLettersRequest::default();
        let ids = v1::RedriveDeadLettersRequest { ids: vec!["a:b".into()], ..request.clone() };
        let all = v1::RedriveDeadLettersRequest { all: true, ..request.clone() };
        assert_eq!(Selection::of(&ids).unwrap(), Selection::Ids(vec!["a:b".into()]));
        assert_eq!(Selection::of(&all).unwrap(), Selection::Filter(Default::default()));
        let redriven = v1::DeadLetterFilter { statuses: vec!["redriven".into()], ..Default::default() };
        for wrong in [
            request.clone(),
            v1::RedriveDeadLettersRequest { all: true, ..ids },
            v1::RedriveDeadLettersRequest { filter: Some(Default::default()), ..all },
            v1::RedriveDeadLettersRequest { filter: Some(redriven), ..request },
        ] {
            assert!(Selection::of(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn request_ids_name_one_request() {
        assert_eq!(request_id("again-1").unwrap(), "again-1");
        assert_ne!(request_id("").unwrap(), request_id("").unwrap());
        for wrong in ["again#1", "a b", "é", &"x".repeat(129)] {
            assert!(request_id(wrong).is_err(), "{wrong}");
        }
    }
}

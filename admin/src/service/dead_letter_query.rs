//! Queries of dead letters: filters and ids of requests, limited to what a caller may see.

use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::history::{DeadLetter, DeadLetterFilter, DeadLetterId, EventRef, status::DeadLetterStatus};
use weft_proto::{v1, words};

use super::state::LogState;
use crate::{
    convert,
    error::{Code, of_history, refuse, unknown},
};

/// The dead letters of these ids, one for each id, or, for the id of an event, those that it has for all subscriptions.
///
/// # Errors
///
/// BAD_QUERY: not an id, or an id of several dead letters; NOT_FOUND: unknown.
pub(super) async fn by_id(log: &LogState, grant: &Grant, ids: &[String]) -> Result<Vec<DeadLetter>, Status> {
    let (events, ids): (Vec<&String>, Vec<&String>) = ids.iter().partition(|id| id.parse::<EventRef>().is_ok());
    let parsed = ids.iter().map(|id| parse_id(id)).collect::<Result<Vec<_>, _>>()?;
    let found = log.history.find_dead_letters(parsed).await.map_err(of_history)?;
    let found = found.into_iter().zip(ids).map(|(found, id)| only_one(grant, id, found));
    let mut found = found.collect::<Result<Vec<_>, _>>()?;
    for event in events {
        found.extend(of_event(log, grant, event).await?);
    }
    Ok(found)
}

/// The dead letters of an event, for the subscriptions that the catalog has.
async fn of_event(log: &LogState, grant: &Grant, event: &str) -> Result<Vec<DeadLetter>, Status> {
    let snapshot = log.snapshot().await?;
    let ids = snapshot.subscriptions.keys().filter_map(|name| format!("{name}:{event}").parse().ok()).collect();
    let found = log.history.find_dead_letters(ids).await.map_err(of_history)?;
    let seen: Vec<_> = found.into_iter().flatten().filter(|found| sees(grant, found)).collect();
    if seen.is_empty() {
        return Err(unknown(Code::NotFound, format!("no dead letter of event {event} is kept; nothing was done")));
    }
    Ok(seen)
}

/// The dead letter that an id names, of those that a caller may see.
fn only_one(grant: &Grant, id: &str, found: Vec<DeadLetter>) -> Result<DeadLetter, Status> {
    let mut seen: Vec<DeadLetter> = found.into_iter().filter(|found| sees(grant, found)).collect();
    match seen.len() {
        0 => Err(unknown(Code::NotFound, format!("no dead letter {id} is kept; nothing was done"))),
        1 => Ok(seen.remove(0)),
        several => {
            let ids: Vec<_> = seen.iter().map(|found| found.full_id().to_string()).collect();
            let message = format!("{id} is ambiguous, it names {several} dead letters; use one of {}", ids.join(", "));
            Err(refuse(Code::BadQuery, message))
        }
    }
}

fn parse_id(id: &str) -> Result<DeadLetterId, Status> {
    let form = || format!("{id:?} is not of the form <subscription>:<eventId> or <subscription>:<eventId>@<sequence>");
    id.parse().map_err(|_| refuse(Code::BadQuery, form()))
}

/// The filter, narrowed to what a caller may see.
pub(super) fn limited(grant: &Grant, filter: DeadLetterFilter) -> DeadLetterFilter {
    let (sources, workflow_prefixes) = (grant.sources().to_vec(), grant.workflow_prefixes().to_vec());
    DeadLetterFilter { sources, workflow_prefixes, ..filter }
}

/// Whether a caller may see a dead letter. One that it may not see is answered as unknown.
fn sees(grant: &Grant, dead_letter: &DeadLetter) -> bool {
    grant.check(&dead_letter.source, &dead_letter.place.workflow).is_ok()
}

/// The filter of a request; an empty field filters nothing, but no status means: open.
pub(super) fn filter_of(filter: v1::DeadLetterFilter) -> Result<DeadLetterFilter, Status> {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let time = |time: Option<prost_types::Timestamp>, field: &str| {
        time.map(|time| {
            convert::to_milliseconds(&time)
                .ok_or_else(|| refuse(Code::BadQuery, format!("filter.{field} is not a time within years 1 to 9999")))
        })
        .transpose()
    };
    let reason = match v1::DeadLetterReason::try_from(filter.reason) {
        Ok(v1::DeadLetterReason::Unspecified) => None,
        Ok(reason) => Some(reason),
        Err(_) => return Err(refuse(Code::BadQuery, format!("filter.reason: {} is not a reason", filter.reason))),
    };
    let mut statuses = words::values(&filter.statuses)
        .ok_or_else(|| refuse(Code::BadQuery, "filter.statuses: one is not a status of a dead letter"))?;
    if statuses.is_empty() {
        statuses.push(DeadLetterStatus::Open);
    }
    Ok(DeadLetterFilter {
        subscription: given(filter.subscription),
        workflow: given(filter.workflow_id),
        event_type: given(filter.r#type),
        source: given(filter.source),
        reason,
        since_ms: time(filter.since, "since")?,
        until_ms: time(filter.until, "until")?,
        statuses,
        ..DeadLetterFilter::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_refused() {
        let open = filter_of(v1::DeadLetterFilter::default()).unwrap();
        assert_eq!((open.statuses, open.subscription), (vec![DeadLetterStatus::Open], None));
        let wrong = [
            v1::DeadLetterFilter { reason: 99, ..Default::default() },
            v1::DeadLetterFilter { statuses: vec![99], ..Default::default() },
            v1::DeadLetterFilter { statuses: vec![0], ..Default::default() },
            v1::DeadLetterFilter {
                since: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
                ..Default::default()
            },
        ];
        for filter in wrong {
            assert_eq!(filter_of(filter).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}

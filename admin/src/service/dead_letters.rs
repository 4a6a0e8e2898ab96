//! `DeadLetterService`: what could not be delivered, and its second chance.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_index::history::{
    DeadLetter, DeadLetterFilter, DeadLetterId,
    status::{DeadLetterStatus, reason_of},
};
use weft_nats::catalog::keys::Grant;
use weft_proto::v1::{self, dead_letter_service_server::DeadLetterService};

use super::{
    closing, dead_letter_stats,
    events::page_size,
    page_token,
    redrive::{self, Responses},
    state::{Log, State},
};
use crate::{
    auth, convert,
    error::{Code, of_history, refuse, unknown},
};

/// `DeadLetterService` over the history; redrives go to COMMANDS.
#[derive(Debug)]
pub(super) struct DeadLetters {
    state: Arc<State>,
}

impl DeadLetters {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl DeadLetterService for DeadLetters {
    async fn list_dead_letters(
        &self,
        request: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<v1::ListDeadLettersResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let v1::ListDeadLettersRequest { filter, page_size: asked, page_token } = request.into_inner();
        let filter = limited(&grant, filter_of(filter.unwrap_or_default())?);
        let after = page_token::decode(&page_token)?;
        let limit = page_size(asked, "page_size")?;
        log.catch_up().await?;
        let page = log.history.dead_letters(filter, after, limit).await.map_err(of_history)?;
        Ok(Response::new(v1::ListDeadLettersResponse {
            dead_letters: page.dead_letters.into_iter().map(convert::dead_letter).collect(),
            next_page_token: page.next.map(page_token::encode).unwrap_or_default(),
        }))
    }

    async fn get_dead_letter(
        &self,
        request: Request<v1::GetDeadLetterRequest>,
    ) -> Result<Response<v1::GetDeadLetterResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let id = request.into_inner().id;
        log.catch_up().await?;
        let found = by_id(log, &grant, &[id]).await?.remove(0);
        let place = &found.place;
        let event = log.event(place.event, place.shard, place.seq, Some(place)).await?;
        Ok(Response::new(v1::GetDeadLetterResponse {
            event: event.map(convert::event),
            dead_letter: Some(convert::dead_letter(found)),
        }))
    }

    type RedriveDeadLettersStream = Responses;

    async fn redrive_dead_letters(
        &self,
        request: Request<v1::RedriveDeadLettersRequest>,
    ) -> Result<Response<Self::RedriveDeadLettersStream>, Status> {
        let log = self.state.log()?;
        let place = self.state.place()?;
        let grant = auth::grant(&request)?;
        let stream = redrive::redrive(log, &grant, request.into_inner(), self.state.draining().clone(), place).await?;
        Ok(Response::new(stream))
    }

    async fn resolve_dead_letters(
        &self,
        request: Request<v1::ResolveDeadLettersRequest>,
    ) -> Result<Response<v1::CloseDeadLettersResponse>, Status> {
        let grant = auth::grant(&request)?;
        closing::close(self.state.log()?, &grant, request.into_inner().into()).await.map(Response::new)
    }

    async fn discard_dead_letters(
        &self,
        request: Request<v1::DiscardDeadLettersRequest>,
    ) -> Result<Response<v1::CloseDeadLettersResponse>, Status> {
        let grant = auth::grant(&request)?;
        closing::close(self.state.log()?, &grant, request.into_inner().into()).await.map(Response::new)
    }

    async fn dead_letter_stats(
        &self,
        request: Request<v1::DeadLetterStatsRequest>,
    ) -> Result<Response<v1::DeadLetterStatsResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let asked = request.into_inner().filter.unwrap_or_default();
        let any = asked.statuses.is_empty();
        let mut filter = limited(&grant, filter_of(asked)?);
        if any {
            filter.statuses.clear();
        }
        log.catch_up().await?;
        dead_letter_stats::count(log, filter).await.map(Response::new)
    }
}

/// The dead letters of these ids, one for each id.
///
/// # Errors
///
/// BAD_QUERY for what is no id, or names several dead letters; NOT_FOUND for an unknown one.
pub(super) async fn by_id(log: &Log, grant: &Grant, ids: &[String]) -> Result<Vec<DeadLetter>, Status> {
    let parsed = ids.iter().map(|id| parse_id(id)).collect::<Result<Vec<_>, _>>()?;
    let found = log.history.find_dead_letters(parsed).await.map_err(of_history)?;
    found.into_iter().zip(ids).map(|(found, id)| only_one(grant, id, found)).collect()
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

/// Whether a caller may see it. What a key may not see is not there.
pub(super) fn sees(grant: &Grant, dead_letter: &DeadLetter) -> bool {
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
    let reason = given(filter.reason).map(|name| {
        reason_of(&name).ok_or_else(|| refuse(Code::BadQuery, format!("filter.reason {name:?} is not a reason")))
    });
    let mut statuses = Vec::with_capacity(filter.statuses.len());
    for name in &filter.statuses {
        let status = DeadLetterStatus::parse(name);
        statuses
            .push(status.ok_or_else(|| refuse(Code::BadQuery, format!("filter.statuses: {name:?} is not a status")))?);
    }
    if statuses.is_empty() {
        statuses.push(DeadLetterStatus::Open);
    }
    Ok(DeadLetterFilter {
        subscription: given(filter.subscription),
        workflow: given(filter.workflow_id),
        event_type: given(filter.r#type),
        source: given(filter.source),
        reason: reason.transpose()?,
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
            v1::DeadLetterFilter { reason: "boredom".into(), ..Default::default() },
            v1::DeadLetterFilter { statuses: vec!["gone".into()], ..Default::default() },
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

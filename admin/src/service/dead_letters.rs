//! `DeadLetterService`: dead letters, their redrives, resolutions and discards.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_proto::v1::{self, dead_letter_service_server::DeadLetterService};

use super::{
    close_item, dead_letter_operation,
    dead_letter_query::{by_id, filter_of, limited},
    dead_letter_stats,
    paging::{self, page_size},
    redrive::{self, Responses},
    state::State,
};
use crate::{auth, convert, error::of_history};

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
        let after = paging::decode(&page_token)?;
        let limit = page_size(asked, "page_size")?;
        log.catch_up().await?;
        let page = log.history.dead_letters(filter, after, limit).await.map_err(of_history)?;
        Ok(Response::new(v1::ListDeadLettersResponse {
            dead_letters: page.dead_letters.into_iter().map(convert::dead_letter).collect(),
            next_page_token: page.next.map(paging::encode).unwrap_or_default(),
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
        let grant = auth::grant(&request)?;
        let place = self.state.place(&grant)?;
        let stream = redrive::redrive(log, &grant, request.into_inner(), self.state.draining().clone(), place).await?;
        Ok(Response::new(stream))
    }

    async fn resolve_dead_letters(
        &self,
        request: Request<v1::ResolveDeadLettersRequest>,
    ) -> Result<Response<v1::CloseDeadLettersResponse>, Status> {
        let grant = auth::grant(&request)?;
        close_item::close(self.state.log()?, &grant, request.into_inner().into()).await.map(Response::new)
    }

    async fn discard_dead_letters(
        &self,
        request: Request<v1::DiscardDeadLettersRequest>,
    ) -> Result<Response<v1::CloseDeadLettersResponse>, Status> {
        let grant = auth::grant(&request)?;
        close_item::close(self.state.log()?, &grant, request.into_inner().into()).await.map(Response::new)
    }

    async fn cancel_dead_letter_operation(
        &self,
        request: Request<v1::CancelDeadLetterOperationRequest>,
    ) -> Result<Response<v1::DeadLetterOperation>, Status> {
        let grant = auth::grant(&request)?;
        dead_letter_operation::cancel(self.state.log()?, &grant, request.into_inner()).await.map(Response::new)
    }

    async fn dead_letter_stats(
        &self,
        request: Request<v1::DeadLetterStatsRequest>,
    ) -> Result<Response<v1::DeadLetterStatsResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let request = request.into_inner();
        let fields = dead_letter_stats::fields_of(&request.group_by)?;
        let asked = request.filter.unwrap_or_default();
        let any = asked.statuses.is_empty();
        let mut filter = limited(&grant, filter_of(asked)?);
        if any {
            filter.statuses.clear();
        }
        log.catch_up().await?;
        dead_letter_stats::count(log, filter, &fields).await.map(Response::new)
    }
}

//! `ReplayService`: settled events are delivered again.
//!
//! A replay is the commands of the request that started it: its id is their request id, and its progress follows from their
//! items.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_catalog::keys::Grant;
use weft_index::history::{ItemProgress, StoredCommand};
use weft_proto::{
    ids::EventId,
    internal::{self, OutcomeKind, ReplayAction, command::Action},
    v1::{self, ReplayState, replay_service_server::ReplayService},
    words::Word as _,
};

use super::{
    command::{Call, cut, is_complete, without_stored},
    paging,
    state::{LogState, State},
};
use crate::{
    auth, convert,
    error::{Code, of_history, refuse, unknown},
};

mod selection;

use selection::select;

/// Maximum number of deliveries in a plan.
const SAMPLE: usize = 10;
/// Replays of one page: the items of each are counted.
const PAGE_DEFAULT: u32 = 20;
const PAGE_MAX: u32 = 100;

/// `ReplayService` over the log and its history; replays go to COMMANDS.
#[derive(Debug)]
pub(super) struct Replays {
    state: Arc<State>,
}

impl Replays {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// Appends a command for each part of a replay.
    async fn order(
        &self,
        grant: &Grant,
        id: &str,
        action: ReplayAction,
        given_id: &str,
        reason: &str,
    ) -> Result<Response<v1::Replay>, Status> {
        let log = self.state.log()?;
        let call = Call::new(grant, given_id, reason)?;
        log.catch_up().await?;
        let parts = find(log, id).await?;
        let is_same = |stored: &Action| matches!(stored, Action::ReplayOrder(order) if order.replay == id && order.action() == action);
        if call.stored(log, is_same).await?.is_empty() {
            let state = view(log, id, &parts).await?.state();
            if let Some(problem) = changes_nothing(state, action) {
                return Err(refuse(Code::Conflict, format!("replay {id} is {}: {problem}", state.word())));
            }
            let order = |part: &StoredCommand| {
                let order = internal::ReplayOrder { replay: id.to_owned(), run: part.run.0, action: action.into() };
                (part.shard, Action::ReplayOrder(order))
            };
            call.command(log, &[], parts.iter().map(order).collect()).await?;
        }
        view(log, id, &parts).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl ReplayService for Replays {
    async fn plan_replay(
        &self,
        request: Request<v1::PlanReplayRequest>,
    ) -> Result<Response<v1::PlanReplayResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let _place = self.state.log_read(&grant)?;
        let selected = select(log, &grant, request.into_inner().selection.unwrap_or_default()).await?;
        let sample = selected.items.iter().take(SAMPLE).map(|(_, item)| v1::ReplayItem {
            event_id: EventId::from_slice(&item.event_id).map(|id| id.to_string()).unwrap_or_default(),
            subscription: item.subscription_name.clone(),
            workflow_id: item.workflow_id.clone(),
        });
        Ok(Response::new(v1::PlanReplayResponse {
            count: count(selected.items.len()),
            sample: sample.collect(),
            left_out_discarded: count(selected.discarded),
            left_out_resolved: count(selected.resolved),
        }))
    }

    async fn start_replay(&self, request: Request<v1::StartReplayRequest>) -> Result<Response<v1::Replay>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let v1::StartReplayRequest { selection, reason, request_id, rate } = request.into_inner();
        if rate.is_some_and(|rate: v1::Rate| rate.count == 0 || rate.period_ms == 0) {
            return Err(refuse(Code::BadQuery, "rate: count and period_ms are at least 1; leave it out for no limit"));
        }
        let call = Call::new(&grant, &request_id, &reason)?;
        log.catch_up().await?;
        let mut parts = call.stored(log, |action| matches!(action, Action::Replay(_))).await?;
        if !is_complete(&parts) {
            let _place = self.state.log_read(&grant)?;
            let selected = select(log, &grant, selection.unwrap_or_default()).await?;
            if selected.items.is_empty() && parts.is_empty() {
                return Err(refuse(Code::NotFound, selected.nothing()));
            }
            let items = without_stored(selected.items, &parts);
            let total = items.len();
            let actions = cut(&items, |items| {
                let interval_us = rate.map_or(0, |rate| interval_us(rate, items.len(), total));
                Action::Replay(internal::ReplayEvents { items, rate, interval_us })
            });
            parts = call.command(log, &parts, actions).await?;
        }
        view(log, &call.request_id, &parts).await.map(Response::new)
    }

    async fn get_replay(&self, request: Request<v1::GetReplayRequest>) -> Result<Response<v1::Replay>, Status> {
        let log = self.state.log()?;
        let id = request.into_inner().id;
        log.catch_up().await?;
        view(log, &id, &find(log, &id).await?).await.map(Response::new)
    }

    async fn list_replays(
        &self,
        request: Request<v1::ListReplaysRequest>,
    ) -> Result<Response<v1::ListReplaysResponse>, Status> {
        let log = self.state.log()?;
        let v1::ListReplaysRequest { page_size, page_token } = request.into_inner();
        let limit = paging::within(page_size, "page_size", PAGE_DEFAULT, PAGE_MAX)?;
        let after = paging::decode_replay(&page_token)?;
        log.catch_up().await?;
        let page = log.history.replays(after, limit).await.map_err(of_history)?;
        let mut replays = Vec::with_capacity(page.request_ids.len());
        for id in &page.request_ids {
            replays.push(view(log, id, &find(log, id).await?).await?);
        }
        let next_page_token = page.next.as_ref().map(paging::encode_replay).unwrap_or_default();
        Ok(Response::new(v1::ListReplaysResponse { replays, next_page_token }))
    }

    async fn pause_replay(&self, request: Request<v1::PauseReplayRequest>) -> Result<Response<v1::Replay>, Status> {
        let grant = auth::grant(&request)?;
        let v1::PauseReplayRequest { id, reason, request_id } = request.into_inner();
        self.order(&grant, &id, ReplayAction::Pause, &request_id, &reason).await
    }

    async fn resume_replay(&self, request: Request<v1::ResumeReplayRequest>) -> Result<Response<v1::Replay>, Status> {
        let grant = auth::grant(&request)?;
        let v1::ResumeReplayRequest { id, reason, request_id } = request.into_inner();
        self.order(&grant, &id, ReplayAction::Resume, &request_id, &reason).await
    }

    async fn cancel_replay(&self, request: Request<v1::CancelReplayRequest>) -> Result<Response<v1::Replay>, Status> {
        let grant = auth::grant(&request)?;
        let v1::CancelReplayRequest { id, reason, request_id } = request.into_inner();
        self.order(&grant, &id, ReplayAction::Cancel, &request_id, &reason).await
    }
}

/// Reason why a command would not change a replay in this state; `None`: it changes it.
fn changes_nothing(state: ReplayState, action: ReplayAction) -> Option<&'static str> {
    match (state, action) {
        (ReplayState::Done, _) => Some("everything that it delivers has come to its end"),
        (ReplayState::Cancelled, _) => Some("what it had not delivered is discarded"),
        (ReplayState::Paused, ReplayAction::Pause) => Some("nothing to pause"),
        (ReplayState::Running, ReplayAction::Resume) => Some("nothing to resume"),
        _ => None,
    }
}

/// The average time between two attempts of a part, such that all parts, which run at the same time, keep to the rate together.
fn interval_us(rate: v1::Rate, items: usize, total: usize) -> u64 {
    let wide = |number: usize| u128::try_from(number.max(1)).unwrap_or(u128::MAX);
    let whole = u128::from(rate.period_ms) * 1_000 * wide(total);
    u64::try_from(whole / (u128::from(rate.count.max(1)) * wide(items))).unwrap_or(u64::MAX).max(1)
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}

/// The commands of a replay.
async fn find(log: &LogState, id: &str) -> Result<Vec<StoredCommand>, Status> {
    let parts = log.history.request(id.to_owned()).await.map_err(of_history)?;
    let is_replay = |part: &StoredCommand| matches!(part.command.action, Some(Action::Replay(_)));
    if parts.is_empty() || !parts.iter().all(is_replay) {
        return Err(unknown(Code::NotFound, format!("no replay {id} is kept")));
    }
    Ok(parts)
}

/// State of a replay.
async fn view(log: &LogState, id: &str, parts: &[StoredCommand]) -> Result<v1::Replay, Status> {
    let items: Vec<_> = parts.iter().flat_map(StoredCommand::items).map(|(item, _)| item).collect();
    let mut replay = v1::Replay { id: id.to_owned(), ..Default::default() };
    if let Some(first) = parts.first() {
        replay.operator.clone_from(&first.command.operator);
        replay.reason.clone_from(&first.command.reason);
        if let Some(Action::Replay(events)) = &first.command.action {
            replay.rate = events.rate;
        }
        replay.started_at = convert::milliseconds(first.command.at_ms);
    }
    replay.selected = count(items.len());
    for state in log.history.item_progress(items).await.map_err(of_history)? {
        let counter = match state {
            ItemProgress::Pending => &mut replay.pending,
            ItemProgress::NotApplicable => &mut replay.not_applicable,
            ItemProgress::Settled(OutcomeKind::Delivered) => &mut replay.delivered,
            ItemProgress::Settled(OutcomeKind::Discarded) => &mut replay.discarded,
            ItemProgress::Settled(_) => &mut replay.failed,
        };
        *counter += 1;
    }
    let order = log.history.replay_order(id.to_owned()).await.map_err(of_history)?;
    replay.state = match order {
        // A cancel after everything was delivered has changed nothing.
        Some(ReplayAction::Cancel) if replay.pending + replay.discarded > 0 => ReplayState::Cancelled,
        _ if replay.pending == 0 => ReplayState::Done,
        Some(ReplayAction::Pause) => ReplayState::Paused,
        Some(ReplayAction::Resume | ReplayAction::Cancel | ReplayAction::Unspecified) | None => ReplayState::Running,
    }
    .into();
    Ok(replay)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of different sizes take the same time, and together they keep to the rate.
    #[test]
    fn parts_share_the_rate() {
        let rate = v1::Rate { count: 100, period_ms: 1_000 };
        assert_eq!(interval_us(rate, 2_000, 2_000), 10_000);
        let (one, other) = (interval_us(rate, 1_000, 1_500), interval_us(rate, 500, 1_500));
        assert_eq!((one, other), (15_000, 30_000));
        assert_eq!(1_000 * one, 500 * other);
        assert_eq!(interval_us(v1::Rate { count: u32::MAX, period_ms: 1 }, 1, 1), 1);
    }

    #[test]
    fn an_order_that_changes_nothing_says_so() {
        for action in [ReplayAction::Pause, ReplayAction::Resume, ReplayAction::Cancel] {
            assert!(
                changes_nothing(ReplayState::Done, action).is_some()
                    && changes_nothing(ReplayState::Cancelled, action).is_some()
            );
        }
        assert!(changes_nothing(ReplayState::Paused, ReplayAction::Pause).is_some());
        assert!(changes_nothing(ReplayState::Running, ReplayAction::Resume).is_some());
        for (state, action) in [
            (ReplayState::Running, ReplayAction::Pause),
            (ReplayState::Paused, ReplayAction::Resume),
            (ReplayState::Running, ReplayAction::Cancel),
            (ReplayState::Paused, ReplayAction::Cancel),
        ] {
            assert_eq!(changes_nothing(state, action), None, "{state:?} {action:?}");
        }
    }
}

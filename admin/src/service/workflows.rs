//! `WorkflowService`: workflows and their lanes, and what operators make of them.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_catalog::{Match, Matcher, keys::Grant};
use weft_index::history::{CommandItem, EventRef, LaneFilter, LaneHistory};
use weft_nats::{direct, entry::Entry, event::StoredEvent};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, LaneAction, command::Action},
    v1::{self, workflow_service_server::WorkflowService},
    words,
};

use super::{
    command::Call,
    paging::{self, page_size},
    state::{COMMAND_TIMEOUT, LogState, State},
};
use crate::{
    auth, convert,
    error::{Code, of_direct, of_history, of_key, refuse, unknown},
};

mod pages;

/// Bytes of one look for a lane's head.
const HEAD_BYTES: usize = 3 * 1024 * 1024;
/// Maximum number of lanes in the answer to `GetWorkflow`: each takes a look for its head. `ListLanes` has all, page by page.
const LANES_MAX: usize = 1_000;
/// Events of one look for a lane's head: most subscriptions take most of a workflow.
const HEAD_LOOK: usize = 16;

/// `WorkflowService` over the log and its history; orders go to COMMANDS.
#[derive(Debug)]
pub(super) struct Workflows {
    state: Arc<State>,
}

impl Workflows {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// Commands a lane, and waits until its shard's owner has executed the command.
    async fn order(&self, grant: Grant, order: LaneRequest) -> Result<Response<v1::LaneResponse>, Status> {
        let log = self.state.log()?;
        let call = Call::new(&grant, &order.request_id, &order.reason)?;
        let workflow = workflow_of(&order.workflow_id)?;
        log.catch_up_shard(log.layout.shard_of(&workflow)).await?;
        let known = check(log, &grant, &workflow).await?;
        let uid = subscription(log, &order.subscription).await?;
        let is_same = |action: &Action| {
            matches!(action, Action::Lane(lane) if lane.action() == order.action
                && lane.workflow_id == order.workflow_id && lane.subscription == uid.to_vec())
        };
        let mut commands = call.stored(log, is_same).await?;
        if commands.is_empty() {
            if order.action == LaneAction::Pause && !known && !order.force {
                let message = format!(
                    "no event of workflow {workflow} is kept, so it may be misspelt; to pause it before its first event \
                     use --force"
                );
                return Err(refuse(Code::NotFound, message));
            }
            let (shard, wanted) = order.command(log, &grant, uid, &workflow).await?;
            commands = call.command(log, &[], vec![(shard, Action::Lane(wanted))]).await?;
        }
        let stored = commands.first().ok_or_else(|| refuse(Code::Internal, "the command is not in the history"))?;
        let Some(Action::Lane(lane_order)) = &stored.command.action else {
            return Err(refuse(Code::IdReused, "request_id was used for another call; use a new one"));
        };
        if !log.carried_out(stored, COMMAND_TIMEOUT).await? {
            let message = "the command is stored, and is carried out once a worker owns the workflow's shard; \
                           call again under the same request_id to see";
            return Err(refuse(Code::Starting, message));
        }
        let (shard, run) = (stored.shard, stored.run);
        let item = CommandItem { shard, seq: StreamSeq(lane_order.sequence), uid, run };
        if log.history.is_refused(item).await.map_err(of_history)? {
            return Err(refuse(Code::Conflict, order.refusal()));
        }
        let event = EventId::from_slice(&lane_order.event_id);
        let lane = match find(log, uid, &workflow, |lane| holds(lane, lane_order.sequence)).await? {
            // As in lists, lanes are shown to no key that is limited to some sources.
            Some(lane) if grant.sources().is_empty() => Some(view(log, lane).await?),
            Some(_) | None => None,
        };
        Ok(Response::new(v1::LaneResponse {
            event_id: event.map(|event| event.to_string()).unwrap_or_default(),
            lane,
            request_id: call.request_id,
        }))
    }
}

#[tonic::async_trait]
impl WorkflowService for Workflows {
    async fn get_workflow(
        &self,
        request: Request<v1::GetWorkflowRequest>,
    ) -> Result<Response<v1::GetWorkflowResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let asked = request.into_inner();
        let workflow = workflow_of(&asked.workflow_id)?;
        let after = paging::decode_number(&asked.page_token)?;
        let limit = page_size(asked.page_size, "page_size")?;
        let missing = || unknown(Code::NotFound, format!("no event of workflow {workflow} is kept"));
        // NOT_FOUND as well for what the key may not see.
        grant.check_workflow(&workflow).map_err(|_| missing())?;
        log.catch_up().await?;
        let page = pages::read(log, &grant, &workflow, StreamSeq(after), asked.newest_first, limit).await?;
        if page.events.is_empty() && asked.page_token.is_empty() && page.next.is_none() {
            return Err(missing());
        }
        let mut lanes = Vec::new();
        // Lanes have no source, so a key that is limited to some sees none.
        if grant.sources().is_empty() {
            let filter = LaneFilter { workflow: Some(workflow.as_str().to_owned()), ..LaneFilter::default() };
            let found = log.history.lanes(filter, None, LANES_MAX).await.map_err(of_history)?;
            for lane in found.lanes {
                lanes.push(view(log, lane).await?);
            }
        }
        Ok(Response::new(v1::GetWorkflowResponse {
            workflow_id: workflow.as_str().to_owned(),
            events: page.events,
            lanes,
            next_page_token: page.next.map(|last| paging::encode_number(last.0)).unwrap_or_default(),
        }))
    }

    async fn list_lanes(
        &self,
        request: Request<v1::ListLanesRequest>,
    ) -> Result<Response<v1::ListLanesResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let asked = request.into_inner();
        let states = words::values(&asked.states)
            .ok_or_else(|| refuse(Code::BadQuery, "states: one is not a state of a lane"))?;
        // Lanes have no source, so a key that is limited to some sees none.
        auth::check_all_sources(&grant)?;
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let filter = LaneFilter {
            subscription: given(asked.subscription),
            workflow: given(asked.workflow_id),
            workflow_prefixes: grant.workflow_prefixes().to_vec(),
            states,
        };
        let after = paging::decode_lane(&asked.page_token)?;
        let limit = page_size(asked.page_size, "page_size")?;
        log.catch_up().await?;
        let page = log.history.lanes(filter, after, limit).await.map_err(of_history)?;
        let mut lanes = Vec::with_capacity(page.lanes.len());
        for lane in page.lanes {
            lanes.push(view(log, lane).await?);
        }
        let next_page_token = page.next.map(paging::encode_lane).unwrap_or_default();
        Ok(Response::new(v1::ListLanesResponse { lanes, next_page_token }))
    }

    async fn retry_lane(&self, request: Request<v1::RetryLaneRequest>) -> Result<Response<v1::LaneResponse>, Status> {
        let grant = auth::grant(&request)?;
        let v1::RetryLaneRequest { subscription, workflow_id, event_id, reason, request_id } = request.into_inner();
        let action = LaneAction::Retry;
        self.order(grant, LaneRequest { action, subscription, workflow_id, event_id, reason, request_id, force: false })
            .await
    }

    async fn skip_lane(&self, request: Request<v1::SkipLaneRequest>) -> Result<Response<v1::LaneResponse>, Status> {
        let grant = auth::grant(&request)?;
        let v1::SkipLaneRequest { subscription, workflow_id, event_id, reason, request_id } = request.into_inner();
        let action = LaneAction::Skip;
        self.order(grant, LaneRequest { action, subscription, workflow_id, event_id, reason, request_id, force: false })
            .await
    }

    async fn pause_lane(&self, request: Request<v1::PauseLaneRequest>) -> Result<Response<v1::LaneResponse>, Status> {
        let grant = auth::grant(&request)?;
        let v1::PauseLaneRequest { subscription, workflow_id, reason, request_id, force } = request.into_inner();
        let (action, event_id) = (LaneAction::Pause, String::new());
        self.order(grant, LaneRequest { action, subscription, workflow_id, event_id, reason, request_id, force }).await
    }

    async fn resume_lane(&self, request: Request<v1::ResumeLaneRequest>) -> Result<Response<v1::LaneResponse>, Status> {
        let grant = auth::grant(&request)?;
        let v1::ResumeLaneRequest { subscription, workflow_id, reason, request_id } = request.into_inner();
        let (action, event_id) = (LaneAction::Resume, String::new());
        self.order(grant, LaneRequest { action, subscription, workflow_id, event_id, reason, request_id, force: true })
            .await
    }
}

/// A request for a command to a lane.
struct LaneRequest {
    action: LaneAction,
    subscription: String,
    workflow_id: String,
    event_id: String,
    reason: String,
    request_id: String,
    /// Also a workflow of which no event is kept.
    force: bool,
}

impl LaneRequest {
    /// The command, with the head that it is about.
    async fn command(
        &self,
        log: &LogState,
        grant: &Grant,
        uid: SubscriptionUid,
        workflow: &WorkflowId,
    ) -> Result<(ShardId, internal::LaneOrder), Status> {
        let mut order = internal::LaneOrder {
            subscription: uid.to_vec(),
            subscription_name: self.subscription.clone(),
            workflow_id: self.workflow_id.clone(),
            action: self.action.into(),
            ..Default::default()
        };
        if matches!(self.action, LaneAction::Retry | LaneAction::Skip) {
            let named = self.named(log, workflow).await?;
            let is_named = |seq: u64| named.as_ref().is_none_or(|named| named.seqs.contains(&seq));
            let unsettled = |lane: &internal::Lane| lane.next <= lane.last && (!lane.unordered || is_named(lane.last));
            let lane = find(log, uid, workflow, unsettled).await?.ok_or_else(|| {
                let Self { subscription, workflow_id, .. } = self;
                unknown(Code::NotFound, format!("nothing of workflow {workflow_id} is unsettled for {subscription}"))
            })?;
            let head = head(log, &lane).await?.ok_or_else(|| refuse(Code::Conflict, self.refusal()))?;
            if !is_named(head.seq.0) {
                let head = EventRef { event: head.event.id, seq: Some(head.seq) };
                return Err(refuse(Code::Conflict, format!("the head is {head}, not {}", self.event_id)));
            }
            grant.check(&head.event.source, workflow).map_err(of_key)?;
            order.next = lane.lane.next;
            order.sequence = head.seq.0;
            order.event_id = head.event.id.to_vec();
        }
        Ok((log.layout.shard_of(workflow), order))
    }

    /// The places of the event that the request names, if it names one: several where its id stands at several places
    /// and the request does not say which.
    async fn named(&self, log: &LogState, workflow: &WorkflowId) -> Result<Option<Named>, Status> {
        let Some(event) = Some(&self.event_id).filter(|text| !text.is_empty()) else { return Ok(None) };
        let unknown = || unknown(Code::NotFound, format!("no event {event} is kept"));
        let named: EventRef = event.parse().map_err(|_| unknown())?;
        let shard = log.layout.shard_of(workflow);
        let places = log.history.places_of(named.event).await.map_err(of_history)?;
        let here = places.into_iter().filter(|(of, seq)| *of == shard && named.is_at(*seq));
        let seqs: Vec<u64> = here.map(|(_, seq)| seq.0).collect();
        if seqs.is_empty() { Err(unknown()) } else { Ok(Some(Named { seqs })) }
    }

    /// Why its shard's owner has not taken it.
    fn refusal(&self) -> &'static str {
        match self.action {
            LaneAction::Retry => "the head has been settled meanwhile, or is being attempted",
            LaneAction::Skip => "the head has been settled meanwhile",
            LaneAction::Pause => "the lane is paused already, or its subscription is gone",
            LaneAction::Resume | LaneAction::Unspecified => "the lane is not paused",
        }
    }
}

/// The places of an event that a request names.
struct Named {
    seqs: Vec<u64>,
}

fn workflow_of(text: &str) -> Result<WorkflowId, Status> {
    WorkflowId::new(text).map_err(|problem| refuse(Code::InvalidWorkflow, format!("workflow_id: {problem}")))
}

/// Refuses a caller without access to a workflow: a key that is limited to some sources has none to a workflow of other
/// sources. Returns whether an event of it is kept.
async fn check(log: &LogState, grant: &Grant, workflow: &WorkflowId) -> Result<bool, Status> {
    let (stream, subject) =
        (log.layout.events_stream(log.layout.shard_of(workflow)), log.layout.event_subject(workflow));
    let newest = direct::last_by_subject(&log.connection, &stream, &subject).await.map_err(of_direct)?;
    let source = newest.and_then(|message| match Entry::decode(log.layout, &message) {
        Entry::Event(event) => Some(event.source),
        Entry::Erased(erasure) => Some(erasure.event.source),
        Entry::Heads(_) | Entry::Foreign(_) => None,
    });
    grant.check(source.as_deref().unwrap_or_default(), workflow).map_err(of_key)?;
    Ok(source.is_some())
}

/// The subscription of a name.
async fn subscription(log: &LogState, name: &str) -> Result<SubscriptionUid, Status> {
    let snapshot = log.snapshot().await?;
    let found = snapshot.subscriptions.get(name).and_then(|found| SubscriptionUid::from_slice(&found.value.uid));
    found.ok_or_else(|| refuse(Code::NotFound, format!("no subscription {name}")))
}

/// A lane of a workflow with something unsettled, or paused: the first that is as wanted, by its oldest event.
async fn find(
    log: &LogState,
    uid: SubscriptionUid,
    workflow: &WorkflowId,
    wanted: impl Fn(&internal::Lane) -> bool,
) -> Result<Option<LaneHistory>, Status> {
    let filter = LaneFilter { workflow: Some(workflow.as_str().to_owned()), ..LaneFilter::default() };
    let page = log.history.lanes(filter, None, usize::MAX).await.map_err(of_history)?;
    let found = page.lanes.into_iter().filter(|lane| lane.uid == uid && wanted(&lane.lane));
    Ok(found.min_by_key(|lane| lane.lane.next))
}

/// Whether a lane is that of a workflow, or that of this event of it.
fn holds(lane: &internal::Lane, seq: u64) -> bool {
    !lane.unordered || lane.last == seq
}

/// Some events of a workflow from a place on, oldest first, and the place of the last message that was read.
async fn read(
    log: &LogState,
    workflow: &WorkflowId,
    from: StreamSeq,
    limit: usize,
) -> Result<(Vec<StoredEvent>, Option<StreamSeq>), Status> {
    let stream = log.layout.events_stream(log.layout.shard_of(workflow));
    let subject = log.layout.event_subject(workflow);
    let messages =
        direct::range(&log.connection, &stream, from, &subject, limit, HEAD_BYTES).await.map_err(of_direct)?;
    let last = messages.last().map(|message| message.seq);
    let events = messages.iter().filter_map(|message| StoredEvent::decode(log.layout, message).ok());
    Ok((events.collect(), last))
}

/// The oldest unsettled event of a lane: of its workflow's from `next` on the first that its subscription took.
async fn head(log: &LogState, lane: &LaneHistory) -> Result<Option<StoredEvent>, Status> {
    let matcher = match lane.filters {
        Some(_) => None,
        // Only an earlier version has written about it: by the present filter.
        None => {
            let snapshot = log.snapshot().await?;
            let subscription = snapshot.subscriptions.get(&lane.subscription);
            subscription.and_then(|subscription| Matcher::new(&subscription.value, lane.shard))
        }
    };
    let mut from = StreamSeq(lane.lane.next);
    while from.0 <= lane.lane.last {
        let (events, last) = read(log, &lane.workflow, from, HEAD_LOOK).await?;
        let Some(last) = last else { return Ok(None) };
        let taken = |event: &StoredEvent| match &lane.filters {
            Some(filters) => filters.judge(event) != Match::Ignored,
            None => matcher.as_ref().is_none_or(|matcher| matcher.takes(event)),
        };
        if let Some(head) = events.into_iter().find(taken) {
            return Ok(Some(head).filter(|head| head.seq.0 <= lane.lane.last));
        }
        from = last.next();
    }
    Ok(None)
}

async fn view(log: &LogState, lane: LaneHistory) -> Result<v1::WorkflowLane, Status> {
    let head = head(log, &lane).await?;
    let last = match &head {
        Some(head) => log.history.last_attempt(lane.shard, head.seq, lane.uid).await.map_err(of_history)?,
        None => None,
    };
    let last = last.filter(|_| lane.lane.attempts > 0);
    Ok(v1::WorkflowLane {
        last_error: last.as_ref().map(convert::ended).unwrap_or_default(),
        last_attempt_at: last.as_ref().and_then(|last| convert::milliseconds(last.ended_at_ms)),
        last_response: last.map(|last| last.response).unwrap_or_default(),
        head_sequence_number: head.as_ref().map_or(0, |head| head.event.sequence_number.0),
        head_stored_at: head.as_ref().map(|head| convert::timestamp(head.stored_at)),
        waiting_events: lane.waiting,
        uncounted: lane.lane.uncounted,
        state: lane.state().into(),
        subscription: lane.subscription,
        workflow_id: lane.workflow.as_str().to_owned(),
        head_event_id: head.map(|head| head.event.id.to_string()).unwrap_or_default(),
        attempts: lane.lane.attempts,
        next_attempt_at: convert::milliseconds(lane.lane.next_attempt_at_ms),
        first_failed_at: convert::milliseconds(lane.lane.first_failed_at_ms),
        receiver: lane.receiver.as_ref().map(|receiver| convert::receiver(lane.shard, receiver)),
        pause: lane.pause.map(convert::pause),
    })
}

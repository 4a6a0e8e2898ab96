//! Lanes, workflows, replays and counts as the commands print them.

use serde::Serialize;
use weft_proto::{v1, words::word};

use super::{Event, Receiver, Time, given, listed::said, text_or_dash, when};
use crate::command::output::{self, Row};

/// A lane.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lane {
    subscription: String,
    workflow_id: String,
    state: &'static str,
    head_event_id: Option<String>,
    attempts: u32,
    next_attempt_at: Option<Time>,
    first_failed_at: Option<Time>,
    /// How the last attempt of its head ended.
    last_error: Option<String>,
    /// The beginning of the receiver's answer to it.
    last_response: Option<String>,
    /// Events that wait behind its head.
    waiting_events: u64,
    /// Of the attempts, those that used up no retry.
    uncounted: u32,
    /// While it is not called freely.
    #[serde(skip_serializing_if = "Option::is_none")]
    receiver: Option<Receiver>,
    /// While it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause: Option<Pause>,
}

/// Operator and reason of a pause.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pause {
    operator: Option<String>,
    reason: Option<String>,
    paused_at: Option<Time>,
    /// All of the subscription is paused.
    of_subscription: bool,
}

impl From<v1::LanePause> for Pause {
    fn from(pause: v1::LanePause) -> Self {
        Self {
            operator: given(pause.operator),
            reason: given(pause.reason),
            paused_at: Time::of(pause.paused_at.as_ref()),
            of_subscription: pause.of_subscription,
        }
    }
}

impl Pause {
    /// For people.
    fn human(&self) -> String {
        let what = if self.of_subscription { "subscription paused" } else { "paused" };
        let by = self.operator.as_ref().map(|operator| format!(" by {operator}")).unwrap_or_default();
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{what}{by}{reason}")
    }
}

impl From<v1::WorkflowLane> for Lane {
    fn from(lane: v1::WorkflowLane) -> Self {
        Self {
            next_attempt_at: Time::of(lane.next_attempt_at.as_ref()),
            first_failed_at: Time::of(lane.first_failed_at.as_ref()),
            subscription: lane.subscription,
            workflow_id: lane.workflow_id,
            state: word::<v1::LaneState>(lane.state),
            head_event_id: given(lane.head_event_id),
            attempts: lane.attempts,
            last_error: given(lane.last_error),
            last_response: given(String::from_utf8_lossy(&lane.last_response).into_owned()),
            waiting_events: lane.waiting_events,
            uncounted: lane.uncounted,
            receiver: lane.receiver.map(Receiver::from),
            pause: lane.pause.map(Pause::from),
        }
    }
}

impl Row for Lane {
    const HEADINGS: &'static [&'static str] = &[
        "SUBSCRIPTION",
        "WORKFLOW",
        "STATE",
        "SINCE",
        "HEAD",
        "BEHIND",
        "ATTEMPTS",
        "NEXT ATTEMPT",
        "FIRST FAILED",
        "WHY",
    ];

    fn cells(&self) -> Vec<String> {
        let receiver = self.receiver.as_ref().filter(|receiver| receiver.state == self.state);
        let next = receiver.map_or(self.next_attempt_at.as_ref(), |receiver| receiver.next_attempt_at.as_ref());
        let (since, why) = match (&self.pause, receiver) {
            (Some(pause), _) => (pause.paused_at.as_ref(), Some(pause.human())),
            (None, Some(receiver)) => (receiver.since.as_ref(), Some(receiver.reason.clone())),
            (None, None) => (None, self.shown_error()),
        };
        vec![
            self.subscription.clone(),
            self.workflow_id.clone(),
            self.state.to_owned(),
            when(since),
            text_or_dash(self.head_event_id.as_ref()),
            self.waiting_events.to_string(),
            self.attempts.to_string(),
            when(next),
            when(self.first_failed_at.as_ref()),
            text_or_dash(why.as_ref()),
        ]
    }
}

impl Lane {
    /// How the last attempt ended, and whether that used up a retry.
    fn shown_error(&self) -> Option<String> {
        let error = self.last_error.as_ref()?;
        let retries = if self.uncounted >= self.attempts { " (no retry used up)" } else { "" };
        let said = said(error, self.last_response.as_deref().unwrap_or_default());
        Some(format!("{said}{retries}"))
    }

    /// Why its head is not attempted now, for people; `None` where nothing keeps it.
    pub fn obstacle(&self) -> Option<String> {
        let Self { subscription, state, receiver, pause, .. } = self;
        match (*state, receiver) {
            ("paused", _) => {
                let pause = pause.as_ref().map_or_else(|| "paused".to_owned(), Pause::human);
                Some(format!("the lane is not attempted until it, or {subscription}, is resumed ({pause})"))
            }
            (_, Some(receiver)) => Some(format!("the receiver of {subscription} {}", receiver.human())),
            _ => None,
        }
    }

    /// Whether this event is its head.
    pub fn waits_with(&self, event_id: &str) -> bool {
        self.head_event_id.as_deref() == Some(event_id)
    }
}

/// Result of a command to a lane.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ordered {
    /// The request.
    pub request_id: String,
    /// The retried or skipped event.
    pub event_id: Option<String>,
    /// How the lane stands; `None` where nothing of it is unsettled.
    pub lane: Option<Lane>,
}

impl From<v1::LaneResponse> for Ordered {
    fn from(answer: v1::LaneResponse) -> Self {
        let v1::LaneResponse { event_id, lane, request_id } = answer;
        Self { request_id, event_id: given(event_id), lane: lane.map(Lane::from) }
    }
}

/// A workflow: its events in order, and its lanes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workflow {
    workflow_id: String,
    events: Vec<WorkflowEvent>,
    lanes: Vec<Lane>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkflowEvent {
    #[serde(flatten)]
    event: Event,
    status: &'static str,
}

impl From<v1::GetWorkflowResponse> for Workflow {
    fn from(workflow: v1::GetWorkflowResponse) -> Self {
        let event = |event: v1::WorkflowEvent| {
            let status = word::<v1::EventStatus>(event.status);
            Some(WorkflowEvent { event: Event::from(event.event?), status })
        };
        Self {
            workflow_id: workflow.workflow_id,
            events: workflow.events.into_iter().filter_map(event).collect(),
            lanes: workflow.lanes.into_iter().map(Lane::from).collect(),
        }
    }
}

impl Workflow {
    /// For people: the events, then the lanes.
    pub fn human(&self) -> String {
        let rows = self.events.iter().map(|event| {
            let Event { sequence_number, event_id, r#type, source, received_at, .. } = &event.event;
            let received_at = when(received_at.as_ref());
            vec![
                sequence_number.to_string(),
                event_id.clone(),
                r#type.clone(),
                source.clone(),
                received_at,
                event.status.to_owned(),
            ]
        });
        let events = output::table(&["SEQ", "EVENT", "TYPE", "SOURCE", "RECEIVED", "STATUS"], rows);
        if self.lanes.is_empty() {
            return events;
        }
        format!("{events}\n\n{}", output::table(Lane::HEADINGS, self.lanes.iter().map(Row::cells)))
    }
}

/// A replay.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    id: String,
    state: &'static str,
    selected: u32,
    delivered: u32,
    failed: u32,
    discarded: u32,
    not_applicable: u32,
    pending: u32,
    operator: String,
    reason: String,
    started_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
}

impl From<v1::Replay> for Replay {
    fn from(replay: v1::Replay) -> Self {
        Self {
            started_at: Time::of(replay.started_at.as_ref()),
            rate: replay.rate.as_ref().map(weft_catalog::fields::rate_text),
            id: replay.id,
            state: word::<v1::ReplayState>(replay.state),
            selected: replay.selected,
            delivered: replay.delivered,
            failed: replay.failed,
            discarded: replay.discarded,
            not_applicable: replay.not_applicable,
            pending: replay.pending,
            operator: replay.operator,
            reason: replay.reason,
        }
    }
}

impl Row for Replay {
    const HEADINGS: &'static [&'static str] = &[
        "ID",
        "STATE",
        "SELECTED",
        "DELIVERED",
        "FAILED",
        "DISCARDED",
        "N/A",
        "PENDING",
        "STARTED",
        "OPERATOR",
        "WHY",
    ];

    fn cells(&self) -> Vec<String> {
        let counts = [self.selected, self.delivered, self.failed, self.discarded, self.not_applicable, self.pending];
        let mut cells = vec![self.id.clone(), self.state.to_owned()];
        cells.extend(counts.map(|count| count.to_string()));
        cells.extend([when(self.started_at.as_ref()), self.operator.clone(), self.reason.clone()]);
        cells
    }
}

/// The plan of a replay.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    count: u32,
    /// Left out because an operator has decided about them.
    left_out_discarded: u32,
    left_out_resolved: u32,
    sample: Vec<PlannedDelivery>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PlannedDelivery {
    event_id: String,
    subscription: String,
    workflow_id: String,
}

impl From<v1::PlanReplayResponse> for Plan {
    fn from(plan: v1::PlanReplayResponse) -> Self {
        let delivery = |item: v1::ReplayItem| PlannedDelivery {
            event_id: item.event_id,
            subscription: item.subscription,
            workflow_id: item.workflow_id,
        };
        Self {
            count: plan.count,
            left_out_discarded: plan.left_out_discarded,
            left_out_resolved: plan.left_out_resolved,
            sample: plan.sample.into_iter().map(delivery).collect(),
        }
    }
}

impl Plan {
    /// For people.
    pub fn human(&self) -> String {
        let rows = self.sample.iter().map(|delivery| {
            vec![delivery.event_id.clone(), delivery.subscription.clone(), delivery.workflow_id.clone()]
        });
        let table = output::table(&["EVENT", "SUBSCRIPTION", "WORKFLOW"], rows);
        let Self { count, left_out_discarded: discarded, left_out_resolved: resolved, .. } = self;
        let left_out = match discarded + resolved {
            0 => String::new(),
            _ => format!(
                "\nleft out: {discarded} discarded and {resolved} resolved by an operator; --include discarded,resolved \
                 takes them"
            ),
        };
        match count {
            0 => format!("would replay nothing{left_out}"),
            _ => format!("would replay {count} deliveries, such as\n{table}{left_out}"),
        }
    }
}

/// How many dead letters agree in the fields that are present.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterCount {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subscription: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) r#type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) workflow_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_error: Option<String>,
    pub(crate) count: u64,
}

impl From<v1::DeadLetterCount> for DeadLetterCount {
    fn from(of: v1::DeadLetterCount) -> Self {
        Self {
            subscription: given(of.subscription),
            reason: Some(word::<v1::DeadLetterReason>(of.reason)).filter(|reason| !reason.is_empty()),
            status: Some(word::<v1::DeadLetterStatus>(of.status)).filter(|status| !status.is_empty()),
            r#type: given(of.r#type),
            source: given(of.source),
            workflow_id: given(of.workflow_id),
            last_status: Some(of.last_status).filter(|status| *status > 0),
            last_error: given(of.last_error),
            count: of.count,
        }
    }
}

impl Row for DeadLetterCount {
    const HEADINGS: &'static [&'static str] = &["SUBSCRIPTION", "REASON", "STATUS", "COUNT"];

    fn cells(&self) -> Vec<String> {
        let text = |value: &Option<String>| text_or_dash(value.as_ref());
        vec![
            text(&self.subscription),
            text_or_dash(self.reason.as_ref()),
            text_or_dash(self.status.as_ref()),
            self.count.to_string(),
        ]
    }
}

//! Why an event or a workflow is where it is: what it waits for, since when, what the receiver said last, how many events wait after it,
//! and what can be done.

use serde::Serialize;
use weft_proto::{v1, words::word};

use super::{Time, given, listed::said, when};
use crate::command::output;

/// An event or a workflow, explained.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    workflow_id: String,
    /// Of the event, or of the newest one of the workflow.
    status: &'static str,
    /// In a sentence.
    summary: String,
    /// By subscription.
    subscriptions: Vec<Cause>,
    /// Commands that help where no subscription is the cause.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to_do: Vec<String>,
}

/// The reason for one subscription.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cause {
    subscription: String,
    /// Status of the delivery, or state of the lane.
    state: &'static str,
    waits_for: String,
    since: Option<Time>,
    attempts: u32,
    /// How the last attempt ended, with the beginning of the answer.
    receiver_said: Option<String>,
    said_at: Option<Time>,
    next_attempt_at: Option<Time>,
    /// Events of the workflow that wait behind the head of the lane.
    waiting_events: u64,
    to_do: Vec<String>,
}

impl Explanation {
    /// An event, with the lanes of its workflow. `None` when the answer holds no event.
    pub fn of_event(answer: v1::GetEventResponse, lanes: &[v1::WorkflowLane]) -> Option<Self> {
        let v1::GetEventResponse { event, status, deliveries, .. } = answer;
        let event = event?;
        let status = word::<v1::EventStatus>(status);
        let received = when(Time::of(event.received_at.as_ref()).as_ref());
        let v1::Event { r#type, source, workflow_id, sequence_number, event_id, .. } = &event;
        let what = format!(
            "{type} from {source}, #{sequence_number} of workflow {workflow_id}, received {received}",
            r#type = r#type
        );
        let mut to_do = Vec::new();
        let summary = match status {
            "unrouted" => {
                to_do.push("weft subscription list   shows the types and sources that each takes".to_owned());
                to_do.push(format!("weft subscription test NAME --event {event_id}   says why one does not take it"));
                format!("{what}: no subscription takes it")
            }
            "pending" if deliveries.is_empty() => {
                to_do.push("weft shard list   shows whether a worker owns its shard".to_owned());
                format!("{what}: no worker has read it yet, or it has no record any more")
            }
            status => format!("{what}: {status}"),
        };
        let subscriptions =
            deliveries.into_iter().map(|delivery| Cause::of_delivery(&event, delivery, lanes)).collect();
        Some(Self {
            event_id: Some(event.event_id),
            workflow_id: event.workflow_id,
            status,
            summary,
            subscriptions,
            to_do,
        })
    }

    /// A workflow: its lanes, its newest event, and its open dead letters, of which there may be `more`.
    pub fn of_workflow(workflow: v1::GetWorkflowResponse, dead: &[v1::DeadLetter], more: bool) -> Self {
        let newest = workflow.events.into_iter().next();
        let (status, number, received_at) = newest.map_or_else(Default::default, |newest| {
            let event = newest.event.unwrap_or_default();
            (word::<v1::EventStatus>(newest.status), event.sequence_number, Time::of(event.received_at.as_ref()))
        });
        let id = &workflow.workflow_id;
        let newest = format!("its newest event is #{number}, received {}: {status}", when(received_at.as_ref()));
        let summary = match workflow.lanes.len() {
            0 => format!("nothing of {id} is unsettled; {newest}"),
            1 => format!("one subscription has unsettled events of {id}; {newest}"),
            count => format!("{count} lanes of {id} have unsettled events or are paused; {newest}"),
        };
        let mut to_do = Vec::new();
        if !dead.is_empty() {
            let least = if more { "at least " } else { "" };
            to_do.push(format!("weft dlq list --workflow {id}   shows {least}{} open dead letters", dead.len()));
            to_do.push(format!("weft dlq redrive --workflow {id}   delivers them again"));
        }
        Self {
            event_id: None,
            status,
            summary,
            subscriptions: workflow.lanes.iter().map(Cause::of_lane).collect(),
            to_do,
            workflow_id: workflow.workflow_id,
        }
    }

    /// One page for people.
    pub fn human(&self) -> String {
        let mut parts = vec![match &self.event_id {
            Some(event) => format!("{event}\n{}", self.summary),
            None => self.summary.clone(),
        }];
        parts.extend(self.subscriptions.iter().map(Cause::human));
        if !self.to_do.is_empty() {
            parts.push(self.to_do.join("\n"));
        }
        parts.join("\n\n")
    }
}

impl Cause {
    fn of_delivery(event: &v1::Event, delivery: v1::EventDelivery, lanes: &[v1::WorkflowLane]) -> Self {
        let id = &event.event_id;
        let status = word::<v1::DeliveryStatus>(delivery.status);
        let last = delivery.attempts.last();
        let receiver_said = last.filter(|last| last.outcome() != v1::AttemptClass::Delivered).map(|last| {
            let outcome = word::<v1::AttemptClass>(last.outcome);
            let error = if last.error.is_empty() { outcome } else { &last.error };
            said(error, &String::from_utf8_lossy(&last.response))
        });
        let said_at = last.and_then(|last| Time::of(last.ended_at.as_ref()));
        let mut cause = Self {
            state: status,
            waits_for: String::new(),
            since: Time::of(delivery.settled_at.as_ref()),
            attempts: delivery.attempt_count,
            said_at: said_at.filter(|_| receiver_said.is_some()),
            receiver_said,
            next_attempt_at: Time::of(delivery.next_attempt_at.as_ref()),
            waiting_events: 0,
            to_do: Vec::new(),
            subscription: delivery.subscription,
        };
        let by = match (given(delivery.settled_by), given(delivery.settled_reason)) {
            (Some(by), Some(reason)) => format!(", by {by}: {reason}"),
            (Some(by), None) => format!(", by {by}"),
            (None, _) => String::new(),
        };
        let name = cause.subscription.clone();
        match status {
            status @ ("delivered" | "resolved" | "discarded") => cause.waits_for = format!("nothing; {status}{by}"),
            "dead_lettered" => {
                cause.waits_for =
                    format!("nothing; it is a dead letter{by}, and its workflow has continued without it");
                cause.to_do = vec![
                    format!("weft dlq redrive {name}:{id}   delivers it, once its receiver takes it"),
                    format!("weft dlq resolve {name}:{id} --reason WHY   its receiver needs it no more"),
                ];
            }
            _ if delivery.run > 0 => cause.waits_for = "an attempt of its replay".to_owned(),
            _ => {
                let of_name = |lane: &&v1::WorkflowLane| lane.subscription == name;
                let is_head = |lane: &&v1::WorkflowLane| lane.head_event_id == *id;
                let lane = lanes.iter().filter(of_name).find(is_head).or_else(|| lanes.iter().find(of_name));
                let Some(lane) = lane else {
                    cause.waits_for = "a worker that attempts it".to_owned();
                    cause.to_do = vec!["weft shard list   shows whether a worker owns its shard".to_owned()];
                    return cause;
                };
                let of_lane = Self::of_lane(lane);
                if lane.head_event_id == *id {
                    return Self { state: status, ..of_lane };
                }
                let behind = format!("#{} of its workflow ({})", lane.head_sequence_number, lane.head_event_id);
                cause.waits_for = format!("{behind}, which waits for {}", of_lane.waits_for);
                return Self { state: status, waits_for: cause.waits_for, ..of_lane };
            }
        }
        cause
    }

    fn of_lane(lane: &v1::WorkflowLane) -> Self {
        let v1::WorkflowLane { subscription: name, workflow_id: workflow, .. } = lane;
        let head = format!("its head #{} ({})", lane.head_sequence_number, lane.head_event_id);
        let retry = format!("weft workflow retry {workflow} --subscription {name}   attempts the head now");
        let skip = format!(
            "weft workflow skip {workflow} --subscription {name}   makes the head a dead letter; the others continue"
        );
        let receiver = lane.receiver.clone().unwrap_or_default();
        let first_failed = Time::of(lane.first_failed_at.as_ref());
        let next = Time::of(lane.next_attempt_at.as_ref());
        let state = word::<v1::LaneState>(lane.state);
        let (waits_for, since, next_attempt_at, to_do) = match state {
            "paused" => {
                let pause = lane.pause.clone().unwrap_or_default();
                let by = given(pause.operator).map(|by| format!(", paused by {by}")).unwrap_or_default();
                let reason = given(pause.reason).map(|reason| format!(": {reason}")).unwrap_or_default();
                let since = Time::of(pause.paused_at.as_ref());
                if pause.of_subscription {
                    let resume = format!("weft subscription resume {name}");
                    (format!("its subscription to be resumed{by}{reason}"), since, None, vec![resume])
                } else {
                    let resume = format!("weft workflow resume {workflow} --subscription {name}");
                    (format!("an operator to resume it{by}{reason}"), since, None, vec![resume])
                }
            }
            "blocked" => {
                let mend = "correct what the receiver says of the event, then one of these:".to_owned();
                (format!("an operator; {head} has failed for good"), first_failed, None, vec![mend, retry, skip])
            }
            "away" => {
                let mend = "bring the receiver back; the lane continues automatically, and no event is lost meanwhile"
                    .to_owned();
                let waits_for = format!("its receiver, which is away: {}", receiver.reason);
                (waits_for, Time::of(receiver.since.as_ref()), Time::of(receiver.next_attempt_at.as_ref()), vec![mend])
            }
            "held" => {
                let mend = "change the setting that is named; the lane continues automatically".to_owned();
                let waits_for = format!("the worker's configuration: {}", receiver.reason);
                (waits_for, Time::of(receiver.since.as_ref()), Time::of(receiver.next_attempt_at.as_ref()), vec![mend])
            }
            "waiting" => (format!("the next attempt of {head}"), first_failed, next, vec![retry, skip]),
            _ => {
                let since = Time::of(lane.head_stored_at.as_ref());
                let look =
                    "nothing, unless this lasts: weft shard list   shows whether a worker owns its shard".to_owned();
                (format!("an attempt of {head} that runs or is about to begin"), since, next, vec![look])
            }
        };
        let receiver_said =
            given(lane.last_error.clone()).map(|error| said(&error, &String::from_utf8_lossy(&lane.last_response)));
        Self {
            subscription: name.clone(),
            state,
            waits_for,
            since,
            attempts: lane.attempts,
            said_at: Time::of(lane.last_attempt_at.as_ref()).filter(|_| receiver_said.is_some()),
            receiver_said,
            next_attempt_at,
            waiting_events: lane.waiting_events,
            to_do,
        }
    }

    fn human(&self) -> String {
        let mut rows = vec![("  waits for", self.waits_for.clone())];
        rows.extend(self.since.as_ref().map(|since| ("  since", when(Some(since)))));
        if self.attempts > 0 {
            rows.push(("  attempts", self.attempts.to_string()));
        }
        rows.extend(self.receiver_said.clone().map(|said| ("  receiver said", said)));
        rows.extend(self.said_at.as_ref().map(|at| ("  at", when(Some(at)))));
        rows.extend(self.next_attempt_at.as_ref().map(|at| ("  next attempt", when(Some(at)))));
        if self.waiting_events > 0 {
            rows.push(("  after it", format!("{} events of the workflow wait", self.waiting_events)));
        }
        rows.extend(
            self.to_do.iter().enumerate().map(|(index, line)| (if index == 0 { "  to do" } else { "" }, line.clone())),
        );
        format!("{}: {}\n{}", self.subscription, self.state, output::fields(rows))
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::words::Word as _;

    use super::*;

    fn event(id: &str, number: u64) -> v1::Event {
        v1::Event {
            event_id: id.into(),
            sequence_number: number,
            workflow_id: "order-42".into(),
            r#type: "order.paid".into(),
            source: "shop".into(),
            ..Default::default()
        }
    }

    fn delivery(status: &str) -> v1::EventDelivery {
        let status = v1::DeliveryStatus::from_word(status).unwrap().into();
        v1::EventDelivery { subscription: "billing".into(), status, ..Default::default() }
    }

    fn lane(state: &str) -> v1::WorkflowLane {
        v1::WorkflowLane {
            subscription: "billing".into(),
            workflow_id: "order-42".into(),
            state: v1::LaneState::from_word(state).unwrap().into(),
            head_event_id: "head".into(),
            head_sequence_number: 7,
            attempts: 4,
            last_error: "answered 500".into(),
            last_response: b"{ \"error\": \"locked\" }".to_vec(),
            waiting_events: 41,
            ..Default::default()
        }
    }

    fn explained(id: &str, status: &str, lanes: &[v1::WorkflowLane]) -> String {
        let deliveries = if status == "unrouted" { Vec::new() } else { vec![delivery(status)] };
        let status = v1::EventStatus::from_word(status).unwrap().into();
        let answer = v1::GetEventResponse { event: Some(event(id, 9)), status, deliveries, ..Default::default() };
        Explanation::of_event(answer, lanes).unwrap().human()
    }

    /// One page answers: what it waits for, what the receiver said, how many wait after it, what to do.
    #[test]
    fn an_event_is_explained_by_its_lane() {
        let head = explained("head", "blocked", &[lane("blocked")]);
        for part in [
            "billing: blocked",
            "an operator; its head #7 (head) has failed for good",
            r#"answered 500: {"error":"locked"}"#,
            "41 events of the workflow wait",
            "weft workflow retry order-42 --subscription billing",
            "weft workflow skip order-42 --subscription billing",
        ] {
            assert!(head.contains(part), "{part}: {head}");
        }
        let behind = explained("late", "pending", &[lane("waiting")]);
        assert!(
            behind.contains("#7 of its workflow (head), which waits for the next attempt of its head #7"),
            "{behind}"
        );
        let pause = v1::LanePause { operator: "anna".into(), reason: "migration".into(), ..Default::default() };
        let paused = explained("head", "paused", &[v1::WorkflowLane { pause: Some(pause), ..lane("paused") }]);
        assert!(paused.contains("an operator to resume it, paused by anna: migration"), "{paused}");
        let receiver = v1::Receiver { reason: "connection refused".into(), ..Default::default() };
        let away = explained("head", "pending", &[v1::WorkflowLane { receiver: Some(receiver), ..lane("away") }]);
        assert!(away.contains("its receiver, which is away: connection refused"), "{away}");
    }

    #[test]
    fn settled_events_say_how() {
        assert!(explained("e", "delivered", &[]).contains("waits for  nothing; delivered"));
        let dead = explained("e", "dead_lettered", &[]);
        assert!(dead.contains("weft dlq redrive billing:e"), "{dead}");
        let unrouted = explained("e", "unrouted", &[]);
        assert!(
            unrouted.contains("no subscription takes it") && unrouted.contains("weft subscription test"),
            "{unrouted}"
        );
        assert!(explained("e", "pending", &[]).contains("a worker that attempts it"));
    }

    #[test]
    fn a_workflow_without_lanes_says_so() {
        let newest = v1::WorkflowEvent { event: Some(event("e", 9)), status: v1::EventStatus::Delivered.into() };
        let workflow =
            v1::GetWorkflowResponse { workflow_id: "order-42".into(), events: vec![newest], ..Default::default() };
        let text = Explanation::of_workflow(workflow.clone(), &[], false).human();
        assert_eq!(text, "nothing of order-42 is unsettled; its newest event is #9, received -: delivered");
        let dead = Explanation::of_workflow(workflow, &[v1::DeadLetter::default()], true).human();
        assert!(dead.contains("weft dlq list --workflow order-42   shows at least 1 open dead letters"), "{dead}");
    }
}

//! Encoding of requests with events and of replies with outcomes. Pure.

use std::{collections::HashMap, str::FromStr as _, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message as _;
use weft_nats::{
    async_nats::{HeaderName, HeaderValue},
    headers::Headers,
    message::Outgoing,
    subject::Layout,
};
use weft_proto::{
    ids::{EventId, SequenceNumber, WorkflowId},
    internal::{self, ForwardOutcome, forward_answer},
};

use crate::sequencer::{
    Receipt, SubmitError,
    chain::{Chain, ChainPosition, Reuse},
    submission::{Answer, Encoded, Submission, numbered_bytes},
};

/// Age above which a request is refused. Both gateways use the time of the log server, so that a wrong wall clock
/// neither refuses all requests nor lets old ones pass.
const AGE_MAX: Duration = Duration::from_secs(30);

/// Maximum age of a request where ids are known for `dedup_horizon`: a request that was delayed in a socket must not be
/// appended after its ids are forgotten.
pub(crate) fn age_max(dedup_horizon: Duration) -> Duration {
    AGE_MAX.min(dedup_horizon / 2)
}

/// Age at `now` of a message sent at `sent_at_ms`. The future counts as old: two estimates of a server clock do not
/// differ by so much.
pub(super) fn age(sent_at_ms: i64, now: Timestamp) -> Duration {
    Duration::from_millis(now.as_millisecond().abs_diff(sent_at_ms))
}

/// The id of an event, empty where there is none.
pub(super) fn encode_optional_id(previous: Option<EventId>) -> Vec<u8> {
    previous.map(EventId::to_vec).unwrap_or_default()
}

/// Inverse of [`encode_optional_id`]; `None` if invalid.
pub(super) fn decode_optional_id(bytes: &[u8]) -> Option<Option<EventId>> {
    if bytes.is_empty() { Some(None) } else { EventId::from_slice(bytes).map(Some) }
}

/// The reply to a request.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The appender is working on it.
    Working,
    /// No event of it was taken.
    Refused,
    /// The outcome of each event, in order.
    Verdicts(Vec<internal::ForwardVerdict>),
}

/// The outcome of a forwarded event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ForwardReply {
    /// The answer to its sender.
    Decided(Answer),
    /// It was certainly not appended, and may be appended locally.
    NotTaken,
}

/// Encodes a request that is sent at `now`.
pub(crate) fn request<'a>(now: Timestamp, submissions: impl IntoIterator<Item = &'a Submission>) -> Bytes {
    let mut chains = HashMap::new();
    let mut number = |key| {
        let next = chains.len() as u32 + 1;
        *chains.entry(key).or_insert(next)
    };
    let events = submissions.into_iter().map(|submission| {
        let chain = submission.chain().map_or(0, &mut number);
        forwarded(submission, chain)
    });
    let events = events.collect();
    internal::Forward { sent_at_ms: now.as_millisecond(), events }.encode_to_vec().into()
}

fn forwarded(submission: &Submission, chain: u32) -> internal::ForwardedEvent {
    let headers = submission.message.headers.iter();
    let headers =
        headers.map(|(name, value)| internal::ForwardedHeader { name: name.to_owned(), value: value.to_owned() });
    internal::ForwardedEvent {
        event_id: submission.id.to_vec(),
        workflow_id: submission.workflow.to_string(),
        body_digest: submission.digest.to_vec(),
        receipt_on_id_reuse: submission.receipt_on_id_reuse,
        headers: headers.collect(),
        payload: submission.message.payload.clone(),
        chain,
    }
}

/// An event of a request.
pub(crate) struct Arrived {
    /// `None`: not valid for this version.
    pub event: Option<Encoded>,
    /// Position in its chain, if it has one.
    pub link: Option<ChainPosition>,
}

/// Decodes a request that arrived at `now`. `None`: invalid, or older than `age_max`.
pub(crate) fn events(request: Bytes, layout: Layout, now: Timestamp, age_max: Duration) -> Option<Vec<Arrived>> {
    let request = internal::Forward::decode(request).ok()?;
    let age = age(request.sent_at_ms, now);
    let mut chains = HashMap::new();
    let arrived = |event: internal::ForwardedEvent| {
        // A forwarded chain is a batch.
        let chain = || chains.entry(event.chain).or_insert_with(|| Chain::new(Reuse::LeftOut)).link();
        let link = (event.chain != 0).then(chain);
        Arrived { event: encoded(event, layout), link }
    };
    (age <= age_max).then(|| request.events.into_iter().map(arrived).collect())
}

fn encoded(event: internal::ForwardedEvent, layout: Layout) -> Option<Encoded> {
    let workflow = WorkflowId::new(event.workflow_id).ok()?;
    let mut headers = Headers::default();
    for internal::ForwardedHeader { name, value } in event.headers {
        headers.put(HeaderName::from_str(&name).ok()?.as_ref(), HeaderValue::from_str(&value).ok()?);
    }
    let message = Outgoing { subject: layout.event_subject(&workflow), headers, payload: event.payload };
    Some(Encoded {
        id: EventId::from_slice(&event.event_id)?,
        digest: event.body_digest.try_into().ok()?,
        replay_key: weft_nats::event::outgoing_replay_key(&message.headers),
        bytes: numbered_bytes(&message),
        receipt_on_id_reuse: event.receipt_on_id_reuse,
        workflow,
        message,
        // It is traced where it was accepted.
        trace: None,
    })
}

/// Encodes a reply.
pub(crate) fn encode_reply(reply: Reply) -> Bytes {
    let answer = match reply {
        Reply::Working => forward_answer::Answer::Working(internal::ForwardWorking {}),
        Reply::Refused => forward_answer::Answer::Refused(internal::ForwardRefused {}),
        Reply::Verdicts(verdicts) => forward_answer::Answer::Verdicts(internal::ForwardVerdicts { verdicts }),
    };
    internal::ForwardAnswer { answer: Some(answer) }.encode_to_vec().into()
}

/// Decodes a reply; `None` if invalid.
pub(crate) fn decode_reply(reply: Bytes) -> Option<Reply> {
    Some(match internal::ForwardAnswer::decode(reply).ok()?.answer? {
        forward_answer::Answer::Working(_) => Reply::Working,
        forward_answer::Answer::Refused(_) => Reply::Refused,
        forward_answer::Answer::Verdicts(internal::ForwardVerdicts { verdicts }) => Reply::Verdicts(verdicts),
    })
}

/// Encodes an outcome.
pub(crate) fn encode_verdict(verdict: ForwardReply) -> internal::ForwardVerdict {
    let of = |outcome: ForwardOutcome| internal::ForwardVerdict { outcome: outcome.into(), ..Default::default() };
    let answer = match verdict {
        ForwardReply::NotTaken => return of(ForwardOutcome::NotTaken),
        ForwardReply::Decided(answer) => answer,
    };
    match answer {
        Ok(receipt) => {
            let outcome = if receipt.duplicate { ForwardOutcome::Repeated } else { ForwardOutcome::Accepted };
            internal::ForwardVerdict {
                outcome: outcome.into(),
                sequence_number: receipt.sequence_number.0,
                previous_event_id: encode_optional_id(receipt.previous),
                // Known to the sender of a new event.
                workflow_id: if receipt.duplicate { receipt.workflow.to_string() } else { String::new() },
                event_id: if receipt.duplicate { receipt.event_id.to_vec() } else { Vec::new() },
            }
        }
        Err(SubmitError::IdReused) => of(ForwardOutcome::IdReused),
        Err(SubmitError::TooLarge) => of(ForwardOutcome::TooLarge),
        Err(SubmitError::Overloaded) => of(ForwardOutcome::Overloaded),
        Err(SubmitError::Full) => of(ForwardOutcome::Full),
        Err(SubmitError::PredecessorRefused) => of(ForwardOutcome::Behind),
        Err(SubmitError::Unavailable | SubmitError::Starting | SubmitError::Draining) => {
            of(ForwardOutcome::Unspecified)
        }
    }
}

/// Decodes the outcome of event `id` of `workflow`. An invalid one may mean that the event was appended.
pub(crate) fn decode_verdict(verdict: internal::ForwardVerdict, id: EventId, workflow: &WorkflowId) -> ForwardReply {
    let outcome = verdict.outcome();
    ForwardReply::Decided(match outcome {
        ForwardOutcome::NotTaken => return ForwardReply::NotTaken,
        ForwardOutcome::Accepted => receipt(verdict, id, Some(workflow.clone()), false),
        ForwardOutcome::Repeated => {
            let first = WorkflowId::new(verdict.workflow_id.as_str()).ok();
            receipt(verdict, id, first, true)
        }
        ForwardOutcome::IdReused => Err(SubmitError::IdReused),
        ForwardOutcome::TooLarge => Err(SubmitError::TooLarge),
        ForwardOutcome::Overloaded => Err(SubmitError::Overloaded),
        ForwardOutcome::Full => Err(SubmitError::Full),
        ForwardOutcome::Behind => Err(SubmitError::PredecessorRefused),
        ForwardOutcome::Unspecified => Err(SubmitError::Unavailable),
    })
}

fn receipt(verdict: internal::ForwardVerdict, id: EventId, workflow: Option<WorkflowId>, duplicate: bool) -> Answer {
    let previous = decode_optional_id(&verdict.previous_event_id).ok_or(SubmitError::Unavailable)?;
    let first = decode_optional_id(&verdict.event_id).ok_or(SubmitError::Unavailable)?;
    Ok(Receipt {
        event_id: first.unwrap_or(id),
        sequence_number: SequenceNumber(verdict.sequence_number),
        workflow: workflow.ok_or(SubmitError::Unavailable)?,
        previous,
        duplicate,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{sync::Semaphore, time::Instant};

    use super::*;
    use crate::sequencer::{NewEvent, submission::test_event};

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    /// The forwarding appender stores what the event's own gateway would have stored.
    #[test]
    fn a_forwarded_event_is_the_same_event() {
        let layout = Layout::new(3);
        let event = test_event(EventId::unique(), "a ü", b"{}");
        let event = NewEvent { receipt_on_id_reuse: true, replay_guard: true, ..event };
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let (submission, _) = Encoded::new(event, layout).submission(Instant::now(), room, None);
        let there = events(request(now(), [&submission]), layout, now(), AGE_MAX).unwrap().remove(0);
        assert!(there.link.is_none());
        let there = there.event.unwrap();
        assert_eq!((there.id, &there.workflow, there.digest), (submission.id, &submission.workflow, submission.digest));
        assert!(there.replay_key.is_some() && there.replay_key == submission.replay_key);
        assert_eq!((there.bytes, there.receipt_on_id_reuse), (submission.bytes, submission.receipt_on_id_reuse));
        let (theirs, ours) = (there.message, submission.message);
        assert_eq!((theirs.subject, theirs.headers, theirs.payload), (ours.subject, ours.headers, ours.payload));
    }

    /// A chain remains a chain at the appender, apart from others.
    #[test]
    fn chains_survive_the_way() {
        let layout = Layout::new(1);
        let batches = [Chain::new(Reuse::LeftOut), Chain::new(Reuse::LeftOut)];
        let room = Arc::new(Semaphore::new(9));
        let submissions = [Some(0), None, Some(1), Some(0), Some(1)].map(|batch| {
            let event = Encoded::new(test_event(EventId::unique(), "a", b"{}"), layout);
            let link = batch.map(|batch: usize| batches[batch].link());
            event.submission(Instant::now(), room.clone().try_acquire_owned().unwrap(), link).0
        });
        let there = events(request(now(), &submissions), layout, now(), AGE_MAX).unwrap();
        let key = |at: usize| there[at].link.as_ref().map(|link| link.chain().key());
        assert!(key(0).is_some() && key(0) == key(3) && key(2) == key(4) && key(0) != key(2) && key(1).is_none());
        assert!(!there[0].link.as_ref().unwrap().chain().linked().reuse_breaks);
    }

    /// P2: a request that waited for longer than anything is asked for again is not carried out.
    #[test]
    fn an_old_request_is_refused() {
        let layout = Layout::new(1);
        for (horizon, oldest) in [(Duration::from_secs(604_800), AGE_MAX), (Duration::from_secs(5), AGE_MAX / 12)] {
            for late in [oldest, oldest + Duration::from_millis(1)] {
                let taken = events(request(now(), []), layout, now() + late, age_max(horizon)).is_some();
                assert_eq!(taken, late == oldest, "{late:?} of {horizon:?}");
            }
        }
        assert!(events(Bytes::from_static(b"not ours"), layout, now(), AGE_MAX).is_none());
    }

    #[test]
    fn verdicts_survive_the_way() {
        let (id, workflow) = (EventId::unique(), WorkflowId::new("a").unwrap());
        let receipt = |workflow: &str, previous, duplicate| Receipt {
            event_id: id,
            sequence_number: SequenceNumber(7),
            workflow: WorkflowId::new(workflow).unwrap(),
            previous,
            duplicate,
        };
        let there_and_back = |verdict| decode_verdict(encode_verdict(verdict), id, &workflow);
        let told = [
            Ok(receipt("a", None, false)),
            Ok(receipt("a", Some(EventId::unique()), false)),
            Ok(receipt("first", Some(EventId::unique()), true)),
            Ok(Receipt { event_id: EventId::unique(), ..receipt("first", None, true) }),
            Err(SubmitError::IdReused),
            Err(SubmitError::TooLarge),
            Err(SubmitError::Overloaded),
            Err(SubmitError::Full),
            Err(SubmitError::PredecessorRefused),
            Err(SubmitError::Unavailable),
        ];
        for answer in told {
            assert_eq!(there_and_back(ForwardReply::Decided(answer.clone())), ForwardReply::Decided(answer));
        }
        assert_eq!(there_and_back(ForwardReply::NotTaken), ForwardReply::NotTaken);
        // An unknown outcome says nothing about the event.
        for error in [SubmitError::Starting, SubmitError::Draining] {
            assert_eq!(
                there_and_back(ForwardReply::Decided(Err(error))),
                ForwardReply::Decided(Err(SubmitError::Unavailable))
            );
        }
        let unknown = internal::ForwardVerdict { outcome: 99, ..Default::default() };
        assert_eq!(decode_verdict(unknown, id, &workflow), ForwardReply::Decided(Err(SubmitError::Unavailable)));
        assert!(decode_reply(Bytes::from_static(b"not ours")).is_none());
    }
}

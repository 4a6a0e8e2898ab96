//! Append notices: the appender sends forwarding gateways what it has appended, so that they need not read the log.
//!
//! Reading an event costs the reader and the server as much as appending it; a notice takes some dozen bytes per event,
//! many events in a message. Notices are best effort: a gateway that misses one reads the log.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};
use weft_index::receipts::Accepted;
use weft_nats::clock::ServerClock;
use weft_proto::{
    ids::{EventId, SequenceNumber, StreamSeq, WorkflowId},
    internal,
};

use super::{ForwardingState, Name, wire};
use crate::sequencer::{AppendNotice, AppendObserver, NOTICE_AGE_MAX, UNCONFIRMED};

/// Stands in place of a request number in the subject.
pub(super) const APPENDED: &str = "appended";
/// Time for which a gateway gets notices after a request, so that it does not start reading in each pause of its
/// senders.
const SUBSCRIPTION_MAX: Duration = Duration::from_secs(10);
/// Largest number of notified gateways. Others read the log.
const SUBSCRIBERS_MAX: usize = 64;
/// Notices that may wait to be sent. If one is dropped, its receivers read the log.
const QUEUE_MAX: usize = 16;

/// Encodes a notice that is sent at `now`.
pub(crate) fn encode(now: Timestamp, appended: &AppendNotice) -> Bytes {
    let events = appended.events().map(|(id, accepted)| internal::AppendedEvent {
        event_id: id.to_vec(),
        workflow_id: accepted.workflow.to_string(),
        body_digest: accepted.digest.to_vec(),
        sequence_number: accepted.sequence_number.0,
        previous_event_id: wire::encode_optional_id(accepted.previous),
        replay_key: wire::encode_optional_id(accepted.replay_key),
    });
    let behind_seq = appended.behind().0;
    internal::Appended { sent_at_ms: now.as_millisecond(), behind_seq, events: events.collect() }.encode_to_vec().into()
}

/// Decodes a notice that arrived at `now`. `None`: invalid or too old.
pub(crate) fn decode(payload: Bytes, now: Timestamp) -> Option<AppendNotice> {
    let internal::Appended { sent_at_ms, behind_seq, events } = internal::Appended::decode(payload).ok()?;
    if wire::age(sent_at_ms, now) > NOTICE_AGE_MAX {
        return None;
    }
    let mut seq = StreamSeq(behind_seq);
    let accepted = events.into_iter().map(|event| {
        seq = StreamSeq(seq.0.checked_add(1)?);
        let accepted = Accepted {
            seq,
            stored_at: UNCONFIRMED,
            digest: event.body_digest.try_into().ok()?,
            sequence_number: SequenceNumber(event.sequence_number),
            workflow: WorkflowId::new(event.workflow_id).ok()?,
            previous: wire::decode_optional_id(&event.previous_event_id)?,
            replay_key: wire::decode_optional_id(&event.replay_key)?,
        };
        Some((EventId::from_slice(&event.event_id)?, accepted))
    });
    AppendNotice::new(accepted.collect::<Option<_>>()?)
}

/// The gateways that get notices, with the times of their last requests. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Subscribers {
    heard: Arc<Mutex<HashMap<Name, Instant>>>,
}

impl Subscribers {
    /// Notes a request of `gateway`.
    pub fn heard(&self, gateway: &str, now: Instant) {
        let mut heard = self.heard.lock();
        if let Some(at) = heard.get_mut(gateway) {
            *at = now;
        } else if heard.len() < SUBSCRIBERS_MAX {
            heard.insert(gateway.into(), now);
        }
    }

    /// The gateways to notify.
    fn subscribed(&self, now: Instant) -> Vec<Name> {
        let mut heard = self.heard.lock();
        heard.retain(|_, at| now.saturating_duration_since(*at) < SUBSCRIPTION_MAX);
        heard.keys().cloned().collect()
    }
}

/// Sends append notices.
#[derive(Debug, Clone)]
pub(crate) struct AppendNotifier {
    subscribers: Subscribers,
    queue: mpsc::Sender<(Timestamp, Vec<Name>, AppendNotice)>,
    server_clock: ServerClock,
}

impl AppendNotifier {
    /// The notifier and its sending task, which ends with the last clone.
    pub(super) fn new(shared: ForwardingState, subscribers: Subscribers) -> (Self, impl Future<Output = ()>) {
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let server_clock = shared.connection.server_clock().clone();
        (Self { subscribers, queue, server_clock }, send(shared, queued))
    }
}

impl AppendObserver for AppendNotifier {
    fn appended(&self, events: Vec<(EventId, Accepted)>) {
        let subscribed = self.subscribers.subscribed(Instant::now());
        if !subscribed.is_empty()
            && let Some(appended) = AppendNotice::new(events)
        {
            let _ = self.queue.try_send((self.server_clock.now(), subscribed, appended));
        }
    }
}

async fn send(shared: ForwardingState, mut queued: mpsc::Receiver<(Timestamp, Vec<Name>, AppendNotice)>) {
    while let Some((stored_at, subscribed, appended)) = queued.recv().await {
        let payload = encode(stored_at, &appended);
        if !shared.fits(&payload) {
            continue;
        }
        for gateway in subscribed {
            let subject = shared.layout.forward_answer_subject(shared.shard, &gateway, APPENDED);
            shared.say(subject.into(), payload.clone()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn event(seq: u64, previous: Option<EventId>) -> (EventId, Accepted) {
        let accepted = Accepted {
            seq: StreamSeq(seq),
            stored_at: UNCONFIRMED,
            digest: [seq as u8; 32],
            sequence_number: SequenceNumber(seq * 3),
            workflow: WorkflowId::new("a ü").unwrap(),
            previous,
            replay_key: previous.map(|_| EventId::unique()),
        };
        (EventId::unique(), accepted)
    }

    #[test]
    fn notifications_are_decoded_as_they_were_encoded() {
        let first = event(7, None);
        let appended = AppendNotice::new(vec![first.clone(), event(8, Some(first.0))]).unwrap();
        assert_eq!((appended.behind(), appended.end()), (StreamSeq(6), StreamSeq(8)));
        let sent = encode(now(), &appended);
        assert_eq!(decode(sent.clone(), now() + NOTICE_AGE_MAX).as_ref(), Some(&appended));
        assert_eq!(decode(sent, now() + NOTICE_AGE_MAX + Duration::from_millis(1)), None, "it lay somewhere");
    }

    #[test]
    fn incomplete_and_malformed_notices_are_refused() {
        assert_eq!(AppendNotice::new(Vec::new()), None);
        assert_eq!(AppendNotice::new(vec![event(7, None), event(9, None)]), None, "one is missing");
        assert_eq!(decode(Bytes::from_static(b"not ours"), now()), None);
        let at_the_end = internal::Appended {
            behind_seq: u64::MAX,
            events: vec![internal::AppendedEvent::default()],
            ..Default::default()
        };
        for appended in [internal::Appended::default(), at_the_end] {
            let sent = internal::Appended { sent_at_ms: now().as_millisecond(), ..appended };
            assert_eq!(decode(sent.encode_to_vec().into(), now()), None);
        }
    }

    #[test]
    fn subscriptions_expire_and_are_bounded() {
        let (subscribers, now) = (Subscribers::default(), Instant::now());
        subscribers.heard("a", now);
        subscribers.heard("b", now + SUBSCRIPTION_MAX / 2);
        assert_eq!(subscribers.subscribed(now + SUBSCRIPTION_MAX), vec![Name::from("b")]);
        (0..SUBSCRIBERS_MAX * 2).for_each(|number| subscribers.heard(&number.to_string(), now + SUBSCRIPTION_MAX));
        assert_eq!(subscribers.subscribed(now + SUBSCRIPTION_MAX).len(), SUBSCRIBERS_MAX);
    }
}

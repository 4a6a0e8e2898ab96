//! Ids of events and dead letters in queries, and the identity of a dead letter's copy.

use std::{fmt, str::FromStr};

use weft_proto::ids::{EventId, InvalidId, Run, ShardId, StreamSeq, SubscriptionUid, WorkflowId};

/// Identifies a dead letter and its copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterPlace {
    /// Its event's shard.
    pub shard: ShardId,
    /// Its event's place in EVENTS.
    pub seq: StreamSeq,
    /// The subscription.
    pub uid: SubscriptionUid,
    /// The subscription's name: part of the copy's subject.
    pub subscription: String,
    /// The workflow: part of the copy's subject.
    pub workflow: WorkflowId,
    /// The event: part of the copy's subject.
    pub event: EventId,
    /// The run that ended in it: part of the copy's subject.
    pub run: Run,
}

/// An event's id, with its sequence if the id occurs several times: `<eventId>` or `<eventId>@<sequence>`. A delivery that is
/// repeated after the dedup horizon is another event with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRef {
    /// The id.
    pub event: EventId,
    /// The sequence in EVENTS; `None`: any.
    pub seq: Option<StreamSeq>,
}

impl EventRef {
    /// Whether it names the event at `seq`.
    pub fn is_at(&self, seq: StreamSeq) -> bool {
        self.seq.is_none_or(|named| named == seq)
    }
}

impl fmt::Display for EventRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seq {
            Some(seq) => write!(f, "{}@{seq}", self.event),
            None => write!(f, "{}", self.event),
        }
    }
}

impl FromStr for EventRef {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let Some((event, seq)) = text.split_once('@') else { return Ok(Self { event: text.parse()?, seq: None }) };
        let seq = seq.parse().map_err(|_| InvalidId::NotUuid)?;
        Ok(Self { event: event.parse()?, seq: Some(StreamSeq(seq)) })
    }
}

/// A dead letter's id: `<subscription>:<eventId>`, or `<subscription>:<eventId>@<sequence>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterId {
    /// The subscription's name.
    pub subscription: String,
    /// The event.
    pub event: EventRef,
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.subscription, self.event)
    }
}

impl FromStr for DeadLetterId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (subscription, event) = text.rsplit_once(':').ok_or(InvalidId::NotUuid)?;
        Ok(Self { subscription: subscription.to_owned(), event: event.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_a_name_an_event_and_perhaps_a_sequence() {
        let event = EventId::of_delivery("shop", "evt_1");
        for (text, seq) in [(format!("billing:{event}"), None), (format!("billing:{event}@12"), Some(StreamSeq(12)))] {
            let id: DeadLetterId = text.parse().unwrap();
            assert_eq!(id, DeadLetterId { subscription: "billing".into(), event: EventRef { event, seq } });
            assert_eq!(id.to_string(), text);
        }
        for wrong in ["", "billing", "billing:", "billing:evt_1", &event.to_string(), &format!("billing:{event}@")] {
            assert!(wrong.parse::<DeadLetterId>().is_err(), "{wrong}");
        }
    }
}

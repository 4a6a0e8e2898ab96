//! The last message of each subject, and the events that a stream may hold although no commit says so.
//!
//! Each message names the one before it on its subject, by the expectation that it was published with, so the messages of a
//! subject can be read from the last one backwards. The events of a workflow are stored in order: what was stored by a live
//! attempt of this subscription before a smaller number need not be read.

use std::collections::{HashMap, HashSet};

use parking_lot::{Mutex, MutexGuard};
use weft_nats::{
    async_nats::{HeaderMap, jetstream::message::StreamMessage},
    user_streams::{EXPECTED_LAST_SUBJECT_SEQUENCE, UserStreams},
};
use weft_proto::ids::{EventId, Run, StreamSeq};

use super::{
    super::Delivery,
    message::{REPLAY, SUBSCRIPTION_UID},
};

/// Subjects that are remembered: beyond, all are forgotten, which costs a read each.
const SUBJECTS_MAX: usize = 16_384;
/// Messages that are read backwards: as many as a shard may have delivered without a commit.
const MESSAGES_MAX: usize = 10_000;

/// Reads that a timeout has interrupted. Beyond, all start again.
const READS_MAX: usize = 256;

/// State of the subjects, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct KnownSubjects {
    subjects: Mutex<HashMap<String, Known>>,
    /// Reads that a timeout has interrupted, by subject. They continue where they were: a subject may hold more messages than
    /// can be read in one attempt.
    interrupted: Mutex<HashMap<String, Walk>>,
}

/// A read of a subject backwards.
#[derive(Debug, Default)]
struct Walk {
    /// The event that is searched.
    event: Option<EventId>,
    known: Known,
    /// The next message to be read; `None`: the read has not begun, or has ended.
    next: Option<StreamSeq>,
    read: usize,
}

/// A read under way, which is kept if it is dropped before its end.
struct Reading<'a> {
    subjects: &'a KnownSubjects,
    subject: &'a str,
    walk: Walk,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if self.walk.next.is_some() {
            let mut interrupted = self.subjects.interrupted.lock();
            if interrupted.len() >= READS_MAX {
                interrupted.clear();
            }
            interrupted.insert(self.subject.to_owned(), std::mem::take(&mut self.walk));
        }
    }
}

#[derive(Debug, Default, Clone)]
struct Known {
    /// The last message; 0: none.
    last: StreamSeq,
    /// Events that the stream holds near its end.
    stored: HashSet<EventId>,
}

/// Whether an event is to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// After the message at this place.
    At(StreamSeq),
    /// It is stored.
    Stored,
}

/// Reads a stream.
pub(super) struct Reader<'a> {
    pub streams: &'a UserStreams,
    pub stream: &'a str,
    /// Of the subscription.
    pub uid: &'a str,
}

impl KnownSubjects {
    /// The last message of a subject, read where it is not known.
    ///
    /// # Errors
    ///
    /// The stream cannot be read: the problem, in one line.
    pub async fn last(&self, reader: &Reader<'_>, subject: &str, delivery: &Delivery) -> Result<Last, String> {
        let event = &delivery.event.event;
        // A redrive or replay may have been stored at any time before.
        let known = self.lock().get(subject).filter(|_| delivery.run == Run::LIVE).cloned();
        let known = match known {
            Some(known) => known,
            None => {
                let known = self.read(reader, subject, delivery).await?;
                // Of a redrive or replay it may hold the ids of all messages of the subject.
                if delivery.run == Run::LIVE {
                    self.put(subject, known.clone());
                }
                known
            }
        };
        Ok(if known.stored.contains(&event.id) { Last::Stored } else { Last::At(known.last) })
    }

    /// The stream has stored a message after the last one.
    pub fn stored(&self, subject: &str, seq: StreamSeq) {
        self.put(subject, Known { last: seq, stored: HashSet::new() });
    }

    /// The last message is not certain any more.
    pub fn forget(&self, subject: &str) {
        self.lock().remove(subject);
    }

    fn put(&self, subject: &str, known: Known) {
        let mut subjects = self.lock();
        if subjects.len() >= SUBJECTS_MAX && !subjects.contains_key(subject) {
            subjects.clear();
        }
        subjects.insert(subject.to_owned(), known);
    }

    /// Reads a subject backwards, until it is certain whether the event is stored.
    async fn read(&self, reader: &Reader<'_>, subject: &str, delivery: &Delivery) -> Result<Known, String> {
        let event = Some(delivery.event.event.id);
        let interrupted = self.interrupted.lock().remove(subject);
        let mut message = reader.streams.last(reader.stream, subject).await?;
        let last = message.as_ref().map_or(StreamSeq(0), |last| StreamSeq(last.sequence));
        let same = |walk: &Walk| walk.event == event && walk.known.last == last;
        let walk = match interrupted.filter(same) {
            Some(walk) => {
                message = match walk.next {
                    Some(next) => reader.get(subject, next).await?,
                    None => None,
                };
                walk
            }
            None => Walk { event, known: Known { last, ..Known::default() }, ..Walk::default() },
        };
        let mut reading = Reading { subjects: self, subject, walk };
        while let Some(read) = message {
            let walk = &mut reading.walk;
            walk.next = reader.examine(&read, &mut walk.known, delivery);
            walk.read += 1;
            if walk.read >= MESSAGES_MAX {
                walk.next = None;
            }
            let Some(next) = walk.next else { break };
            message = reader.get(subject, next).await?;
        }
        reading.walk.next = None;
        Ok(std::mem::take(&mut reading.walk.known))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.subjects.lock()
    }
}

impl Reader<'_> {
    /// A message of the subject. Another message is there only in another stream of this name.
    async fn get(&self, subject: &str, seq: StreamSeq) -> Result<Option<StreamMessage>, String> {
        let message = self.streams.get(self.stream, seq).await?;
        Ok(message.filter(|message| message.subject.as_str() == subject))
    }

    /// Notes a message's event. Returns the message before it, unless it is certain by now whether the event is stored.
    fn examine(&self, message: &StreamMessage, known: &mut Known, delivery: &Delivery) -> Option<StreamSeq> {
        let headers = Parsed::of(message);
        known.stored.extend(headers.event);
        let is_found = headers.event == Some(delivery.event.event.id);
        let is_before = delivery.run == Run::LIVE
            && headers.is_live_of(self.uid)
            && headers.sequence < Some(delivery.event.event.sequence_number.0);
        headers.previous.filter(|_| !is_found && !is_before)
    }
}

/// The headers that count.
#[derive(Debug, PartialEq)]
struct Parsed<'a> {
    event: Option<EventId>,
    sequence: Option<u64>,
    uid: Option<&'a str>,
    is_replay: bool,
    previous: Option<StreamSeq>,
}

impl<'a> Parsed<'a> {
    fn of(message: &'a StreamMessage) -> Self {
        let text = |name: &str| text(&message.headers, name);
        Self {
            event: text("ce-id").and_then(|id| id.parse().ok()),
            sequence: text("ce-sequence").and_then(|number| number.parse().ok()),
            uid: text(SUBSCRIPTION_UID),
            is_replay: text(REPLAY).is_some(),
            previous: text(EXPECTED_LAST_SUBJECT_SEQUENCE)
                .and_then(|seq| seq.parse().ok())
                .filter(|seq| (1..message.sequence).contains(seq))
                .map(StreamSeq),
        }
    }

    /// Whether a live attempt of a subscription stored it.
    fn is_live_of(&self, uid: &str) -> bool {
        self.uid == Some(uid) && !self.is_replay
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.as_str())
}

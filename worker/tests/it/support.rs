//! Shared parts of the tests: a log with events, a receiver that records its requests, a worker that can be stopped.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use weft_catalog::{Catalog, Stamp, change};
use weft_nats::{
    append::{AppendErrorKind, Appender, publish},
    checkpoints::{self, Checkpoint},
    connect::Connection,
    direct,
    erasure::{Author, Erasure, remove},
    event::{Event, StoredEvent},
    message::Stored,
    reader::{OrderedReader, ReaderOptions},
    records,
    streams::{self, LogSpec},
    subject::Layout,
};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq, SubscriptionUid},
    internal, v1,
};
pub use weft_testkit::PATIENCE;
use weft_testkit::{TestLog, TestServer, eventually};

mod receiver;
mod running;

pub use receiver::{Receiver, Request, assert_in_order, assert_in_order_but, assert_once, assert_order_of};
pub use running::{LEASE, Running, SHORT_LEASE};

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A log, and what appends to it.
pub struct Log {
    pub server: TestServer,
    pub connection: Connection,
    pub layout: Layout,
    pub spec: LogSpec,
    appender: Appender,
    end: StreamSeq,
    heads: BTreeMap<String, (u64, EventId)>,
}

/// A log of one shard.
pub fn spec() -> LogSpec {
    weft_testkit::spec(1)
}

impl Log {
    pub async fn start() -> Self {
        Self::of(spec()).await
    }

    /// As [`start`](Self::start), cut otherwise.
    pub async fn of(spec: LogSpec) -> Self {
        let TestLog { server, connection, layout, spec } = TestLog::of(spec).await;
        let appender = Appender::new(connection.clone());
        Self { server, connection, layout, spec, appender, end: StreamSeq(0), heads: BTreeMap::new() }
    }

    /// Appends one event of a workflow with a payload of this size. Returns whether there was room for it.
    pub async fn large_event(&mut self, workflow: &str, bytes: usize) -> bool {
        let head = self.heads.get(workflow).copied();
        let payload = Bytes::from(format!("\"{}\"", "x".repeat(bytes)));
        let event = Event { payload, ..self.event(workflow) };
        loop {
            // A worker may have carried heads forward meanwhile.
            self.end = streams::state(&self.connection, "EVENTS").await.unwrap().last;
            match self.appender.append(self.end, &[event.encode(self.layout)]).await {
                Ok(end) => {
                    self.end = end;
                    return true;
                }
                Err(error) if matches!(error.kind, AppendErrorKind::Conflict { .. }) => {}
                Err(error) => {
                    assert!(matches!(error.kind, AppendErrorKind::Full(_)), "{error}");
                    // It was not stored.
                    match head {
                        Some(head) => drop(self.heads.insert(workflow.to_owned(), head)),
                        None => drop(self.heads.remove(workflow)),
                    }
                    return false;
                }
            }
        }
    }

    /// Copies a stream as it is; the server is killed for it and started again.
    pub async fn save(&self, stream: &str) -> Saved {
        let folder = tempfile::tempdir().unwrap();
        self.server.kill();
        self.server.copy_stream(stream, folder.path());
        self.restarted().await;
        Saved { stream: stream.into(), folder, end: self.end, heads: self.heads.clone() }
    }

    /// Puts a copy of a stream in the stream's place: what was stored later is gone.
    pub async fn restore(&mut self, saved: &Saved) {
        self.server.kill();
        self.server.restore_stream(&saved.stream, saved.folder.path());
        self.restarted().await;
        if saved.stream == "EVENTS" {
            self.end = saved.end;
            self.heads = saved.heads.clone();
        }
    }

    /// Deletes a stream and creates it again.
    pub async fn renew(&mut self, stream: &str) {
        self.connection.jetstream().delete_stream(stream).await.unwrap();
        self.spec.new_log = true;
        streams::ensure(&self.connection, &self.spec).await.unwrap();
        if stream == "EVENTS" {
            self.end = StreamSeq(0);
            self.heads.clear();
        }
    }

    async fn restarted(&self) {
        self.server.restart().await;
        tokio::time::timeout(PATIENCE, self.connection.connected()).await.expect("the server is back");
        let answers = async || streams::state(&self.connection, "EVENTS").await.is_ok();
        assert!(weft_testkit::eventually(PATIENCE, answers).await, "the stream is back");
    }

    /// The last sequence of EVENTS.
    pub fn end(&self) -> u64 {
        self.end.0
    }

    /// Pauses or resumes a subscription.
    pub async fn pause(&self, name: &str, paused: bool) {
        let catalog = Catalog::new(self.connection.clone(), weft_testkit::master_key());
        let entry = catalog.read().await.unwrap().subscriptions[name].clone();
        let value = v1::Subscription { paused, ..entry.value.as_ref().clone() };
        catalog.put_subscription(&value, entry.revision).await.unwrap();
    }

    /// Gives a subscription another receiver.
    pub async fn point_at(&self, name: &str, receiver: &Receiver) {
        let catalog = Catalog::new(self.connection.clone(), weft_testkit::master_key());
        let entry = catalog.read().await.unwrap().subscriptions[name].clone();
        let mut value = entry.value.as_ref().clone();
        if let Some(v1::destination::Kind::Http(http)) =
            value.destination.as_mut().and_then(|destination| destination.kind.as_mut())
        {
            http.url = format!("http://{}/", receiver.address);
        }
        catalog.put_subscription(&value, entry.revision).await.unwrap();
    }

    /// Appends `count` events, spread over workflows `w0`, `w1`, …
    pub async fn events(&mut self, count: usize, workflows: usize) -> Vec<Event> {
        let workflows: Vec<String> = (0..workflows).map(|workflow| format!("w{workflow}")).collect();
        self.events_of(count, &workflows).await
    }

    /// Appends `count` events, spread over workflows of one shard.
    pub async fn events_of(&mut self, count: usize, workflows: &[String]) -> Vec<Event> {
        let events: Vec<Event> = workflows.iter().cycle().take(count).map(|workflow| self.event(workflow)).collect();
        for chunk in events.chunks(500) {
            let messages: Vec<_> = chunk.iter().map(|event| event.encode(self.layout)).collect();
            self.end = self.appender.append(self.end, &messages).await.unwrap();
        }
        events
    }

    /// Appends the next event of a workflow, changed by `with`, as soon as the server takes it: it refuses a repeated id
    /// within its own window.
    pub async fn event_with(&mut self, workflow: &str, with: impl FnOnce(&mut Event)) -> Event {
        let mut event = self.event(workflow);
        with(&mut event);
        if let Some(head) = self.heads.get_mut(workflow) {
            head.1 = event.id;
        }
        let message = event.encode(self.layout);
        let stored = eventually(PATIENCE, async || {
            match self.appender.append(self.end, std::slice::from_ref(&message)).await {
                Ok(end) => self.end = end,
                Err(_) => return false,
            }
            true
        });
        assert!(stored.await, "the log takes the event");
        event
    }

    fn event(&mut self, workflow: &str) -> Event {
        let id = EventId::unique();
        let head = self.heads.get(workflow).copied();
        let number = head.map_or(1, |(number, _)| number + 1);
        self.heads.insert(workflow.to_owned(), (number, id));
        Event {
            id,
            previous: head.map(|(_, id)| id),
            delivery_id: None,
            payload: Bytes::from(format!("{{\"number\":{number}}}")),
            ..weft_testkit::event(workflow).number(number).build()
        }
    }

    /// Subscribes a receiver, with short waits.
    pub async fn subscribe(&self, name: &str, receiver: &Receiver, start: u64) -> v1::Subscription {
        self.subscribe_with(name, receiver, start, |_| ()).await
    }

    pub async fn subscribe_with(
        &self,
        name: &str,
        receiver: &Receiver,
        start: u64,
        with: impl FnOnce(&mut v1::Subscription),
    ) -> v1::Subscription {
        self.subscribe_at(name, receiver.address, start, with).await
    }

    /// Subscribes an address.
    pub async fn subscribe_at(
        &self,
        name: &str,
        address: SocketAddr,
        start: u64,
        with: impl FnOnce(&mut v1::Subscription),
    ) -> v1::Subscription {
        let mut subscription = v1::Subscription {
            uid: SubscriptionUid::unique().to_vec(),
            name: name.into(),
            types: vec!["*".into()],
            destination: Some(v1::Destination {
                kind: Some(v1::destination::Kind::Http(v1::HttpDestination {
                    url: format!("http://{address}/"),
                    secrets: vec![SECRET.into()],
                    format: v1::HttpFormat::Envelope.into(),
                    ..Default::default()
                })),
            }),
            timeout_ms: 5_000,
            concurrency: 64,
            retry: Some(v1::Retry {
                max_retries: 2,
                base_ms: 20,
                factor: 2.0,
                max_ms: 1000,
                jitter: 0.1,
                schedule_ms: vec![],
            }),
            ordered: Some(true),
            starts: vec![start],
            ..Default::default()
        };
        with(&mut subscription);
        Catalog::new(self.connection.clone(), weft_testkit::master_key())
            .put_subscription(&subscription, 0)
            .await
            .unwrap();
        subscription
    }

    /// Erases the event at `seq`, as an admin does.
    pub async fn erase(&self, seq: u64) {
        let message = direct::get(&self.connection, "EVENTS", StreamSeq(seq)).await.unwrap().unwrap();
        let by = Author {
            operator: "ab12cd34".into(),
            reason: "asked for".into(),
            request_id: "r-1".into(),
            at: jiff::Timestamp::now(),
        };
        let erasure = Erasure::new(StoredEvent::decode(self.layout, &message).unwrap(), [0; 32], None, by);
        publish(&self.connection, &erasure.encode(self.layout)).await.unwrap();
        remove(&self.connection, "EVENTS", message.seq).await.unwrap();
    }

    /// Publishes a record that no worker of the test has made.
    pub async fn publish(&self, subject: &str, record: &impl prost::Message) {
        let payload = record.encode_to_vec().into();
        let ack =
            self.connection.jetstream().publish_with_headers(subject.to_owned(), records::headers().to_map(), payload);
        ack.await.unwrap().await.unwrap();
    }

    /// The newest complete checkpoint, once it is as wanted.
    pub async fn checkpoint(&self, wanted: impl Fn(&Checkpoint) -> bool) -> Checkpoint {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let tail = checkpoints::tail(&self.connection, self.layout, ShardId(0)).await.unwrap();
                if let Some(newest) = tail.newest.filter(&wanted) {
                    return newest;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        found.await.expect("a checkpoint")
    }

    /// Makes OUTCOMES begin after a position, as when its messages have expired.
    pub async fn expire_outcomes(&self, through: u64) {
        streams::drop_through(&self.connection, "OUTCOMES", StreamSeq(through)).await.unwrap();
    }

    /// Every commit so far, read until `enough`.
    pub async fn commits(&self, enough: impl Fn(&[internal::Commit]) -> bool) -> Vec<internal::Commit> {
        let commits = |messages: &[Stored]| -> Vec<internal::Commit> {
            let records =
                messages.iter().filter_map(|message| internal::OutcomeRecord::decode(message.payload.clone()).ok());
            let commits = records.filter_map(|record| match record.record {
                Some(internal::outcome_record::Record::Commit(commit)) => Some(commit),
                _ => None,
            });
            commits.collect()
        };
        commits(&self.read("OUTCOMES", |messages| enough(&commits(messages))).await)
    }

    /// Every outcome so far, at least `count`.
    pub async fn outcomes(&self, count: usize) -> Vec<internal::Outcome> {
        let of = |commits: &[internal::Commit]| commits.iter().map(|commit| commit.outcomes.len()).sum::<usize>();
        let commits = self.commits(|commits| of(commits) >= count).await;
        commits.into_iter().flat_map(|commit| commit.outcomes).collect()
    }

    /// Every message of a stream, read until `enough`.
    pub async fn read(&self, stream: &str, enough: impl Fn(&[Stored]) -> bool) -> Vec<Stored> {
        let options = ReaderOptions {
            stream: stream.into(),
            name: "test".into(),
            from: StreamSeq(1),
            filter: None,
            batch_messages_max: 500,
            known: None,
            pages: false,
        };
        let mut reader = OrderedReader::new(self.connection.clone(), options);
        let mut messages = Vec::new();
        loop {
            let batch = tokio::time::timeout(PATIENCE, reader.next()).await.expect("enough messages").unwrap();
            messages.extend(batch.messages);
            // All that there is: who counts wants to see what is too much as well.
            if batch.pending == 0 && enough(&messages) {
                return messages;
            }
        }
    }
}

/// Removes a subscription, as an operator does.
pub async fn delete(catalog: &Catalog, name: &str) {
    let stamp = Stamp { request_id: format!("delete {name}"), operator: "ann".into(), reason: "moved".into() };
    let snapshot = catalog.read().await.unwrap();
    let change = change::delete::<v1::Subscription>(&snapshot, name, 0).unwrap();
    catalog.write(&change, &stamp).await.unwrap();
}

/// A copy of a stream.
pub struct Saved {
    stream: String,
    folder: tempfile::TempDir,
    end: StreamSeq,
    heads: BTreeMap<String, (u64, EventId)>,
}

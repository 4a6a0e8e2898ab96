//! A log, an admin on it, and what puts things into the log.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use jiff::Timestamp;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use weft_admin::{
    Admin, AdminOptions,
    deliveries::{Deliveries, Migration, Sample},
    service::RunError,
};
use weft_catalog::Catalog;
use weft_nats::{
    append::Appender,
    connect::Connection,
    event::{Event, StoredEvent},
    message::Outgoing,
    options::{NatsOptions, Secret},
    records, streams,
    subject::{Layout, dead_letter_subject},
};
use weft_proto::{
    ids::{EventId, Run, ShardId, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, OutcomeKind, outcome_record::Record},
    v1::{
        self, catalog_service_client::CatalogServiceClient, dead_letter_service_client::DeadLetterServiceClient,
        event_service_client::EventServiceClient, rejected_service_client::RejectedServiceClient,
        replay_service_client::ReplayServiceClient, stats_service_client::StatsServiceClient,
        workflow_service_client::WorkflowServiceClient,
    },
};
pub use weft_testkit::{PATIENCE, spec};
use weft_testkit::{TestLog, TestServer, eventually, master_key};

pub const TOKEN: &str = "weft-token";
pub const BILLING: SubscriptionUid = SubscriptionUid::from_bytes([7; 16]);

/// A running admin.
pub struct Running {
    pub url: String,
    pub missing: watch::Receiver<Option<String>>,
    pub drain: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

/// Sends the bearer token.
#[derive(Clone)]
pub struct Bearer(pub String);

/// Sends this key.
pub fn bearer(key: &str) -> Bearer {
    Bearer(format!("Bearer {key}"))
}

pub type Client = InterceptedService<Channel, Bearer>;

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if !self.0.is_empty() {
            request.metadata_mut().insert("authorization", self.0.parse().unwrap());
        }
        Ok(request)
    }
}

/// Stands for the worker's code: every receiver takes what it is given, one address is not allowed, and a database needs its
/// connection strings. A status is the number of deliveries so far, above 200.
#[derive(Debug, Default)]
pub struct Receivers {
    deliveries: AtomicU32,
}

/// The address that is not allowed.
pub const REFUSED_URL: &str = "https://inside.example/";

#[tonic::async_trait]
impl Deliveries for Receivers {
    async fn check(&self, subscription: &v1::Subscription) -> Result<(), String> {
        let kind = subscription.destination.as_ref().and_then(|destination| destination.kind.as_ref());
        match kind {
            Some(v1::destination::Kind::Http(http)) if http.url == REFUSED_URL => {
                Err("destination: not allowed".into())
            }
            Some(v1::destination::Kind::Postgres(postgres)) if postgres.dsns.iter().any(String::is_empty) => {
                Err("destination: shards[0]: it is empty".into())
            }
            _ => Ok(()),
        }
    }

    async fn plan(&self, _subscription: &v1::Subscription, event: StoredEvent) -> Result<v1::PlannedDelivery, String> {
        Ok(v1::PlannedDelivery { data: event.event.payload.to_vec(), ..Default::default() })
    }

    /// Unsigned: no gateway verifies it here.
    fn sign(&self, source: &v1::Source, sample: &Sample<'_>) -> Result<internal::SignedSample, String> {
        let body = format!("{} {}", sample.event_type, sample.workflow).into_bytes();
        Ok(internal::SignedSample { source: source.name.clone(), body, id: sample.id.to_owned(), ..Default::default() })
    }

    async fn deliver(&self, _subscription: &v1::Subscription, event: StoredEvent) -> Result<internal::Attempt, String> {
        assert_eq!(event.event.event_type, "weft.test");
        let status = 200 + self.deliveries.fetch_add(1, Ordering::Relaxed);
        let class = v1::AttemptClass::Delivered.into();
        Ok(internal::Attempt { class, status, started_at_ms: 5, ended_at_ms: 12, ..Default::default() })
    }

    async fn migrate(&self, _subscription: &v1::Subscription, dry_run: bool) -> Result<Migration, String> {
        if dry_run {
            Ok(Migration { statements: vec![], databases: vec![] })
        } else {
            Err("the database has gone".into())
        }
    }
}

impl Running {
    pub async fn start(nats: &NatsOptions, shards: u32, folder: &Path) -> Self {
        let options = AdminOptions { listen: ([127, 0, 0, 1], 0).into(), ..AdminOptions::default() };
        let admin = Admin::bind(options, Secret::new(TOKEN), Arc::new(Receivers::default())).await.unwrap();
        let url = format!("http://{}", admin.local_addr());
        let connection = Connection::connect(nats, "admin").await.unwrap();
        let (told, missing) = watch::channel(Some("starting".to_owned()));
        let drain = CancellationToken::new();
        let run =
            admin.run(Catalog::new(connection, master_key()), spec(shards), folder.to_owned(), told, drain.clone());
        Self { url, missing, drain, task: tokio::spawn(run) }
    }

    pub async fn ready(&mut self) {
        let in_time = tokio::time::timeout(PATIENCE, self.missing.wait_for(Option::is_none)).await.is_ok();
        assert!(in_time, "not ready: {:?}", self.missing.borrow());
    }

    pub async fn stop(self) -> Result<(), RunError> {
        self.drain.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the admin ends").unwrap()
    }

    /// Its result, when it ends without being stopped.
    pub async fn ended(self) -> Result<(), RunError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the admin ends").unwrap()
    }

    pub fn channel(&self) -> Channel {
        Endpoint::new(self.url.clone()).unwrap().connect_lazy()
    }

    pub fn events(&self) -> EventServiceClient<Client> {
        EventServiceClient::with_interceptor(self.channel(), bearer(TOKEN))
    }

    pub fn catalog(&self) -> CatalogServiceClient<Client> {
        CatalogServiceClient::with_interceptor(self.channel(), bearer(TOKEN))
    }

    pub fn dead_letters(&self) -> DeadLetterServiceClient<Client> {
        DeadLetterServiceClient::with_interceptor(self.channel(), bearer(TOKEN))
    }
}

impl Running {
    pub fn workflows(&self) -> WorkflowServiceClient<Client> {
        WorkflowServiceClient::with_interceptor(self.channel(), bearer(TOKEN))
    }

    pub fn replays(&self) -> ReplayServiceClient<Client> {
        ReplayServiceClient::with_interceptor(self.channel(), bearer(TOKEN))
    }

    pub fn stats(&self) -> StatsServiceClient<Client> {
        StatsServiceClient::with_interceptor(self.channel(), bearer(TOKEN))
    }

    pub fn rejected(&self) -> RejectedServiceClient<Client> {
        RejectedServiceClient::with_interceptor(self.channel(), bearer(TOKEN))
    }
}

/// A log, and an admin that is ready.
pub struct Mesh {
    pub server: TestServer,
    pub connection: Connection,
    pub layout: Layout,
    pub folder: TempDir,
    pub admin: Running,
    appender: Appender,
    /// The last sequence appended to each stream.
    ends: BTreeMap<String, StreamSeq>,
    numbers: BTreeMap<String, u64>,
}

impl Mesh {
    /// The catalog, past the admin.
    pub fn kv(&self) -> Catalog {
        Catalog::new(self.connection.clone(), master_key())
    }

    pub async fn start(shards: u32) -> Self {
        let TestLog { server, connection, layout, .. } = TestLog::of(spec(shards)).await;
        let folder = tempfile::tempdir().unwrap();
        let mut admin = Running::start(&server.options(), shards, folder.path()).await;
        admin.ready().await;
        let appender = Appender::new(connection.clone());
        let (ends, numbers) = (BTreeMap::new(), BTreeMap::new());
        Self { server, connection, layout, folder, admin, appender, ends, numbers }
    }

    /// Stops the admin and starts another on the same folder.
    pub async fn restart_admin(&mut self, between: impl FnOnce(&Path)) {
        self.admin.drain.cancel();
        (&mut self.admin.task).await.unwrap().unwrap();
        between(self.folder.path());
        self.admin = Running::start(&self.server.options(), self.layout.shards(), self.folder.path()).await;
        self.admin.ready().await;
    }

    async fn append(&mut self, stream: String, message: Outgoing) -> u64 {
        let end = self.ends.entry(stream.clone()).or_default();
        let appended = async || {
            if self.appender.append(*end, std::slice::from_ref(&message)).await.is_err() {
                // It may be stored all the same: nothing else is appended to this stream.
                let state = streams::state(&self.connection, &stream).await;
                return state.is_ok_and(|state| state.last == end.next());
            }
            true
        };
        assert!(eventually(PATIENCE, appended).await);
        *end = end.next();
        end.0
    }

    /// Appends the next event of a workflow.
    pub async fn event(&mut self, workflow: &str, payload: &str) -> (EventId, u64) {
        let number = self.numbers.entry(workflow.to_owned()).or_default();
        *number += 1;
        let event = event(workflow, *number, payload);
        (event.id, self.put(&event).await)
    }

    /// Appends this event.
    pub async fn put(&mut self, event: &Event) -> u64 {
        let stream = self.layout.events_stream(self.layout.shard_of(&event.workflow));
        self.append(stream, event.encode(self.layout)).await
    }

    /// Appends the next event of a workflow under the id of an earlier one: a delivery repeated after the dedup horizon.
    pub async fn repeated_event(&mut self, workflow: &str, id: EventId, payload: &str) -> u64 {
        let number = self.numbers.entry(workflow.to_owned()).or_default();
        *number += 1;
        let event = Event { id, ..event(workflow, *number, payload) };
        let stream = self.layout.events_stream(self.layout.shard_of(&event.workflow));
        let mut message = event.encode(self.layout);
        // The server has its own window, which the test does not wait for.
        message.headers.set("Nats-Msg-Id", EventId::unique());
        self.append(stream, message).await
    }

    /// Appends a commit of the shard's owner.
    pub async fn commit(&mut self, shard: ShardId, commit: internal::Commit) {
        let record = internal::OutcomeRecord { record: Some(Record::Commit(commit)) };
        let message = records::encode(self.layout.outcomes_subject(shard), &record);
        self.append(self.layout.outcomes_stream(shard), message).await;
    }

    /// Dead-letters an event: the commit, and the copy on DLQ.
    pub async fn dead_letter(&mut self, workflow: &str, id: EventId, seq: u64, run: u64) {
        let outcome = outcome(workflow, id, seq, run, OutcomeKind::DeadLettered);
        let shard = self.layout.shard_of(&WorkflowId::new(workflow).unwrap());
        let attempts = vec![attempt(seq, run, 1, 0)];
        let commit = internal::Commit { cursor: seq, outcomes: vec![outcome.clone()], attempts, ..opening() };
        self.commit(shard, commit).await;
        let stream = self.layout.events_stream(shard);
        let stored = weft_nats::direct::get(&self.connection, &stream, StreamSeq(seq)).await.unwrap().unwrap();
        let mut message = Event::decode(self.layout, &stored).unwrap().encode(self.layout);
        let time = |ms| Timestamp::from_millisecond(ms).unwrap().to_string();
        for (header, value) in [
            ("Nats-Msg-Id", format!("{BILLING}:{id}:{seq}:{run}")),
            ("weft-subscription-uid", BILLING.to_string()),
            ("weft-reason", "exhausted".into()),
            ("weft-attempts", outcome.attempts.to_string()),
            ("weft-last-status", outcome.last_status.to_string()),
            ("weft-last-error", outcome.last_error.clone()),
            ("weft-first-failed-at", time(outcome.first_failed_at_ms)),
            ("weft-dead-lettered-at", time(outcome.at_ms)),
            ("weft-seq", seq.to_string()),
            ("weft-run", run.to_string()),
        ] {
            message.headers.set(header, value);
        }
        let workflow = WorkflowId::new(workflow).unwrap();
        message.subject = dead_letter_subject("billing", &workflow, id, StreamSeq(seq), Run(run));
        assert!(weft_nats::append::publish_once(&self.connection, &message).await.unwrap());
    }

    /// Drops the messages of a shard's EVENTS below `seq`, as retention does.
    pub async fn drop_events_below(&self, shard: ShardId, seq: u64) {
        let stream = self.connection.jetstream().get_stream(self.layout.events_stream(shard)).await.unwrap();
        stream.purge().sequence(seq).await.unwrap();
    }
}

pub fn event(workflow: &str, number: u64, payload: &str) -> Event {
    Event {
        time: "2026-11-21T02:00:00.123Z".parse().unwrap(),
        ..weft_testkit::event(workflow).number(number).payload(payload.to_owned()).build()
    }
}

pub fn outcome(workflow: &str, id: EventId, seq: u64, run: u64, kind: OutcomeKind) -> internal::Outcome {
    let dead = kind == OutcomeKind::DeadLettered;
    let at_ms = Timestamp::now().as_millisecond();
    internal::Outcome {
        subscription: BILLING.to_vec(),
        sequence: seq,
        run,
        kind: kind.into(),
        workflow_id: workflow.into(),
        event_id: id.to_vec(),
        attempts: 1,
        reason: if dead { v1::DeadLetterReason::Exhausted } else { v1::DeadLetterReason::Unspecified }.into(),
        at_ms,
        first_failed_at_ms: if dead { at_ms - 1000 } else { 0 },
        last_error: if dead { "answered 500".into() } else { String::new() },
        last_status: if dead { 500 } else { 0 },
        ..Default::default()
    }
}

pub fn attempt(seq: u64, run: u64, number: u32, next_attempt_at_ms: i64) -> internal::Attempt {
    internal::Attempt {
        subscription: BILLING.to_vec(),
        sequence: seq,
        run,
        number,
        started_at_ms: 1_700_000_000_000 + i64::from(number),
        ended_at_ms: 1_700_000_000_500 + i64::from(number),
        class: v1::AttemptClass::HttpStatus.into(),
        status: 500,
        error: "answered 500".into(),
        response: b"oops".to_vec(),
        next_attempt_at_ms,
        ..Default::default()
    }
}

/// A commit that says what the subscription is called.
pub fn opening() -> internal::Commit {
    let opened = internal::Opened { name: "billing".into(), from: 1, revision: 1, ..Default::default() };
    let change = Some(internal::subscription_change::Change::Opened(opened));
    // Decided by a later catalog than any: the tests' catalogs mostly lack it, and say nothing by that.
    let catalog = Some(internal::CatalogPosition { created_ns: i64::MAX, sequence: 1 });
    let change = internal::SubscriptionChange { subscription: BILLING.to_vec(), change, catalog };
    internal::Commit { subscriptions: vec![change], epoch: 1, ..Default::default() }
}

/// The reason in a refusal's details.
pub fn reason<T: std::fmt::Debug>(answer: Result<T, Status>) -> (tonic::Code, String) {
    let status = answer.unwrap_err();
    (status.code(), weft_admin::error::reason(&status).unwrap_or_default())
}

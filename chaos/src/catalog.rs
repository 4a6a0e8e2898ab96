//! The source and the subscriptions of a run, and their changes.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tokio::sync::Mutex;
use weft_proto::v1::{self, destination::Kind, rule::From as RuleFrom, verification::Scheme};

use crate::{
    admin::Admin,
    clock::{Clock, millis},
    judge::SOURCE,
    receiver::ATTEMPT_TIMEOUT,
    record::{Millis, Subscription},
};

/// Secret of the senders.
pub const SENDER_SECRET: &str = "whsec_c2VuZGVyIG9mIHRoZSBjaGFvcyBkcml2ZXIgMDAwMDAx";
const RECEIVER_SECRET: &str = "whsec_cmVjZWl2ZXIgb2YgdGhlIGNoYW9zIGRyaXZlciAwMDAx";
/// Accepted age of a signature.
const TOLERANCE: Duration = Duration::from_secs(300);
/// The subscription whose filter changes.
const FILTERED: &str = "orders";
/// The subscription that is deleted and created again.
const TEMPORARY: &str = "temp";
const REASON: &str = "chaos";

/// The catalog as the driver makes it. One change at a time.
#[derive(Debug)]
pub struct Catalog {
    admin: Admin,
    receiver: SocketAddr,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    subscriptions: Vec<Subscription>,
    /// Number of the next request, which names its request id.
    requests: u64,
}

impl State {
    fn request_id(&mut self) -> String {
        self.requests += 1;
        format!("chaos-{}", self.requests)
    }

    /// The newest generation of a subscription.
    fn newest(&mut self, name: &str) -> anyhow::Result<&mut Subscription> {
        self.subscriptions.iter_mut().rev().find(|one| one.name == name).with_context(|| format!("no {name}"))
    }
}

impl Catalog {
    /// Makes the source and the subscriptions.
    pub async fn create(admin: Admin, receiver: SocketAddr, clock: Clock) -> anyhow::Result<Self> {
        let catalog = Self { admin, receiver, clock, state: Mutex::default() };
        let mut state = catalog.state.lock().await;
        catalog.create_source(&mut state).await?;
        catalog.create_subscription(&mut state, "main", &["*"], true).await?;
        catalog.create_subscription(&mut state, FILTERED, &["order.*"], true).await?;
        catalog.create_subscription(&mut state, TEMPORARY, &["*"], true).await?;
        catalog.create_subscription(&mut state, "loose", &["stock.*", "mail.*"], false).await?;
        drop(state);
        Ok(catalog)
    }

    /// The subscriptions so far.
    pub async fn subscriptions(&self) -> Vec<Subscription> {
        self.state.lock().await.subscriptions.clone()
    }

    async fn create_source(&self, state: &mut State) -> anyhow::Result<()> {
        let rule = |pointer: &str| Some(v1::Rule { from: Some(RuleFrom::Pointer(pointer.to_owned())) });
        let standard =
            v1::StandardScheme { secrets: vec![SENDER_SECRET.to_owned()], tolerance_ms: Some(millis(TOLERANCE)) };
        let source = v1::Source {
            name: SOURCE.to_owned(),
            verification: Some(v1::Verification { scheme: Some(Scheme::Standard(standard)) }),
            delivery_id: Some(v1::DeliveryIdRule {
                from: Some(v1::delivery_id_rule::From::Header("webhook-id".to_owned())),
            }),
            workflow: rule("/data/orderId"),
            r#type: rule("/type"),
            body: v1::BodyKind::Json.into(),
            on_id_reuse: v1::OnIdReuse::Conflict.into(),
            ..Default::default()
        };
        let request =
            v1::CreateSourceRequest { source: Some(source), reason: REASON.to_owned(), request_id: state.request_id() };
        let client = self.admin.catalog();
        self.admin
            .call("CreateSource", &request, |request| {
                let mut client = client.clone();
                async move { client.create_source(request).await }
            })
            .await?;
        Ok(())
    }

    async fn create_subscription(
        &self,
        state: &mut State,
        name: &str,
        types: &[&str],
        ordered: bool,
    ) -> anyhow::Result<()> {
        let generation = state.subscriptions.iter().filter(|one| one.name == name).count();
        let key = if generation == 0 { name.to_owned() } else { format!("{name}-{generation}") };
        let types: Vec<String> = types.iter().map(|pattern| (*pattern).to_owned()).collect();
        let request = v1::CreateSubscriptionRequest {
            subscription: Some(self.wanted(name, &key, types.clone(), ordered)),
            start: Some(v1::Start { from: Some(v1::start::From::Now(true)) }),
            reason: REASON.to_owned(),
            request_id: state.request_id(),
        };
        let client = self.admin.catalog();
        let called = self.clock.now();
        let view = self
            .admin
            .call("CreateSubscription", &request, |request| {
                let mut client = client.clone();
                async move { client.create_subscription(request).await }
            })
            .await?;
        let uid = view.subscription.context("CreateSubscription: no subscription")?.uid;
        state.subscriptions.push(Subscription {
            key,
            name: name.to_owned(),
            uid: hex(&uid),
            ordered,
            created: (called, self.clock.now()),
            deleted: None,
            types: BTreeMap::from([(view.revision, types)]),
            timeout: millis(ATTEMPT_TIMEOUT),
        });
        Ok(())
    }

    fn wanted(&self, name: &str, key: &str, types: Vec<String>, ordered: bool) -> v1::Subscription {
        let http = v1::HttpDestination {
            url: format!("http://{}/{key}", self.receiver),
            secrets: vec![RECEIVER_SECRET.to_owned()],
            format: v1::HttpFormat::Envelope.into(),
            ..Default::default()
        };
        v1::Subscription {
            name: name.to_owned(),
            types,
            destination: Some(v1::Destination { kind: Some(Kind::Http(http)) }),
            timeout_ms: millis(ATTEMPT_TIMEOUT),
            concurrency: 64,
            retry: Some(v1::Retry {
                max_retries: 6,
                base_ms: 50,
                factor: 2.0,
                max_ms: 2_000,
                jitter: 0.2,
                schedule_ms: Vec::new(),
            }),
            on_exhausted: v1::OnExhausted::DeadLetter.into(),
            ordered: Some(ordered),
            ..Default::default()
        }
    }

    /// Gives the filtered subscription other type patterns.
    pub async fn filter(&self, types: &[&str]) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        let types: Vec<String> = types.iter().map(|pattern| (*pattern).to_owned()).collect();
        let (key, ordered) = state.newest(FILTERED).map(|one| (one.key.clone(), one.ordered))?;
        let request = v1::UpdateSubscriptionRequest {
            subscription: Some(self.wanted(FILTERED, &key, types.clone(), ordered)),
            revision: 0,
            reason: REASON.to_owned(),
            request_id: state.request_id(),
            secrets_change: None,
        };
        let client = self.admin.catalog();
        let view = self
            .admin
            .call("UpdateSubscription", &request, |request| {
                let mut client = client.clone();
                async move { client.update_subscription(request).await }
            })
            .await?;
        state.newest(FILTERED)?.types.insert(view.revision, types);
        Ok(())
    }

    /// Pauses the filtered subscription, or ends its pause.
    pub async fn pause(&self, paused: bool) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        let (name, reason, request_id) = (FILTERED.to_owned(), REASON.to_owned(), state.request_id());
        let client = self.admin.catalog();
        let view = if paused {
            let request = v1::PauseSubscriptionRequest { name, reason, request_id };
            self.admin
                .call("PauseSubscription", &request, |request| {
                    let mut client = client.clone();
                    async move { client.pause_subscription(request).await }
                })
                .await?
        } else {
            let request = v1::ResumeSubscriptionRequest { name, reason, request_id };
            self.admin
                .call("ResumeSubscription", &request, |request| {
                    let mut client = client.clone();
                    async move { client.resume_subscription(request).await }
                })
                .await?
        };
        let subscription = state.newest(FILTERED)?;
        let types = view.subscription.map(|one| one.types).unwrap_or_default();
        subscription.types.insert(view.revision, types);
        Ok(())
    }

    /// Deletes the temporary subscription.
    pub async fn delete(&self) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        let request = v1::DeleteSubscriptionRequest {
            name: TEMPORARY.to_owned(),
            revision: 0,
            reason: REASON.to_owned(),
            request_id: state.request_id(),
        };
        let client = self.admin.catalog();
        let called = self.clock.now();
        // Known before the answer: a call without one may have been carried out.
        state.newest(TEMPORARY)?.deleted = Some((called, Millis::MAX));
        self.admin
            .call("DeleteSubscription", &request, |request| {
                let mut client = client.clone();
                async move { client.delete_subscription(request).await }
            })
            .await?;
        state.newest(TEMPORARY)?.deleted = Some((called, self.clock.now()));
        Ok(())
    }

    /// Creates the temporary subscription again.
    pub async fn recreate(&self) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        self.create_subscription(&mut state, TEMPORARY, &["*"], true).await
    }
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

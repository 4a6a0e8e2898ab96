//! Forwarding: of several gateways one, the *preferred appender* of a shard, appends for all.
//!
//! Several gateways may append to a shard, but a gateway that loses the comparison must read on and decide again. So the
//! others forward their events to the appender, many in a request, and the appender queues them with its own. The appender is named
//! by a key in the lease bucket. The key is a hint: with two appenders, or none, each append is still compared.
//!
//! ```text
//! submit ─ Appender::Local, None ─▶ local queue ◀──── server ◀── requests of others
//!        └ Appender::Remote ─▶ client ═ request ═▶ its server    │
//!                     │    ▲ ═══ replies ═════╝                ▼
//!                     └ silent, gone: local queue         replies to them
//! election: claims, renews, follows and releases the key
//! ```
//!
//! - `election`, `lease`: who leads. The key is checked once a second while events arrive; a single gateway pays no more.
//! - `client`, `in_flight`: requests to the appender; `server`: requests of other gateways; `wire`: their encoding.
//! - `notify`: append notices to forwarding gateways, so that they need not read the log.
//! - `reconcile`: the answer to an event that was forwarded to an appender without a sign of life for 50 ms, and then also
//!   queued locally. The event id makes one event of both; a late "accepted" of the appender still reaches the sender.
//!
//! Requests and replies carry a MAC under a key that only gateways of the mesh have. Any NATS user allowed to create consumers
//! can have a stored message, with a body chosen by its sender, delivered to an arbitrary subject: without the MAC it could be
//! a request for unverified events, or a receipt for an event that was never stored. The MAC covers the subject, so it is
//! valid for one process and, of a reply, for one request. Old requests are refused, and event ids make repeats harmless.
//!
//! Single events that are submitted concurrently may be appended in any order. Members of a chain (`sequencer::chain`) keep
//! theirs:
//!
//! - A batch is forwarded completely, in one request, and is a chain at the appender, or it is queued locally. If a forwarded
//!   batch is also queued locally, a prefix of each copy is accepted, and each copy recognises what the other appended: what is
//!   accepted of both is a prefix.
//! - Events of a stream are never forwarded: later members are not known yet, and one session must append them all.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_index::projection::OpenError;
use weft_nats::{
    async_nats::{HeaderMap, Message, Subject},
    connect::Connection,
    subject::Layout,
    tags::{TAG_TEXT_BYTES, Tags},
    watch_value::set_if_changed,
};
use weft_proto::ids::ShardId;

mod client;
mod election;
mod in_flight;
mod lease;
mod notify;
mod reconcile;
mod server;
pub(crate) mod wire;

#[cfg(test)]
pub(crate) use notify::{decode as decode_notice, encode as encode_notice};
#[cfg(test)]
pub(crate) use reconcile::{LATE_MAX, reconcile};

use client::ForwardClient;
use election::Election;
use lease::LeaseKey;
use notify::{AppendNotifier, Subscribers};
use server::ForwardServer;

use crate::sequencer::{self, AppendNotice, EventBatch, LocalQueue, RemoteQueue, Sequencer, SequencerOptions};

/// Name of a gateway: a subject token, new at each start.
type Name = Arc<str>;

/// True if a text may be the name of a gateway.
fn is_name(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Purpose of the MACs of requests and replies.
const TAGGED: &str = "forward";
/// The header of the MAC.
const TAG: &str = "weft-tag";
/// Bytes of the headers of a request: version, name and MAC, and line ends.
const HEADER_BYTES: usize = 64 + TAG_TEXT_BYTES;
/// Suspicions that may wait for the election, which reads the newest state anyway.
const SUSPICIONS_MAX: usize = 8;

/// The gateway that appends, as far as this one knows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Appender {
    /// Each gateway for itself.
    None,
    /// This gateway.
    Local,
    /// Another gateway.
    Remote(Name),
}

/// State shared by the tasks of one shard. Cheap to clone.
#[derive(Debug, Clone)]
struct ForwardingState {
    shard: ShardId,
    layout: Layout,
    connection: Connection,
    me: Name,
    tags: Tags,
    appender: watch::Sender<Appender>,
    work: ActivitySignal,
}

/// Signals that events have arrived.
#[derive(Debug, Clone, Default)]
struct ActivitySignal {
    inner: Arc<(AtomicBool, Notify)>,
}

/// The side of the submitter.
#[derive(Debug)]
struct Remote {
    shared: ForwardingState,
    /// Events to forward.
    queue: mpsc::Sender<EventBatch>,
}

/// Opens the receipts of every shard and starts their sequencers on `tasks`, with forwarding unless `options` say
/// otherwise. `progress` says what is missing, `None` once all shards are ready. On `drain` they finish what is queued,
/// and end.
///
/// # Errors
///
/// [`OpenError`]: the folder cannot be used. An absent log is none: they wait for it.
pub async fn start(
    connection: Connection,
    layout: Layout,
    options: SequencerOptions,
    progress: watch::Sender<Option<String>>,
    drain: CancellationToken,
    tasks: &TaskTracker,
) -> Result<Sequencer, OpenError> {
    let forwards = options.forwards;
    let forward = |shard, queue| {
        let (connection, drain) = (connection.clone(), drain.clone());
        async move {
            if !forwards {
                return (drain, None);
            }
            let drained = CancellationToken::new();
            let forwarding = start_shard(shard, layout, connection, queue, drain, drained.clone(), tasks).await;
            (drained, forwarding)
        }
    };
    sequencer::start(connection.clone(), layout, options, progress, drain.clone(), tasks, forward).await
}

/// Starts the forwarding of one shard on `tasks`. On `drain` it releases the lease and waits for the replies under way;
/// then `drained` ends the session. `None`: the NATS client has ended.
async fn start_shard(
    shard: ShardId,
    layout: Layout,
    connection: Connection,
    own: LocalQueue,
    drain: CancellationToken,
    drained: CancellationToken,
    tasks: &TaskTracker,
) -> Option<sequencer::Forwarding> {
    // The session ends with this function at the latest.
    let drained = drained.drop_guard();
    let me = Name::from(uuid::Uuid::new_v4().simple().to_string());
    let client = connection.client();
    // Before other gateways can learn the name.
    let requests = client.subscribe(layout.forward_subject(shard, &me)).await.ok()?;
    let answers = client.subscribe(layout.forward_answer_subject(shard, &me, '*')).await.ok()?;
    let hints = LeaseKey::new(connection.clone(), layout.appender_key(shard), me.clone());
    let appender = watch::Sender::new(Appender::None);
    let tags = own.master_key.tags(TAGGED);
    let shared = ForwardingState { shard, layout, connection, me, tags, appender, work: ActivitySignal::default() };
    let (queue, queued) = mpsc::channel(own.events_max);
    let (suspicions, suspected) = mpsc::channel(SUSPICIONS_MAX);

    tasks.spawn(Election::new(shared.clone(), hints, suspected).run(drain.clone()));
    let LocalQueue { queue: own, room, current, submit_timeout, dedup_horizon, notices, .. } = own;
    let age_max = wire::age_max(dedup_horizon);
    let subscribers = Subscribers::default();
    let (notifier, notifying) = AppendNotifier::new(shared.clone(), subscribers.clone());
    tasks.spawn(notifying);
    let host = ForwardServer {
        shared: shared.clone(),
        queue: own.clone(),
        room,
        current,
        submit_timeout,
        age_max,
        subscribers,
    };
    tasks.spawn(host.run(requests, drain.clone()));
    let client = ForwardClient::new(shared.clone(), queued, own, notices, suspicions, tasks.clone());
    tasks.spawn(async move {
        client.run(answers, drain).await;
        drop(drained);
    });
    Some(sequencer::Forwarding { remote: Box::new(Remote { shared, queue }), observer: Box::new(notifier) })
}

impl RemoteQueue for Remote {
    fn route(&self) -> Option<&mpsc::Sender<EventBatch>> {
        self.shared.work.note();
        matches!(*self.shared.appender.borrow(), Appender::Remote(_)).then_some(&self.queue)
    }
}

impl ForwardingState {
    fn appender(&self) -> Appender {
        self.appender.borrow().clone()
    }

    fn set_appender(&self, appender: Appender) {
        if set_if_changed(&self.appender, appender.clone()) {
            tracing::debug!(shard = self.shard.0, ?appender, "forwarding appender");
        }
    }

    /// Headers of a message to `subject`.
    fn tagged(&self, subject: &str, payload: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TAG, self.tags.tag(subject, payload));
        headers
    }

    /// Time of the log server, shared by all gateways.
    fn server_time(&self) -> Timestamp {
        self.connection.server_clock().now()
    }

    /// True if the server accepts a payload of this size.
    fn fits(&self, payload: &[u8]) -> bool {
        payload.len().saturating_add(HEADER_BYTES) <= self.connection.max_payload().unwrap_or(0)
    }

    /// Sends a message to another gateway. An error means that the client has ended.
    async fn say(&self, to: Subject, payload: Bytes) {
        let headers = self.tagged(&to, &payload);
        let _ = self.connection.client().publish_with_headers(to, headers, payload).await;
    }

    /// True if the message has a valid MAC for its subject.
    fn is_tagged(&self, message: &Message) -> bool {
        let tag = message.headers.as_ref().and_then(|headers| headers.get(TAG));
        tag.is_some_and(|tag| self.tags.holds(&message.subject, &message.payload, tag.as_str()))
    }

    /// Stops forwarding to `holder`.
    fn suspect(&self, holder: &Name) {
        self.appender.send_if_modified(|now| {
            let followed = matches!(now, Appender::Remote(followed) if followed == holder);
            if followed {
                *now = Appender::None;
            }
            followed
        });
    }
}

impl ActivitySignal {
    /// Notes an event.
    fn note(&self) {
        let (noted, wake) = &*self.inner;
        // The election needs one wake-up per interval; further events cost one load.
        if !noted.load(Ordering::Relaxed) && !noted.swap(true, Ordering::Relaxed) {
            wake.notify_one();
        }
    }

    /// Waits until an event has been noted since the last return.
    async fn arrived(&self) {
        let (noted, wake) = &*self.inner;
        wake.notified().await;
        noted.store(false, Ordering::Relaxed);
    }
}

//! One gateway of several appends for all: the *forwarding appender* of a shard.
//!
//! Several gateways that append to one shard are right, and slow: whoever loses the comparison reads on and decides again.
//! So all but one hand their events over, many in a request, and the one that appends puts them into its queue beside its
//! own. Who that is says a key in the bucket of leases; it is a hint and not a promise: everything stays right when two
//! gateways believe to be the one, or none does, because each append is compared as ever.
//!
//! ```text
//! submit ─ Ours, Nobody ─▶ own queue ◀──────── host ◀── requests of others
//!        └ Theirs ─▶ client ═ request ═▶ its host      │
//!                     │    ▲ ═══ verdicts ════╝           ▼
//!                     └ silent, gone: own queue      verdicts to them
//! election: claims, renews, follows, gives back the key
//! ```
//!
//! - `election`, `hint`: who it is. Looked at once a second while events come; a gateway that is alone writes the key as often,
//!   and that is all it pays.
//! - `client`, `in_flight`: requests under way; `host`: what comes from others; `wire`: what they say to each other.
//! - `tell`: what is appended for others is told to them, so that they need not read it.
//! - `late`: a forwarding appender that said nothing for 50 ms is not waited for: the events go into the own queue as well,
//!   and the event id makes them one. Whoever decides first decides, and a late "accepted" still reaches its sender.
//!
//! Requests and answers are tagged with a key that only gateways of the mesh have. NATS keeps others from publishing there, but
//! not from having a stored message delivered there, and a sender chooses what a stored body says: without tags it could be a
//! request for events that nobody has verified, or a receipt for one that nobody has stored. A tag binds the subject, so it is
//! good for one process and, of an answer, one request; a request is refused when it is old, and its ids make it act once.
//!
//! Events that are submitted at the same time, each alone, may be appended in any order, also those of one workflow and one
//! sender. Members of a chain (`sequencer::chain`) may not:
//!
//! - A batch is whole when it is submitted, and goes as a whole: in one request, in which it is a chain there as well, or into
//!   the own queue. Given up, it goes there whole, too: each of the two copies is accepted from its beginning on, and a member
//!   that one of them has appended is known to the other, so whatever of both is accepted is a beginning.
//! - Of a line nobody knows the next member yet. It is appended here, by the one session that all of it passes through.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_index::projection::OpenError;
use weft_nats::{
    async_nats::{HeaderMap, Message, Subject},
    changes::set_if_changed,
    connect::Connection,
    subject::Layout,
    tags::{TAG_TEXT_BYTES, Tags},
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

/// What a gateway is called among gateways: a token of a subject, another one at each start.
type Name = Arc<str>;

/// Whether a text may be the name of a gateway.
fn is_name(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What tags on requests and answers are made for.
const TAGGED: &str = "forward";
/// The header with the tag.
const TAG: &str = "weft-tag";
/// Bytes that the headers of a request take: a line of version, name and tag, and their ends.
const HEADER_BYTES: usize = 64 + TAG_TEXT_BYTES;
/// Doubts that may wait for the election: it looks at the newest state anyway.
const SUSPICIONS_MAX: usize = 8;

/// Who appends, as far as this gateway knows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Leader {
    /// Whoever has events.
    None,
    /// This gateway.
    Local,
    /// Another one.
    Remote(Name),
}

/// What the tasks of one shard have in common. Cheap to clone.
#[derive(Debug, Clone)]
struct ForwardingState {
    shard: ShardId,
    layout: Layout,
    connection: Connection,
    me: Name,
    tags: Tags,
    leader: watch::Sender<Leader>,
    work: ActivitySignal,
}

/// Whether events have come.
#[derive(Debug, Clone, Default)]
struct ActivitySignal {
    inner: Arc<(AtomicBool, Notify)>,
}

/// Where a shard's events go, as seen by whoever submits them.
#[derive(Debug)]
struct Remote {
    shared: ForwardingState,
    /// What is to be forwarded.
    queue: mpsc::Sender<EventBatch>,
}

/// Opens the receipts of every shard and starts their sequencers on `tasks`, and what hands events to other gateways unless
/// `options` say otherwise. `progress` says what they still wait for, `None` while all are ready. When `drain` comes they
/// finish what waits, and end.
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

/// Starts what is needed for one shard on `tasks`. When `drain` comes the role is handed over, and whoever waits for
/// another gateway is answered; then `drained` tells the session to end as well. What the session appends it has to tell.
/// `None`: the client has ended.
async fn start_shard(
    shard: ShardId,
    layout: Layout,
    connection: Connection,
    own: LocalQueue,
    drain: CancellationToken,
    drained: CancellationToken,
    tasks: &TaskTracker,
) -> Option<sequencer::Forwarding> {
    // Whatever comes in between, the session ends no later than this.
    let drained = drained.drop_guard();
    let me = Name::from(uuid::Uuid::new_v4().simple().to_string());
    let client = connection.client();
    // Before anybody can learn of us.
    let requests = client.subscribe(layout.forward_subject(shard, &me)).await.ok()?;
    let answers = client.subscribe(layout.forward_answer_subject(shard, &me, '*')).await.ok()?;
    let hints = LeaseKey::new(connection.clone(), layout.appender_key(shard), me.clone());
    let leader = watch::Sender::new(Leader::None);
    let tags = own.master_key.tags(TAGGED);
    let shared = ForwardingState { shard, layout, connection, me, tags, leader, work: ActivitySignal::default() };
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
        matches!(*self.shared.leader.borrow(), Leader::Remote(_)).then_some(&self.queue)
    }
}

impl ForwardingState {
    fn leader(&self) -> Leader {
        self.leader.borrow().clone()
    }

    fn set_leader(&self, leader: Leader) {
        if set_if_changed(&self.leader, leader.clone()) {
            tracing::debug!(shard = self.shard.0, ?leader, "forwarding appender");
        }
    }

    /// What a message to `subject` needs for other gateways to heed it.
    fn tagged(&self, subject: &str, payload: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TAG, self.tags.tag(subject, payload));
        headers
    }

    /// The log server's time, which all gateways share.
    fn server_time(&self) -> Timestamp {
        self.connection.server_clock().now()
    }

    /// Whether a payload is not too large for the server.
    fn fits(&self, payload: &[u8]) -> bool {
        payload.len().saturating_add(HEADER_BYTES) <= self.connection.max_payload().unwrap_or(0)
    }

    /// Tells another gateway. An error means that the client has ended: then nobody hears anything.
    async fn say(&self, to: Subject, payload: Bytes) {
        let headers = self.tagged(&to, &payload);
        let _ = self.connection.client().publish_with_headers(to, headers, payload).await;
    }

    /// Whether a gateway of this mesh has said it, here and not elsewhere.
    fn is_tagged(&self, message: &Message) -> bool {
        let tag = message.headers.as_ref().and_then(|headers| headers.get(TAG));
        tag.is_some_and(|tag| self.tags.holds(&message.subject, &message.payload, tag.as_str()))
    }

    /// Forwards nothing more to `holder`.
    fn suspect(&self, holder: &Name) {
        self.leader.send_if_modified(|now| {
            let followed = matches!(now, Leader::Remote(followed) if followed == holder);
            if followed {
                *now = Leader::None;
            }
            followed
        });
    }
}

impl ActivitySignal {
    /// An event has come.
    fn note(&self) {
        let (noted, wake) = &*self.inner;
        // One look tells the election enough; the rest of a second costs no more than this load.
        if !noted.load(Ordering::Relaxed) && !noted.swap(true, Ordering::Relaxed) {
            wake.notify_one();
        }
    }

    /// Waits until an event has come since this last returned.
    async fn arrived(&self) {
        let (noted, wake) = &*self.inner;
        wake.notified().await;
        noted.store(false, Ordering::Relaxed);
    }
}

/// Waits until then; for ever when there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

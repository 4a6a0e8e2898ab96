//! Events in JetStream streams.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use weft_nats::{
    async_nats::jetstream::{consumer, stream},
    connect::Connection,
    event::{Event, StoredEvent},
    options::NatsOptions,
};
use weft_proto::{
    ids::{EventId, Run, SequenceNumber, StreamSeq, SubscriptionUid, WorkflowId},
    v1::{self, AttemptClass},
};
use weft_testkit::{TestServer, eventually};
use weft_worker::{
    destination::{Delivery, Destinations},
    lane::{AttemptEnd, AttemptResult},
};

use crate::{
    http::{LOCAL, delivery, destinations as here},
    support::{Log, PATIENCE, Running},
};

mod cluster;
mod reads;
mod secured;

/// Shorter than the time between two deliveries of a test.
const NO_WINDOW: Duration = Duration::from_millis(100);

/// A server with the stream ORDERS, which forgets message ids at once.
struct Orders {
    server: TestServer,
    connection: Connection,
    uid: SubscriptionUid,
}

impl Orders {
    async fn start() -> Self {
        Self::remembering(NO_WINDOW).await
    }

    /// With this duplicate window.
    async fn remembering(duplicate_window: Duration) -> Self {
        let server = TestServer::start().await;
        let options = NatsOptions { publish: vec!["orders.>".into()], ..server.options() };
        let connection = Connection::connect(&options, "worker").await.unwrap();
        connection.connected().await;
        add_stream(&connection, stream::Config { duplicate_window, ..config() }).await;
        Self { server, connection, uid: SubscriptionUid::unique() }
    }

    fn subscription(&self, with: impl FnOnce(&mut v1::NatsDestination)) -> v1::Subscription {
        subscription(self.uid, with)
    }

    /// A process that has delivered nothing yet.
    fn process(&self) -> Destinations {
        self.process_with(|_| ())
    }

    fn process_with(&self, with: impl FnOnce(&mut v1::NatsDestination)) -> Destinations {
        let destinations = here().with_own_nats(self.connection.clone());
        destinations.put(&self.subscription(with)).unwrap();
        destinations
    }

    fn delivery(&self, number: u64) -> Delivery {
        let id = EventId::of_delivery("shop", &number.to_string());
        self.delivery_of(|event| {
            event.id = id;
            event.sequence_number = SequenceNumber(number);
        })
    }

    fn delivery_of(&self, with: impl FnOnce(&mut Event)) -> Delivery {
        delivery_to(self.uid, with)
    }

    /// The numbers of the stored events, after the time in which the server knows a message's id.
    async fn numbers(&self) -> Vec<u64> {
        tokio::time::sleep(2 * NO_WINDOW).await;
        messages(&self.connection, "ORDERS").await.iter().map(|message| number_of(message)).collect()
    }
}

/// A delivery of an event of the workflow `order.42`.
fn delivery_to(uid: SubscriptionUid, with: impl FnOnce(&mut Event)) -> Delivery {
    let one = delivery();
    let mut event = one.event.event.clone();
    event.workflow = WorkflowId::new("order.42").unwrap();
    event.event_type = "paid".into();
    with(&mut event);
    let stored = StoredEvent { event, ..one.event.as_ref().clone() };
    Delivery { event: Arc::new(stored), uid, timeout: Duration::from_secs(10), ..one }
}

fn config() -> stream::Config {
    stream::Config { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..Default::default() }
}

async fn add_stream(connection: &Connection, config: stream::Config) {
    let added = async || connection.jetstream().create_stream(config.clone()).await.is_ok();
    assert!(eventually(PATIENCE, added).await, "the server takes the stream");
}

fn subscription(uid: SubscriptionUid, with: impl FnOnce(&mut v1::NatsDestination)) -> v1::Subscription {
    let mut nats = v1::NatsDestination {
        subject: "orders.{workflow}.{type}".into(),
        stream: "ORDERS".into(),
        ..Default::default()
    };
    with(&mut nats);
    v1::Subscription {
        uid: uid.to_vec(),
        name: "orders".into(),
        destination: Some(v1::Destination { kind: Some(v1::destination::Kind::Nats(nats)) }),
        ..Default::default()
    }
}

async fn messages(connection: &Connection, name: &str) -> Vec<weft_nats::async_nats::jetstream::Message> {
    let stream = connection.jetstream().get_stream(name).await.unwrap();
    let count = stream.get_info().await.unwrap().state.messages;
    let consumer = stream.create_consumer(consumer::pull::OrderedConfig::default()).await.unwrap();
    let messages = consumer.messages().await.unwrap();
    let taken = futures_util::StreamExt::take(messages, count as usize).try_collect();
    tokio::time::timeout(PATIENCE, taken).await.expect("as many as there are").unwrap()
}

fn header<'a>(message: &'a weft_nats::async_nats::Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(|value| value.as_str())
}

fn number_of(message: &weft_nats::async_nats::Message) -> u64 {
    header(message, "ce-sequence").unwrap().parse().unwrap()
}

async fn delivered(destinations: &Destinations, delivery: Delivery) -> AttemptEnd {
    let end = destinations.deliver(delivery).await.unwrap();
    assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    end
}

/// A message is a CloudEvent of the NATS binding, with the facts of its delivery, and nothing of the sender is a header of
/// NATS.
#[tokio::test]
async fn a_message_is_a_cloudevent_with_the_facts_of_its_delivery() {
    let orders = Orders::start().await;
    let delivery = orders.delivery_of(|event| {
        event.payload = Bytes::from_static(b"{\"data\": {\"exact\": 1.50}}");
        event.data_pointer = "/data".into();
        event.kept_headers = vec![("nats-rollup".into(), "all".into())];
    });
    let end = delivered(&orders.process(), delivery.clone()).await;
    assert_eq!((&end.response[..], end.status), (&b"ORDERS: sequence 1"[..], 0));
    let message = &messages(&orders.connection, "ORDERS").await[0];
    assert_eq!(message.subject.as_str(), "orders.order%2E42.paid");
    assert_eq!(&message.payload[..], b"{\"exact\": 1.50}");
    let event = &delivery.event.event;
    let id = event.id.to_string();
    let previous = delivery.lane_previous.unwrap().to_string();
    for (name, value) in [
        ("Nats-Msg-Id", id.as_str()),
        ("Nats-Expected-Stream", "ORDERS"),
        ("ce-id", &id),
        ("ce-specversion", "1.0"),
        ("ce-type", "paid"),
        ("ce-source", "shop"),
        ("ce-partitionkey", "order.42"),
        ("ce-sequence", "00000000000000000007"),
        ("ce-previousid", &event.previous.unwrap().to_string()),
        ("ce-datacontenttype", "application/json"),
        ("weft-subscription", "orders"),
        ("weft-lane-previous-event-id", &previous),
        ("weft-attempt", "3"),
        ("weft-epoch", "9"),
        ("traceparent", event.traceparent.as_deref().unwrap()),
    ] {
        assert_eq!(header(message, name), Some(value), "{name}");
    }
    let names: Vec<String> = message.headers.as_ref().unwrap().iter().map(|(name, _)| name.to_string()).collect();
    assert!(names.iter().all(|name| !name.contains("kept") && name != "weft-data"), "{names:?}");
}

/// Guards: exactly once, also when the server does not remember the message's id any more. A worker that takes a shard over
/// delivers again what the one before it has stored and not committed.
#[tokio::test]
async fn events_that_are_delivered_again_after_the_duplicate_window_are_not_stored_again() {
    let orders = Orders::start().await;
    let first = orders.process();
    for number in 1..=5 {
        delivered(&first, orders.delivery(number)).await;
    }
    assert_eq!(orders.numbers().await, [1, 2, 3, 4, 5]);
    let next = orders.process();
    for number in 3..=7 {
        let end = delivered(&next, orders.delivery(number)).await;
        assert_eq!(end.response.starts_with(b"ORDERS: stored before"), number <= 5, "{number}: {:?}", end.response);
    }
    assert_eq!(orders.numbers().await, [1, 2, 3, 4, 5, 6, 7]);
    // The one before did not end, but slept, and knows nothing of what was stored since.
    let end = delivered(&first, orders.delivery(6)).await;
    assert_eq!(&end.response[..], b"ORDERS: stored before");
    assert_eq!(orders.numbers().await, [1, 2, 3, 4, 5, 6, 7]);
}

/// Guards: nothing is lost where numbers come again with other ids, as after a log was restored from a backup.
#[tokio::test]
async fn another_event_with_a_number_that_is_stored_is_stored() {
    let orders = Orders::start().await;
    let first = orders.process();
    for number in 1..=4 {
        delivered(&first, orders.delivery(number)).await;
    }
    let restored = orders.process();
    let again = |number| {
        orders.delivery_of(|event| {
            event.id = EventId::unique();
            event.sequence_number = SequenceNumber(number);
        })
    };
    for number in 3..=4 {
        delivered(&restored, again(number)).await;
    }
    assert_eq!(orders.numbers().await, [1, 2, 3, 4, 3, 4]);
}

/// Guards: a redrive or replay stores what the stream lacks, and nothing twice.
#[tokio::test]
async fn a_replay_stores_only_what_is_missing() {
    let orders = Orders::start().await;
    let process = orders.process();
    for number in [1, 3] {
        delivered(&process, orders.delivery(number)).await;
    }
    assert_eq!(orders.numbers().await, [1, 3]);
    for number in 1..=3 {
        delivered(&process, Delivery { run: Run(9), ..orders.delivery(number) }).await;
    }
    assert_eq!(orders.numbers().await, [1, 3, 2]);
    let replayed = messages(&orders.connection, "ORDERS").await;
    assert_eq!(header(&replayed[2], "weft-replay"), Some("true"));
    // A live event after it is new although the last message has a smaller number than one before.
    delivered(&orders.process(), orders.delivery(3)).await;
    delivered(&orders.process(), orders.delivery(4)).await;
    assert_eq!(orders.numbers().await, [1, 3, 2, 4]);
}

/// Guards: others may publish to the subject as well.
#[tokio::test]
async fn messages_of_other_senders_on_the_subject_do_no_harm() {
    let orders = Orders::start().await;
    let process = orders.process();
    for number in 1..=3 {
        delivered(&process, orders.delivery(number)).await;
        let publish = orders.connection.jetstream().publish("orders.order%2E42.paid", "other".into()).await.unwrap();
        publish.await.unwrap();
    }
    let stored = messages(&orders.connection, "ORDERS").await;
    assert_eq!(stored.iter().filter(|message| header(message, "ce-id").is_some()).count(), 3);
}

/// Where workflows share a subject, only the server's memory of ids recognises a repeat.
#[tokio::test]
async fn a_subject_without_the_workflow_relies_on_the_duplicate_window() {
    let orders = Orders::remembering(Duration::from_secs(120)).await;
    let shared = |nats: &mut v1::NatsDestination| nats.subject = "orders.all".into();
    delivered(&orders.process_with(shared), orders.delivery(1)).await;
    let end = delivered(&orders.process_with(shared), orders.delivery(1)).await;
    assert_eq!(&end.response[..], b"ORDERS: duplicate of 1");
    assert_eq!(orders.numbers().await, [1]);
}

/// Each way to fail, and what it means for the event.
#[tokio::test]
async fn failures_are_told_apart() {
    let orders = Orders::start().await;
    let other = stream::Config { name: "OTHER".into(), subjects: vec!["other.>".into()], ..Default::default() };
    add_stream(&orders.connection, other).await;
    let small = stream::Config {
        name: "SMALL".into(),
        subjects: vec!["small.>".into()],
        max_message_size: 3000,
        max_messages: 1,
        discard: stream::DiscardPolicy::New,
        ..Default::default()
    };
    add_stream(&orders.connection, small).await;
    let url = orders.server.url().to_owned();
    let of = |subject: &'static str, stream: &'static str| {
        let url = url.clone();
        move |nats: &mut v1::NatsDestination| {
            *nats = v1::NatsDestination { subject: subject.into(), stream: stream.into(), url, ..Default::default() }
        }
    };
    let deliver = async |number: u64, payload: usize, subject, stream| {
        let mut delivery = orders.delivery(number);
        let mut stored = delivery.event.as_ref().clone();
        stored.event.payload = Bytes::from(vec![b'x'; payload]);
        delivery.event = Arc::new(stored);
        let end = orders.process_with(of(subject, stream)).deliver(delivery).await.unwrap();
        (end.result, end.error)
    };
    for (number, payload, subject, stream, result, error) in [
        (1, 1, "nothing.{workflow}", "ORDERS", AttemptResult::Unavailable, "no stream listens on nothing.order%2E42"),
        (1, 1, "other.{type}", "SMALL", AttemptResult::Failed, "expected stream does not match"),
        (1, 1, "other.{workflow}", "MISSING", AttemptResult::Unavailable, "cannot be read"),
        (1, 4000, "small.{workflow}", "SMALL", AttemptResult::Rejected, "message size exceeds"),
        (1, 1, "small.{workflow}", "SMALL", AttemptResult::Delivered, ""),
        (2, 1, "small.{workflow}", "SMALL", AttemptResult::Unavailable, "maximum messages exceeded"),
    ] {
        let (found, text) = deliver(number, payload, subject, stream).await;
        assert_eq!(found, result, "{subject} {stream}: {text}");
        assert!(text.contains(error), "{subject} {stream}: {text}");
    }
}

/// Guards: on the mesh's own server only what its configuration allows.
#[tokio::test]
async fn subjects_of_the_own_server_must_be_allowed() {
    let orders = Orders::start().await;
    let end = orders.process_with(|nats| nats.subject = "others.{workflow}".into()).deliver(orders.delivery(1)).await;
    let end = end.unwrap();
    assert_eq!(end.result, AttemptResult::Held);
    assert!(end.error.contains("[nats] publish"), "{}", end.error);
    // Such as an admin, which tests a subscription.
    let destinations = Destinations::new(vec![]);
    destinations.put(&orders.subscription(|_| ())).unwrap();
    let end = destinations.deliver(orders.delivery(1)).await.unwrap();
    assert_eq!(end.result, AttemptResult::Held);
    assert!(end.error.contains("only workers may publish"), "{}", end.error);
}

/// The guard of addresses, at a save and at a delivery.
#[tokio::test]
async fn addresses_of_other_servers_are_checked() {
    let orders = Orders::start().await;
    let elsewhere = |url: &str| {
        let url = url.to_owned();
        orders.subscription(move |nats| nats.url = url)
    };
    let subscription = elsewhere(orders.server.url());
    let guarded = Destinations::new(vec![]);
    let refused = guarded.make(&subscription).unwrap().check().await.unwrap_err();
    guarded.put(&subscription).unwrap();
    let end = guarded.deliver(orders.delivery(1)).await.unwrap();
    assert_eq!((end.result, end.class), (AttemptResult::Held, AttemptClass::RefusedAddress));
    assert_eq!(end.error, refused.to_string());
    assert_eq!(orders.numbers().await, [0; 0]);

    let networks: Vec<ipnet::IpNet> = LOCAL.iter().map(|network| network.parse().unwrap()).collect();
    let clients = Arc::new(weft_worker::destination::clients::HttpClients::new(networks));
    let allowed = Destinations::with_clients(Arc::clone(&clients));
    allowed.put(&subscription).unwrap();
    delivered(&allowed, orders.delivery(1)).await;
    // A port of this process.
    let port = orders.server.url().rsplit(':').next().unwrap().parse().unwrap();
    clients.refuse_ports([([127, 0, 0, 1], port).into()]);
    let again = Destinations::with_clients(clients);
    again.put(&subscription).unwrap();
    assert_eq!(again.deliver(orders.delivery(2)).await.unwrap().class, AttemptClass::RefusedAddress);
    let away = here();
    away.put(&elsewhere("nats://127.0.0.1:1")).unwrap();
    let end = away.deliver(orders.delivery(1)).await.unwrap();
    assert_eq!((end.result, end.class), (AttemptResult::Unreachable, AttemptClass::Connect), "{}", end.error);
}

/// A lost connection is not an event's fault, and the next attempt finds the server again.
#[tokio::test]
async fn a_server_that_was_restarted_is_found_again() {
    let orders = Orders::start().await;
    let url = orders.server.url().to_owned();
    let process = orders.process_with(move |nats| nats.url = url);
    delivered(&process, orders.delivery(1)).await;
    orders.server.kill();
    let end = process.deliver(orders.delivery(2)).await.unwrap();
    assert!(matches!(end.result, AttemptResult::Unreachable | AttemptResult::Unavailable), "{}", end.error);
    orders.server.restart().await;
    let again =
        async || process.deliver(orders.delivery(2)).await.is_ok_and(|end| end.result == AttemptResult::Delivered);
    assert!(eventually(PATIENCE, again).await);
    orders.connection.connected().await;
    assert_eq!(orders.numbers().await, [1, 2]);
}

/// P3, P5: from EVENTS into a stream, with a worker that is aborted in between: each event once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_aborted_stores_each_event_once_and_in_order() {
    const EVENTS: usize = 400;
    let mut log = Log::start().await;
    add_stream(&log.connection, stream::Config { duplicate_window: NO_WINDOW, ..config() }).await;
    let destination = subscription(SubscriptionUid::unique(), |nats| {
        nats.subject = "orders.{workflow}".into();
        nats.url = log.server.url().into();
    });
    log.subscribe_at("orders", ([127, 0, 0, 1], 1).into(), 1, |subscription| {
        subscription.destination = destination.destination;
    })
    .await;
    log.events(EVENTS, 20).await;
    let folder = tempfile::tempdir().unwrap();
    let stored = async |count: u64| {
        let mut stream = log.connection.jetstream().get_stream("ORDERS").await.unwrap();
        eventually(PATIENCE, async || stream.info().await.is_ok_and(|info| info.state.messages >= count)).await
    };
    for count in [100, 250] {
        let worker = Running::start(&log, folder.path());
        assert!(stored(count).await, "it stores");
        worker.abort().await;
    }
    let worker = Running::start(&log, folder.path());
    let outcomes = log.outcomes(EVENTS).await;
    worker.stop().await;
    assert_eq!(outcomes.len(), EVENTS);
    let messages = messages(&log.connection, "ORDERS").await;
    assert_eq!(messages.len(), EVENTS, "as many messages as events");
    let mut last = std::collections::BTreeMap::<String, u64>::new();
    for message in &messages {
        let last = last.entry(message.subject.to_string()).or_default();
        assert_eq!(number_of(message), *last + 1, "{} is in order", message.subject);
        *last += 1;
    }
    assert_eq!(StreamSeq(last.len() as u64), StreamSeq(20));
}

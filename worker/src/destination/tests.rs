//! The table of URLs that may be called: one table, for the check at a save and for a delivery.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use weft_catalog::Filters;
use weft_proto::{ids::StreamSeq, internal};

use super::{
    Stages,
    address::AddressGuard,
    lookups::{Found, Lookups},
    resolver::GuardedResolver,
    *,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UrlResult {
    /// It cannot be saved.
    Invalid,
    /// Its address is refused by a rule.
    Refused(&'static str),
    /// It may be called.
    Called,
}

use self::UrlResult::{Called, Invalid, Refused};

const LOOPBACK: UrlResult = Refused("loopback");
const PRIVATE: UrlResult = Refused("private");
const METADATA: UrlResult = Refused("link-local (cloud metadata)");
const RESERVED: UrlResult = Refused("reserved");

/// Authorities of URLs, and what becomes of them without `allow_networks`.
const TABLE: [(&str, UrlResult); 101] = [
    // IPv4 in every form that parsers know.
    ("127.0.0.1", LOOPBACK),
    ("127.1", LOOPBACK),
    ("127.0.1", LOOPBACK),
    ("2130706433", LOOPBACK),
    ("0x7f000001", LOOPBACK),
    ("0x7f.0.0.1", LOOPBACK),
    ("0X7F.1", LOOPBACK),
    ("0177.0.0.1", LOOPBACK),
    ("017700000001", LOOPBACK),
    ("127.0.0.1.", LOOPBACK),
    ("%31%32%37.0.0.1", LOOPBACK),
    ("127.0.0.1:80", LOOPBACK),
    ("10.1", PRIVATE),
    ("10.0.0.1:65535", PRIVATE),
    ("012.0.0.1", PRIVATE),
    ("0x0a000001", PRIVATE),
    ("167772161", PRIVATE),
    ("172.16.0.1", PRIVATE),
    ("172.31.255.255", PRIVATE),
    ("192.168.1.1", PRIVATE),
    ("3232235777", PRIVATE),
    ("0", Refused("unspecified")),
    ("0.0.0.0", Refused("unspecified")),
    ("169.254.169.254", METADATA),
    ("169.254.169.254.", METADATA),
    ("2852039166", METADATA),
    ("0xA9FEA9FE", METADATA),
    ("0251.0376.0251.0376", METADATA),
    ("168.63.129.16", Refused("cloud metadata")),
    ("100.64.0.1", Refused("shared address space")),
    ("100.100.100.200", Refused("shared address space")),
    ("192.0.2.1", Refused("for documentation")),
    ("198.51.100.7", Refused("for documentation")),
    ("198.18.0.1", Refused("for benchmarks")),
    ("224.0.0.1", Refused("multicast")),
    ("192.0.0.192", RESERVED),
    ("240.0.0.1", RESERVED),
    ("255.255.255.255", RESERVED),
    // IPv6.
    ("[::]", Refused("unspecified")),
    ("[::1]", LOOPBACK),
    ("[0:0:0:0:0:0:0:1]:443", LOOPBACK),
    ("[::ffff:127.0.0.1]", LOOPBACK),
    ("[::ffff:7f00:1]", LOOPBACK),
    ("[::ffff:10.0.0.1]", PRIVATE),
    ("[::ffff:169.254.169.254]", METADATA),
    ("[::127.0.0.1]", RESERVED),
    ("[::ffff:0:127.0.0.1]", RESERVED),
    ("[2002:7f00:1::]", LOOPBACK),
    ("[2002:a00:1::1]", PRIVATE),
    ("[64:ff9b::127.0.0.1]", LOOPBACK),
    ("[64:ff9b::a9fe:a9fe]", METADATA),
    ("[64:ff9b:1::a00:1]", RESERVED),
    ("[2606:4700::5efe:10.0.0.1]", PRIVATE),
    ("[2606:4700::200:5efe:127.0.0.1]", LOOPBACK),
    ("[2001:0:4136:e378:8000:63bf:3fff:fdd2]", Refused("a tunnel")),
    ("[fe80::1]", Refused("link-local")),
    ("[fec0::1]", Refused("site-local")),
    ("[fd00:ec2::254]", PRIVATE),
    ("[fc00::1]", PRIVATE),
    ("[ff02::1]", Refused("multicast")),
    ("[2001:db8::1]", Refused("for documentation")),
    ("[100::1]", RESERVED),
    // Names, by the resolver below.
    ("private.test", PRIVATE),
    ("PRIVATE.test", PRIVATE),
    ("private.test.", PRIVATE),
    ("mapped.test", METADATA),
    ("all-private.test", PRIVATE),
    ("mixed.test", Called),
    ("public.test", Called),
    ("public.test:8443", Called),
    ("xn--bcher-kva.test", Called),
    ("unknown.test", Called),
    // Public addresses.
    ("1.1.1.1", Called),
    ("[2606:4700::1111]", Called),
    ("[2002:101:101::1]", Called),
    ("[64:ff9b::1.1.1.1]", Called),
    ("[::ffff:1.1.1.1]", Called),
    ("172.32.0.1", Called),
    // No URL.
    ("", Invalid),
    ("999.1.1.1", Invalid),
    ("1.2.3.4.5", Invalid),
    ("256", Refused("unspecified")),
    ("4294967296", Invalid),
    ("127.0.0.1:0", Invalid),
    ("127.0.0.1:65536", Invalid),
    ("::1", Invalid),
    ("[fe80::1%25eth0]", Invalid),
    ("[::1", Invalid),
    ("user@127.0.0.1", Invalid),
    ("public.test@127.0.0.1", Invalid),
    ("127.0.0.1\\@public.test", Invalid),
    ("public.test\\.private.test", Invalid),
    ("127.0.0.1 public.test", Invalid),
    ("bücher.test", Invalid),
    ("１２７.0.0.1", Invalid),
    ("a..test", Invalid),
    // Ports.
    ("1.1.1.1:22", Refused("a denied port")),
    ("public.test:25", Refused("a denied port")),
    ("[2606:4700::1111]:6379", Refused("a denied port")),
    ("private.test:22", PRIVATE),
    ("public.test:5432", Called),
];

fn addresses(name: &str) -> Found {
    let found: &[&str] = match name {
        "private.test" | "private.test." => &["10.0.0.1"],
        "mapped.test" => &["::ffff:169.254.169.254"],
        "all-private.test" => &["192.168.0.1", "::1"],
        "mixed.test" => &["10.0.0.1", "1.1.1.1"],
        "public.test" | "xn--bcher-kva.test" => &["1.1.1.1"],
        _ => return Err("no such name".into()),
    };
    Ok(found.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect())
}

fn destinations(allow_networks: &[&str], look_up: fn(&str) -> Found) -> Destinations {
    let networks = allow_networks.iter().map(|network| network.parse().unwrap()).collect::<Vec<ipnet::IpNet>>();
    let guard = Arc::new(AddressGuard::new(networks.into()));
    let resolver = GuardedResolver::with_lookups(guard, Lookups::with(look_up));
    Destinations::with_clients(Arc::new(HttpClients::with_resolver(resolver)))
}

fn subscription(uid: SubscriptionUid, url: String) -> v1::Subscription {
    let secrets = vec!["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD".into()];
    let http = v1::HttpDestination { url, secrets, format: v1::HttpFormat::Envelope.into(), ..Default::default() };
    v1::Subscription {
        uid: uid.to_vec(),
        destination: Some(v1::Destination { kind: Some(v1::destination::Kind::Http(http)) }),
        ..Default::default()
    }
}

fn delivery() -> Delivery {
    let event = weft_testkit::event("w").build();
    Delivery {
        event: Arc::new(StoredEvent { seq: StreamSeq(1), stored_at: Timestamp::now(), event }),
        uid: SubscriptionUid::unique(),
        run: Run::LIVE,
        number: 1,
        lane_previous: None,
        shard: ShardId(0),
        epoch: 1,
        timeout: Duration::from_secs(5),
        clock: ServerClock::default(),
        lease: LeaseGuard::unlimited(),
        stages: Stages::default(),
    }
}

/// The verdict at a save, and where nothing may be called also that of a delivery.
async fn deliver_to(destinations: &Destinations, url: &str) -> UrlResult {
    let delivery = delivery();
    let subscription = subscription(delivery.uid, url.into());
    let Ok(destination) = destinations.make(&subscription) else { return Invalid };
    let Err(refused) = destination.check().await else { return Called };
    destinations.put(&subscription).unwrap();
    let end = destinations.deliver(delivery).await.unwrap();
    assert_eq!(
        (end.class, end.result),
        (AttemptClass::RefusedAddress, crate::lane::AttemptResult::Held),
        "{url}: {}",
        end.error
    );
    assert_eq!(end.error, refused.to_string(), "{url}");
    Refused(refused.rule)
}

#[tokio::test]
async fn every_form_of_an_address_has_one_verdict() {
    let destinations = destinations(&[], addresses);
    for (authority, expected) in TABLE {
        for url in [format!("http://{authority}/hook?a=b"), format!("HTTPS://{authority}")] {
            assert_eq!(deliver_to(&destinations, &url).await, expected, "{url}");
        }
    }
}

/// Where loopback is allowed, the other ways to it are not.
#[tokio::test]
async fn an_allowed_network_allows_no_tunnel_to_it() {
    let destinations = destinations(&["127.0.0.0/8", "::1/128"], addresses);
    for (authority, expected) in [
        ("127.1", Called),
        ("[::1]", Called),
        ("[::ffff:127.0.0.1]", Called),
        ("[2002:7f00:1::]", LOOPBACK),
        ("[64:ff9b::127.0.0.1]", LOOPBACK),
        ("[2606:4700::5efe:127.0.0.1]", LOOPBACK),
        ("10.0.0.1", PRIVATE),
    ] {
        assert_eq!(deliver_to(&destinations, &format!("http://{authority}/")).await, expected, "{authority}");
    }
}

/// A name that is public when it is checked and private when it is called is not called.
#[tokio::test]
async fn a_name_that_rebinds_is_not_called() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let destinations = destinations(&[], |_| {
        let address = if ASKED.fetch_add(1, Ordering::SeqCst) == 0 { [1, 1, 1, 1] } else { [127, 0, 0, 1] };
        Ok(vec![SocketAddr::new(IpAddr::from(address), 0)])
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let delivery = delivery();
    let url = format!("http://rebinds.test:{}/", listener.local_addr().unwrap().port());
    let subscription = subscription(delivery.uid, url);
    destinations.make(&subscription).unwrap().check().await.unwrap();
    destinations.put(&subscription).unwrap();
    let end = destinations.deliver(delivery).await.unwrap();
    assert_eq!(
        (end.class, end.result),
        (AttemptClass::RefusedAddress, crate::lane::AttemptResult::Held),
        "{}",
        end.error
    );
    assert!(listener.accept().is_err(), "nothing connected");
}

/// Accepts everything, and keeps what it was given.
#[derive(Debug, Default)]
struct Recorder(std::sync::Mutex<Vec<Vec<String>>>);

#[async_trait::async_trait]
impl Destination for Recorder {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        let data = |delivery: &Delivery| String::from_utf8(delivery.event.event.payload.to_vec()).unwrap();
        self.0.lock().unwrap().push(deliveries.iter().map(data).collect());
        DeliveryResult::all(deliveries.len())
    }
}

/// Of a batch the events before one that cannot be transformed are sent, and that one fails alone.
#[tokio::test]
async fn expressions_of_a_batch_fail_one_event_alone() {
    let recorder = Arc::new(Recorder::default());
    let custom: HashMap<String, Arc<dyn Destination>> = HashMap::from([("recorder".to_owned(), recorder.clone() as _)]);
    let destinations = Destinations::new(vec![]).with_custom(custom);
    let uid = SubscriptionUid::unique();
    let kind = v1::destination::Kind::Custom(v1::CustomDestination { name: "recorder".into() });
    let mut subscription = v1::Subscription {
        uid: uid.to_vec(),
        destination: Some(v1::Destination { kind: Some(kind) }),
        transform: "[data.n]".into(),
        ..Default::default()
    };
    destinations.put(&subscription).unwrap();
    let with = |payload: &'static str| {
        let delivery = delivery();
        let mut event = delivery.event.as_ref().clone();
        event.event.payload = payload.into();
        Delivery { event: Arc::new(event), uid, ..delivery }
    };
    let batch = [r#"{"n":1}"#, r#"{"n":2}"#, "{}", r#"{"n":3}"#].map(with);
    let ends = destinations.deliver_batch(&batch, None).await.unwrap();
    let results: Vec<_> = ends.iter().map(|end| (end.result, end.is_attributed)).collect();
    use crate::lane::AttemptResult::{Delivered, FilterFailed, Held, TransformFailed};
    assert_eq!(results, [(Delivered, true), (Delivered, true), (TransformFailed, true)]);
    assert_eq!(
        (ends[2].class, ends[2].error.as_str()),
        (AttemptClass::Expression, "transform: 1:6: no such member: n")
    );
    let alone = destinations.deliver_batch(&batch[2..], None).await.unwrap();
    assert_eq!(alone.iter().map(|end| end.result).collect::<Vec<_>>(), [TransformFailed]);
    assert_eq!(*recorder.0.lock().unwrap(), [["[1]", "[2]"]], "nothing is sent for the other two");

    let filter =
        internal::FilterRevision { types: vec!["*".into()], expression: "data.n < 2".into(), ..Default::default() };
    let filters = Filters::of(&internal::SubscriptionState { filters: vec![filter], ..Default::default() });
    let ends = destinations.deliver_batch(&batch, Some(&filters)).await.unwrap();
    assert_eq!(ends.iter().map(|end| end.result).collect::<Vec<_>>(), [Delivered, Delivered, FilterFailed]);
    assert_eq!(ends[2].error, "filter: 1:5: no such member: n");

    // One that a later version has stored holds the events.
    subscription.transform = "data.later()".into();
    let invalid = destinations.put(&subscription).unwrap_err();
    assert_eq!(invalid.to_string(), "transform: 1:11: unknown function later");
    assert_eq!(destinations.deliver_batch(&batch[..1], None).await.unwrap()[0].result, Held);
}

/// Guards: `weft subscription test` shows the request that each kind of destination would make, without its secrets.
#[tokio::test]
async fn what_would_be_sent_is_shown_for_each_kind() {
    use v1::destination::Kind;

    let destinations = destinations(&[], addresses);
    let planned = |kind| {
        let destination = Some(v1::Destination { kind: Some(kind) });
        let uid = SubscriptionUid::unique().to_vec();
        let subscription = v1::Subscription { name: "orders".into(), uid, destination, ..Default::default() };
        destinations.make(&subscription).unwrap().planned(&[delivery()])
    };
    let header = |planned: &PlannedRequest, name: &str| {
        planned.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    };
    let event = weft_testkit::event("w").build();

    let auth = v1::auth::Kind::Bearer(v1::BearerAuth { token: "hidden-token".into() });
    let grpc = planned(Kind::Grpc(v1::GrpcDestination {
        url: "https://public.test".into(),
        auth: Some(v1::Auth { kind: Some(auth) }),
        ..Default::default()
    }));
    assert_eq!(grpc.target, "https://public.test/weft.v1.EventHandler/Handle");
    assert_eq!(header(&grpc, "authorization").as_deref(), Some("[secret]"));
    let message: serde_json::Value = serde_json::from_slice(&grpc.body).unwrap();
    assert_eq!(message["subscription"], "orders");
    assert_eq!(message["deliveries"][0]["event"]["eventId"], event.id.to_string());
    assert_eq!(message["deliveries"][0]["attempt"], 1);

    let nats = planned(Kind::Nats(v1::NatsDestination {
        subject: "orders.{workflow}.{type}".into(),
        stream: "ORDERS".into(),
        url: "nats://public.test:4222".into(),
        ..Default::default()
    }));
    assert_eq!(nats.target, format!("orders.w.{}", event.event_type.replace('.', "%2E")));
    assert_eq!(header(&nats, "Nats-Msg-Id"), Some(event.id.to_string()));
    assert_eq!(header(&nats, "Nats-Expected-Stream").as_deref(), Some("ORDERS"));
    assert_eq!(nats.body, event.payload);

    let dsn = "postgres://weft:hidden-password@public.test/orders";
    let postgres = planned(Kind::Postgres(v1::PostgresDestination { dsns: vec![dsn.into()], ..Default::default() }));
    assert!(postgres.target.contains("public.test") && !postgres.target.contains("hidden"), "{}", postgres.target);
    assert_eq!(header(&postgres, "event_id"), Some(event.id.to_string()));
    let statement = String::from_utf8(postgres.body.to_vec()).unwrap();
    assert!(statement.starts_with("INSERT INTO \"weft_events\"") && statement.ends_with("DO NOTHING"), "{statement}");
    let sql = "INSERT INTO orders VALUES (:workflow_id, :data)";
    let own = planned(Kind::Postgres(v1::PostgresDestination {
        dsns: vec![dsn.into()],
        sql: sql.into(),
        ..Default::default()
    }));
    assert_eq!((&own.headers[0].0[..], &own.headers[0].1[..]), ("workflow_id", "w"));
}

/// Takes as many events as it is set to, and panics on an event without data.
#[derive(Debug)]
struct Partial(usize);

#[async_trait::async_trait]
impl Destination for Partial {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        assert!(!deliveries[0].event.event.payload.is_empty(), "no data");
        DeliveryResult::all(self.0)
    }
}

/// P1, P4: a custom destination that takes fewer events than it was given loses none of the others, and one that panics on an
/// event fails that attempt and not its shard.
#[tokio::test]
async fn a_destination_that_contradicts_itself_loses_nothing() {
    use crate::lane::AttemptResult::{Delivered, Failed};
    let custom: HashMap<String, Arc<dyn Destination>> =
        HashMap::from([("partial".to_owned(), Arc::new(Partial(1)) as _)]);
    let destinations = Destinations::new(vec![]).with_custom(custom);
    let uid = SubscriptionUid::unique();
    let kind = v1::destination::Kind::Custom(v1::CustomDestination { name: "partial".into() });
    let destination = Some(v1::Destination { kind: Some(kind) });
    destinations.put(&v1::Subscription { uid: uid.to_vec(), destination, ..Default::default() }).unwrap();
    let batch = [(); 3].map(|()| Delivery { uid, ..delivery() });
    let ends = destinations.deliver_batch(&batch, None).await.unwrap();
    assert_eq!(ends.iter().map(|end| end.result).collect::<Vec<_>>(), [Delivered, Failed], "{ends:?}");
    let mut empty = delivery().event.as_ref().clone();
    empty.event.payload = Bytes::new();
    let ends = destinations.deliver_batch(&[Delivery { uid, event: Arc::new(empty), ..delivery() }], None).await;
    assert_eq!(ends.unwrap()[0].result, Failed);
}

/// A transform that makes much of little does not make a batch larger than a receiver accepts.
#[tokio::test]
async fn transformed_events_keep_to_the_bytes_of_a_batch() {
    let recorder = Arc::new(Recorder::default());
    let custom: HashMap<String, Arc<dyn Destination>> = HashMap::from([("recorder".to_owned(), recorder.clone() as _)]);
    let destinations = Destinations::new(vec![]).with_custom(custom);
    let uid = SubscriptionUid::unique();
    let kind = v1::destination::Kind::Custom(v1::CustomDestination { name: "recorder".into() });
    let destination = Some(v1::Destination { kind: Some(kind) });
    let transform = "[data.t, data.t, data.t]".into();
    destinations.put(&v1::Subscription { uid: uid.to_vec(), destination, transform, ..Default::default() }).unwrap();
    let mut event = delivery().event.as_ref().clone();
    event.event.payload = format!(r#"{{"t":"{}"}}"#, "x".repeat(crate::lane::BATCH_BYTES_MAX / 8)).into();
    let event = Arc::new(event);
    let batch = [(); 4].map(|()| Delivery { uid, event: Arc::clone(&event), ..delivery() });
    let ends = destinations.deliver_batch(&batch, None).await.unwrap();
    assert_eq!(ends.len(), 2, "the others are left for the next attempt");
    assert_eq!(recorder.0.lock().unwrap()[0].len(), 2);
}

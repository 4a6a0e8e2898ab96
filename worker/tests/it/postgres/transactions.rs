//! Statements whose transaction did not start.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
};

use super::*;

/// How a transaction starts, and a text of the same length that is not a statement.
const START: &[u8] = b"BEGIN ISOLATION";
const BROKEN: &[u8] = b"BEGXN ISOLATION";

/// A relay before a server that spoils the start of transactions on demand.
struct Spoiling {
    dsn: String,
    is_on: Arc<AtomicBool>,
}

impl Spoiling {
    async fn start(server: &TestPostgres) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.address();
        let own = listener.local_addr().unwrap();
        let dsn = server.dsn().replace(&address.to_string(), &own.to_string());
        let is_on = Arc::new(AtomicBool::new(false));
        let spoils = Arc::clone(&is_on);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, TcpStream::connect(address).await.unwrap(), Arc::clone(&spoils)));
            }
        });
        Self { dsn, is_on }
    }
}

/// Passes on both directions until one ends.
async fn relay(client: TcpStream, server: TcpStream, spoils: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let spoiling = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = from_client.read(&mut buffer).await.unwrap_or(0);
            let sent = &mut buffer[..length];
            if spoils.load(Ordering::SeqCst) {
                while let Some(at) = sent.windows(START.len()).position(|window| window == START) {
                    sent[at..at + BROKEN.len()].copy_from_slice(BROKEN);
                }
            }
            if length == 0 || to_server.write_all(sent).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = spoiling => {}
        _ = copy(&mut from_server, &mut to_client) => {}
    }
}

/// Guards: statements are sent without waiting for the start of their transaction. Where that fails they have no effect: as
/// separate transactions they would be written without the fence, and an id without its effect.
#[tokio::test]
async fn without_its_transaction_no_statement_has_an_effect() {
    let server = TestPostgres::start().await;
    server.query("CREATE TABLE effects (event uuid)").await;
    let relay = Spoiling::start(&server).await;
    for (postgres, count) in [
        (table(&server), "SELECT count(*) FROM weft_events"),
        (sql(&server, "INSERT INTO effects VALUES (:event_id)"), "SELECT count(*) FROM effects"),
    ] {
        let postgres = v1::PostgresDestination { dsns: vec![relay.dsn.clone()], ..postgres };
        let destination = destination(&postgres);
        let mut events = numbered(3);
        let uid = events[0].uid;
        events.iter_mut().for_each(|delivery| delivery.uid = uid);
        // The fence is raised and the statements are prepared.
        assert_eq!(destination.deliver(&events[..1]).await, DeliveryResult::all(1));
        relay.is_on.store(true, Ordering::SeqCst);
        failure(destination.deliver(&events[1..]).await, 0, FailureKind::Held, "42601");
        assert_eq!(server.query(count).await, [["1"]], "{count}");
        relay.is_on.store(false, Ordering::SeqCst);
        assert_eq!(destination.deliver(&events[1..]).await, DeliveryResult::all(2));
        assert_eq!(server.query(count).await, [["3"]], "{count}");
    }
}

/// A test delivery, which an admin sends, has no epoch to compare, and says so. The event is there once.
#[tokio::test]
async fn a_test_delivery_is_committed_without_the_fence_and_says_so() {
    let server = TestPostgres::start().await;
    let destination = destination(&table(&server));
    let events = numbered(2);
    assert_eq!(destination.deliver(&events[..1]).await, DeliveryResult::all(1));
    let test = Delivery { epoch: 0, ..events[1].clone() };
    for _ in 0..2 {
        let result = destination.deliver(std::slice::from_ref(&test)).await;
        assert_eq!((result.count, &result.failure), (1, &None));
        assert!(String::from_utf8_lossy(&result.response).contains("without the fence"), "{:?}", result.response);
    }
    assert_eq!(destination.deliver(&events).await, DeliveryResult::all(2), "the owner continues");
    assert_eq!(server.query("SELECT count(*) FROM weft_events").await, [["2"]]);
    assert_eq!(server.query("SELECT max(epoch)::text FROM weft_fence").await, [["9"]]);
}

//! Subscriptions: where they begin, who may not be called, pauses, test deliveries.

use weft_catalog::Catalog;
use weft_proto::{ids::EventId, words::Word as _};
use weft_testkit::master_key;

use super::*;
use crate::mesh::REFUSED_URL;

fn create(name: &str, from: Option<v1::start::From>) -> v1::CreateSubscriptionRequest {
    v1::CreateSubscriptionRequest {
        subscription: Some(subscription(name, "https://a.example/")),
        start: from.map(|from| v1::Start { from: Some(from) }),
        ..Default::default()
    }
}

/// Of 8 shards `wf-1` is in 2 and `a` in 4. An event positions its own shard; the others begin at its time less 5 s.
#[tokio::test]
async fn a_subscription_begins_where_it_is_told_to() {
    use v1::start::From;
    let mut mesh = Mesh::start(8).await;
    for _ in 0..3 {
        mesh.event("wf-1", "{}").await;
    }
    mesh.event("a", "{}").await;
    let (id, seq) = mesh.event("wf-1", "{}").await;
    let mut client = mesh.admin.catalog();
    for (name, from, expected) in [
        ("absent", None, (5, 2)),
        ("now", Some(From::Now(true)), (5, 2)),
        ("beginning", Some(From::Beginning(true)), (1, 1)),
        ("behind", Some(From::EventId(id.to_string())), (seq + 1, 1)),
        ("to-come", Some(From::Time(prost_types::Timestamp { seconds: 4_102_444_800, nanos: 0 })), (5, 2)),
        ("long-ago", Some(From::Time(prost_types::Timestamp { seconds: 0, nanos: 0 })), (1, 1)),
    ] {
        let made = client.create_subscription(create(name, from)).await.unwrap().into_inner().subscription.unwrap();
        assert_eq!((made.starts[2], made.starts[4]), expected, "{name}");
        assert_eq!((made.uid.len(), made.created_at_ms > 0, made.starts.len()), (16, true, 8), "{name}");
    }
    let unknown = create("unknown", Some(From::EventId(EventId::unique().to_string())));
    refused(client.create_subscription(unknown).await, Code::InvalidArgument, "BAD_QUERY");
}

#[tokio::test]
async fn what_may_not_be_called_is_not_saved() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let mut request = create("inside", None);
    request.subscription = Some(subscription("inside", REFUSED_URL));
    let message = refused(client.create_subscription(request).await, Code::InvalidArgument, "INVALID_ENTRY");
    assert_eq!(message, "subscription \"inside\": destination: not allowed");
    client.create_subscription(create("billing", None)).await.unwrap();
    let moved = Some(subscription("billing", REFUSED_URL));
    let update = v1::UpdateSubscriptionRequest { subscription: moved.clone(), ..Default::default() };
    refused(client.update_subscription(update).await, Code::InvalidArgument, "INVALID_ENTRY");
    let wanted = vec![v1::WantedSubscription { subscription: moved, start: None }];
    let apply = v1::ApplyRequest { subscriptions: wanted, ..Default::default() };
    refused(client.apply(apply).await, Code::InvalidArgument, "INVALID_ENTRY");
}

/// Guards: an update without the secrets is checked as it would be stored, with those that are kept: whether a connection string
/// can be used shows only with it.
#[tokio::test]
async fn an_update_without_secrets_is_checked_with_those_that_are_kept() {
    const DSN: &str = "postgres://me:hush@db.example/orders";
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let of = |dsn: &str, timeout_ms: u64| {
        let postgres = v1::PostgresDestination { dsns: vec![dsn.into()], ..Default::default() };
        let kind = Some(v1::destination::Kind::Postgres(postgres));
        let destination = Some(v1::Destination { kind });
        Some(v1::Subscription { destination, timeout_ms, ..subscription("ledger", "https://unused.example/") })
    };
    let create = |subscription| v1::CreateSubscriptionRequest { subscription, ..Default::default() };
    refused(client.create_subscription(create(of("", 5_000))).await, Code::InvalidArgument, "INVALID_ENTRY");
    client.create_subscription(create(of(DSN, 5_000))).await.unwrap();
    let update = v1::UpdateSubscriptionRequest { subscription: of("", 30_000), ..Default::default() };
    let updated = client.update_subscription(update).await.unwrap().into_inner().subscription.unwrap();
    assert_eq!(updated.timeout_ms, 30_000);
    assert!(!format!("{updated:?}").contains("hush"), "it is not shown");
    let stored = Catalog::new(mesh.connection.clone(), master_key()).read().await.unwrap();
    let destination = stored.subscriptions["ledger"].value.destination.clone().unwrap();
    let Some(v1::destination::Kind::Postgres(postgres)) = destination.kind else { panic!("of type postgres") };
    assert_eq!((postgres.dsns, stored.subscriptions["ledger"].value.timeout_ms), (vec![DSN.to_owned()], 30_000));
}

/// A pause stays through other changes until the operator resumes.
#[tokio::test]
async fn a_subscription_is_paused_and_resumed() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let made = client.create_subscription(create("billing", None)).await.unwrap().into_inner();
    let pause = v1::PauseSubscriptionRequest { name: "billing".into(), reason: "moving".into(), ..Default::default() };
    let paused = client.pause_subscription(pause.clone()).await.unwrap().into_inner();
    let value = paused.subscription.clone().unwrap();
    assert_eq!((value.paused, value.pause_reason.as_str()), (true, "moving"));
    assert_eq!(client.pause_subscription(pause).await.unwrap().into_inner(), paused, "it is paused already");

    let slower = v1::Subscription { timeout_ms: 30_000, ..subscription("billing", "https://a.example/") };
    let update = v1::UpdateSubscriptionRequest { subscription: Some(slower), ..Default::default() };
    let updated = client.update_subscription(update).await.unwrap().into_inner().subscription.unwrap();
    assert_eq!((updated.paused, updated.timeout_ms), (true, 30_000));
    assert_eq!(updated.uid, made.subscription.unwrap().uid);

    let resume = v1::ResumeSubscriptionRequest { name: "billing".into(), ..Default::default() };
    let resumed = client.resume_subscription(resume).await.unwrap().into_inner().subscription.unwrap();
    assert_eq!((resumed.paused, resumed.pause_reason.as_str()), (false, ""));
    let unknown = v1::PauseSubscriptionRequest { name: "unknown".into(), ..Default::default() };
    refused(client.pause_subscription(unknown).await, Code::NotFound, "NOT_FOUND");
    let actions: Vec<_> = records(&mesh)
        .await
        .iter()
        .map(|(_, edit)| edit.changes.first().map_or("", |change| change.action.as_str()).to_owned())
        .collect();
    assert_eq!(actions, ["created", "paused", "", "updated", "resumed"]);
}

/// A test leaves nothing in the log but its record, and comes once for a request.
#[tokio::test]
async fn a_test_delivery_is_recorded_and_not_stored() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    client.create_subscription(create("billing", None)).await.unwrap();
    let test = v1::TestSubscriptionRequest {
        name: "billing".into(),
        request_id: "t1".into(),
        send: true,
        ..Default::default()
    };
    let answer = client.test_subscription(test.clone()).await.unwrap().into_inner();
    assert!(answer.sent && answer.planned.is_some());
    let answer = v1::TestSubscriptionResponse { matched: false, mismatch: String::new(), planned: None, ..answer };
    assert_eq!((answer.delivered, answer.outcome().word(), answer.http_status), (true, "delivered", 200));
    assert_eq!(answer.duration_ms, 7);
    assert_eq!(client.test_subscription(test.clone()).await.unwrap().into_inner(), answer, "not delivered again");
    let other = v1::TestSubscriptionRequest { request_id: "t2".into(), ..test };
    assert_eq!(client.test_subscription(other).await.unwrap().into_inner().http_status, 201);
    assert_eq!(streams::state(&mesh.connection, "EVENTS").await.unwrap().last, StreamSeq(0));
    let told: Vec<_> =
        records(&mesh).await.into_iter().map(|(_, edit)| edit.test.map(|test| test.http_status)).collect();
    assert_eq!(told, [None, None, Some(200), None, Some(201)], "each call before it is sent, and its result");
}

/// A test that is called twice at the same moment is sent once; of a call that broke off it is said that it was sent.
#[tokio::test]
async fn a_test_that_is_called_twice_at_once_is_sent_once() {
    let mesh = Mesh::start(1).await;
    mesh.admin.catalog().create_subscription(create("billing", None)).await.unwrap();
    let test = |request_id: String| v1::TestSubscriptionRequest {
        name: "billing".into(),
        request_id,
        send: true,
        ..Default::default()
    };
    for round in 0..10 {
        let (mut one, mut two) = (mesh.admin.catalog(), mesh.admin.catalog());
        let id = format!("round-{round}");
        let (one, two) = tokio::join!(one.test_subscription(test(id.clone())), two.test_subscription(test(id)));
        let (one, two) = (one.unwrap().into_inner(), two.unwrap().into_inner());
        assert!(one.delivered || two.delivered, "{one:?} {two:?}");
    }
    let last = mesh.admin.catalog().test_subscription(test("last".into())).await.unwrap().into_inner();
    assert_eq!(last.http_status, 210, "ten were sent before");
    let stamp = Stamp { request_id: "broke-off".into(), operator: "bootstrap".into(), reason: String::new() };
    let (method, name) = ("TestSubscription".to_owned(), "billing".to_owned());
    let edit = internal::CatalogEdit { method, name, ..Default::default() };
    weft_catalog::edit::record(&mesh.connection, mesh.layout, &stamp, 0, edit).await.unwrap();
    let again = mesh.admin.catalog().test_subscription(test("broke-off".into())).await.unwrap().into_inner();
    assert!(again.sent && !again.delivered && again.message.contains("not known"), "{again:?}");
}

/// Tables are made only after the call is recorded, and a call that failed in between is completed by its repeat.
#[tokio::test]
async fn a_migration_is_recorded_before_it_is_made() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    client.create_subscription(create("billing", None)).await.unwrap();
    let migrate =
        v1::MigrateSubscriptionRequest { name: "billing".into(), request_id: "tables".into(), ..Default::default() };
    for attempt in ["the first", "its repeat"] {
        let message =
            refused(client.migrate_subscription(migrate.clone()).await, Code::InvalidArgument, "INVALID_ENTRY");
        assert!(message.contains("the database has gone"), "{attempt}: {message}");
        let methods: Vec<_> = records(&mesh).await.into_iter().map(|(_, edit)| edit.method).collect();
        assert_eq!(methods, ["CreateSubscription", "MigrateSubscription"], "{attempt}");
    }
}

/// An operator sees what a filter would do before it counts. Nothing is stored, and nothing sent.
#[tokio::test]
async fn a_definition_is_tested_before_it_is_stored() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    client.create_subscription(create("billing", None)).await.unwrap();
    let stored = client.get_subscription(v1::GetSubscriptionRequest { name: "billing".into() }).await.unwrap();
    let stored = stored.into_inner().subscription.unwrap();
    // A stored one keeps its secrets; a new one has to have some.
    let new = subscription("new", "https://a.example/");
    let test = |name: &str, filter: &str, send: bool| v1::TestSubscriptionRequest {
        draft: Some(v1::Subscription {
            filter: filter.into(),
            ..if name == "new" { new.clone() } else { stored.clone() }
        }),
        event: br#"{"type":"order.paid","data":{"total":5}}"#.to_vec(),
        send,
        ..Default::default()
    };
    for (name, filter, matched) in
        [("billing", "data.total > 4", true), ("billing", "data.total > 5", false), ("new", "data.total == 5", true)]
    {
        let answer = client.test_subscription(test(name, filter, false)).await.unwrap().into_inner();
        assert_eq!(answer.matched, matched, "{name}: {filter}: {answer:?}");
    }
    let refused = client.test_subscription(test("billing", "data.total >", false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(client.test_subscription(test("billing", "", true)).await.is_err(), "a draft is not sent");
    let now = client.get_subscription(v1::GetSubscriptionRequest { name: "billing".into() }).await.unwrap();
    assert_eq!(now.into_inner().subscription.unwrap(), stored);
}

/// Without `send` nothing is called and nothing recorded; the answer says whether the subscription takes the event.
#[tokio::test]
async fn a_test_says_whether_an_event_is_taken_and_what_would_be_sent() {
    let mut mesh = Mesh::start(1).await;
    let (id, _) = mesh.event("order-1", r#"{"total":1}"#).await;
    let mut client = mesh.admin.catalog();
    let mut request = create("billing", None);
    if let Some(subscription) = &mut request.subscription {
        subscription.types = vec!["order.*".into()];
        subscription.filter = "event.workflowId == 'order-1' || data.total > 100".into();
    }
    client.create_subscription(request).await.unwrap();
    let edits = records(&mesh).await.len();
    let test = |event: &str, event_id: String| v1::TestSubscriptionRequest {
        name: "billing".into(),
        event: event.as_bytes().to_vec(),
        event_id,
        ..Default::default()
    };
    let answer = client.test_subscription(test("", id.to_string())).await.unwrap().into_inner();
    assert!(answer.matched && !answer.sent && !answer.delivered, "{answer:?}");
    assert_eq!(answer.planned.unwrap().data, br#"{"total":1}"#);
    for (event, mismatch, failed) in [
        (r#"{"type":"order.paid","data":{"total":101}}"#, "", ""),
        (r#"{"type":"order.paid","data":{"total":100}}"#, "its filter is false", ""),
        (r#"{"type":"order.paid","workflowId":"order-1"}"#, "", ""),
        (r#"{"type":"order.paid","data":{}}"#, "", "1:38: no such member: total"),
        (r#"{"type":"refund","data":{}}"#, "type \"refund\" matches none of its types", ""),
    ] {
        let answer = client.test_subscription(test(event, String::new())).await.unwrap().into_inner();
        let found = (answer.mismatch.as_str(), answer.filter_error.as_str());
        assert_eq!((found, answer.matched), ((mismatch, failed), mismatch.is_empty()), "{event}");
    }
    let refused = client.test_subscription(test("{", String::new())).await.unwrap_err();
    assert!(refused.message().starts_with("event: "), "{refused}");
    assert_eq!(records(&mesh).await.len(), edits, "nothing is recorded");
}

//! Subscriptions that the catalog has lost: listed, adopted with their uid, or discarded in an operator's name.

use weft_proto::{
    ids::ShardId,
    internal::{self, command::Action, subscription_change::Change},
    v1,
    words::Word as _,
};

use super::subscription;
use crate::mesh::{BILLING, Mesh, reason};

const URL: &str = "https://billing.example/";

/// The shard's owner has opened the subscription, and the catalog has no such entry.
async fn with_an_orphan() -> Mesh {
    let mut mesh = Mesh::start(1).await;
    let opened = internal::Opened {
        name: "billing".into(),
        from: 7,
        revision: 3,
        types: vec!["order.*".into()],
        ordered: Some(true),
        ..Default::default()
    };
    let change = Some(Change::Opened(opened));
    let change = internal::SubscriptionChange { subscription: BILLING.to_vec(), change, catalog: None };
    mesh.commit(ShardId(0), internal::Commit { subscriptions: vec![change], ..Default::default() }).await;
    mesh
}

fn adoption(orphan: &str, subscription: v1::Subscription) -> v1::AdoptSubscriptionRequest {
    v1::AdoptSubscriptionRequest {
        orphan: orphan.into(),
        subscription: Some(subscription),
        reason: "restored".into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_orphan_is_adopted_with_its_uid_and_its_place() {
    let mesh = with_an_orphan().await;
    let catalog = || mesh.admin.catalog();
    let wanted = v1::Subscription { types: vec![], ..subscription("billing", URL) };
    // Waits until the history has it.
    let dry = v1::AdoptSubscriptionRequest { dry_run: true, ..adoption("billing", wanted.clone()) };
    let shown = catalog().adopt_subscription(dry).await.unwrap().into_inner();
    let orphan = shown.orphan.unwrap();
    assert_eq!(
        (orphan.name.as_str(), orphan.uid.as_str(), &orphan.shards[..]),
        ("billing", &*BILLING.to_string(), &[0][..])
    );
    let listed = catalog().list_subscriptions(v1::ListSubscriptionsRequest::default()).await.unwrap().into_inner();
    assert_eq!((listed.subscriptions.len(), listed.orphans.len()), (0, 1));

    let create =
        v1::CreateSubscriptionRequest { subscription: Some(subscription("billing", URL)), ..Default::default() };
    assert!(catalog().create_subscription(create).await.unwrap_err().message().contains("adopt"));
    let unordered = v1::Subscription { ordered: Some(false), ..wanted.clone() };
    assert!(catalog().adopt_subscription(adoption("billing", unordered)).await.is_err(), "its lanes are ordered");
    let unknown = catalog().adopt_subscription(adoption("audit", wanted.clone())).await;
    assert_eq!(reason(unknown.map(drop)).1, "NOT_FOUND");

    let adopted = catalog().adopt_subscription(adoption(&BILLING.to_string(), wanted)).await.unwrap().into_inner();
    let value = adopted.view.unwrap().subscription.unwrap();
    assert_eq!((value.uid, value.starts, value.types), (BILLING.to_vec(), vec![7], vec!["order.*".to_owned()]));
    let listed = catalog().list_subscriptions(v1::ListSubscriptionsRequest::default()).await.unwrap().into_inner();
    assert_eq!((listed.subscriptions.len(), listed.orphans.len()), (1, 0));
}

/// A file that names an orphan is about that subscription, not another one of its name.
#[tokio::test]
async fn apply_adopts_an_orphan() {
    let mesh = with_an_orphan().await;
    let wanted = v1::WantedSubscription { subscription: Some(subscription("billing", URL)), start: None };
    let apply = v1::ApplyRequest { subscriptions: vec![wanted], ..Default::default() };
    let applied = mesh.admin.catalog().apply(apply).await.unwrap().into_inner();
    assert_eq!(applied.changes[0].action().word(), "adopted");
    let get = v1::GetSubscriptionRequest { name: "billing".into() };
    let view = mesh.admin.catalog().get_subscription(get).await.unwrap().into_inner();
    assert_eq!(view.subscription.unwrap().uid, BILLING.to_vec());
}

#[tokio::test]
async fn an_orphan_is_discarded_by_a_command_with_a_reason() {
    let mut mesh = with_an_orphan().await;
    let request = v1::DiscardSubscriptionRequest { orphan: "billing".into(), ..Default::default() };
    let without_reason = mesh.admin.catalog().discard_subscription(request.clone()).await;
    assert_eq!(reason(without_reason.map(drop)).1, "BAD_QUERY");
    let dry = v1::DiscardSubscriptionRequest { dry_run: true, ..request.clone() };
    let shown = mesh.admin.catalog().discard_subscription(dry).await.unwrap().into_inner();
    assert_eq!(shown.orphan.unwrap().uid, BILLING.to_string());

    let request = v1::DiscardSubscriptionRequest { reason: "gone".into(), request_id: "discard-1".into(), ..request };
    let mut catalog = mesh.admin.catalog();
    let asked = tokio::spawn(async move { catalog.discard_subscription(request).await.unwrap().into_inner() });
    let stream = mesh.layout.commands_stream(ShardId(0));
    let command = loop {
        let found = weft_nats::direct::last_by_subject(&mesh.connection, &stream, ">").await.unwrap();
        if let Some(message) = found {
            break message;
        }
        tokio::task::yield_now().await;
    };
    let decoded = weft_nats::records::decode::<internal::Command>(&command).unwrap();
    let Some(Action::DiscardSubscription(discard)) = decoded.action else { panic!("{decoded:?}") };
    assert_eq!((discard.subscription, decoded.reason.as_str()), (BILLING.to_vec(), "gone"));

    // Its owner closes it.
    let closed = internal::Closed { operator: decoded.operator, reason: decoded.reason, up_to: 9 };
    let change = Some(Change::Closed(closed));
    let item = internal::ItemResult {
        subscription: BILLING.to_vec(),
        sequence: 0,
        status: internal::CommandStatus::Taken.into(),
    };
    let result = internal::CommandResult { command: command.seq.0, request_id: decoded.request_id, items: vec![item] };
    let commit = internal::Commit {
        commands_cursor: command.seq.0,
        results: vec![result],
        subscriptions: vec![internal::SubscriptionChange { subscription: BILLING.to_vec(), change, catalog: None }],
        ..Default::default()
    };
    mesh.commit(ShardId(0), commit).await;
    let answer = asked.await.unwrap();
    assert_eq!((answer.closed, answer.not_applicable, answer.pending), (1, 0, 0));
    let listed = mesh.admin.catalog().list_subscriptions(v1::ListSubscriptionsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().orphans, []);
}

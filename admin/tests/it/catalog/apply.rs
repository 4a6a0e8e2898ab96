//! The catalog as a file wants it.

use weft_proto::words::Word as _;

use super::*;

fn wanted() -> v1::ApplyRequest {
    let billing = subscription("billing", "https://a.example/");
    v1::ApplyRequest {
        sources: vec![source("shop")],
        subscriptions: vec![v1::WantedSubscription { subscription: Some(billing), start: None }],
        ..Default::default()
    }
}

fn told(response: &v1::ApplyResponse) -> Vec<(&str, &str, &str)> {
    let told = |change: &v1::AppliedChange| change.diff.concat().contains("whsec_");
    assert!(!response.changes.iter().any(told), "a secret is answered");
    response.changes.iter().map(|c| (c.kind().word(), c.name.as_str(), c.action().word())).collect()
}

/// A dry run says what comes and does nothing; the file again changes nothing; what it no longer names goes only by prune.
#[tokio::test]
async fn a_file_is_applied() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let everything = [("subscription", "billing", "created"), ("source", "shop", "created")];
    let dry = client.apply(v1::ApplyRequest { dry_run: true, ..wanted() }).await.unwrap().into_inner();
    assert_eq!(told(&dry), everything);
    assert!(mesh.kv().read().await.unwrap().sources.is_empty());

    let done = client.apply(wanted()).await.unwrap().into_inner();
    assert_eq!(told(&done), everything);
    assert_eq!(done.changes[0].diff, dry.changes[0].diff);
    assert_eq!(told(&client.apply(wanted()).await.unwrap().into_inner()), []);

    let mut rotated = wanted();
    let Some(Scheme::Standard(standard)) = rotated.sources[0].verification.as_mut().unwrap().scheme.as_mut() else {
        panic!("standard")
    };
    standard.secrets.insert(0, OTHER_SECRET.into());
    rotated.subscriptions.clear();
    let response = client.apply(rotated.clone()).await.unwrap().into_inner();
    assert_eq!(told(&response), [("source", "shop", "updated")]);
    assert_eq!(response.changes[0].diff, ["- verify.secrets = (1 secret)", "+ verify.secrets = (2 secrets, changed)"]);

    let pruning = v1::ApplyRequest { prune: true, dry_run: true, ..rotated.clone() };
    let dry = client.apply(pruning.clone()).await.unwrap().into_inner();
    assert_eq!(told(&dry), [("subscription", "billing", "deleted")]);
    let done = client.apply(v1::ApplyRequest { dry_run: false, reason: "gone".into(), ..pruning }).await.unwrap();
    assert_eq!(told(&done.into_inner()), [("subscription", "billing", "deleted")]);
    let snapshot = mesh.kv().read().await.unwrap();
    assert!(snapshot.subscriptions.is_empty());
    // The worker discards pending events in the name of the operator who removed it.
    let removal = snapshot.removals.values().next().unwrap();
    assert_eq!((removal.operator.as_str(), removal.reason.as_str()), ("bootstrap", "gone"));
    assert_eq!(records(&mesh).await.len(), 4, "dry runs are not recorded");
}

/// A repeat does not undo later changes.
#[tokio::test]
async fn a_repeated_apply_acts_once() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let request = v1::ApplyRequest { request_id: "deploy-1".into(), ..wanted() };
    let first = client.apply(request.clone()).await.unwrap().into_inner();
    client.delete_source(v1::DeleteSourceRequest { name: "shop".into(), ..Default::default() }).await.unwrap();
    assert_eq!(client.apply(request).await.unwrap().into_inner(), first);
    assert!(mesh.kv().read().await.unwrap().sources.is_empty());
}

/// An interrupted apply is finished by its repeat, and its record contains both parts.
#[tokio::test]
async fn an_apply_that_broke_off_is_finished() {
    let mesh = Mesh::start(1).await;
    let catalog = mesh.kv();
    let stamp = Stamp { request_id: "deploy-1".into(), operator: "bootstrap".into(), reason: String::new() };
    let first_half = change::create(&catalog.read().await.unwrap(), source("shop")).unwrap();
    catalog.write(&first_half, &stamp).await.unwrap();
    let request = v1::ApplyRequest { request_id: "deploy-1".into(), ..wanted() };
    let done = mesh.admin.catalog().apply(request).await.unwrap().into_inner();
    assert_eq!(told(&done), [("source", "shop", "created"), ("subscription", "billing", "created")]);
    assert_eq!(records(&mesh).await[0].1.changes.len(), 2);
}

/// A change of one entry that is wrong keeps all others from being written.
#[tokio::test]
async fn nothing_of_a_broken_file_is_applied() {
    let mesh = Mesh::start(1).await;
    let mut broken = wanted();
    broken.sources[0].data_pointer = "data".into();
    refused(mesh.admin.catalog().apply(broken).await, Code::InvalidArgument, "INVALID_ENTRY");
    assert!(mesh.kv().read().await.unwrap().subscriptions.is_empty());
}

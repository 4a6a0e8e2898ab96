//! A request id acts once, at any admin and across other changes.

use super::*;
use crate::mesh::Running;

/// Lost answers are repeated, to another admin or after a restart; the change is there once and recorded once.
#[tokio::test]
async fn a_repeated_request_acts_once_across_admins_and_restarts() {
    let mut mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let first = client.create_source(create_source("shop", "once")).await.unwrap().into_inner();
    let folder = tempfile::tempdir().unwrap();
    let mut other = Running::start(&mesh.server.options(), 1, folder.path()).await;
    other.ready().await;
    let again = other.catalog().create_source(create_source("shop", "once")).await.unwrap().into_inner();
    assert_eq!(again, first);

    // The repeat does not undo later changes.
    let delete = v1::DeleteSourceRequest { name: "shop".into(), ..Default::default() };
    other.catalog().delete_source(delete).await.unwrap();
    mesh.restart_admin(|_| {}).await;
    let mut client = mesh.admin.catalog();
    refused(client.create_source(create_source("shop", "once")).await, Code::NotFound, "NOT_FOUND");
    let stored = mesh.kv().read().await.unwrap();
    assert!(stored.sources.is_empty());
    assert_eq!(records(&mesh).await.len(), 2);
    other.stop().await.unwrap();
}

#[tokio::test]
async fn a_request_id_names_one_call() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    client.create_source(create_source("shop", "mine")).await.unwrap();
    refused(client.create_source(create_source("other", "mine")).await, Code::AlreadyExists, "ID_REUSED");
    let redrive = v1::RedriveDeadLettersRequest { all: true, request_id: "mine".into(), ..Default::default() };
    refused(mesh.admin.dead_letters().redrive_dead_letters(redrive).await, Code::AlreadyExists, "ID_REUSED");
    refused(client.create_source(create_source("other", "a#1")).await, Code::InvalidArgument, "BAD_QUERY");
}

/// An admin that ended between its write and its record leaves the truth: the change, stamped. The same request again
/// changes nothing and completes the record.
#[tokio::test]
async fn a_call_that_broke_off_is_completed_by_its_repeat() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let catalog = mesh.kv();
    let stamp = Stamp { request_id: "broke-off".into(), operator: "bootstrap".into(), reason: "a new\nshop".into() };
    let change = change::create(&catalog.read().await.unwrap(), source("shop")).unwrap();
    catalog.write(&change, &stamp).await.unwrap();
    assert!(records(&mesh).await.is_empty());

    let made = client.create_source(create_source("shop", "broke-off")).await.unwrap().into_inner();
    assert_eq!(made.revision, 1, "nothing was written again");
    let told = records(&mesh).await;
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].1.changes[0].action.as_str(), told[0].1.changes[0].revision), ("created", 1));
}

/// The same request at two admins at the same moment: one of them writes, both answer the same.
#[tokio::test]
async fn two_admins_with_one_request_agree() {
    let mesh = Mesh::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let mut other = Running::start(&mesh.server.options(), 1, folder.path()).await;
    other.ready().await;
    for round in 0..10 {
        let (name, id) = (format!("shop-{round}"), format!("round-{round}"));
        let (mut one, mut two) = (mesh.admin.catalog(), other.catalog());
        let answers =
            tokio::join!(one.create_source(create_source(&name, &id)), two.create_source(create_source(&name, &id)));
        assert_eq!(answers.0.unwrap().into_inner(), answers.1.unwrap().into_inner());
    }
    assert_eq!(records(&mesh).await.len(), 10);
    other.stop().await.unwrap();
}

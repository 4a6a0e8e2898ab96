//! Sources, subscriptions and keys over gRPC: what is changed, by whom it is known to be changed, and what never comes
//! out again.

use prost::Message as _;
use tonic::{Code, Status};
use weft_catalog::{Stamp, change};
use weft_nats::{direct, streams};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{self, command::Action},
    v1::{self, destination, verification::Scheme},
};

use crate::mesh::{Mesh, reason};

mod apply;
mod once;
mod orphans;
mod sample;
mod subscriptions;

/// Nothing that is answered or recorded holds any of this.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub const OTHER_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

pub fn source(name: &str) -> v1::Source {
    let scheme = Scheme::Standard(v1::StandardScheme { secrets: vec![SECRET.into()], tolerance_ms: Some(60_000) });
    let verification = Some(v1::Verification { scheme: Some(scheme) });
    v1::Source { name: name.into(), verification, ..v1::Source::default() }
}

pub fn subscription(name: &str, url: &str) -> v1::Subscription {
    let http = v1::HttpDestination { url: url.into(), secrets: vec![SECRET.into()], format: 1, ..Default::default() };
    v1::Subscription {
        name: name.into(),
        types: vec!["order.*".into()],
        timeout_ms: 15_000,
        concurrency: 4,
        ordered: Some(true),
        destination: Some(v1::Destination { kind: Some(destination::Kind::Http(http)) }),
        ..v1::Subscription::default()
    }
}

pub fn create_source(name: &str, request_id: &str) -> v1::CreateSourceRequest {
    let (reason, request_id) = ("a new shop".to_owned(), request_id.to_owned());
    v1::CreateSourceRequest { source: Some(source(name)), reason, request_id }
}

/// Everything on COMMANDS of shard 0, in order.
pub async fn records(mesh: &Mesh) -> Vec<(internal::Command, internal::CatalogEdit)> {
    let stream = mesh.layout.commands_stream(ShardId(0));
    let end = streams::state(&mesh.connection, &stream).await.unwrap().last;
    let mut records = Vec::new();
    for seq in 1..=end.0 {
        let message = direct::get(&mesh.connection, &stream, StreamSeq(seq)).await.unwrap().unwrap();
        assert!(
            !contains(&message.payload, SECRET) && !contains(&message.payload, OTHER_SECRET),
            "a secret is recorded"
        );
        let command = internal::Command::decode(message.payload).unwrap();
        let Some(Action::Catalog(edit)) = command.action.clone() else { panic!("a change of the catalog") };
        records.push((command, edit));
    }
    records
}

fn contains(bytes: &[u8], text: &str) -> bool {
    // Also without the prefix that every secret has.
    let text = &text.as_bytes()["whsec_".len()..];
    bytes.windows(text.len()).any(|window| window == text)
}

pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, why: &str) -> String {
    let message = answer.as_ref().err().map(|status| status.message().to_owned()).unwrap_or_default();
    assert_eq!(reason(answer), (code, why.to_owned()), "{message}");
    message
}

fn secrets(view: &v1::SourceView) -> Vec<String> {
    let source = view.source.as_ref().unwrap();
    let Some(Scheme::Standard(standard)) = source.verification.as_ref().unwrap().scheme.as_ref() else {
        panic!("standard")
    };
    standard.secrets.clone()
}

/// A source's whole life, with everything that can be refused on the way; each change leaves its record, none a secret.
#[tokio::test]
async fn a_source_is_made_changed_and_removed() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let made = client.create_source(create_source("shop", "r1")).await.unwrap().into_inner();
    assert_eq!((secrets(&made), made.revision), (vec![String::new()], 1));
    refused(client.create_source(create_source("shop", "r2")).await, Code::AlreadyExists, "ALREADY_EXISTS");
    let mut broken = create_source("Shop", "r3");
    let message = refused(client.create_source(broken.clone()).await, Code::InvalidArgument, "INVALID_ENTRY");
    assert!(message.contains("[a-z0-9-]{1,40}"), "{message}");
    broken.source = None;
    refused(client.create_source(broken).await, Code::InvalidArgument, "BAD_QUERY");

    let got = client.get_source(v1::GetSourceRequest { name: "shop".into() }).await.unwrap().into_inner();
    assert_eq!(got, made);
    let mut changed = got.source.unwrap();
    changed.data_pointer = "/data".into();
    let update = v1::UpdateSourceRequest { source: Some(changed), revision: 7, ..Default::default() };
    let message = refused(client.update_source(update.clone()).await, Code::Aborted, "CONFLICT");
    assert!(message.contains("revision 1 and not 7"), "{message}");
    let update = v1::UpdateSourceRequest { revision: 1, reason: "new form".into(), ..update };
    let updated = client.update_source(update).await.unwrap().into_inner();
    assert_eq!((secrets(&updated), updated.revision), (vec![String::new()], 2));
    let stored = mesh.kv().read().await.unwrap();
    let Some(Scheme::Standard(kept)) = stored.sources["shop"].value.verification.clone().unwrap().scheme else {
        panic!("standard")
    };
    assert_eq!(kept.secrets, [SECRET], "who sends no secret keeps what is stored");

    let delete = v1::DeleteSourceRequest { name: "shop".into(), revision: 2, ..Default::default() };
    client.delete_source(delete.clone()).await.unwrap();
    refused(client.delete_source(delete).await, Code::NotFound, "NOT_FOUND");
    refused(client.get_source(v1::GetSourceRequest { name: "shop".into() }).await, Code::NotFound, "NOT_FOUND");

    let records = records(&mesh).await;
    let told: Vec<_> = records.iter().map(|(_, edit)| (edit.method.as_str(), edit.name.as_str())).collect();
    assert_eq!(told, [("CreateSource", "shop"), ("UpdateSource", "shop"), ("DeleteSource", "shop")]);
    let (command, edit) = &records[0];
    assert_eq!((command.request_id.as_str(), command.operator.as_str()), ("r1", "bootstrap"));
    assert_eq!(command.reason, "a new shop");
    assert!(edit.changes[0].diff.contains(&"+ verify.secrets = (1 secret)".to_owned()), "{edit:?}");
    let change = &records[1].1.changes[0];
    assert_eq!((change.kind.as_str(), change.action.as_str(), change.revision), ("source", "updated", 2));
    assert_eq!(change.diff, ["+ data.pointer = \"/data\""]);
}

#[tokio::test]
async fn lists_come_page_by_page() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    for name in ["c", "a", "b"] {
        client.create_source(create_source(name, "")).await.unwrap();
    }
    let request = v1::ListSourcesRequest { page_size: 2, page_token: String::new() };
    let first = client.list_sources(request.clone()).await.unwrap().into_inner();
    let rest = v1::ListSourcesRequest { page_token: first.next_page_token, ..request };
    let second = client.list_sources(rest).await.unwrap().into_inner();
    let names: Vec<_> =
        first.sources.iter().chain(&second.sources).map(|view| view.source.clone().unwrap().name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(second.next_page_token.is_empty());
    assert!(first.sources.iter().all(|view| secrets(view) == [""]));
}

/// A key is shown once; stored and answered data does not contain it.
#[tokio::test]
async fn a_key_is_shown_once() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let request = v1::CreateApiKeyRequest {
        name: "ci".into(),
        scopes: vec![v1::Scope::Ingest.into()],
        sources: vec!["shop".into()],
        request_id: "k1".into(),
        ..Default::default()
    };
    let made = client.create_api_key(request.clone()).await.unwrap().into_inner();
    let view = made.view.unwrap();
    let key = view.key.clone().unwrap();
    assert!(made.key.starts_with(&format!("weft_{}_", key.id)) && key.digest.is_empty(), "{key:?}");

    let again = client.create_api_key(request.clone()).await.unwrap().into_inner();
    assert_eq!((again.key.as_str(), again.view), ("", Some(view.clone())), "the key was shown then");
    let listed = client.list_api_keys(v1::ListApiKeysRequest::default()).await.unwrap().into_inner().keys;
    assert_eq!(listed, std::slice::from_ref(&view));
    let nothing = v1::CreateApiKeyRequest { scopes: Vec::new(), request_id: String::new(), ..request };
    refused(client.create_api_key(nothing).await, Code::InvalidArgument, "INVALID_ENTRY");

    let digest = async || {
        let stored = mesh.kv().read().await.unwrap();
        stored.keys.get(&key.id).map(|key| key.value.digest.clone())
    };
    let before = digest().await.unwrap();
    let wider = v1::ApiKey { scopes: vec![v1::Scope::Read.into()], ..key.clone() };
    let update = v1::UpdateApiKeyRequest { key: Some(wider), revision: view.revision, ..Default::default() };
    client.update_api_key(update).await.unwrap();
    assert_eq!(digest().await, Some(before), "another scope makes no other key");
    client.delete_api_key(v1::DeleteApiKeyRequest { id: key.id.clone(), ..Default::default() }).await.unwrap();
    assert_eq!(digest().await, None);

    let records = records(&mesh).await;
    let text = format!("{records:?}");
    assert!(text.contains("- scopes = [\\\"ingest\\\"]") && !text.contains(&made.key[14..]), "{text}");
}

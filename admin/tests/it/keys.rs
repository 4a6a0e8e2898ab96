//! Keys of the catalog on the admin: what each opens, what limited ones see, when they are gone, and that they are written
//! nowhere.

use std::{fs, path::Path};

use tokio_stream::StreamExt as _;
use tonic::{Code, Status};
use weft_nats::{message::Outgoing, subject::rejected};
use weft_proto::{
    ids::EventId,
    v1::{
        self, Scope, catalog_service_client::CatalogServiceClient, dead_letter_service_client::DeadLetterServiceClient,
        event_service_client::EventServiceClient, rejected_service_client::RejectedServiceClient,
    },
};
use weft_testkit::{MASTER_KEY, eventually};

use crate::{
    catalog::{OTHER_SECRET, SECRET, create_source, records, refused, source, subscription},
    mesh::{Client, Mesh, PATIENCE, bearer},
};

/// A new key, and its text.
async fn create(mesh: &Mesh, wanted: v1::CreateApiKeyRequest) -> (v1::ApiKey, String) {
    let made = mesh.admin.catalog().create_api_key(wanted).await.unwrap().into_inner();
    (made.view.unwrap().key.unwrap(), made.key)
}

async fn of_scope(mesh: &Mesh, scope: Scope) -> (v1::ApiKey, String) {
    create(mesh, v1::CreateApiKeyRequest { name: "ci".into(), scopes: vec![scope.into()], ..Default::default() }).await
}

fn catalog(mesh: &Mesh, key: &str) -> CatalogServiceClient<Client> {
    CatalogServiceClient::with_interceptor(mesh.admin.channel(), bearer(key))
}

fn events(mesh: &Mesh, key: &str) -> EventServiceClient<Client> {
    EventServiceClient::with_interceptor(mesh.admin.channel(), bearer(key))
}

fn dead_letters(mesh: &Mesh, key: &str) -> DeadLetterServiceClient<Client> {
    DeadLetterServiceClient::with_interceptor(mesh.admin.channel(), bearer(key))
}

/// The first refused request as seen with a key: the value of its signature header, and its body.
async fn seen_of_refused(mesh: &Mesh, key: &str) -> (String, Vec<u8>) {
    let mut client = RejectedServiceClient::with_interceptor(mesh.admin.channel(), bearer(key));
    let entry = client.get_rejected(v1::GetRejectedRequest { id: "1".into() }).await.unwrap().into_inner();
    let listed = client.list_rejected(v1::ListRejectedRequest::default()).await.unwrap().into_inner().rejected;
    assert!(listed[0].headers.is_empty() || listed[0].headers == entry.headers);
    (entry.headers[0].value.clone(), entry.body)
}

async fn since(mesh: &Mesh, key: &str) -> Result<Vec<String>, Status> {
    let answer = events(mesh, key).events_since(v1::EventsSinceRequest::default()).await?.into_inner();
    Ok(answer.events.into_iter().map(|event| event.workflow_id).collect())
}

/// Whether a key reads by now.
async fn opens(mesh: &Mesh, key: &str) {
    assert!(eventually(PATIENCE, async || since(mesh, key).await.is_ok()).await);
}

/// A signature and the body that it is over can be sent again: who may only read sees neither whole.
#[tokio::test]
async fn a_reading_key_cannot_send_a_refused_request_again() {
    let mesh = Mesh::start(1).await;
    let entry = v1::Rejected {
        source: "shop".into(),
        code: "missing_workflow".into(),
        headers: vec![v1::RejectedHeader { name: "x-hub-signature-256".into(), value: "sha256=00".into() }],
        body: br#"{"ref":"refs/heads/main","repository":{"full_name":"a/b"}}"#.to_vec(),
        ..Default::default()
    };
    let payload = prost::Message::encode_to_vec(&entry).into();
    let stored = mesh.connection.jetstream().publish(rejected("shop"), payload).await.unwrap();
    stored.await.unwrap();
    let (_, read) = of_scope(&mesh, Scope::Read).await;
    opens(&mesh, &read).await;
    let (signature, body) = seen_of_refused(&mesh, &read).await;
    assert!(signature.contains("operate") && !signature.contains("00"), "{signature}");
    assert!(entry.body.starts_with(&body) && body.len() < entry.body.len());
    let both = v1::CreateApiKeyRequest {
        name: "on call".into(),
        scopes: vec![Scope::Read.into(), Scope::Operate.into()],
        ..Default::default()
    };
    let (_, both) = create(&mesh, both).await;
    opens(&mesh, &both).await;
    assert_eq!(seen_of_refused(&mesh, &both).await, ("sha256=00".to_owned(), entry.body));
}

/// A key permits what its scope states and no more; its changes are recorded under its id.
#[tokio::test]
async fn a_key_opens_what_its_scope_says() {
    let mesh = Mesh::start(1).await;
    let wanted = v1::CreateSubscriptionRequest {
        subscription: Some(subscription("billing", "https://a.example/")),
        ..Default::default()
    };
    mesh.admin.catalog().create_subscription(wanted).await.unwrap();
    let (_, read) = of_scope(&mesh, Scope::Read).await;
    let (operator, operate) = of_scope(&mesh, Scope::Operate).await;
    let (_, ingest) = of_scope(&mesh, Scope::Ingest).await;
    let (owner, admin) = of_scope(&mesh, Scope::Admin).await;
    // The newest of them: where it is known, the others are.
    opens(&mesh, &admin).await;

    let list = v1::ListSourcesRequest::default;
    let pause = || v1::PauseSubscriptionRequest { name: "billing".into(), ..Default::default() };
    let denied = |answer: Result<_, Status>, scope: &str| {
        let message = refused(answer, Code::PermissionDenied, "SCOPE_MISSING");
        assert!(message.contains(scope), "{message}");
    };
    assert!(catalog(&mesh, &read).list_sources(list()).await.is_ok());
    denied(catalog(&mesh, &read).pause_subscription(pause()).await.map(drop), "operate");
    denied(catalog(&mesh, &read).create_source(create_source("shop", "")).await.map(drop), "admin");
    denied(catalog(&mesh, &operate).create_source(create_source("shop", "")).await.map(drop), "admin");
    denied(catalog(&mesh, &operate).list_sources(list()).await.map(drop), "read");
    denied(catalog(&mesh, &ingest).list_sources(list()).await.map(drop), "read");
    catalog(&mesh, &operate).pause_subscription(pause()).await.unwrap();
    catalog(&mesh, &admin).create_source(create_source("shop", "")).await.unwrap();

    let told: Vec<_> =
        records(&mesh).await.into_iter().map(|(command, edit)| (edit.method, command.operator)).collect();
    assert!(told.contains(&("PauseSubscription".into(), operator.id)), "{told:?}");
    assert!(told.contains(&("CreateSource".into(), owner.id)), "{told:?}");
    assert!(told.contains(&("CreateSubscription".into(), "bootstrap".into())), "{told:?}");
}

/// For a limited key, items outside of its limits are unknown, and methods that concern the whole mesh are forbidden.
#[tokio::test]
async fn a_limited_key_sees_only_items_within_its_limits() {
    let mut mesh = Mesh::start(1).await;
    let mut ids = Vec::new();
    for workflow in ["order-1", "user-1"] {
        let (id, seq) = mesh.event(workflow, "{}").await;
        mesh.dead_letter(workflow, id, seq, 0).await;
        ids.push(id);
    }
    let limited = v1::CreateApiKeyRequest {
        name: "orders".into(),
        scopes: vec![Scope::Read.into(), Scope::Operate.into()],
        workflow_prefixes: vec!["order-".into()],
        ..Default::default()
    };
    let (_, key) = create(&mesh, limited.clone()).await;
    opens(&mesh, &key).await;
    assert_eq!(since(&mesh, &key).await.unwrap(), ["order-1"]);
    let get = |id: EventId| v1::GetEventRequest { event_id: id.to_string(), ..Default::default() };
    assert!(events(&mesh, &key).get_event(get(ids[0])).await.is_ok());
    refused(events(&mesh, &key).get_event(get(ids[1])).await, Code::NotFound, "UNKNOWN_EVENT");
    let tail = v1::TailEventsRequest { from_beginning: true, ..Default::default() };
    let mut tail = events(&mesh, &key).tail_events(tail).await.unwrap().into_inner();
    mesh.event("user-1", "{}").await;
    mesh.event("order-2", "{}").await;
    for workflow in ["order-1", "order-2"] {
        assert_eq!(tail.message().await.unwrap().unwrap().event.unwrap().workflow_id, workflow);
    }

    let mut client = dead_letters(&mesh, &key);
    let listed = client.list_dead_letters(v1::ListDeadLettersRequest::default()).await.unwrap().into_inner();
    let listed: Vec<_> = listed.dead_letters.into_iter().map(|dead_letter| dead_letter.workflow_id).collect();
    assert_eq!(listed, ["order-1"]);
    let of = |id: EventId| format!("billing:{id}");
    assert!(client.get_dead_letter(v1::GetDeadLetterRequest { id: of(ids[0]) }).await.is_ok());
    let hidden = client.get_dead_letter(v1::GetDeadLetterRequest { id: of(ids[1]) }).await;
    refused(hidden, Code::NotFound, "NOT_FOUND");
    let by_id = v1::RedriveDeadLettersRequest { ids: vec![of(ids[0]), of(ids[1])], ..Default::default() };
    refused(client.redrive_dead_letters(by_id).await.map(drop), Code::NotFound, "NOT_FOUND");
    let all = v1::RedriveDeadLettersRequest { all: true, dry_run: true, ..Default::default() };
    let selected = client.redrive_dead_letters(all).await.unwrap().into_inner();
    let selected: Vec<_> = selected.map(|step| step.unwrap().selected).collect().await;
    assert_eq!(selected, [1, 1], "the count, and the one");

    let sources = catalog(&mesh, &key).list_sources(v1::ListSourcesRequest::default()).await;
    refused(sources, Code::PermissionDenied, "OUT_OF_SCOPE");
    let rejected_client = |key: &str| RejectedServiceClient::with_interceptor(mesh.admin.channel(), bearer(key));
    let inbox = rejected_client(&key).list_rejected(v1::ListRejectedRequest::default()).await;
    refused(inbox, Code::PermissionDenied, "OUT_OF_SCOPE");
    let admin = v1::CreateApiKeyRequest { scopes: vec![Scope::Admin.into()], ..limited.clone() };
    let (_, admin) = create(&mesh, admin).await;
    opens(&mesh, &admin).await;
    let escalated = catalog(&mesh, &admin).create_api_key(v1::CreateApiKeyRequest::default()).await.map(drop);
    refused(escalated, Code::PermissionDenied, "OUT_OF_SCOPE");

    // Of refused requests the source is known, and no more.
    for name in ["shop", "other"] {
        let entry = v1::Rejected { source: name.into(), ..Default::default() };
        let payload = prost::Message::encode_to_vec(&entry).into();
        let message = Outgoing { subject: rejected(name), headers: Default::default(), payload };
        assert!(weft_nats::append::publish_once(&mesh.connection, &message).await.is_ok());
    }
    let of_shop = v1::CreateApiKeyRequest { workflow_prefixes: vec![], sources: vec!["shop".into()], ..limited };
    let (_, of_shop) = create(&mesh, of_shop).await;
    opens(&mesh, &of_shop).await;
    let inbox = rejected_client(&of_shop).list_rejected(v1::ListRejectedRequest::default()).await.unwrap().into_inner();
    assert_eq!(inbox.rejected.iter().map(|entry| entry.source.as_str()).collect::<Vec<_>>(), ["shop"]);
    assert!(rejected_client(&of_shop).get_rejected(v1::GetRejectedRequest { id: "1".into() }).await.is_ok());
    let hidden = rejected_client(&of_shop).get_rejected(v1::GetRejectedRequest { id: "2".into() }).await;
    refused(hidden, Code::NotFound, "NOT_FOUND");
}

/// A key's use is known to the minute; with its end everything ends that it has opened.
#[tokio::test]
async fn a_key_is_known_by_its_use_until_it_is_revoked() {
    let mut mesh = Mesh::start(1).await;
    mesh.event("order-1", "{}").await;
    let (made, key) = of_scope(&mesh, Scope::Read).await;
    let get = || v1::GetApiKeyRequest { id: made.id.clone() };
    assert_eq!(mesh.admin.catalog().get_api_key(get()).await.unwrap().into_inner().last_used_at, None);
    opens(&mesh, &key).await;
    let used = async || {
        let view = mesh.admin.catalog().get_api_key(get()).await.unwrap().into_inner();
        view.last_used_at.is_some_and(|at| at.seconds % 60 == 0 && at.seconds * 1000 > made.created_at_ms - 60_000)
    };
    assert!(eventually(PATIENCE, used).await);

    let tail = v1::TailEventsRequest { from_beginning: true, ..Default::default() };
    let mut tail = events(&mesh, &key).tail_events(tail).await.unwrap().into_inner();
    assert!(tail.message().await.unwrap().is_some());
    mesh.admin
        .catalog()
        .delete_api_key(v1::DeleteApiKeyRequest { id: made.id.clone(), ..Default::default() })
        .await
        .unwrap();
    let last = tokio::time::timeout(PATIENCE, tail.message()).await.expect("the tail ends");
    refused(last, Code::Unauthenticated, "KEY_INVALID");
    refused(since(&mesh, &key).await, Code::Unauthenticated, "KEY_INVALID");
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    // The server may replace a file meanwhile.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.extend(fs::read(&path));
        }
    }
    found
}

/// The server's files, and their backups, contain no secret and no key.
#[tokio::test]
async fn no_secret_and_no_key_is_in_the_servers_files() {
    let mesh = Mesh::start(1).await;
    let mut client = mesh.admin.catalog();
    let made = client.create_source(create_source("shop", "")).await.unwrap().into_inner();
    let mut changed = source("shop");
    let scheme = v1::StandardScheme { secrets: vec![SECRET.into(), OTHER_SECRET.into()], tolerance_ms: Some(1) };
    changed.verification = Some(v1::Verification { scheme: Some(v1::verification::Scheme::Standard(scheme)) });
    let update = v1::UpdateSourceRequest { source: Some(changed), revision: made.revision, ..Default::default() };
    client.update_source(update).await.unwrap();
    let wanted = v1::CreateSubscriptionRequest {
        subscription: Some(subscription("billing", "https://a.example/")),
        ..Default::default()
    };
    client.create_subscription(wanted).await.unwrap();
    let (made, key) = of_scope(&mesh, Scope::Read).await;
    opens(&mesh, &key).await;
    let stored = mesh.kv().read().await.unwrap();
    assert!(!format!("{stored:?}").contains(&SECRET[6..]) && !format!("{stored:?}").contains(&key[14..]));
    let used = async || mesh.kv().read().await.unwrap().keys_used.contains_key(&made.id);
    assert!(eventually(PATIENCE, used).await);
    client.delete_source(v1::DeleteSourceRequest { name: "shop".into(), ..Default::default() }).await.unwrap();
    records(&mesh).await;

    let files = files(mesh.server.folder());
    let holds = |text: &[u8]| files.iter().any(|file| file.windows(text.len()).any(|window| window == text));
    assert!(holds(b"a new shop") && holds(made.id.as_bytes()), "reasons and ids are in the files that are looked at");
    let digest = &stored.keys[&made.id].value.digest;
    let secrets: [&[u8]; 6] = [
        &SECRET.as_bytes()[6..],
        &OTHER_SECRET.as_bytes()[6..],
        key.as_bytes(),
        &key.as_bytes()[14..],
        digest,
        MASTER_KEY.as_bytes(),
    ];
    for (number, secret) in secrets.into_iter().enumerate() {
        assert!(!holds(secret), "secret {number}");
    }
}

/// Some receivers expect a token in their URL: a key with scope `read` sees that there is one, but not its value, here and in the audit log.
#[tokio::test]
async fn values_in_the_query_of_a_url_are_shown_to_admins_only() {
    const URL: &str = "https://a.example/hook?token=hunter2&v";
    const TOKEN_URL: &str = "https://id.example/token?key=hunter2";
    let mesh = Mesh::start(1).await;
    let auth = || {
        let (token_url, client_id, client_secret) = (TOKEN_URL.into(), "weft".into(), "hush".into());
        let oauth2 = v1::OAuth2ClientCredentials { token_url, client_id, client_secret, scopes: vec![] };
        Some(v1::Auth { kind: Some(v1::auth::Kind::Oauth2(oauth2)) })
    };
    let with = |kind: v1::destination::Kind, name: &str| {
        let destination = Some(v1::Destination { kind: Some(kind) });
        let subscription = Some(v1::Subscription { destination, ..subscription(name, URL) });
        v1::CreateSubscriptionRequest { subscription, ..Default::default() }
    };
    let Some(v1::destination::Kind::Http(http)) = subscription("billing", URL).destination.unwrap().kind else {
        panic!("of type http")
    };
    let http = v1::destination::Kind::Http(v1::HttpDestination { auth: auth(), ..http });
    mesh.admin.catalog().create_subscription(with(http, "billing")).await.unwrap();
    let grpc = v1::GrpcDestination { url: "https://svc.example".into(), auth: auth(), ..Default::default() };
    mesh.admin.catalog().create_subscription(with(v1::destination::Kind::Grpc(grpc), "grpc")).await.unwrap();
    let (_, read) = of_scope(&mesh, Scope::Read).await;
    let (_, admin) = of_scope(&mesh, Scope::Admin).await;
    opens(&mesh, &admin).await;
    let urls = |view: v1::SubscriptionView| {
        let (url, auth) = match view.subscription.unwrap().destination.unwrap().kind {
            Some(v1::destination::Kind::Http(http)) => (http.url, http.auth),
            Some(v1::destination::Kind::Grpc(grpc)) => (grpc.url, grpc.auth),
            _ => panic!("HTTP or gRPC"),
        };
        let Some(v1::auth::Kind::Oauth2(oauth2)) = auth.unwrap().kind else { panic!("OAuth2") };
        [url, oauth2.token_url]
    };
    let hidden = ["https://a.example/hook?token=[redacted]&[redacted]", "https://id.example/token?key=[redacted]"];
    for (key, shown) in [(&read, hidden), (&admin, [URL, TOKEN_URL])] {
        let get = |name: &str| v1::GetSubscriptionRequest { name: name.into() };
        let got = catalog(&mesh, key).get_subscription(get("billing")).await.unwrap().into_inner();
        let list = v1::ListSubscriptionsRequest::default();
        let mut listed = catalog(&mesh, key).list_subscriptions(list).await.unwrap().into_inner();
        assert_eq!((urls(got), urls(listed.subscriptions.remove(0))), (shown.map(Into::into), shown.map(Into::into)));
        let grpc = catalog(&mesh, key).get_subscription(get("grpc")).await.unwrap().into_inner();
        assert_eq!(urls(grpc)[1], shown[1]);
    }
    let text = format!("{:?}", records(&mesh).await);
    assert!(!text.contains("hunter2") && text.contains("token=[redacted]"), "{text}");
}

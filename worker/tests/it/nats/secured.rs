//! Other servers with TLS and users.

use std::fs;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};
use weft_testkit::Authority;

use super::*;

/// A claim of NATS as a JWT, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, kind: &str, limits: Value) -> String {
    let mut nats = json!({ "type": kind, "version": 2 });
    nats.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
    let claim = json!({
        "jti": "of-a-test", "iat": 1_700_000_000, "iss": issuer.public_key(), "name": kind, "sub": subject.public_key(),
        "nats": nats,
    });
    let encoded = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encoded(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encoded(&claim));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// Limits of an account: JetStream or not, and nothing else is limited.
fn limits(jetstream: bool) -> Value {
    let storage = if jetstream { -1 } else { 0 };
    json!({ "limits": {
        "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1, "wildcards": true,
        "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
    } })
}

/// An account of an operator, and a user of it as its credentials file.
struct Operator {
    config: String,
    creds: String,
}

impl Operator {
    fn new() -> Self {
        let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
        let of_account = jwt(&operator, &account, "account", limits(true));
        // A server with JetStream and an operator wants an account of the system's.
        let system = KeyPair::new_account();
        let of_system = jwt(&operator, &system, "account", limits(false));
        let config = format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {of_account}, {}: {of_system} }}",
            jwt(&operator, &operator, "operator", json!({})),
            system.public_key(),
            account.public_key(),
            system.public_key(),
        );
        let of_user = jwt(&account, &user, "user", json!({ "subs": -1, "data": -1, "payload": -1 }));
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        );
        Self { config, creds }
    }
}

/// TLS of a server with a certificate of this authority; `verify`: clients need one too.
fn tls(authority: &Authority, verify: bool) -> String {
    let (ca, cert, key) = (authority.ca(), authority.cert(), authority.key());
    format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: {verify} }}",
        cert.display().to_string(),
        key.display().to_string(),
        ca.display().to_string()
    )
}

/// One delivery by a separate process, to a server that is named by its certificate.
async fn deliver(server: &TestServer, with: impl FnOnce(&mut v1::NatsDestination)) -> AttemptEnd {
    let (process, uid) = (here(), SubscriptionUid::unique());
    let url = server.url().to_owned();
    process
        .put(&subscription(uid, move |nats| {
            nats.url = url;
            with(nats);
        }))
        .unwrap();
    process.deliver(delivery_to(uid, |event| event.id = EventId::unique())).await.unwrap()
}

fn client_tls(authority: &Authority, with_certificate: bool) -> v1::ClientTls {
    let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap();
    let own = |path| if with_certificate { read(path) } else { String::new() };
    v1::ClientTls { ca: read(authority.ca()), cert: own(authority.cert()), key: own(authority.key()) }
}

/// Guards: an event is stored through TLS, with a user by a credentials file; without either, nothing is sent and no retry is
/// used up.
#[tokio::test]
async fn a_server_with_tls_and_an_operator_is_published_to() {
    let (authority, other, operator) = (Authority::new(), Authority::new(), Operator::new());
    let config = format!("{}\n{}", tls(&authority, false), operator.config);
    let server = TestServer::builder().config(&config).start().await;
    let admin = |nats: &mut v1::NatsDestination| {
        nats.creds = operator.creds.clone();
        nats.tls = Some(client_tls(&authority, false));
    };
    create_stream(&server, &operator.creds, &authority).await;
    let end = deliver(&server, admin).await;
    assert_eq!(
        (end.result, &end.response[..]),
        (AttemptResult::Delivered, &b"ORDERS: sequence 1"[..]),
        "{}",
        end.error
    );
    // The scheme alone asks for TLS; the authority is the system's, which has not signed the certificate.
    let stranger = Operator::new();
    type Change<'a> = Box<dyn FnOnce(&mut v1::NatsDestination) + 'a>;
    let cases: [(&str, Change<'_>); 4] = [
        ("no credentials", Box::new(|nats| nats.creds = String::new())),
        ("of another operator", Box::new(|nats| nats.creds = stranger.creds.clone())),
        ("of another authority", Box::new(|nats| nats.tls = Some(client_tls(&other, false)))),
        (
            "a scheme alone",
            Box::new(|nats| {
                nats.url = nats.url.replace("nats://", "tls://");
                nats.tls = None;
            }),
        ),
    ];
    for (case, change) in cases {
        let end = deliver(&server, |nats| {
            admin(nats);
            change(nats);
        })
        .await;
        assert_eq!(end.result, AttemptResult::Unreachable, "{case}: {}", end.error);
        let seed = operator.creds.lines().find(|line| line.starts_with("SU")).unwrap();
        assert!(!end.error.contains(seed) && !end.error.contains("eyJ"), "{case}: {}", end.error);
    }
}

/// Guards: a client certificate is presented where the server asks for one, and the seed of an nkey is a user.
#[tokio::test]
async fn a_server_that_asks_for_a_certificate_and_an_nkey_is_published_to() {
    let (authority, user) = (Authority::new(), KeyPair::new_user());
    let config = format!("{}\nauthorization {{ users: [ {{ nkey: {} }} ] }}", tls(&authority, true), user.public_key());
    let server = TestServer::builder().config(&config).start().await;
    let seed = user.seed().unwrap();
    create_stream(&server, &seed, &authority).await;
    let by = |creds: String, with_certificate: bool| {
        let tls = client_tls(&authority, with_certificate);
        move |nats: &mut v1::NatsDestination| {
            nats.creds = creds;
            nats.tls = Some(tls);
        }
    };
    // As a file of it ends.
    let end = deliver(&server, by(format!("{seed}\n"), true)).await;
    assert_eq!(
        (end.result, &end.response[..]),
        (AttemptResult::Delivered, &b"ORDERS: sequence 1"[..]),
        "{}",
        end.error
    );
    let stranger = KeyPair::new_user().seed().unwrap();
    for (case, creds, with_certificate) in [("another user", &stranger, true), ("no certificate", &seed, false)] {
        let end = deliver(&server, by(creds.clone(), with_certificate)).await;
        assert_eq!(end.result, AttemptResult::Unreachable, "{case}: {}", end.error);
        assert!(!end.error.contains(creds), "{case}: {}", end.error);
    }
}

/// Creates ORDERS as a user of the server.
async fn create_stream(server: &TestServer, creds: &str, authority: &Authority) {
    let options = weft_nats::async_nats::ConnectOptions::new()
        .add_root_certificates(authority.ca())
        .add_client_certificate(authority.cert(), authority.key())
        .require_tls(true);
    let options = match creds.starts_with("SU") {
        true => options.nkey(creds.to_owned()),
        false => options.credentials(creds).unwrap(),
    };
    let client = options.connect(server.url()).await.unwrap();
    let jetstream = weft_nats::async_nats::jetstream::new(client);
    let made = async || jetstream.create_stream(config()).await.is_ok();
    assert!(eventually(PATIENCE, made).await, "the server takes the stream");
}

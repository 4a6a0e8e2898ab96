//! The connection and its state.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use weft_nats::{
    connect::Connection,
    options::{FileRef, NatsOptions, NatsTls},
};
use weft_testkit::{TestServer, eventually};

use super::PATIENCE;

#[tokio::test]
async fn a_client_may_start_before_the_server_and_reports_its_state() {
    let server = TestServer::start().await;
    server.kill();
    let connection = Connection::connect(&server.options(), "test").await.unwrap();
    assert!(!connection.is_connected());
    assert_eq!(connection.max_payload(), None);
    let changed = connection.changed();
    server.restart().await;
    tokio::time::timeout(PATIENCE, connection.connected()).await.unwrap();
    tokio::time::timeout(PATIENCE, changed).await.unwrap();
    assert_eq!(connection.max_payload(), Some((1 << 20) + 128 * 1024));
}

/// A server in lame duck mode keeps its clients for a while and takes no others: who goes at once is served elsewhere.
#[tokio::test]
async fn a_client_leaves_a_server_in_lame_duck_mode_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = |name: &str| folder.path().join(name);
    let (first, second) = (pid_file("first"), pid_file("second"));
    // The server's grace period is longer than anything may take here.
    let config = |file: &Path| format!("pid_file: {file:?}\nlame_duck_grace_period: \"100s\"");
    let start = |file: &Path| TestServer::builder().config(&config(file)).start();
    let (one, other) = (start(&first).await, start(&second).await);
    let options = NatsOptions { url: Some(format!("{},{}", one.url(), other.url())), ..NatsOptions::default() };
    let connection = Connection::connect(&options, "test").await.unwrap();
    tokio::time::timeout(PATIENCE, connection.connected()).await.unwrap();
    let port = |connection: &Connection| connection.client().server_info().port;
    let served_by = port(&connection);
    let file = if one.url().ends_with(&served_by.to_string()) { first } else { second };
    let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::USR2).unwrap();
    assert!(eventually(PATIENCE, async || connection.is_connected() && port(&connection) != served_by).await);
}

/// A URL as `tail.url` has it is enough to connect with.
#[tokio::test]
async fn user_and_password_may_stand_in_the_url() {
    let server = TestServer::builder().config("authorization { user: anna, password: secret }").start().await;
    let with = |userinfo: &str| NatsOptions {
        url: Some(server.url().replace("nats://", &format!("nats://{userinfo}@"))),
        ..NatsOptions::default()
    };
    let connection = Connection::connect(&with("anna:secret"), "test").await.unwrap();
    tokio::time::timeout(PATIENCE, connection.connected()).await.expect("it is let in");
    let stranger = Connection::connect(&with("anna:wrong"), "test").await.unwrap();
    let refused = tokio::time::timeout(Duration::from_millis(300), stranger.connected()).await;
    assert!(refused.is_err(), "the server asks for the password");
}

/// A server that asks for a certificate is spoken to with ours, and only when its own is trusted.
#[tokio::test]
async fn tls_goes_both_ways() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let [trusted, foreign] = ["trusted", "foreign"].map(|name| authority(&folder.path().join(name)));
    let file = |authority: &Path, name: &str| Some(FileRef::new(authority.join(name)));
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        trusted.join("cert.pem"),
        trusted.join("key.pem"),
        trusted.join("ca.pem")
    );
    let server = TestServer::builder().config(&tls).start().await;
    let with = |ca: &Path, own: &Path| {
        let tls = NatsTls { ca: file(ca, "ca.pem"), cert: file(own, "cert.pem"), key: file(own, "key.pem") };
        NatsOptions { tls, ..server.options() }
    };
    let welcome = Connection::connect(&with(&trusted, &trusted), "test").await.unwrap();
    tokio::time::timeout(PATIENCE, welcome.connected()).await.unwrap();
    for stranger in [with(&foreign, &trusted), with(&trusted, &foreign), server.options()] {
        let refused = Connection::connect(&stranger, "stranger").await.unwrap();
        let connected = tokio::time::timeout(Duration::from_millis(300), refused.connected()).await;
        assert!(connected.is_err(), "{:?}", stranger.tls);
    }
    let absent = NatsTls { ca: file(&trusted, "absent.pem"), ..NatsTls::default() };
    let error = Connection::connect(&NatsOptions { tls: absent, ..server.options() }, "test").await.unwrap_err();
    assert!(error.to_string().contains("[nats] tls.ca: file "), "{error}");
}

/// A folder with an authority and a certificate that it has signed for this machine.
fn authority(folder: &Path) -> PathBuf {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    fs::create_dir(folder).unwrap();
    for (name, pem) in [("ca.pem", issuer.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
        fs::write(folder.join(name), pem).unwrap();
    }
    folder.to_owned()
}

//! Gateway and admin over TLS, as processes, with the operator's own commands as clients.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
};

use futures_util::StreamExt as _;
use tokio::process::Command;
use weft_services::{
    mesh::{SOURCE, SUBSCRIPTION, Up, Wiring},
    process::Process,
    receiver::{Answer, Receiver},
};
use weft_testkit::{Authority, eventually};
use weft_tls::Listener;

use crate::{
    mesh::{PATIENCE, program, provide_tls},
    up::http,
};

/// Runs a command on the data folder, to its end.
async fn run(data: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program());
    command.args(args).env("WEFT_DATA", data).envs(env.iter().copied()).stdin(Stdio::null());
    command.kill_on_drop(true).output().await.unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The commands find the admin and trust its certificate by `client.toml` alone, or by `--ca`; they do not speak to one
/// that another authority vouches for.
#[tokio::test]
async fn a_mesh_speaks_tls_where_it_has_certificates() {
    provide_tls();
    let (authority, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let mut spec = Up::spec(&program(), folder.path(), &wiring.config(None)).unwrap();
    // The file that the commands trust is the chain that the admin shows: here, with the authority's own certificate.
    let chain = authority.path("chain.pem");
    let read = |path| fs::read_to_string(path).unwrap();
    fs::write(&chain, read(authority.cert()) + &read(authority.ca())).unwrap();
    for section in ["GATEWAY", "ADMIN"] {
        spec.env.push((format!("WEFT_{section}__TLS__CERT"), format!("file:{}", chain.display())));
        spec.env.push((format!("WEFT_{section}__TLS__KEY"), format!("file:{}", authority.key().display())));
    }
    let mut up = Process::start(&spec).unwrap();
    let endpoints = up.ready().await.unwrap();
    let (gateway, admin) = (endpoints.get("gateway").unwrap(), endpoints.get("admin").unwrap());
    assert!(gateway.starts_with("https://") && admin.starts_with("https://"), "{gateway} {admin}");

    let data = folder.path().join("data");
    let ca = authority.ca();
    let (ca, foreign) = (ca.to_str().unwrap(), other.ca());
    let send = ["event", "send", "--source", SOURCE, "--workflow", "w", "--type", "t", "--data", "{}"];
    let sender = |roots| [("WEFT_GATEWAY", gateway), ("WEFT_SECRET", &*wiring.sender_secret), ("SSL_CERT_FILE", roots)];
    let sent = run(&data, &send, &sender(ca)).await;
    assert!(sent.status.success(), "{}", stderr(&sent));
    assert_eq!(run(&data, &send, &sender(foreign.to_str().unwrap())).await.status.code(), Some(4));

    let tail = ["event", "tail", "--from-beginning", "--limit", "1"];
    let seen = run(&data, &tail, &[]).await;
    assert!(seen.status.success() && !seen.stdout.is_empty(), "{}", stderr(&seen));
    assert!(run(&data, &[&tail[..], &["--ca", ca]].concat(), &[]).await.status.success());
    let refused = run(&data, &[&tail[..], &["--ca", foreign.to_str().unwrap()]].concat(), &[]).await;
    assert_eq!(refused.status.code(), Some(4));
    assert!(stderr(&refused).contains("certificate") && stderr(&refused).lines().count() == 1, "{}", stderr(&refused));
    let absent = run(&data, &[&tail[..], &["--ca", "no-such.pem"]].concat(), &[]).await;
    assert_eq!(absent.status.code(), Some(2));
    assert_eq!(up.stop().await.unwrap().code(), Some(0));
}

/// A system without certificate authorities, such as a minimal container image: what needs none works, what needs one that
/// is not built in waits, is named, and loses nothing.
#[tokio::test]
async fn a_mesh_without_certificate_authorities_delivers() {
    provide_tls();
    for roots in ["/dev/null", "/nonexistent/ca.pem"] {
        let folder = tempfile::tempdir().unwrap();
        let wiring = Wiring::new();
        let listen = ([127, 0, 0, 1], 0).into();
        let receiver = Receiver::start(listen, &wiring.receiver_secret, |_| Answer::OK).await.unwrap();
        let secured = Listener::bind(listen, &Authority::new().options()).await.unwrap();
        let secured_url = format!("https://{}/", secured.local_addr);
        let secured = Box::pin(weft_tls::listener::secured(secured.tcp, secured.acceptor.unwrap()));
        let handshakes = tokio::spawn(secured.for_each(async |_| {}));

        let secret = &wiring.receiver_secret;
        let config = format!(
            "{}[[subscription]]\nname = \"secured\"\nretry = {{ max_retries = 0 }}\n\
             destination = {{ type = \"http\", url = \"{secured_url}\", secret = \"{secret}\" }}\n",
            wiring.config(Some(&receiver.url()))
        );
        let mut spec = Up::spec(&program(), folder.path(), &config).unwrap();
        let env = [("SSL_CERT_FILE", roots), ("SSL_CERT_DIR", "/nonexistent")];
        spec.env.extend(env.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let mut up = Process::start(&spec).unwrap();
        let endpoints = up.ready().await.unwrap();

        let data = folder.path().join("data");
        let gateway = endpoints.get("gateway").unwrap();
        let send = ["event", "send", "--source", SOURCE, "--workflow", "w", "--type", "t", "--data", "{}"];
        let with_sender = [&env[..], &[("WEFT_GATEWAY", gateway), ("WEFT_SECRET", &*wiring.sender_secret)]].concat();
        let sent = run(&data, &send, &with_sender).await;
        assert!(sent.status.success(), "{}", stderr(&sent));
        assert!(receiver.until(PATIENCE, |arrivals| !arrivals.is_empty()).await);
        let tested = run(&data, &["subscription", "test", SUBSCRIPTION], &env).await;
        assert!(tested.status.success(), "{}", stderr(&tested));

        let ready = format!("{}/readyz", endpoints.get("ops").unwrap());
        let names = async || http(&ready).await.1.contains("no TLS with 127.0.0.1");
        assert!(eventually(PATIENCE, names).await, "{:?}", http(&ready).await);
        let metrics = format!("{}/metrics", endpoints.get("ops").unwrap());
        let is_counted = async || http(&metrics).await.1.contains("weft_worker_receiver_away{");
        assert!(eventually(PATIENCE, is_counted).await, "{}", http(&metrics).await.1);
        let dead = run(&data, &["dlq", "list"], &env).await;
        assert!(dead.status.success() && dead.stdout.is_empty(), "{}", String::from_utf8_lossy(&dead.stdout));
        assert_eq!(up.stop().await.unwrap().code(), Some(0));
        let log = fs::read_to_string(folder.path().join("weft.log")).unwrap();
        let named = log.contains("SSL_CERT_FILE: file /nonexistent/ca.pem: ");
        assert_eq!(named, roots.starts_with("/nonexistent"), "a file that is missing is named");
        handshakes.abort();
    }
}

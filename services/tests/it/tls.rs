//! Gateway and admin over TLS, as processes, with the operator's own commands as clients.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
};

use tokio::process::Command;
use weft::{
    mesh::{SOURCE, Up, Wiring},
    process::Process,
};
use weft_tls::testing::Authority;

use crate::mesh::{program, provide_tls};

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

//! An external NATS server, configured by `weft nats config`.

use std::{collections::BTreeMap, path::Path, process::Command};

use weft_catalog::Catalog;
use weft_nats::{
    connect::Connection,
    options::NatsOptions,
    server::Role,
    streams::{self, LogSpec},
};
use weft_services::{
    apply::apply,
    config::Config,
    mesh::{RoleProcess, Wiring},
    receiver::{Answer, Receiver},
};
use weft_testkit::{MASTER_KEY, TestServer, eventually, master_key};

use crate::{
    mesh::{PATIENCE, post, program, provide_tls, send, sender_to},
    order,
};

/// The printed configuration is enough for roles in separate processes: each is its own user, only the admin creates the streams, and
/// events are delivered.
#[tokio::test(flavor = "multi_thread")]
async fn roles_run_apart_on_a_server_with_the_printed_accounts() {
    provide_tls();
    let (folder, wiring) = (tempfile::tempdir().unwrap(), Wiring::new());
    let [passwords, accounts, config] =
        ["passwords", "accounts.conf", "weft.toml"].map(|name| folder.path().join(name));
    std::fs::write(&config, "").unwrap();
    let print = |output: &Path| {
        let status = Command::new(program())
            .args(["nats", "config", "--config"])
            .arg(&config)
            .arg("--passwords")
            .arg(&passwords)
            .arg("--output")
            .arg(output)
            .status();
        assert!(status.unwrap().success());
        std::fs::read_to_string(output).unwrap()
    };
    let printed = print(&accounts);
    assert_eq!(printed, print(&folder.path().join("again.conf")), "passwords stay");

    // The server takes the path as relative to its own configuration.
    let include = format!("include \"../../../../../../../..{}\"", accounts.display());
    let server = TestServer::builder().config(&include).start().await;
    let env = |master: &str| {
        [
            ("WEFT_NATS__URL", server.url()),
            ("WEFT_NATS__PASSWORDS", passwords.to_str().unwrap()),
            ("WEFT_MASTER_KEY", master),
            ("WEFT_WORKER__ALLOW_NETWORKS", "127.0.0.0/8"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    };
    let start = |role: &str| RoleProcess::start(&program(), role, &folder.path().join(role), env(MASTER_KEY)).unwrap();
    let (mut gateway, mut worker) = (start("gateway"), start("worker"));
    let ready_url = format!("http://{}/readyz", gateway.variable("WEFT_OPS__LISTEN").unwrap());
    let waits = async || {
        let Ok(response) = reqwest::get(&ready_url).await else { return false };
        response.text().await.is_ok_and(|text| text.contains("waiting for the admin to create the streams"))
    };
    assert!(eventually(PATIENCE, waits).await);
    let mut admin = start("admin");
    for process in [&mut admin, &mut gateway, &mut worker] {
        process.ready().await.unwrap();
    }

    let options = NatsOptions { url: Some(server.url().into()), passwords: Some(passwords), ..NatsOptions::default() };
    let connection = Connection::connect(&options.of_role(Role::Admin), "operator").await.unwrap();
    connection.connected().await;
    let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
    let layout = streams::ensure(&connection, &spec).await.unwrap();
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, |arrival| {
        if arrival.attempt == 1 { Answer::now(500) } else { Answer::OK }
    });
    let receiver = receiver.await.unwrap();
    let text = wiring.config(Some(&receiver.url()));
    let config = Config::parse(Path::new("weft.toml"), text, [], None).unwrap();
    apply(&Catalog::new(connection, master_key()), layout, &config.catalog, "test").await.unwrap();
    let sender = sender_to(&gateway);
    // The gateway follows the catalog, within a second.
    let knows_source = async || post(&sender, &wiring, "w0", "0").await.is_ok_and(|answer| answer.status != 404);
    assert!(eventually(PATIENCE, knows_source).await);
    let mut events = BTreeMap::new();
    for number in 0..20 {
        let workflow = format!("w{}", number % 4);
        let receipt = send(&sender, &wiring, &workflow, &number.to_string()).await;
        events.insert(workflow, receipt.sequence_number);
    }
    let all = |arrivals: &[weft_services::receiver::Arrival]| {
        arrivals.iter().filter(|arrival| arrival.status == 200).count() >= 20
    };
    assert!(receiver.until(PATIENCE, all).await, "all are delivered");
    order::check(&receiver.arrivals(), &events).unwrap();
    for process in [&mut gateway, &mut worker, &mut admin] {
        assert_eq!(process.stop().await.unwrap().code(), Some(0));
    }
    for role in ["gateway", "worker", "admin"] {
        let log = std::fs::read_to_string(folder.path().join(role).join("weft.log")).unwrap();
        assert!(!log.to_lowercase().contains("violation"), "{role} is refused something: {log}");
    }
}

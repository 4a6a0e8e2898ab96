//! `/readyz` of a log of which something is missing or takes no writes.

use tokio_util::sync::CancellationToken;
use weft_services::{
    mesh::{Nats, RoleProcess, Wiring},
    receiver::Answer,
    sender::Sender,
};
use weft_testkit::{SmallDisk, eventually};

use crate::{
    mesh::{Mesh, PATIENCE, post, program, provide_tls},
    up::http,
};

fn ready_url(process: &RoleProcess) -> String {
    format!("http://{}/readyz", process.variable("WEFT_OPS__LISTEN").unwrap())
}

/// A stream that was removed is named by each role that uses it: as not ready where the role cannot do without it, else as
/// degraded.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_missing_are_named() {
    let mesh = Mesh::start(|_| Answer::OK).await;
    let connection = mesh.server.connection("test").await;
    let roles = [&mesh.gateway, &mesh.worker, &mesh.admin].map(ready_url);
    // 503, degraded, or nothing; in the order of the roles.
    for (stream, expected) in [
        ("REJECTED", ["degraded", "", "degraded"]),
        ("DLQ", ["", "degraded", "degraded"]),
        ("CHECKPOINTS", ["", "degraded", "degraded"]),
        ("KV_weft_catalog", ["degraded", "degraded", "503"]),
        ("COMMANDS", ["", "503", "503"]),
        ("OUTCOMES", ["", "503", "503"]),
        ("EVENTS", ["503", "503", "503"]),
    ] {
        connection.jetstream().delete_stream(stream).await.unwrap();
        for (url, expected) in roles.iter().zip(expected) {
            let mut last = (0, String::new());
            let named = eventually(PATIENCE, async || {
                last = http(url).await;
                let (status, text) = &last;
                match expected {
                    "503" => {
                        *status == 503
                            && text.lines().any(|line| !line.starts_with("degraded") && line.contains(stream))
                    }
                    "degraded" => {
                        text.lines().any(|line| line.starts_with(&format!("degraded: stream {stream}: missing")))
                    }
                    _ => true,
                }
            });
            assert!(named.await, "{stream} at {url}, expected {expected:?}: {last:?}");
        }
    }
}

/// Roles on a server whose disk is full say that the log takes no writes, and need no restart when it takes them again.
#[tokio::test(flavor = "multi_thread")]
async fn roles_on_a_server_with_a_full_disk_say_so_and_recover() {
    provide_tls();
    let (folder, wiring) = (tempfile::tempdir().unwrap(), Wiring::new());
    let nats_folder = folder.path().join("server");
    let Some(disk) = SmallDisk::mount(&nats_folder, 64 << 20) else { return };
    let nats = Nats::start(&program(), &nats_folder, CancellationToken::new()).await.unwrap();
    nats.configure(&wiring.config(None)).await.unwrap();
    let environment = nats.environment("gateway").unwrap();
    let mut gateway = RoleProcess::start(&program(), "gateway", &folder.path().join("gateway"), environment).unwrap();
    gateway.ready().await.unwrap();
    let url = ready_url(&gateway);
    let sender = Sender::new(&format!("http://{}", gateway.variable("WEFT_GATEWAY__LISTEN").unwrap())).unwrap();
    let status = async |id: u32| post(&sender, &wiring, "w", &id.to_string()).await.unwrap().status;
    assert!(eventually(PATIENCE, async || status(0).await / 100 == 2).await);

    disk.fill().unwrap();
    let mut id = 0;
    let refused = eventually(PATIENCE, async || {
        id += 1;
        status(id).await == 503
    });
    assert!(refused.await, "nothing is stored any more");
    let mut text = String::new();
    let named = eventually(PATIENCE, async || {
        text = http(&url).await.1;
        text.contains("EVENTS has taken no writes for") && text.contains("make room")
    });
    assert!(named.await, "{text}");

    // The server's supervisor restarts it. Without senders the gateway detects that.
    disk.make_room().unwrap();
    let ready = eventually(PATIENCE, async || {
        let (status, body) = http(&url).await;
        text = body;
        status == 200
    });
    assert!(ready.await, "{text}");
    assert!(eventually(PATIENCE, async || status(id).await / 100 == 2).await, "it takes events again");
}

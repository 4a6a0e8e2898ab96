//! The roles as separate processes.

use std::collections::BTreeMap;

use weft_nats::streams::{self, LogSpec};
use weft_services::receiver::Answer;
use weft_testkit::{TestServer, eventually};

use crate::mesh::{Mesh, PATIENCE, provide_tls, role};

/// Killed in the middle and started again, the roles continue where they were: nothing lost, nothing out of order.
#[tokio::test]
async fn killed_roles_go_on_where_they_were() {
    let mut mesh = Mesh::start(|arrival| if arrival.attempt == 1 { Answer::now(500) } else { Answer::OK }).await;
    let mut sent = BTreeMap::new();
    for round in 0..3 {
        for workflow in ["a", "b"] {
            for number in 0..5 {
                mesh.send(workflow, &format!("{workflow}-{round}-{number}")).await;
                *sent.entry(workflow.to_owned()).or_default() += 1;
            }
        }
        match round {
            0 => mesh.worker.restart().await.unwrap(),
            1 => mesh.gateway.restart().await.unwrap(),
            _ => {}
        }
    }
    mesh.assert_delivered(&sent).await;
    for process in [&mut mesh.gateway, &mut mesh.worker, &mut mesh.admin] {
        assert_eq!(process.stop().await.unwrap().code(), Some(0));
    }
}

/// nats-server down at start: the roles stay up, say what is missing, and become ready when it comes.
#[tokio::test]
async fn roles_wait_for_a_server_that_is_not_there() {
    let server = TestServer::start().await;
    server.kill();
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = role("gateway", "gateway", &server, folder.path());
    provide_tls();
    let ready_url = format!("http://{}/readyz", gateway.variable("WEFT_OPS__LISTEN").unwrap());
    let says = async |status: u16, part: &str| {
        let Ok(response) = reqwest::get(&ready_url).await else { return false };
        response.status().as_u16() == status && response.text().await.is_ok_and(|text| text.contains(part))
    };
    assert!(eventually(PATIENCE, async || says(503, "nats").await).await);
    server.restart().await;
    assert!(eventually(PATIENCE, async || says(503, "waiting for the admin to create the streams").await).await);
    let spec = LogSpec { body_bytes_max: 1 << 20, ..LogSpec::default() };
    streams::ensure(&server.connection("admin").await, &spec).await.unwrap();
    gateway.ready().await.unwrap();
    assert!(eventually(PATIENCE, async || says(200, "ready").await).await);
    assert_eq!(gateway.stop().await.unwrap().code(), Some(0));
}

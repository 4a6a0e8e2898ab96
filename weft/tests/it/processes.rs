//! The processes of a mesh and what they leave on the machine.
//!
//! `WEFT_SOAK_SERVER_FAULTS` says how often nats-server is killed and stopped, `WEFT_SOAK_STOP_SECONDS` for how long it is
//! stopped once.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use weft_services::{
    command::admin::AdminClient,
    mesh::{Up, Wiring},
    process::Process,
    receiver::{Answer, Receiver},
};
use weft_testkit::eventually;

use crate::{
    mesh::{PATIENCE, program, provide_tls, send},
    order,
    up::http,
};

const FAULTS: u64 = 3;
const STOP_SECONDS: u64 = 6;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn server(data: &Path) -> Pid {
    let text = fs::read_to_string(data.join("nats/nats.pid")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

/// P1, P3: a nats-server that is killed, or stopped for longer than leases and time-outs last, needs no restart of the mesh.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_or_stopped_needs_no_restart_of_ours() {
    provide_tls();
    let (faults, stop) = (number("WEFT_SOAK_SERVER_FAULTS", FAULTS), number("WEFT_SOAK_STOP_SECONDS", STOP_SECONDS));
    let (folder, wiring) = (tempfile::tempdir().unwrap(), Wiring::new());
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, |_| Answer::OK).await.unwrap();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
    let data = folder.path().join("data");
    let (sender, ops) = (up.sender().unwrap(), up.endpoints.get("ops").unwrap().to_owned());
    let mut sent = 0;
    for fault in 0..=faults {
        for _ in 0..5 {
            sent += 1;
            send(&sender, &wiring, "w", &sent.to_string()).await;
        }
        let server = server(&data);
        if fault == 0 {
            kill_process(server, Signal::STOP).unwrap();
            tokio::time::sleep(Duration::from_secs(stop)).await;
            kill_process(server, Signal::CONT).unwrap();
        } else {
            kill_process(server, Signal::KILL).unwrap();
        }
        sent += 1;
        send(&sender, &wiring, "w", &sent.to_string()).await;
        let ready = async || http(&format!("{ops}/readyz")).await == (200, "ready\n".into());
        assert!(eventually(PATIENCE, ready).await, "fault {fault}: {}", http(&format!("{ops}/readyz")).await.1);
    }
    let all = receiver.until(PATIENCE, |arrivals| arrivals.iter().any(|arrival| arrival.sequence_number == sent));
    assert!(all.await, "all are delivered");
    order::check(&receiver.arrivals(), &BTreeMap::from([("w".to_owned(), sent)])).unwrap();
    assert_eq!(up.stop().await.unwrap().code(), Some(0));
}

/// Everything below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // A file may be gone by now.
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// Files of a mesh are readable by its owner only, with any umask; and a folder that others can read
/// causes a warning.
#[tokio::test]
async fn only_the_owner_may_read_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = Up::spec(&program(), folder.path(), "").unwrap();
    let script = "umask 000; exec \"$0\" \"$@\"";
    spec.args.splice(0..0, ["-c".into(), script.into(), spec.program.clone().into()]);
    spec.program = "/bin/sh".into();
    let mut process = Process::start_with(&program(), &spec).unwrap();
    process.ready().await.unwrap();
    let open: Vec<_> = below(&data)
        .into_iter()
        .filter(|path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0))
        .collect();
    assert_eq!(open, Vec::<PathBuf>::new());
    let log = fs::read_to_string(&spec.log).unwrap();
    assert!(log.contains("chmod 700"), "{log}");
    assert_eq!(process.stop().await.unwrap().code(), Some(0));
}

/// Wrong keys are counted, warned of once, and limited; a good one is served meanwhile.
#[tokio::test]
async fn failed_authentications_are_limited_logged_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(&program(), folder.path(), "").await.unwrap();
    let admin = up.endpoints.get("admin").unwrap().to_owned();
    let wrong = AdminClient::connect(admin, "not-the-token", None).await.unwrap();
    let good = up.admin().await.unwrap();
    let list = async |client: &AdminClient| {
        let request = client.request(weft_proto::v1::ListSourcesRequest::default());
        client.catalog().list_sources(request).await.map_err(|status| status.code())
    };
    let mut answers = Vec::new();
    for _ in 0..100 {
        answers.push(list(&wrong).await.unwrap_err());
    }
    let limited = answers.iter().filter(|code| **code == tonic::Code::ResourceExhausted).count();
    assert_eq!((answers[0], limited), (tonic::Code::Unauthenticated, 40));
    assert!(list(&good).await.is_ok(), "a good key is served");
    let ops = up.endpoints.get("ops").unwrap();
    for (code, count) in [("UNAUTHENTICATED", 60), ("RESOURCE_EXHAUSTED", 40), ("OK", 1)] {
        let mut metrics = String::new();
        let is_counted = eventually(PATIENCE, async || {
            metrics = http(&format!("{ops}/metrics")).await.1;
            metrics.lines().any(|line| {
                line.starts_with("weft_admin_requests_total{")
                    && line.contains("CatalogService/ListSources")
                    && line.contains(code)
                    && line.ends_with(&format!(" {count}"))
            })
        });
        assert!(is_counted.await, "{code}: {metrics}");
    }
    assert_eq!(up.stop().await.unwrap().code(), Some(0));
    let log = fs::read_to_string(folder.path().join("weft.log")).unwrap();
    assert_eq!(log.matches("authentication failed").count(), 1);
    assert!(!log.contains("not-the-token"));
}

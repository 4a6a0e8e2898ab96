//! Disks that are full, and disks that are small.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use weft_services::{
    mesh::{Up, Wiring},
    receiver::{Answer, Receiver},
    sender::Sender,
};
use weft_testkit::{SmallDisk, eventually};

use crate::{
    mesh::{PATIENCE, post, program, provide_tls},
    order,
    up::http,
};

/// A refusal that needs no answer of the log.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn receiver(wiring: &Wiring) -> Receiver {
    provide_tls();
    Receiver::start(([127, 0, 0, 1], 0).into(), &wiring.receiver_secret, |_| Answer::OK).await.unwrap()
}

/// A mesh whose data folder is on a separate disk.
async fn up(folder: &Path, wiring: &Wiring, receiver: &Receiver) -> Up {
    match Up::start(&program(), folder, &wiring.config(Some(&receiver.url()))).await {
        Ok(up) => up,
        Err(error) => panic!("{error:#}"),
    }
}

/// Sends an event until it is accepted, for any reason that it is refused for meanwhile.
async fn is_accepted(sender: &Sender, wiring: &Wiring, workflow: &str, id: &str) -> bool {
    eventually(PATIENCE, async || {
        let answer = post(sender, wiring, workflow, id).await;
        answer.is_ok_and(|answer| answer.receipt().is_some())
    })
    .await
}

/// P1, P5: a disk that is full again and again refuses events while it is, loses none, and needs no person but to make room.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_heals_from_a_full_disk_by_itself() {
    let wiring = Wiring::new();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(disk) = SmallDisk::mount(&data, 192 << 20) else { return };
    let receiver = receiver(&wiring).await;
    let mut up = up(folder.path(), &wiring, &receiver).await;
    let sender = up.sender().unwrap();
    let ops = up.endpoints.get("ops").unwrap().to_owned();
    let mut events = BTreeMap::new();
    for round in 0..2 {
        let workflow = format!("w{round}");
        for number in 0..20 {
            assert!(is_accepted(&sender, &wiring, &workflow, &format!("{round}-{number}")).await);
        }
        disk.fill().unwrap();
        // Under load: some are still answered by the log, until it has met the end of the disk.
        let mut sent = 20;
        let full = eventually(PATIENCE, async || {
            let asked = Instant::now();
            let answer = post(&sender, &wiring, &workflow, &format!("{round}-{sent}")).await.unwrap();
            if answer.receipt().is_some() {
                sent += 1;
                return false;
            }
            assert_eq!(answer.status, 503, "{:?}", answer.detail());
            answer.code().as_deref() == Some("log_unavailable") && asked.elapsed() < AT_ONCE
        });
        assert!(full.await, "it is refused at once");
        let mut shown = (0, String::new());
        let is_named = eventually(PATIENCE, async || {
            shown = http(&format!("{ops}/readyz")).await;
            shown.0 == 503 && shown.1.contains("nats: disk full: ")
        });
        assert!(is_named.await, "{shown:?}");

        disk.make_room().unwrap();
        assert!(is_accepted(&sender, &wiring, &workflow, &format!("{round}-{sent}")).await);
        events.insert(workflow, sent + 1);
        let ready = async || http(&format!("{ops}/readyz")).await == (200, "ready\n".into());
        assert!(eventually(PATIENCE, ready).await, "{}", http(&format!("{ops}/readyz")).await.1);
    }
    // Some may have been delivered twice: what is not recorded on a full disk is repeated.
    receiver.until(PATIENCE, |arrivals| order::check(arrivals, &events).is_ok()).await;
    order::check(&receiver.arrivals(), &events).unwrap();
    assert_eq!(up.stop().await.unwrap().code(), Some(0));
}

/// A small disk holds a log, and still does when other files have taken half of it between two starts.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_disk_holds_a_log_through_starts_with_less_and_less_room() {
    let wiring = Wiring::new();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(disk) = SmallDisk::mount(&data, 120 << 20) else { return };
    let receiver = receiver(&wiring).await;
    for (start, taken) in [0, 40 << 20, 20 << 20].into_iter().enumerate() {
        disk.take(taken).unwrap();
        let mut up = up(folder.path(), &wiring, &receiver).await;
        let sender = up.sender().unwrap();
        assert!(is_accepted(&sender, &wiring, "w", &start.to_string()).await);
        assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() > start).await);
        assert_eq!(up.stop().await.unwrap().code(), Some(0));
    }
    order::check(&receiver.arrivals(), &BTreeMap::from([("w".to_owned(), 3)])).unwrap();
}

//! Many subscriptions in one worker.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use rustix::time::{ClockId, clock_gettime};
use weft_proto::v1;

use crate::support::{Log, Receiver, Running};

/// Subscriptions to one type of one source each, which take nothing of what comes.
async fn idle_subscriptions(log: &Log, receiver: &Receiver, count: usize) {
    let subscribe = async |n: usize| {
        let with = |subscription: &mut v1::Subscription| {
            subscription.types = vec![format!("invoice.{n}.*"), format!("refund.{n}")];
            subscription.sources = vec![format!("source-{}", n % 100)];
        };
        log.subscribe_with(&format!("idle-{n}"), receiver, 1, with).await;
    };
    stream::iter(0..count).map(subscribe).buffer_unordered(32).collect::<Vec<_>>().await;
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// A subscription that is made after a hundred others that take other types and sources gets its events, and they get
/// none.
#[tokio::test(flavor = "multi_thread")]
async fn each_subscription_gets_what_it_takes_and_nothing_else() {
    let mut log = Log::start().await;
    let (idle, busy) = (Receiver::start(|_| 200).await, Receiver::start(|_| 200).await);
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start(&log, folder.path());
    idle_subscriptions(&log, &idle, 100).await;
    let takes = |subscription: &mut v1::Subscription| {
        subscription.types = vec!["refund".into(), "*.paid".into()];
        subscription.sources = vec!["other".into(), "shop".into()];
    };
    log.subscribe_with("busy", &busy, 1, takes).await;
    log.events(20, 2).await;
    busy.until_delivered(20).await;
    worker.stop().await;
    assert_eq!(idle.until(|_| true).await.len(), 0);
}

/// How long a worker takes to follow a growing catalog, to start on it, and what an event costs. For people:
/// `WEFT_MEASURE=1 cargo test -p weft-worker --test it -- --nocapture costs_of_many_subscriptions`.
#[tokio::test(flavor = "multi_thread")]
async fn costs_of_many_subscriptions() {
    if std::env::var_os("WEFT_MEASURE").is_none() {
        return;
    }
    const EVENTS: usize = 5000;
    for count in [0, 1000, 4000] {
        let mut log = Log::start().await;
        let receiver = Receiver::start(|_| 200).await;
        let folder = tempfile::tempdir().unwrap();
        let mut worker = Running::start(&log, folder.path());
        worker.until_missing(|missing| missing.is_none()).await;
        let (wall, spent) = (Instant::now(), cpu());
        idle_subscriptions(&log, &receiver, count).await;
        let start = log.end() + 1;
        log.subscribe_with("busy", &receiver, start, |subscription| subscription.types = vec!["order.paid".into()])
            .await;
        log.events(1, 1).await;
        receiver.until_delivered(1).await;
        println!("{count} subscriptions: followed in {:?}, CPU {:?}", wall.elapsed(), cpu() - spent);
        worker.stop().await;
        let (wall, spent) = (Instant::now(), cpu());
        let worker = Running::start(&log, folder.path());
        log.events(1, 1).await;
        receiver.until_delivered(2).await;
        println!("{count} subscriptions: started in {:?}, CPU {:?}", wall.elapsed(), cpu() - spent);
        let spent = cpu();
        log.events(EVENTS, 100).await;
        receiver.until_delivered(EVENTS + 2).await;
        println!("{count} subscriptions: CPU an event {:?}", (cpu() - spent) / EVENTS as u32);
        worker.stop().await;
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

/// Memory of a worker for workflows that fail while their receiver accepts others. For people, as above.
#[tokio::test(flavor = "multi_thread")]
async fn costs_of_many_failing_lanes() {
    if std::env::var_os("WEFT_MEASURE").is_none() {
        return;
    }
    const LANES: usize = 16_000;
    let mut log = Log::start().await;
    let receiver = Receiver::start(|request| if request.workflow == "healthy" { 200 } else { 404 }).await;
    let retry = v1::Retry { schedule_ms: vec![3_600_000], ..v1::Retry::default() };
    log.subscribe_with("billing", &receiver, 1, |subscription| subscription.retry = Some(retry)).await;
    let folder = tempfile::tempdir().unwrap();
    let before = resident_kib();
    let worker = Running::start(&log, folder.path());
    let failing: Vec<String> = (0..LANES).map(|n| format!("w{n}")).collect();
    for (n, some) in failing.chunks(100).enumerate() {
        log.events_of(some.len(), some).await;
        log.events_of(1, &["healthy".to_owned()]).await;
        receiver.until(|requests| requests.len() >= (n + 1) * 101).await;
    }
    println!("{LANES} failing lanes: {} KiB, with what the receiver keeps of them", resident_kib() - before);
    worker.abort().await;
    let before = resident_kib();
    let worker = Running::start(&log, folder.path());
    log.events_of(1, &["healthy".to_owned()]).await;
    receiver
        .until(|requests| requests.iter().filter(|request| request.workflow == "healthy").count() > LANES / 100)
        .await;
    println!("{LANES} failing lanes, taken over: {} KiB", resident_kib().saturating_sub(before));
    worker.stop().await;
}

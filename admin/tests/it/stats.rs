//! `StatsService`: counts and percentiles by minute, and what waits.

use tonic::Code;
use weft_proto::{
    ids::ShardId,
    internal::{self, OutcomeKind},
    v1::{self, SubscriptionCondition},
};
use weft_testkit::eventually;

use crate::{
    catalog::subscription,
    mesh::{BILLING, Mesh, PATIENCE, attempt, opening, outcome, reason},
};

async fn stats(mesh: &Mesh) -> v1::Stats {
    let answer = mesh.admin.stats().get_stats(v1::GetStatsRequest::default()).await.unwrap();
    answer.into_inner().stats.unwrap()
}

#[tokio::test]
async fn stats_are_of_the_log_and_survive_a_rebuild() {
    let mut mesh = Mesh::start(1).await;
    let billing = v1::Subscription { uid: BILLING.to_vec(), ..subscription("billing", "https://a.example/") };
    mesh.kv().put_subscription(&billing, 0).await.unwrap();
    let (first, first_seq) = mesh.event("order-1", "{}").await;
    let (_, second) = mesh.event("order-1", "{}").await;
    let (_, third) = mesh.event("order-1", "{}").await;
    let lane = internal::Lane {
        subscription: BILLING.to_vec(),
        workflow_id: "order-1".into(),
        next: second,
        last: third,
        attempts: 1,
        state: internal::LaneState::Blocked.into(),
        ..Default::default()
    };
    let commit = internal::Commit {
        cursor: third,
        attempts: vec![attempt(second, 0, 1, 0)],
        outcomes: vec![outcome("order-1", first, first_seq, 0, OutcomeKind::Delivered)],
        lanes: vec![lane],
        ..opening()
    };
    mesh.commit(ShardId(0), commit).await;

    let is_seen = |stats: &v1::Stats| {
        stats.subscriptions.iter().any(|billing| billing.subscription == "billing" && billing.backlog == 2)
    };
    assert!(eventually(PATIENCE, async || is_seen(&stats(&mesh).await)).await, "{:?}", stats(&mesh).await);
    let seen = stats(&mesh).await;
    let total = seen.total.unwrap();
    assert_eq!((total.accepted, total.delivered), (3, 1));
    let billing = &seen.subscriptions[0];
    assert_eq!(billing.condition(), SubscriptionCondition::Active);
    assert_eq!((billing.blocked_lanes, billing.backlog_is_bound), (1, false));
    assert!(billing.oldest_pending_at.is_some());
    assert_eq!(seen.latencies.unwrap().accept.unwrap().count, 3);
    let events = seen.streams.iter().find(|stream| stream.stream == "EVENTS").unwrap();
    assert_eq!((events.last_sequence, events.matched_sequence), (third, third));
    assert!(events.bytes > 0);
    let points: u64 = seen.points.iter().map(|point| point.counts.unwrap().accepted).sum();
    assert_eq!((points, seen.points.len()), (3, 60), "the series adds up and has no gaps");

    mesh.restart_admin(|folder| std::fs::remove_file(folder.join("history.redb")).unwrap()).await;
    assert_eq!(stats(&mesh).await.total.unwrap(), total, "a rebuilt file has the same counts");

    let wrong = v1::GetStatsRequest { step_minutes: 1, since: Some(prost_types::Timestamp::default()), until: None };
    assert_eq!(reason(mesh.admin.stats().get_stats(wrong).await), (Code::InvalidArgument, "BAD_QUERY".into()));
}

/// A watcher sees what happens without asking again.
#[tokio::test]
async fn a_watch_goes_on() {
    let mut mesh = Mesh::start(1).await;
    let interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let request = v1::WatchStatsRequest { interval, ..Default::default() };
    let mut watch = mesh.admin.stats().watch_stats(request).await.unwrap().into_inner();
    let accepted = async |watch: &mut tonic::Streaming<v1::WatchStatsResponse>| {
        let response = watch.message().await.unwrap().unwrap();
        response.stats.unwrap().total.unwrap().accepted
    };
    assert_eq!(accepted(&mut watch).await, 0);
    mesh.event("order-1", "{}").await;
    let seen = tokio::time::timeout(PATIENCE, async { while accepted(&mut watch).await == 0 {} });
    seen.await.expect("the event is seen");
}

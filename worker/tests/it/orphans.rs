//! Subscriptions that the catalog has lost without a removal: they keep everything.

use weft_catalog::Catalog;
use weft_nats::{conditions::Conditions, streams};
use weft_proto::{
    internal::{self, command::Action, outcome_record::Record, subscription_change::Change},
    v1,
};
use weft_testkit::{eventually, master_key};

use crate::support::{Log, PATIENCE, Receiver, Running, delete};

/// A worker, and what it reports.
fn start(log: &Log, folder: &std::path::Path) -> (Running, Conditions) {
    let conditions = Conditions::default();
    let worker = Running::start_with(log, folder, |worker| worker.conditions(conditions.clone()));
    (worker, conditions)
}

/// Waits until the worker says this.
async fn until_said(conditions: &Conditions, text: &str) {
    let said = async || conditions.lines().iter().any(|line| line.contains(text));
    assert!(eventually(PATIENCE, said).await, "{text:?} in {:?}", conditions.lines());
}

async fn until_nothing_is_said(conditions: &Conditions) {
    assert!(eventually(PATIENCE, async || conditions.lines().is_empty()).await, "{:?}", conditions.lines());
}

/// Deletes an entry that cannot be read, as an operator may: it leaves no removal.
async fn purge(log: &Log, name: &str) {
    let bucket = log.connection.jetstream().get_stream("KV_weft_catalog").await.unwrap();
    bucket.purge().filter(format!("$KV.weft_catalog.subscription.{name}")).await.unwrap();
}

async fn closings(log: &Log) -> Vec<internal::Closed> {
    let commits = log.commits(|_| true).await;
    let changes = commits.into_iter().flat_map(|commit| commit.subscriptions);
    changes
        .filter_map(|change| match change.change {
            Some(Change::Closed(closed)) => Some(closed),
            _ => None,
        })
        .collect()
}

/// A log with five events that wait for a receiver that is away, and no worker.
async fn with_a_backlog(log: &mut Log, receiver: &Receiver, folder: &std::path::Path) -> v1::Subscription {
    let retry = v1::Retry { schedule_ms: vec![500; 100], ..Default::default() };
    let bar = log.subscribe_with("bar", receiver, 1, |subscription| subscription.retry = Some(retry)).await;
    let worker = Running::start(log, folder);
    log.events(5, 5).await;
    receiver.until(|requests| requests.len() >= 5).await;
    worker.stop().await;
    bar
}

/// Puts a subscription into the catalog with its uid, for a receiver that takes it.
async fn adopt(log: &Log, bar: &v1::Subscription, receiver: &Receiver) {
    let mut bar = bar.clone();
    let Some(v1::destination::Kind::Http(http)) = bar.destination.as_mut().and_then(|found| found.kind.as_mut()) else {
        panic!("a destination")
    };
    http.url = format!("http://{}/", receiver.address);
    Catalog::new(log.connection.clone(), master_key()).put_subscription(&bar, 0).await.unwrap();
}

/// P5: a subscription whose entry was purged keeps its backlog and what comes meanwhile, and delivers it when its entry is
/// there again. Before, its backlog was discarded without an operator.
#[tokio::test(flavor = "multi_thread")]
async fn a_purged_subscription_keeps_everything_until_it_is_adopted() {
    let mut log = Log::start().await;
    let (away, back) = (Receiver::start(|_| 503).await, Receiver::start(|_| 200).await);
    let folder = tempfile::tempdir().unwrap();
    let bar = with_a_backlog(&mut log, &away, folder.path()).await;
    purge(&log, "bar").await;
    let (worker, conditions) = start(&log, folder.path());
    until_said(&conditions, "orphaned subscription bar").await;
    let before = away.requests.lock().unwrap().len();
    log.events(5, 5).await;
    worker.stop().await;
    assert!(conditions.lines().is_empty(), "another worker may own the shard: {:?}", conditions.lines());
    let (worker, conditions) = start(&log, folder.path());
    until_said(&conditions, "weft subscription adopt bar").await;
    assert_eq!(away.requests.lock().unwrap().len(), before, "nothing is attempted");

    adopt(&log, &bar, &back).await;
    let requests = back.until_delivered(10).await;
    crate::support::assert_in_order(&requests, 5, 2);
    until_nothing_is_said(&conditions).await;
    let outcomes = log.outcomes(10).await;
    worker.stop().await;
    assert!(outcomes.iter().all(|outcome| outcome.kind() == internal::OutcomeKind::Delivered), "{outcomes:?}");
    assert_eq!(closings(&log).await, []);
}

/// An operator's discard closes it in the operator's name, once; of a subscription that is in the catalog it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn only_an_operator_discards_an_orphan() {
    let mut log = Log::start().await;
    let (away, other) = (Receiver::start(|_| 503).await, Receiver::start(|_| 200).await);
    let folder = tempfile::tempdir().unwrap();
    let bar = with_a_backlog(&mut log, &away, folder.path()).await;
    let kept = log.subscribe("kept", &other, 1).await;
    purge(&log, "bar").await;
    let (worker, conditions) = start(&log, folder.path());
    until_said(&conditions, "orphaned subscription bar").await;
    for (request_id, subscription) in [("one", &kept), ("two", &bar), ("three", &bar)] {
        let subscription = subscription.uid.clone();
        let discard = internal::DiscardSubscription { subscription, subscription_name: "bar".into() };
        let command = internal::Command {
            request_id: request_id.into(),
            operator: "ann".into(),
            reason: "it is gone".into(),
            action: Some(Action::DiscardSubscription(discard)),
            ..Default::default()
        };
        log.publish("commands.0", &command).await;
    }
    let results = |commits: &[internal::Commit]| -> Vec<internal::CommandStatus> {
        let results = commits.iter().flat_map(|commit| &commit.results);
        results.flat_map(|result| &result.items).map(internal::ItemResult::status).collect()
    };
    let commits = log.commits(|commits| results(commits).len() == 3).await;
    use internal::CommandStatus::{NotApplicable, Taken};
    assert_eq!(results(&commits), [NotApplicable, Taken, NotApplicable]);
    until_nothing_is_said(&conditions).await;
    other.until_delivered(5).await;
    worker.stop().await;
    let closings = closings(&log).await;
    let [closed] = &closings[..] else { panic!("closed once: {closings:?}") };
    assert_eq!((closed.operator.as_str(), closed.reason.as_str(), closed.up_to), ("ann", "it is gone", 5));
}

/// A bucket that was created again says nothing about what it lacks, nor do removals in it about what came before.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_was_created_again_discards_nothing() {
    let mut log = Log::start().await;
    let (away, back) = (Receiver::start(|_| 503).await, Receiver::start(|_| 200).await);
    let folder = tempfile::tempdir().unwrap();
    let bar = with_a_backlog(&mut log, &away, folder.path()).await;
    log.connection.jetstream().delete_stream("KV_weft_catalog").await.unwrap();
    streams::ensure(&log.connection, &log.spec).await.unwrap();
    let (worker, conditions) = start(&log, folder.path());
    until_said(&conditions, "the bucket was created again").await;
    until_said(&conditions, "orphaned subscription bar").await;
    adopt(&log, &bar, &back).await;
    back.until_delivered(5).await;
    until_nothing_is_said(&conditions).await;

    // From now on it is one of this bucket, and its removal counts.
    delete(&Catalog::new(log.connection.clone(), master_key()), "bar").await;
    log.commits(|commits| {
        let changes = commits.iter().flat_map(|commit| &commit.subscriptions);
        changes.filter(|change| matches!(change.change, Some(Change::Closed(_)))).count() == 1
    })
    .await;
    worker.stop().await;
    assert_eq!(closings(&log).await[0].operator, "ann");
}

/// A catalog that ends before what the shard has acted on was restored from an earlier copy: its removals are older than
/// what the shard knows, and close nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_was_restored_from_an_earlier_copy_discards_nothing() {
    let mut log = Log::start().await;
    let away = Receiver::start(|_| 503).await;
    let folder = tempfile::tempdir().unwrap();
    let bar = with_a_backlog(&mut log, &away, folder.path()).await;
    delete(&Catalog::new(log.connection.clone(), master_key()), "bar").await;
    // As if the shard had acted on a later catalog, in which the subscription was there again.
    let commits = log.commits(|_| true).await;
    let last = commits.last().unwrap();
    let known =
        commits.iter().flat_map(|commit| &commit.subscriptions).rfind(|change| change.catalog.is_some()).unwrap();
    let catalog = internal::CatalogPosition { sequence: 1_000, ..known.catalog.unwrap() };
    let revised =
        internal::Revised { revision: 900, from: last.cursor + 1, types: vec!["*".into()], ..Default::default() };
    let change = internal::SubscriptionChange {
        subscription: bar.uid.clone(),
        change: Some(Change::Revised(revised)),
        catalog: Some(catalog),
    };
    let (outcomes, attempts, lanes) = (vec![], vec![], vec![]);
    let (runs, results, subscriptions) = (vec![], vec![], vec![change]);
    let later = internal::Commit { outcomes, attempts, lanes, runs, results, subscriptions, ..last.clone() };
    log.publish("outcomes.0", &internal::OutcomeRecord { record: Some(Record::Commit(later)) }).await;

    let (worker, conditions) = start(&log, folder.path());
    until_said(&conditions, "waiting for the rest").await;
    until_said(&conditions, "restored from an earlier copy").await;
    until_said(&conditions, "orphaned subscription bar").await;
    worker.stop().await;
    assert_eq!(closings(&log).await, []);
}

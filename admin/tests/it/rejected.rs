//! `RejectedService`: listed newest first, shown, and retried by any gateway that answers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Code;
use weft_nats::{
    connect::Connection,
    direct, streams,
    subject::{RETRY_QUEUE, RETRY_SUBJECT, rejected},
};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq},
    internal::{self, RetryEntry, command::Action},
    v1::{self, Rejected, RejectedHeader, RetriedRejected},
};

use crate::mesh::{Mesh, reason};

const BODY: &[u8] = b"{\"n\":1}";

/// Stores an entry as a gateway does.
async fn store(connection: &Connection, source: &str, code: &str, second: i64) {
    let entry = Rejected {
        source: source.into(),
        code: code.into(),
        received_at: Some(prost_types::Timestamp { seconds: second, nanos: 0 }),
        headers: vec![RejectedHeader { name: "webhook-id".into(), value: format!("evt_{second}") }],
        body: BODY.into(),
        ..Rejected::default()
    };
    let ack = connection.jetstream().publish(rejected(source), entry.encode_to_vec().into()).await.unwrap();
    ack.await.unwrap();
}

async fn list(mesh: &Mesh, request: v1::ListRejectedRequest) -> v1::ListRejectedResponse {
    mesh.admin.rejected().list_rejected(request).await.unwrap().into_inner()
}

/// The ids of all pages, and how many pages that were.
async fn pages(mesh: &Mesh, request: v1::ListRejectedRequest) -> (Vec<String>, usize) {
    let (mut ids, mut count, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let page = list(mesh, v1::ListRejectedRequest { page_token, ..request.clone() }).await;
        assert!(page.rejected.iter().all(|entry| entry.body.is_empty()));
        ids.extend(page.rejected.into_iter().map(|entry| entry.id));
        count += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return (ids, count);
        }
    }
}

/// A stand-in for a gateway that answers by a rule and reports the requested entries.
async fn gateway(mesh: &Mesh, rule: impl Fn(u64) -> RetriedRejected + Send + 'static) -> mpsc::UnboundedReceiver<u64> {
    let client = mesh.server.connection("gateway").await.client().clone();
    let mut requests = client.queue_subscribe(RETRY_SUBJECT, RETRY_QUEUE.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    let (told, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let sequence = RetryEntry::decode(request.payload).unwrap().sequence;
            told.send(sequence).unwrap();
            client.publish(request.reply.unwrap(), rule(sequence).encode_to_vec().into()).await.unwrap();
        }
    });
    asked
}

#[tokio::test]
async fn refused_requests_are_listed_newest_first_and_filtered() {
    let mesh = Mesh::start(1).await;
    assert_eq!(pages(&mesh, v1::ListRejectedRequest::default()).await, (vec![], 1));
    for n in 1..=600 {
        let (source, code) = if n % 3 == 0 { ("bank", "id_reused") } else { ("shop", "signature_invalid") };
        store(&mesh.connection, source, code, n).await;
    }
    let expected = |takes: fn(&i64) -> bool| (1..=600).rev().filter(takes).map(|n| n.to_string()).collect::<Vec<_>>();
    let all = v1::ListRejectedRequest { page_size: 250, ..Default::default() };
    assert_eq!(pages(&mesh, all.clone()).await, (expected(|_| true), 3));
    let bank = v1::ListRejectedRequest { source: "bank".into(), ..all.clone() };
    assert_eq!(pages(&mesh, bank).await, (expected(|n| n % 3 == 0), 1));
    let invalid = v1::ListRejectedRequest { code: "signature_invalid".into(), ..all.clone() };
    assert_eq!(pages(&mesh, invalid).await, (expected(|n| n % 3 != 0), 2));
    let since = Some(prost_types::Timestamp { seconds: 590, nanos: 0 });
    assert_eq!(pages(&mesh, v1::ListRejectedRequest { since, ..all.clone() }).await.0, expected(|n| *n >= 590));
    let until = Some(prost_types::Timestamp { seconds: 3, nanos: 0 });
    assert_eq!(pages(&mesh, v1::ListRejectedRequest { until, ..all.clone() }).await.0, ["2", "1"]);
    let since = Some(prost_types::Timestamp { seconds: 2, nanos: 0 });
    assert_eq!(pages(&mesh, v1::ListRejectedRequest { since, until, ..all.clone() }).await.0, ["2"]);
    let since = Some(prost_types::Timestamp { seconds: 4_102_444_800, nanos: 0 });
    assert_eq!(pages(&mesh, v1::ListRejectedRequest { since, ..all.clone() }).await.0, Vec::<String>::new());
    let until = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 });
    let wrong = v1::ListRejectedRequest { until, ..all };
    assert_eq!(mesh.admin.rejected().list_rejected(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    let wrong = v1::ListRejectedRequest { source: ">".into(), ..Default::default() };
    assert_eq!(mesh.admin.rejected().list_rejected(wrong).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn one_is_shown_whole() {
    let mesh = Mesh::start(1).await;
    store(&mesh.connection, "shop", "signature_invalid", 1).await;
    let get = |id: &str| {
        let request = v1::GetRejectedRequest { id: id.into() };
        let mut client = mesh.admin.rejected();
        async move { client.get_rejected(request).await }
    };
    let entry = get("1").await.unwrap().into_inner();
    assert_eq!((entry.id.as_str(), entry.source.as_str(), &entry.body[..]), ("1", "shop", BODY));
    assert_eq!(entry.headers[0].value, "evt_1");
    assert_eq!(reason(get("2").await), (Code::NotFound, "NOT_FOUND".to_owned()));
    assert_eq!(get("x").await.unwrap_err().code(), Code::InvalidArgument);
}

/// Retries go to one gateway in the order in which requests were kept, and each says what became of it. What passes by
/// itself ends the call, so that no later request of a workflow overtakes an earlier one.
#[tokio::test]
async fn retries_go_one_after_the_other_and_stop_at_an_outage() {
    let mesh = Mesh::start(1).await;
    let retry = |ids: &[&str]| {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = v1::RetryRejectedRequest { ids, reason: "fixed".into(), request_id: String::new() };
        let mut client = mesh.admin.rejected();
        async move { client.retry_rejected(request).await }
    };
    let unanswered = retry(&["1"]).await.unwrap_err();
    assert_eq!(unanswered.code(), Code::Unavailable, "{unanswered}");
    assert!(unanswered.message().contains("no gateway") && unanswered.message().contains("0 of 1"), "{unanswered}");

    let mut asked = gateway(&mesh, |sequence| {
        let id = sequence.to_string();
        match sequence {
            30 => RetriedRejected { id, code: "signature_invalid".into(), ..Default::default() },
            40 => RetriedRejected { id, code: "log_full".into(), ..Default::default() },
            _ => RetriedRejected { id, event_id: "e".into(), ..Default::default() },
        }
    })
    .await;
    let results = retry(&["30", "9", "30", "100"]).await.unwrap().into_inner().results;
    let results: Vec<_> = results.iter().map(|result| (result.id.as_str(), result.code.as_str())).collect();
    assert_eq!(results, [("9", ""), ("30", "signature_invalid"), ("100", "")]);
    let full = retry(&["40", "50", "1"]).await.unwrap_err();
    assert_eq!(full.code(), Code::Unavailable);
    assert!(full.message().contains("log_full") && full.message().contains("1 of 3"), "{full}");
    asked.close();
    let order: Vec<_> = std::iter::from_fn(|| asked.try_recv().ok()).collect();
    assert_eq!(order, [9, 30, 100, 1, 40]);
    assert_eq!(retry(&[]).await.unwrap_err().code(), Code::InvalidArgument);
}

/// Everything on COMMANDS of shard 0, in order.
async fn records(mesh: &Mesh) -> Vec<internal::Command> {
    let stream = mesh.layout.commands_stream(ShardId(0));
    let end = streams::state(&mesh.connection, &stream).await.unwrap().last;
    let stored = direct::range(&mesh.connection, &stream, StreamSeq(1), ">", 1_000, 1 << 20).await.unwrap();
    assert_eq!(stored.len() as u64, end.0);
    stored.into_iter().map(|stored| internal::Command::decode(stored.payload).unwrap()).collect()
}

/// A retry is recorded with operator, reason and results, and acts once: a repeat answers the results, or continues
/// where the first call stopped.
#[tokio::test]
async fn a_retry_acts_once_and_is_recorded() {
    let mesh = Mesh::start(2).await;
    let retry = |ids: &[&str], request_id: &str| {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = v1::RetryRejectedRequest { ids, reason: "fixed".into(), request_id: request_id.into() };
        let mut client = mesh.admin.rejected();
        async move { client.retry_rejected(request).await.map(|answer| answer.into_inner().results) }
    };
    let (full, event) = (Arc::new(AtomicBool::new(true)), EventId::of_delivery("shop", "evt_1"));
    let is_full = full.clone();
    let mut asked = gateway(&mesh, move |sequence| {
        let id = sequence.to_string();
        match sequence {
            30 => RetriedRejected { id, code: "signature_invalid".into(), detail: "no".into(), ..Default::default() },
            40 if is_full.load(Ordering::Relaxed) => {
                RetriedRejected { id, code: "log_full".into(), ..Default::default() }
            }
            _ => RetriedRejected { id, event_id: event.to_string(), duplicate: sequence == 9, ..Default::default() },
        }
    })
    .await;
    let ids = ["30", "9", "50", "40"];
    let broken_off = retry(&ids, "fix-1").await.unwrap_err();
    assert!(broken_off.message().contains("2 of 4") && broken_off.message().contains("fix-1"), "{broken_off}");
    full.store(false, Ordering::Relaxed);
    let results = retry(&ids, "fix-1").await.unwrap();
    let told: Vec<_> = results.iter().map(|told| (told.id.as_str(), told.duplicate, told.code.as_str())).collect();
    assert_eq!(told, [("9", true, ""), ("30", false, "signature_invalid"), ("40", false, ""), ("50", false, "")]);
    assert_eq!((results[0].event_id.as_str(), results[1].detail.as_str()), (event.to_string().as_str(), "no"));
    // The order of the ids does not matter.
    assert_eq!(retry(&["9", "30", "40", "50", "9"], "fix-1").await.unwrap(), results);
    let order: Vec<_> = std::iter::from_fn(|| asked.try_recv().ok()).collect();
    assert_eq!(order, [9, 30, 40, 40, 50], "no entry was given to a gateway again but the one that broke off");

    let records = records(&mesh).await;
    let mut recorded = Vec::new();
    for command in &records {
        assert_eq!((command.operator.as_str(), command.reason.as_str()), ("bootstrap", "fixed"));
        let Some(Action::Retry(retry)) = &command.action else { panic!("{command:?}") };
        let outcomes: Vec<_> = retry.outcomes.iter().map(|outcome| (outcome.entry, outcome.code.as_str())).collect();
        recorded.push((command.request_id.as_str(), retry.entries.clone(), outcomes));
    }
    assert_eq!(
        recorded,
        [
            ("fix-1", vec![9, 30, 40, 50], vec![]),
            ("fix-1#1", vec![], vec![(9, ""), (30, "signature_invalid")]),
            ("fix-1#2", vec![], vec![(40, ""), (50, "")]),
        ]
    );

    // An id stands for one call.
    assert_eq!(reason(retry(&["9"], "fix-1").await).1, "ID_REUSED");
    let delete = v1::DeleteSourceRequest { name: "shop".into(), request_id: "fix-1".into(), ..Default::default() };
    assert_eq!(reason(mesh.admin.catalog().delete_source(delete).await).1, "ID_REUSED");
}

/// A call of many entries is recorded in several parts, and its repeat answers all of them.
#[tokio::test]
async fn a_long_retry_is_recorded_in_parts() {
    const ENTRIES: u64 = 250;
    let mesh = Mesh::start(1).await;
    let mut asked = gateway(&mesh, |sequence| {
        let (id, detail) = (sequence.to_string(), "x".repeat(10_000));
        RetriedRejected { id, code: "invalid_data".into(), detail, ..Default::default() }
    })
    .await;
    let ids = (1..=ENTRIES).map(|id| id.to_string()).collect::<Vec<_>>();
    let request = v1::RetryRejectedRequest { ids: ids.clone(), request_id: "long".into(), ..Default::default() };
    let first = mesh.admin.rejected().retry_rejected(request.clone()).await.unwrap().into_inner().results;
    assert!(first.iter().map(|result| &result.id).eq(&ids));
    assert!(records(&mesh).await.len() > 2);
    assert_eq!(mesh.admin.rejected().retry_rejected(request).await.unwrap().into_inner().results, first);
    assert_eq!(std::iter::from_fn(|| asked.try_recv().ok()).count() as u64, ENTRIES);
}

//! Forged messages between gateways are ignored: the test's connection may publish on their subjects, as JetStream does for
//! any client that may create a consumer.

use futures_util::StreamExt as _;
use prost::Message as _;
use weft_catalog::MasterKey;
use weft_nats::{
    async_nats::{HeaderMap, Message},
    tags::Tags,
};
use weft_proto::internal::{self, ForwardOutcome, forward_answer};
use weft_testkit::{eventually, master_key};

use super::{
    preferred::{holder, takes_the_role},
    *,
};

/// A number that no sequencer of these tests reports.
const MADE_UP: u64 = 777;
/// Above the time for which a session that has just started discards notices.
const NOTICES_COUNT_AFTER: Duration = Duration::from_secs(4);

/// The tags that gateways of the test's mesh use among each other.
fn tags() -> Tags {
    master_key().tags("forward")
}

fn header(tag: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("weft-tag", tag);
    headers
}

/// Only what a gateway has verified is stored: a request without the right tag puts nothing into the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_request_is_ignored() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let host = mesh.sequencer(&folder).await;
    takes_the_role(&mesh, &host, 1).await;
    let subject = mesh.layout.forward_subject(ShardId(0), &holder(&mesh).await.unwrap());
    let request = |delivery: u64| {
        let forged = internal::ForwardedEvent {
            event_id: event("a", delivery).id.to_vec(),
            workflow_id: "a".into(),
            body_digest: vec![0; 32],
            payload: Bytes::from_static(b"{}"),
            ..Default::default()
        };
        internal::Forward { sent_at_ms: Timestamp::now().as_millisecond(), events: vec![forged] }.encode_to_vec()
    };
    let client = mesh.connection.client();
    let (inbox, other) = (client.new_inbox(), foreign_tags());
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    let elsewhere = mesh.layout.forward_subject(ShardId(0), "another");
    let forged = [
        (2, HeaderMap::new()),
        (3, header("")),
        (4, header(&other.tag(&subject, &request(4)))),
        (5, header(&tags().tag(&elsewhere, &request(5)))),
        (6, header(&tags().tag(&subject, b"another request"))),
        (7, header(&master_key().tags("something else").tag(&subject, &request(7)))),
    ];
    for (delivery, headers) in forged {
        let payload = request(delivery).into();
        client.publish_with_reply_and_headers(subject.clone(), inbox.clone(), headers, payload).await.unwrap();
    }
    // A valid request after them; only this one is answered: had another been processed, its answer would come first.
    let payload: Bytes = request(8).into();
    let headers = header(&tags().tag(&subject, &payload));
    client.publish_with_reply_and_headers(subject.clone(), inbox, headers, payload).await.unwrap();
    let verdict = tokio::time::timeout(PATIENCE, verdict(&mut answers)).await.expect("a gateway is answered");
    assert_eq!((verdict.outcome(), verdict.sequence_number), (ForwardOutcome::Accepted, 2));
    let end = streams::state(&mesh.connection, "EVENTS").await.unwrap().last;
    assert_eq!(end, StreamSeq(2), "of eight, two were gateways' own");
}

/// P1: a sender gets an answer of its gateway, never a forged one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_answer_is_ignored() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let name = "f".repeat(32);
    let client = mesh.connection.client().clone();
    let requests = client.subscribe(mesh.layout.forward_subject(ShardId(0), &name)).await.unwrap();
    client.flush().await.unwrap();
    // It says that it appends, for as long as the test lasts.
    let (key, claimer) = (mesh.layout.appender_key(ShardId(0)), mesh.connection.jetstream().clone());
    claimer.publish(key.clone(), name.clone().into()).await.unwrap().await.unwrap();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let Ok(stored) = claimer.publish(key.clone(), name.clone().into()).await else { break };
            let _ = stored.await;
        }
    });
    let (tagged, heed) = watch::channel(true);
    let (tell, answered) = watch::channel(0);
    tokio::spawn(async move {
        let mut requests = requests;
        while let Some(request) = requests.next().await {
            let (reply, answer) = made_up(&request);
            let tag = if *heed.borrow() { tags() } else { foreign_tags() }.tag(&reply, &answer);
            client.publish_with_headers(reply, header(&tag), answer).await.unwrap();
            tell.send_modify(|count| *count += 1);
        }
    });

    let gateway = mesh.sequencer(&folder).await;
    let mut delivery = 0;
    let believed = async || {
        delivery += 1;
        gateway.insist(event("a", delivery)).await.sequence_number.0 == MADE_UP
    };
    assert!(eventually(PATIENCE, believed).await, "with the mesh's key it is a gateway");
    tagged.send_replace(false);
    let before = *answered.borrow();
    let doubted = async || {
        delivery += 1;
        assert_ne!(gateway.insist(event("a", delivery)).await.sequence_number.0, MADE_UP);
        *answered.borrow() > before + 1
    };
    assert!(eventually(PATIENCE, doubted).await, "it is asked, and not believed");
}

/// P1, P2: what stands in the log is believed of gateways only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_notification_is_ignored() {
    let mesh = Mesh::start().await;
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    takes_the_role(&mesh, &gateway, 1).await;
    let name = holder(&mesh).await.unwrap();
    let subject = mesh.layout.forward_answer_subject(ShardId(0), &name, "appended");
    // Each claims that `delivery` is stored after the first event.
    let told = |delivery: u64| {
        let made_up = internal::AppendedEvent {
            replay_key: Vec::new(),
            event_id: event("a", delivery).id.to_vec(),
            workflow_id: "a".into(),
            body_digest: vec![0; 32],
            sequence_number: MADE_UP,
            previous_event_id: Vec::new(),
        };
        let sent_at_ms = Timestamp::now().as_millisecond();
        Bytes::from(internal::Appended { sent_at_ms, behind_seq: 1, events: vec![made_up] }.encode_to_vec())
    };
    let elsewhere = mesh.layout.forward_answer_subject(ShardId(0), &name, 1);
    let client = mesh.connection.client();
    let publish = async |tag: Option<(Tags, &str)>, delivery| {
        let payload = told(delivery);
        let headers = tag.map_or(HeaderMap::new(), |(tags, subject)| header(&tags.tag(subject, &payload)));
        client.publish_with_headers(subject.clone(), headers, payload).await.unwrap();
    };
    let mut missing = gateway.missing.clone();
    missing.mark_unchanged();
    // Retries for longer than a new session reads the log regardless of notices.
    let believed = async || {
        publish(None, 2).await;
        publish(Some((foreign_tags(), &subject)), 3).await;
        publish(Some((tags(), &elsewhere)), 4).await;
        let position = gateway.sequencer.position_of(event("a", 2).id).await;
        position != Ok(None) || missing.has_changed().unwrap()
    };
    assert!(!eventually(NOTICES_COUNT_AFTER, believed).await, "{:?}", *gateway.missing.borrow());
    // The last has the mesh's key: it is believed until the log is asked, which does not hold the event.
    let believed = async || {
        publish(Some((tags(), &subject)), 5).await;
        gateway.sequencer.position_of(event("a", 5).id).await == Ok(Some((ShardId(0), StreamSeq(2))))
            || missing.has_changed().unwrap()
    };
    assert!(eventually(PATIENCE, believed).await, "with the mesh's key it is a gateway");
}

/// A claim to be the preferred appender that is not a valid gateway id is ignored, and the role is taken.
#[tokio::test]
async fn an_invented_gateway_name_is_ignored() {
    let mesh = Mesh::start().await;
    let key = mesh.layout.appender_key(ShardId(0));
    mesh.connection.jetstream().publish(key, "a.b >\r\nPUB x 0".into()).await.unwrap().await.unwrap();
    let folder = folder();
    let gateway = mesh.sequencer(&folder).await;
    let mut delivery = 0;
    let taken = async || {
        delivery += 1;
        gateway.insist(event("a", delivery)).await;
        holder(&mesh).await.is_some_and(|holder| holder.len() == 32)
    };
    assert!(eventually(PATIENCE, taken).await);
}

/// The tags of a mesh that is not the test's.
fn foreign_tags() -> Tags {
    MasterKey::parse(&MasterKey::generate()).unwrap().tags("forward")
}

/// "All of it was accepted."
fn made_up(request: &Message) -> (String, Bytes) {
    let events = internal::Forward::decode(request.payload.clone()).unwrap().events.len();
    let outcome = ForwardOutcome::Accepted.into();
    let verdict = internal::ForwardVerdict { outcome, sequence_number: MADE_UP, ..Default::default() };
    let verdicts = internal::ForwardVerdicts { verdicts: vec![verdict; events] };
    let answer = internal::ForwardAnswer { answer: Some(forward_answer::Answer::Verdicts(verdicts)) };
    (request.reply.as_ref().unwrap().to_string(), answer.encode_to_vec().into())
}

/// The first verdict that comes.
async fn verdict(answers: &mut weft_nats::async_nats::Subscriber) -> internal::ForwardVerdict {
    loop {
        let message = answers.next().await.unwrap();
        let answer = internal::ForwardAnswer::decode(message.payload).unwrap().answer.unwrap();
        if let forward_answer::Answer::Verdicts(verdicts) = answer {
            return verdicts.verdicts[0].clone();
        }
    }
}

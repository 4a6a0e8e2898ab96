//! Users of a supervised server: what each may write, read and ask for.

use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;
use weft_catalog::{Catalog, CatalogError, requests};
use weft_nats::{
    async_nats::{self, ConnectOptions, ServerAddr, jetstream::consumer},
    connect::Connection,
    server::Server,
    subject::{FORWARD_SUBJECTS, Layout, OWN_EVENTS_SUBJECT, RETRY_QUEUE, RETRY_SUBJECT, SAMPLE_SUBJECT},
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    v1::{GithubScheme, Source, Verification, verification},
};
use weft_testkit::{
    PATIENCE, eventually, master_key,
    users::{connect, ensure, last, options, publish},
};

#[tokio::test]
async fn each_role_writes_its_own_streams_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let users = server.users();
    let (gateway, worker, admin) = tokio::join!(connect(&users.gateway), connect(&users.worker), connect(&users.admin));
    ensure(&admin).await;
    for role in [&gateway, &worker, &admin] {
        assert_eq!(role.max_payload(), Some((1 << 20) + 128 * 1024));
    }
    for (subject, stream, writers) in [
        // Admins append the records of erased events.
        ("events.w", "EVENTS", &[0, 2][..]),
        ("heads.0", "EVENTS", &[0, 1]),
        ("rejected.shop", "REJECTED", &[0]),
        ("outcomes.0", "OUTCOMES", &[1]),
        ("outcomes.0.checkpoint", "OUTCOMES", &[1]),
        ("checkpoints.0", "CHECKPOINTS", &[1]),
        ("dlq.s.w.e.0", "DLQ", &[1]),
        ("commands.0", "COMMANDS", &[2]),
        ("$KV.weft_leases.0", "KV_weft_leases", &[1]),
    ] {
        // The operator's role may write any bucket.
        let may = |index: usize| writers.contains(&index) || (index == 2 && subject.starts_with("$KV."));
        let roles = [&gateway, &worker, &admin];
        let before = last(&admin, stream).await;
        // Who may not comes first: a stream stores in order, so what had slipped through would stand before the rest.
        let (allowed, refused): (Vec<usize>, Vec<usize>) = (0..roles.len()).partition(|index| may(*index));
        for index in refused.iter().chain(&allowed) {
            publish(roles[*index], subject).await;
        }
        let wanted = StreamSeq(before.0 + allowed.len() as u64);
        assert!(eventually(PATIENCE, async || last(&admin, stream).await >= wanted).await, "{allowed:?} on {subject}");
        assert_eq!(last(&admin, stream).await, wanted, "{refused:?} on {subject}");
    }
    let scheme = verification::Scheme::Github(GithubScheme { secrets: vec!["secret of the sender".into()] });
    let verification = Some(Verification { scheme: Some(scheme) });
    let source = Source { name: "shop".into(), verification, ..Source::default() };
    let refused = Catalog::new(gateway.clone(), master_key()).put_source(&source, 0).await;
    assert!(matches!(refused, Err(CatalogError::Unavailable(_))), "{refused:?}");
    Catalog::new(admin, master_key()).put_source(&source, 0).await.unwrap();
    let used = async |role: &Connection, second: i64| {
        Catalog::new(role.clone(), master_key()).put_key_use("ab12cd34", second * 1000).await
    };
    used(&gateway, 60).await.unwrap();
    assert!(matches!(used(&worker, 120).await, Err(CatalogError::Unavailable(_))));
    let snapshot = Catalog::new(gateway, master_key()).read().await.unwrap();
    assert_eq!((snapshot.sources.len(), snapshot.keys_used["ab12cd34"].as_second()), (1, 60));
}

/// Retries, and events of the mesh's own, are asked for by admins and answered by gateways; neither workers nor the tail user
/// reach them.
#[tokio::test]
async fn only_admins_ask_gateways_for_events() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let users = server.users();
    for subject in [RETRY_SUBJECT, OWN_EVENTS_SUBJECT, SAMPLE_SUBJECT] {
        let gateway = connect(&users.gateway).await;
        let mut requests = gateway.client().queue_subscribe(subject, RETRY_QUEUE.to_owned()).await.unwrap();
        gateway.client().flush().await.unwrap();
        let others = [connect(&users.worker).await, connect(&users.tail).await];
        let mut heard = Vec::new();
        for other in &others {
            heard.push(other.client().subscribe(subject).await.unwrap());
            publish(other, subject).await;
        }
        let admin = connect(&users.admin).await;
        let answering = async {
            let request = requests.next().await.unwrap();
            assert_eq!(request.payload, "by an admin", "the first that comes through");
            gateway.client().publish(request.reply.unwrap(), "answer".into()).await.unwrap();
        };
        let asking = admin.client().request(subject, "by an admin".into());
        let (answer, ()) = tokio::join!(asking, answering);
        assert_eq!(answer.unwrap().payload, "answer");
        for (other, mut heard) in others.iter().zip(heard) {
            // Behind what it would have heard.
            publish(other, "nothing").await;
            assert!(futures_util::FutureExt::now_or_never(heard.next()).is_none());
        }
    }
}

/// Gateways forward events to each other, answer more than once, and publish the appender; no other role can read or
/// write these messages.
#[tokio::test]
async fn gateways_talk_among_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let users = server.users();
    let gateways = [connect(&users.gateway).await, connect(&users.gateway).await];
    ensure(&connect(&users.admin).await).await;
    let layout = Layout::new(1);
    let (asked, told) = (layout.forward_subject(ShardId(0), "a"), layout.forward_answer_subject(ShardId(0), "b", 1));
    let mut requests = gateways[0].client().subscribe(asked.clone()).await.unwrap();
    let mut answers = gateways[1].client().subscribe(told.clone()).await.unwrap();
    for gateway in &gateways {
        gateway.client().flush().await.unwrap();
    }
    let others = [connect(&users.worker).await, connect(&users.admin).await, connect(&users.tail).await];
    let mut heard = Vec::new();
    for other in &others {
        heard.push(other.client().subscribe(FORWARD_SUBJECTS).await.unwrap());
        publish(other, &asked).await;
        publish(other, &told).await;
    }
    let ask = gateways[1].client().publish_with_reply(asked, told.clone(), "by a gateway".into());
    ask.await.unwrap();
    let request = tokio::time::timeout(PATIENCE, requests.next()).await.expect("it comes through").unwrap();
    assert_eq!((request.payload, request.reply.as_deref()), ("by a gateway".into(), Some(told.as_str())));
    for answer in ["working", "verdicts"] {
        gateways[0].client().publish(told.clone(), answer.into()).await.unwrap();
        let heard = tokio::time::timeout(PATIENCE, answers.next()).await.expect("it comes through").unwrap();
        assert_eq!(heard.payload, answer, "no other role's message comes first");
    }
    for (other, mut heard) in others.iter().zip(heard) {
        // Behind what it would have heard.
        publish(other, "nothing").await;
        assert!(futures_util::FutureExt::now_or_never(heard.next()).is_none());
    }
    publish(&gateways[0], &layout.appender_key(ShardId(0))).await;
    assert!(eventually(PATIENCE, async || last(&gateways[0], "KV_weft_leases").await == StreamSeq(1)).await);
}

/// The contract's tail: stored events through a consumer, nothing else.
#[tokio::test]
async fn the_tail_user_reads_events_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()), CancellationToken::new()).await.unwrap();
    let (gateway, admin) = tokio::join!(connect(&server.users().gateway), connect(&server.users().admin));
    ensure(&admin).await;
    let catalog = Catalog::new(admin.clone(), master_key());
    tokio::spawn(requests::serve(catalog, Layout::new(1), CancellationToken::new()));
    for subject in ["events.a", "events.b", "events.a"] {
        publish(&gateway, subject).await;
    }

    let url = std::fs::read_to_string(folder.path().join("tail.url")).unwrap();
    let address: ServerAddr = url.trim().parse().unwrap();
    let (user, password) = (address.username().unwrap(), address.password().unwrap());
    let tail = ConnectOptions::with_user_and_password(user.into(), password.into());
    let client = tail.connect(address).await.unwrap();
    let jetstream = async_nats::jetstream::new(client.clone());
    let stream = jetstream.get_stream("EVENTS").await.unwrap();
    let filter_subject = "events.a".to_owned();
    let pull = consumer::pull::OrderedConfig { filter_subject: filter_subject.clone(), ..Default::default() };
    // The admin may not have subscribed yet.
    let answers = async || stream.create_consumer(pull.clone()).await.is_ok();
    assert!(eventually(PATIENCE, answers).await);
    let pulled = stream.create_consumer(pull).await.unwrap().messages().await.unwrap();
    let deliver_subject = client.new_inbox();
    let push = consumer::push::OrderedConfig { filter_subject, deliver_subject, ..Default::default() };
    let pushed = stream.create_consumer(push).await.unwrap().messages().await.unwrap();
    let pulled = tokio::time::timeout(PATIENCE, pulled.take(2).collect::<Vec<_>>()).await.expect("both events");
    let pushed = tokio::time::timeout(PATIENCE, pushed.take(2).collect::<Vec<_>>()).await.expect("both events");
    let subjects: Vec<_> = pulled.iter().flatten().map(|message| message.subject.as_str()).collect();
    assert_eq!(subjects, ["events.a", "events.a"]);
    assert_eq!(pushed.iter().flatten().count(), 2);

    let tail = connect(&server.users().tail).await;
    for subject in ["events.x", "outcomes.0", "commands.0", "dlq.s", "$KV.weft_catalog.source.shop"] {
        publish(&tail, subject).await;
    }
    let state = last(&admin, "EVENTS").await;
    assert_eq!(state, StreamSeq(3));
    for stream in ["OUTCOMES", "COMMANDS", "DLQ", "KV_weft_catalog"] {
        assert_eq!(last(&admin, stream).await, StreamSeq(0), "{stream}");
    }
    // Neither what is only published nor what others are answered: the catalog's secrets go through their inboxes.
    for subject in ["events.>", "_INBOX_gateway.>", "_INBOX_admin.>", ">"] {
        let mut seen = tail.client().subscribe(subject).await.unwrap();
        publish(&gateway, "events.a").await;
        publish(&tail, "nothing").await;
        assert!(futures_util::FutureExt::now_or_never(seen.next()).is_none(), "{subject}");
    }
}

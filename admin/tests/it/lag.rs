//! A history that lags: reads say how far they are, and commands wait for their own shard only.

use prost::Message as _;
use tonic::Code;
use weft_nats::{direct, streams};
use weft_proto::{
    ids::{ShardId, StreamSeq, WorkflowId},
    internal::{self, CommandStatus},
    rpc, v1,
};
use weft_testkit::{add_consumers, consumer_names, eventually, try_add_consumer};

use crate::{
    catalog::subscription,
    mesh::{BILLING, Mesh, PATIENCE, opening, reason},
};

/// A workflow of a shard.
fn workflow_of(mesh: &Mesh, shard: u32) -> String {
    let names = (0..).map(|n| format!("order-{n}"));
    let of_shard = |name: &String| mesh.layout.shard_of(&WorkflowId::new(name.as_str()).unwrap()) == ShardId(shard);
    names.into_iter().find(of_shard).unwrap()
}

async fn remove_consumers(mesh: &Mesh, stream: &str, prefix: &str) {
    let handle = mesh.connection.jetstream().get_stream(stream).await.unwrap();
    for name in consumer_names(&mesh.connection, stream).await.iter().filter(|name| name.starts_with(prefix)) {
        // One that is gone already is gone.
        let _ = handle.delete_consumer(name).await;
    }
}

/// Takes the history's consumer on a stream away and leaves no room for another.
async fn stop_reading(mesh: &Mesh, stream: &str) {
    let consumers = streams::consumers(&mesh.connection, stream).await.unwrap();
    add_consumers(&mesh.connection, stream, consumers.limit - consumers.count).await;
    let wanted = format!("reader history of {stream} refused");
    let refused = eventually(PATIENCE, async || {
        remove_consumers(mesh, stream, "history").await;
        // The place that has become free; the admin may have been faster.
        let _ = try_add_consumer(&mesh.connection, stream).await;
        mesh.admin.missing.borrow().as_ref().is_some_and(|missing| missing.contains(&wanted))
    });
    assert!(refused.await, "{:?}", mesh.admin.missing.borrow());
}

#[tokio::test]
async fn reads_say_how_far_they_are_and_commands_wait_for_their_own_shard() {
    let mut mesh = Mesh::start(2).await;
    let billing = v1::Subscription { uid: BILLING.to_vec(), ..subscription("billing", "https://a.example/") };
    mesh.kv().put_subscription(&billing, 0).await.unwrap();
    let (lagging, working) = (workflow_of(&mesh, 0), workflow_of(&mesh, 1));
    let (known, _) = mesh.event(&lagging, "{}").await;
    let get = |id: weft_proto::ids::EventId| v1::GetEventRequest { event_id: id.to_string(), ..Default::default() };
    let current = mesh.admin.events().get_event(get(known)).await.unwrap();
    assert_eq!(current.metadata().get(rpc::AS_OF_MESSAGES).unwrap(), "0");
    assert!(current.metadata().contains_key(rpc::AS_OF));

    stop_reading(&mesh, "EVENTS_0").await;
    let (unread, _) = mesh.event(&lagging, "{}").await;
    let stale = mesh.admin.events().get_event(get(known)).await.unwrap();
    assert_eq!(stale.metadata().get(rpc::AS_OF_MESSAGES).unwrap(), "1");
    assert!(stale.metadata().contains_key(rpc::AS_OF_LAG_MS));
    // Nothing is called unknown that may only be unread.
    assert_eq!(reason(mesh.admin.events().get_event(get(unread)).await), (Code::Unavailable, "STARTING".into()));

    let (event, seq) = mesh.event(&working, "{}").await;
    let lane = internal::Lane {
        subscription: BILLING.to_vec(),
        workflow_id: working.clone(),
        next: seq,
        last: seq,
        attempts: 1,
        state: internal::LaneState::Blocked.into(),
        ..Default::default()
    };
    mesh.commit(ShardId(1), internal::Commit { cursor: seq, lanes: vec![lane], ..opening() }).await;
    let request = v1::RetryLaneRequest { subscription: "billing".into(), workflow_id: working, ..Default::default() };
    let mut client = mesh.admin.workflows();
    let retrying = tokio::spawn(async move { client.retry_lane(request).await });
    let mut command = None;
    let commanded = eventually(PATIENCE, async || {
        command = direct::get(&mesh.connection, "COMMANDS_1", StreamSeq(1)).await.unwrap();
        command.is_some()
    });
    assert!(commanded.await);
    let stored = command.unwrap();
    let request_id = internal::Command::decode(stored.payload).unwrap().request_id;
    let item =
        internal::ItemResult { subscription: BILLING.to_vec(), sequence: seq, status: CommandStatus::Taken.into() };
    let result = internal::CommandResult { command: stored.seq.0, request_id, items: vec![item] };
    let commit = internal::Commit { commands_cursor: stored.seq.0, cursor: seq, results: vec![result], ..opening() };
    mesh.commit(ShardId(1), commit).await;
    let retried = retrying.await.unwrap().unwrap();
    assert_eq!(retried.metadata().get(rpc::AS_OF_MESSAGES).unwrap(), "0", "its own shard is up to date");
    assert_eq!(retried.into_inner().event_id, event.to_string());

    remove_consumers(&mesh, "EVENTS_0", "other-").await;
    let read = eventually(PATIENCE, async || mesh.admin.events().get_event(get(unread)).await.is_ok());
    assert!(read.await, "the history continues once there is a free consumer");
}

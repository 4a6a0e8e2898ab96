//! Streams that are looked for while a role runs: one that was removed is named, not only found by what then fails.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{CONCURRENCY, info};
use crate::{
    conditions::Conditions,
    connect::Connection,
    subject::{CATALOG_BUCKET, DLQ_STREAM, LEASES_BUCKET, Layout, REJECTED_STREAM, bucket_stream},
    watch_value::set_if_changed,
};

/// Between two looks: a request for each stream, which a server answers from memory.
const INTERVAL: Duration = Duration::from_secs(5);

/// The streams that a role uses.
#[derive(Debug, Clone)]
pub struct Used {
    /// Without one of these the role cannot do its work.
    pub essential: Vec<String>,
    /// Without one of these it does a part of its work.
    pub useful: Vec<String>,
}

impl Used {
    /// By a gateway: it accepts events as long as there is EVENTS.
    pub fn by_gateway(layout: Layout) -> Self {
        let essential = layout.all().map(|shard| layout.events_stream(shard)).collect();
        Self {
            essential,
            useful: [REJECTED_STREAM.to_owned(), bucket_stream(CATALOG_BUCKET), bucket_stream(LEASES_BUCKET)].into(),
        }
    }

    /// By a worker: it delivers as long as there are events, commits, commands and leases.
    pub fn by_worker(layout: Layout) -> Self {
        let essential = records(layout).chain([bucket_stream(LEASES_BUCKET)]).collect();
        let checkpoints = layout.all().map(|shard| layout.checkpoints_stream(shard));
        Self { essential, useful: checkpoints.chain([DLQ_STREAM.to_owned(), bucket_stream(CATALOG_BUCKET)]).collect() }
    }

    /// By an admin: it shows what the log holds, and changes the catalog.
    pub fn by_admin(layout: Layout) -> Self {
        let essential = records(layout).chain([bucket_stream(CATALOG_BUCKET)]).collect();
        let checkpoints = layout.all().map(|shard| layout.checkpoints_stream(shard));
        Self { essential, useful: checkpoints.chain([DLQ_STREAM.to_owned(), REJECTED_STREAM.to_owned()]).collect() }
    }
}

/// Events, outcomes and commands of all shards: what has happened.
fn records(layout: Layout) -> impl Iterator<Item = String> {
    let of_shard =
        move |shard| [layout.events_stream(shard), layout.outcomes_stream(shard), layout.commands_stream(shard)];
    layout.all().flat_map(of_shard)
}

/// Looks for the streams until `cancel`. The receiver holds the essential ones that are missing, in one line; the others are
/// conditions. A server that does not answer proves nothing.
pub fn watch_streams(
    connection: Connection,
    used: Used,
    conditions: Conditions,
    cancel: CancellationToken,
) -> watch::Receiver<Option<String>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let looking = async {
            loop {
                connection.connected().await;
                look(&connection, &used, &conditions, &sender).await;
                conditions.set("consumers", connection.paging_readers().map(|readers| format!("{readers}; {PAGING}")));
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = looking => {}
            () = cancel.cancelled() => {}
            () = sender.closed() => {}
        }
    });
    receiver
}

async fn look(connection: &Connection, used: &Used, conditions: &Conditions, sender: &watch::Sender<Option<String>>) {
    if let Some(missing) = missing(connection, &used.essential).await {
        let text = (!missing.is_empty()).then(|| format!("streams: {} {ADVICE}", missing.join(", ")));
        set_if_changed(sender, text);
    }
    if let Some(missing) = missing(connection, &used.useful).await {
        for stream in &used.useful {
            let is_missing = missing.contains(stream);
            conditions.set(&format!("stream {stream}"), is_missing.then(|| ADVICE.to_owned()));
        }
    }
}

/// Meaning of the condition for readers without a consumer, and advice for operators.
const PAGING: &str = "they read on without a consumer, at a higher cost; see whose consumers these are and remove them (`nats \
                      consumer ls`)";
/// Advice for operators.
const ADVICE: &str = "missing on the server; restore it, or restart the admin or `weft up` to create an empty one (with \
                      --new-log for EVENTS, OUTCOMES and COMMANDS)";

/// Streams of this list that do not exist; `None`: the server did not answer for one of them.
async fn missing(connection: &Connection, streams: &[String]) -> Option<Vec<String>> {
    let looks = stream::iter(streams.to_vec())
        .map(async |name| {
            let found = info(connection, &name).await.ok()?;
            Some((name, found.is_none()))
        })
        .buffered(CONCURRENCY);
    let found: Vec<_> = looks.collect().await;
    let found: Option<Vec<_>> = found.into_iter().collect();
    Some(found?.into_iter().filter(|(_, is_missing)| *is_missing).map(|(name, _)| name).collect())
}

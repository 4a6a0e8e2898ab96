//! Group commit only: one append in flight, events that arrive in the meantime go into the next one. Events are not numbered,
//! recognised or remembered, so it needs a separate log.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use weft_nats::{
    append::{Appender, BATCH_MESSAGES_MAX},
    connect::Connection,
    message::Outgoing,
    streams,
    subject::Layout,
};
use weft_proto::ids::{ShardId, StreamSeq};

/// Turns of the scheduler in which a group may grow: some tens of microseconds, little compared with a sync.
const TURNS_MAX: usize = 64;
/// The longest that a group waits for callers who do not come again.
const WAIT_MAX: Duration = Duration::from_millis(10);

/// Callers that the next group waits for. Without it the first few answered callers would go alone, each with a separate
/// sync, and the others would wait for them.
#[derive(Debug, Clone, Copy)]
pub enum Gather {
    /// Callers in this process: as long as the queue grows from one turn of the scheduler to the next.
    Turns,
    /// This number of callers, in any process.
    All(usize),
}

/// Hands messages to the one who appends. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Group {
    queue: mpsc::Sender<Waiting>,
}

/// A message that waits for its ack.
#[derive(Debug)]
struct Waiting {
    message: Outgoing,
    ack: oneshot::Sender<()>,
}

impl Group {
    /// Appends to the end of the first shard of the log, until all clones are dropped. `callers`: maximum number of waiting
    /// messages.
    ///
    /// # Errors
    ///
    /// The end of the log is not known. The task returns the result of appending.
    pub async fn start(
        connection: Connection,
        layout: Layout,
        callers: usize,
        gather: Gather,
    ) -> anyhow::Result<(Self, JoinHandle<anyhow::Result<()>>)> {
        let last = streams::state(&connection, &layout.events_stream(ShardId(0))).await?.last;
        let (queue, waiting) = mpsc::channel(callers);
        let appending = tokio::spawn(append(connection, last, waiting, gather));
        Ok((Self { queue }, appending))
    }

    /// Returns when it is on disk.
    ///
    /// # Errors
    ///
    /// When appending has ended.
    pub async fn append(&self, message: Outgoing) -> anyhow::Result<()> {
        let (ack, acked) = oneshot::channel();
        let gone = || anyhow!("appending has ended");
        self.queue.send(Waiting { message, ack }).await.map_err(|_| gone())?;
        acked.await.map_err(|_| gone())
    }
}

async fn append(
    connection: Connection,
    mut last: StreamSeq,
    mut waiting: mpsc::Receiver<Waiting>,
    gather: Gather,
) -> anyhow::Result<()> {
    let mut appender = Appender::new(connection);
    let mut group = Vec::new();
    while waiting.recv_many(&mut group, BATCH_MESSAGES_MAX).await > 0 {
        if let Gather::All(callers) = gather {
            wait_for(callers.min(BATCH_MESSAGES_MAX), &mut group, &mut waiting).await;
        }
        let (messages, acks): (Vec<_>, Vec<_>) = group.drain(..).map(|waiting| (waiting.message, waiting.ack)).unzip();
        last = appender.append(last, &messages).await.context("append")?;
        for ack in acks {
            // A caller whose time is over waits no more.
            let _ = ack.send(());
        }
        if let Gather::Turns = gather {
            turns(&waiting).await;
        }
    }
    Ok(())
}

async fn wait_for(callers: usize, group: &mut Vec<Waiting>, waiting: &mut mpsc::Receiver<Waiting>) {
    let until = Instant::now() + WAIT_MAX;
    while group.len() < callers {
        let missing = callers - group.len();
        match timeout_at(until, waiting.recv_many(group, missing)).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

async fn turns(waiting: &mpsc::Receiver<Waiting>) {
    let mut seen = 0;
    for _ in 0..TURNS_MAX {
        tokio::task::yield_now().await;
        let waits = waiting.len();
        if waits > 0 && waits == seen {
            return;
        }
        seen = waits;
    }
}

//! One shard at work: reads the log, decides, appends. One append is in flight, everything else waits and rides in the
//! next one.
//!
//! ```text
//! inbox → arrived → looking (the file) → ready → decide → flight (append) → overlay, answers
//!                                          ↑ conflict, no answer: read on │        │
//!                                          └──────────────────────────────┘        ▼ confirmed
//!                                                reader → overlay ────────────▶ unwritten → writer (the file) → prune
//! ```
//!
//! Nothing is decided before the overlay reaches the end that the log is known to have (`end`), nor while the log's identity
//! is in doubt (`identity`). The overlay keeps what lies behind the oldest look-up that may still be used, so that
//! the file's answer and the overlay never leave a gap. Whether there is a reader, or acks say enough, is `follow`'s to
//! decide.

use std::{collections::VecDeque, future::Future, mem, pin::Pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep_until},
};
use weft_index::{
    projection::{Position, StorageError, Writer},
    receipts::{Apply, Change, Changes, Committed, Receipts, View},
};
use weft_nats::{
    append::{AppendError, Appender, BATCH_MESSAGES_MAX},
    connect::{Connection, Epoch},
    message::Outgoing,
    position::BehindWatch,
    reader::{Batch, OrderedReader, ReadError},
};
use weft_proto::ids::StreamSeq;

use super::{
    SubmitError,
    end::LogEnd,
    flight::{Carry, Flight},
    follow::{Follow, OWN_MIN, Source},
    gather::Gather,
    heads::{Carrier, Page},
    lookup::{self, LookedUp, Looking},
    overlay::Overlay,
    preferred::{Appended, NOTICE_AGE_MAX},
    probe::{self, Confirm, Confirmed, Probe, Probed},
    shard::{Ask, Fault, Inbox, Shard},
    submission::Submission,
};

mod append;
mod follow;
mod identity;
mod refusal;

use identity::{Identity, LOOK_EVERY};
use refusal::Refusal;

/// Events that are appended together: one place of a batch is left for heads.
const GROUP_MESSAGES_MAX: usize = BATCH_MESSAGES_MAX - 1;
/// Submissions that may wait for their turn, asked about already: two groups, so that the next is always there.
const READY_MAX: usize = 2 * BATCH_MESSAGES_MAX;
/// Changes that may wait for the writer before nothing more is read: a few reads, since the writer has a queue.
const UNWRITTEN_MAX: usize = 1_000;
/// Messages beyond the file with which nothing more is appended: some seconds of the highest rate, and some 20 MiB. The
/// file falls so far behind only on a disk that hangs.
const OVERLAY_MAX: usize = 50_000;
/// Without a message for so long while the log is known to have more, the server is asked whether there is any: the
/// messages up to the end may have been deleted.
const QUIET: Duration = Duration::from_millis(250);

type Append = Pin<Box<dyn Future<Output = Box<Landed>> + Send>>;
type Changed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A shard at work.
pub(super) struct Session<'a> {
    shard: &'a Shard,
    /// When the stream was made.
    created: Timestamp,
    inbox: &'a mut Inbox,
    receipts: Receipts,
    writer: &'a Writer<Apply>,
    committed: watch::Receiver<Committed>,
    follow: Follow,
    /// Only while it is followed.
    reader: Option<OrderedReader>,
    /// Only while acks are.
    confirming: Option<Confirm>,
    /// The connection was lost, or is there again.
    connection_changed: Option<Changed>,
    /// When the reader last brought something.
    heard_at: Instant,
    /// The connection that the session relies on.
    epoch: Epoch,
    /// Notices that arrive before may have been sent before the connection was lost.
    notices_from: Instant,
    overlay: Overlay,
    unwritten: Vec<Change>,
    arrived: Vec<Submission>,
    /// What the file said last, as long as nothing has been committed since.
    view: Option<Arc<View>>,
    looking: Option<Looking>,
    look_ups: lookup::Pace,
    /// What the overlay must keep for `looking`.
    looking_from: StreamSeq,
    ready: VecDeque<Submission>,
    /// Not there while it appends.
    appender: Option<Appender>,
    flight: Option<Flight>,
    append: Option<Append>,
    gather: Gather,
    /// How far the log is known to reach: nothing is decided before that has been read.
    end: LogEnd,
    identity: Identity,
    /// Counts the consumers that the reader has lost.
    losses: Option<watch::Receiver<u64>>,
    probe: Option<Probe>,
    /// Appends that failed in a row.
    failures: u32,
    refusal: Refusal,
    /// Since when leaders report that the log ends before what was acked.
    behind: BehindWatch,
    /// So many of the next submissions go alone.
    alone: usize,
    carrier: Carrier,
    reaching: Vec<(StreamSeq, oneshot::Sender<()>)>,
    /// Questions that wait until the log has answered.
    asks: Vec<Ask>,
    /// No submission will come any more.
    closed: bool,
    draining: bool,
}

/// An append has ended.
struct Landed {
    appender: Appender,
    messages: Vec<Outgoing>,
    result: Result<StreamSeq, AppendError>,
    /// What senders are told where it was refused for want of room: the log is at its limit, or the disk has none.
    full: SubmitError,
    /// Whether it was a batch.
    batched: bool,
    sent_at: Instant,
}

/// What the session has waited for.
enum Happening {
    Read(Result<Batch, ReadError>),
    Confirms,
    Confirmed(Option<Confirmed>),
    /// Acks alone are no more enough.
    ReadsOn,
    Landed(Box<Landed>),
    Looked(Result<LookedUp, StorageError>),
    Probed(Probed),
    Scanned(Result<Page, StorageError>),
    Arrived(usize),
    Asked(Option<Ask>),
    Told(Appended),
    /// A group has waited long enough for others.
    Gathered,
    /// Changes went to the writer.
    Written,
    Committed,
    ConnectionChanged,
    /// The reader has lost its consumer.
    Detached,
    /// It is time to look whether this process stood still, and whose deadline has passed.
    LookForPause,
    Quiet,
    LookForHeads,
    /// A log that took nothing may take something again.
    TrialDue,
    Drain,
}

impl<'a> Session<'a> {
    pub fn new(
        shard: &'a Shard,
        created: Timestamp,
        inbox: &'a mut Inbox,
        receipts: Receipts,
        writer: &'a Writer<Apply>,
        reader: OrderedReader,
        overlay: Overlay,
    ) -> Self {
        let carrier = Carrier::new(shard.options.retention, shard.layout.heads_subject(shard.id));
        Self {
            shard,
            created,
            inbox,
            receipts,
            writer,
            committed: writer.committed(),
            follow: Follow::new(OWN_MIN, Instant::now()),
            losses: Some(reader.losses()),
            reader: Some(reader),
            confirming: None,
            epoch: shard.connection.epoch(),
            connection_changed: Some(changed(&shard.connection)),
            notices_from: Instant::now() + NOTICE_AGE_MAX,
            heard_at: Instant::now(),
            end: LogEnd::new(overlay.end()),
            identity: Identity::verified(Instant::now()),
            overlay,
            unwritten: Vec::new(),
            arrived: Vec::new(),
            view: None,
            looking: None,
            look_ups: lookup::Pace::default(),
            looking_from: StreamSeq(0),
            ready: VecDeque::new(),
            appender: Some(Appender::new(shard.connection.clone())),
            flight: None,
            append: None,
            gather: Gather::new(GROUP_MESSAGES_MAX),
            probe: None,
            failures: 0,
            refusal: Refusal::default(),
            behind: BehindWatch::default(),
            alone: 0,
            carrier,
            reaching: Vec::new(),
            asks: Vec::new(),
            closed: false,
            draining: false,
        }
    }

    /// Works until it is drained.
    ///
    /// # Errors
    ///
    /// [`Fault`]: the receipts cannot go on as they are. Whoever waits is told that the log is unavailable.
    pub async fn run(mut self) -> Result<(), Fault> {
        loop {
            self.switch();
            self.look_up()?;
            self.settle_doubt();
            self.answer_asks();
            self.launch();
            if self.is_drained() {
                return Ok(());
            }
            let happening = self.happening().await?;
            if self.identity.stood_still(Instant::now()) {
                self.doubt_all("this process stood still");
            }
            self.take(happening)?;
        }
    }

    async fn happening(&mut self) -> Result<Happening, Fault> {
        let takes_in = !self.closed && self.arrived.is_empty() && self.ready.len() < READY_MAX;
        let quiet_at = (self.probe.is_none() && self.wanted_end() > self.overlay.end()).then(|| self.heard_at + QUIET);
        let gathered_at = self.gathers_until();
        let confirms_at = self.follow.confirms_at().filter(|_| self.confirming.is_none());
        let look_at = self.carrier.wakes_at();
        let idle = self.append.is_none() && self.probe.is_none() && self.ready.is_empty();
        let trial_at = self.refusal.wakes_at().filter(|_| idle && self.shard.connection.is_connected());
        Ok(tokio::select! {
            batch = next(&mut self.reader), if self.unwritten.len() < UNWRITTEN_MAX => Happening::Read(batch),
            confirmed = settled(&mut self.confirming) => Happening::Confirmed(confirmed),
            landed = settled(&mut self.append) => Happening::Landed(landed),
            looked = settled(&mut self.looking) => Happening::Looked(looked.unwrap_or_else(panicked)),
            probed = settled(&mut self.probe) => Happening::Probed(probed),
            scanned = settled(&mut self.carrier.scan) => Happening::Scanned(scanned.unwrap_or_else(panicked)),
            arrived = self.inbox.queue.recv_many(&mut self.arrived, BATCH_MESSAGES_MAX), if takes_in => {
                Happening::Arrived(arrived)
            }
            asked = self.inbox.asks.recv() => Happening::Asked(asked),
            Some(appended) = self.inbox.appended.recv() => Happening::Told(appended),
            room = self.writer.reserve(), if !self.unwritten.is_empty() => {
                room.map_err(|_| Fault::Written)?.send(Changes::new(mem::take(&mut self.unwritten)));
                Happening::Written
            }
            committed = self.committed.changed() => {
                committed.map_err(|_| Fault::Written)?;
                Happening::Committed
            }
            () = settled(&mut self.connection_changed) => Happening::ConnectionChanged,
            () = detached(&mut self.losses) => Happening::Detached,
            () = sleep_until(self.identity.looked_at() + LOOK_EVERY) => Happening::LookForPause,
            () = at(gathered_at) => Happening::Gathered,
            () = at(quiet_at) => Happening::Quiet,
            () = at(confirms_at) => Happening::Confirms,
            () = at(self.follow.reads_at()) => Happening::ReadsOn,
            () = at(look_at) => Happening::LookForHeads,
            () = at(trial_at) => Happening::TrialDue,
            () = self.shard.drain.cancelled(), if !self.draining => Happening::Drain,
        })
    }

    fn take(&mut self, happening: Happening) -> Result<(), Fault> {
        match happening {
            Happening::Read(batch) => self.read(batch?)?,
            Happening::Confirms => {
                self.follow.asked(Instant::now());
                self.confirming = Some(probe::stands_at(self.shard, self.overlay.end(), self.overlay.newest()));
            }
            Happening::Confirmed(Some(confirmed)) => self.confirmed(confirmed)?,
            Happening::ReadsOn => self.follow.others(),
            Happening::Landed(landed) => self.land(*landed),
            Happening::Looked(looked) => {
                self.looked(looked?);
                self.prune();
            }
            Happening::Probed(probed) => self.probed(probed)?,
            Happening::Scanned(page) => self.carrier.found(page?),
            Happening::Arrived(count) => self.closed = count == 0,
            Happening::Asked(ask) => self.asked(ask),
            Happening::Told(appended) => self.told(appended),
            Happening::Committed => self.prune(),
            Happening::ConnectionChanged => self.connection_changed(),
            Happening::Detached => self.doubt_all("the reader has lost its consumer"),
            Happening::Quiet => {
                self.probe = Some(probe::range(self.shard, self.overlay.end(), self.wanted_end()));
            }
            Happening::LookForHeads => {
                let (receipts, horizons) = (self.receipts.clone(), self.shard.horizons());
                let server_time = self.shard.connection.server_clock().now();
                self.carrier.look(receipts, horizons, self.overlay.now(), server_time);
            }
            Happening::Drain => {
                self.draining = true;
                self.inbox.queue.close();
            }
            // Asked again, or read after all.
            Happening::Confirmed(None) => {}
            Happening::LookForPause => self.give_up_expired(),
            Happening::TrialDue => self.refusal.woken(),
            Happening::Gathered | Happening::Written => {}
        }
        Ok(())
    }

    /// Begins or ends to read, as it is followed now.
    fn switch(&mut self) {
        match self.follow.source() {
            Source::Acks => self.stop_reading(),
            Source::Reader if self.reader.is_none() => {
                self.confirming = None;
                self.heard_at = Instant::now();
                let reader = self.shard.reader(self.overlay.unread_from(), self.known());
                self.losses = Some(reader.losses());
                self.reader = Some(reader);
            }
            Source::Reader => {}
        }
    }

    fn stop_reading(&mut self) {
        self.reader = None;
        self.losses = None;
    }

    /// The newest position that was read or confirmed.
    fn known(&self) -> Position {
        let start = Position::start(self.created);
        self.overlay.newest().map_or(start.clone(), |(cursor, mark)| Position { cursor, mark: Some(mark), ..start })
    }

    fn is_drained(&self) -> bool {
        let empty = self.arrived.is_empty() && self.ready.is_empty();
        self.closed && empty && self.looking.is_none() && self.append.is_none()
    }

    /// Asks the file about what has arrived.
    fn look_up(&mut self) -> Result<(), Fault> {
        if self.looking.is_some() || self.arrived.is_empty() {
            return Ok(());
        }
        let view = match self.view.take() {
            Some(view) => view,
            None => lookup::view(&self.receipts)?,
        };
        self.view = Some(view.clone());
        let group = mem::take(&mut self.arrived);
        if self.look_ups.at_once(group.len()) {
            self.looked(lookup::look_up_now(&view, group)?);
        } else {
            self.looking_from = view.cursor();
            self.looking = Some(lookup::look_up(view, group));
        }
        Ok(())
    }

    fn looked(&mut self, looked: LookedUp) {
        self.look_ups.took(&looked);
        self.ready.extend(looked.group);
    }
}

/// Waits for what is in the slot and empties it; for ever while it is empty. Safe to cancel.
async fn settled<F: Future + Unpin>(slot: &mut Option<F>) -> F::Output {
    match slot {
        Some(future) => {
            let output = future.await;
            *slot = None;
            output
        }
        None => std::future::pending().await,
    }
}

/// The next messages; waits for ever while there is no reader. Safe to cancel.
async fn next(reader: &mut Option<OrderedReader>) -> Result<Batch, ReadError> {
    match reader {
        Some(reader) => reader.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until the reader loses its consumer; for ever while there is no reader. Safe to cancel.
async fn detached(losses: &mut Option<watch::Receiver<u64>>) {
    let lost = match losses {
        Some(losses) => losses.changed().await,
        None => return std::future::pending().await,
    };
    // The reader's task has ended, with the runtime.
    if lost.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until then; for ever when there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits until the connection's state changes, from now on.
fn changed(connection: &Connection) -> Changed {
    let connection = connection.clone();
    Box::pin(async move { connection.changed().await })
}

/// redb asserts where it meets damaged pages.
fn panicked<T>(error: tokio::task::JoinError) -> Result<T, StorageError> {
    Err(StorageError::Corrupted(error.to_string()))
}

//! The sequencer of one shard: reads the log, decides, appends. One append is under way at a time; submissions that
//! arrive meanwhile are part of a later one.
//!
//! ```text
//! inbox → arrived → looking (the file) → ready → decide → flight (append) → overlay, answers
//!                                          ↑ conflict, no answer: read on │        │
//!                                          └──────────────────────────────┘        ▼ confirmed
//!                                                reader → overlay ────────────▶ unwritten → writer (the file) → prune
//! ```
//!
//! Each turn of [`Session::run`] first brings the state up to date (source of the log, look-ups, identity), then starts
//! an append if nothing forbids it, then waits for one [`SessionEvent`] and handles it. An append starts only when
//!
//! - the overlay has reached every end of the log that is known (`end`),
//! - the log's identity is verified and its last answer is recent (`identity`),
//! - no question about the log's end is open (`probe`), and
//! - the group does not wait for more senders (`group_commit`).
//!
//! The overlay keeps all messages after the oldest look-up still in use, so that the file's answer and the overlay
//! leave no gap. `log_tracker` decides whether the session reads the log or relies on acks and notices ([`Mode`]).

use std::{collections::VecDeque, future::Future, mem, pin::Pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use weft_index::{
    projection::{Position, StorageError, Writer},
    receipts::{Apply, Change, Changes, Committed, Receipts, View},
};
use weft_nats::{
    append::{Appender, BATCH_MESSAGES_MAX},
    connect::{Connection, Epoch},
    position::BehindWatch,
    reader::OrderedReader,
};
use weft_proto::ids::StreamSeq;
use weft_role::sleep_until;

use super::{
    append_notice::{AppendNotice, NOTICE_AGE_MAX},
    end::LogEnd,
    group_commit::GroupCommit,
    head_refresh::{DuePage, HeadRefresher},
    in_flight::HeadRecord,
    log_tracker::{LOCAL_MIN, LogTracker, TrackingMode},
    lookup::{self, LookedUp, Looking},
    overlay::Overlay,
    probe::{self, EndProbe, ProbeAnswer},
    shard::{Ask, Fault, Inbox, Shard},
    submission::Submission,
};

mod append;
mod identity;
mod log_events;
mod mode;
mod refusal;

use append::{AppendFinished, AppendState};
use identity::{Identity, LOOK_EVERY};
use mode::{Mode, ModeEvent};
use refusal::Refusal;

/// Largest group of events: one place of a batch is left for a record of heads.
const GROUP_MESSAGES_MAX: usize = BATCH_MESSAGES_MAX - 1;
/// Looked-up submissions that may wait: two groups, so that the next one is always complete.
const READY_MAX: usize = 2 * BATCH_MESSAGES_MAX;
/// Changes that may wait for the writer before reading stops: a few reads, since the writer has a queue itself.
const UNWRITTEN_MAX: usize = 1_000;
/// Messages beyond the file at which appending stops: some seconds of the highest rate, and some 20 MiB. The file is so
/// late only on a disk that hangs.
const OVERLAY_MAX: usize = 50_000;
/// Time without a message, while the log is known to have more, after which the server is asked whether there is any:
/// the messages up to the end may have been deleted.
const QUIET: Duration = Duration::from_millis(250);

type Changed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The sequencer of one shard. See the module for its protocol.
pub(super) struct Session<'a> {
    shard: &'a Shard,
    /// Creation time of the stream.
    created: Timestamp,
    inbox: &'a mut Inbox,
    receipts: Receipts,
    writer: &'a Writer<Apply>,
    committed: watch::Receiver<Committed>,
    tracker: LogTracker,
    mode: Mode,
    /// Resolves when the connection is lost or made.
    connection_changed: Option<Changed>,
    /// Time of the last message of the reader.
    heard_at: Instant,
    /// The connection over which everything was learnt.
    epoch: Epoch,
    /// Notices that arrive earlier are discarded: they may have been sent before the connection was lost.
    notices_from: Instant,
    overlay: Overlay,
    unwritten: Vec<Change>,
    arrived: Vec<Submission>,
    /// The newest view of the file, until something is committed.
    view: Option<Arc<View>>,
    looking: Option<Looking>,
    look_ups: lookup::LookupSpeed,
    /// Cursor of the look-up under way, which the overlay must not pass.
    looking_from: StreamSeq,
    ready: VecDeque<Submission>,
    append: AppendState,
    group_commit: GroupCommit,
    /// Known end of the log, up to which messages must be read before a decision.
    end: LogEnd,
    identity: Identity,
    probe: Option<EndProbe>,
    /// Consecutive failed appends.
    failures: u32,
    refusal: Refusal,
    /// Reports that the log ends before what was acked.
    stale_end_reports: BehindWatch,
    /// Number of next submissions that are appended one by one.
    single_appends_left: usize,
    head_refresher: HeadRefresher,
    read_waiters: Vec<(StreamSeq, oneshot::Sender<()>)>,
    /// Questions that wait for a verified log, each with its time.
    asks: Vec<(Instant, Ask)>,
    /// The queue is closed.
    closed: bool,
    draining: bool,
}

/// The events that a session waits for.
enum SessionEvent {
    Mode(ModeEvent),
    Confirms,
    /// Acks and notices alone no longer suffice.
    ReadsOn,
    AppendFinished(Box<AppendFinished>),
    Looked(Result<LookedUp, StorageError>),
    Probed(ProbeAnswer),
    Scanned(Result<DuePage, StorageError>),
    Arrived(usize),
    Asked(Option<Ask>),
    Notified(AppendNotice),
    /// A group has waited for more senders.
    GroupComplete,
    /// Changes were handed to the writer.
    Written,
    Committed,
    ConnectionChanged,
    /// Time to check for a pause of this process, and for expired submissions.
    LookForPause,
    Quiet,
    LookForHeads,
    /// A log that refused appends is tried again.
    TrialDue,
    Drain,
}

/// Receipts that have caught up with the log, where a session begins.
pub(super) struct CaughtUp {
    /// Creation time of the log.
    pub created: Timestamp,
    /// Reads on behind the overlay.
    pub reader: OrderedReader,
    pub overlay: Overlay,
    /// Time from which the log is known to be the one that the receipts were made of.
    pub verified_at: Instant,
}

impl<'a> Session<'a> {
    pub fn new(
        shard: &'a Shard,
        inbox: &'a mut Inbox,
        receipts: Receipts,
        writer: &'a Writer<Apply>,
        caught_up: CaughtUp,
    ) -> Self {
        let CaughtUp { created, reader, overlay, verified_at } = caught_up;
        let head_refresher = HeadRefresher::new(shard.options.retention, shard.layout.heads_subject(shard.id));
        Self {
            shard,
            created,
            inbox,
            receipts,
            writer,
            committed: writer.committed(),
            tracker: LogTracker::new(LOCAL_MIN, Instant::now()),
            mode: Mode::reading(reader),
            epoch: shard.connection.epoch(),
            connection_changed: Some(changed(&shard.connection)),
            notices_from: Instant::now() + NOTICE_AGE_MAX,
            heard_at: Instant::now(),
            end: LogEnd::new(overlay.end()),
            identity: Identity::verified(verified_at, Instant::now()),
            overlay,
            unwritten: Vec::new(),
            arrived: Vec::new(),
            view: None,
            looking: None,
            look_ups: lookup::LookupSpeed::default(),
            looking_from: StreamSeq(0),
            ready: VecDeque::new(),
            append: AppendState::Idle(Box::new(Appender::new(shard.connection.clone()))),
            group_commit: GroupCommit::new(GROUP_MESSAGES_MAX),
            probe: None,
            failures: 0,
            refusal: Refusal::default(),
            stale_end_reports: BehindWatch::default(),
            single_appends_left: 0,
            head_refresher,
            read_waiters: Vec::new(),
            asks: Vec::new(),
            closed: false,
            draining: false,
        }
    }

    /// Runs until it is drained.
    ///
    /// # Errors
    ///
    /// [`Fault`]: the session cannot continue on these receipts. Waiting senders are answered `Unavailable`.
    pub async fn run(mut self) -> Result<(), Fault> {
        loop {
            self.switch();
            self.look_up()?;
            self.settle_doubt();
            self.answer_asks();
            self.start_append();
            if self.is_drained() {
                return Ok(());
            }
            let event = self.next_event().await?;
            if self.identity.stood_still(Instant::now()) {
                self.doubt_all("this process stood still");
            }
            self.handle(event)?;
        }
    }

    async fn next_event(&mut self) -> Result<SessionEvent, Fault> {
        let takes_in = !self.closed && self.arrived.is_empty() && self.ready.len() < READY_MAX;
        let quiet_at = (self.probe.is_none() && self.wanted_end() > self.overlay.end()).then(|| self.heard_at + QUIET);
        let group_complete_at = self.group_waits_until();
        let confirms_at = self.tracker.confirms_at().filter(|_| self.mode.may_confirm());
        let look_at = self.head_refresher.wakes_at();
        let idle = self.append.is_idle() && self.probe.is_none() && self.ready.is_empty();
        let trial_at = self.refusal.wakes_at().filter(|_| idle && self.shard.connection.is_connected());
        Ok(tokio::select! {
            event = self.mode.next(self.unwritten.len() < UNWRITTEN_MAX) => SessionEvent::Mode(event),
            finished = self.append.finished() => SessionEvent::AppendFinished(finished),
            looked = settled(&mut self.looking) => SessionEvent::Looked(looked.unwrap_or_else(panicked)),
            probed = settled(&mut self.probe) => SessionEvent::Probed(probed),
            scanned = settled(&mut self.head_refresher.scan) => SessionEvent::Scanned(scanned.unwrap_or_else(panicked)),
            arrived = self.inbox.queue.recv_many(&mut self.arrived, BATCH_MESSAGES_MAX), if takes_in => {
                SessionEvent::Arrived(arrived)
            }
            asked = self.inbox.asks.recv() => SessionEvent::Asked(asked),
            Some(notice) = self.inbox.notices.recv() => SessionEvent::Notified(notice),
            room = self.writer.reserve(), if !self.unwritten.is_empty() => {
                room.map_err(|_| Fault::Written)?.send(Changes::new(mem::take(&mut self.unwritten)));
                SessionEvent::Written
            }
            committed = self.committed.changed() => {
                committed.map_err(|_| Fault::Written)?;
                SessionEvent::Committed
            }
            () = settled(&mut self.connection_changed) => SessionEvent::ConnectionChanged,
            () = sleep_until(Some(self.identity.looked_at() + LOOK_EVERY)) => SessionEvent::LookForPause,
            () = sleep_until(group_complete_at) => SessionEvent::GroupComplete,
            () = sleep_until(quiet_at) => SessionEvent::Quiet,
            () = sleep_until(confirms_at) => SessionEvent::Confirms,
            () = sleep_until(self.tracker.reads_at()) => SessionEvent::ReadsOn,
            () = sleep_until(look_at) => SessionEvent::LookForHeads,
            () = sleep_until(trial_at) => SessionEvent::TrialDue,
            () = self.shard.drain.cancelled(), if !self.draining => SessionEvent::Drain,
        })
    }

    fn handle(&mut self, event: SessionEvent) -> Result<(), Fault> {
        match event {
            SessionEvent::Mode(ModeEvent::Read(batch)) => self.read(batch?)?,
            SessionEvent::Mode(ModeEvent::Detached) => self.doubt_all("the reader has lost its consumer"),
            SessionEvent::Mode(ModeEvent::Confirmed(Some(confirmed))) => self.confirmed(confirmed)?,
            // Asked again, or read after all.
            SessionEvent::Mode(ModeEvent::Confirmed(None)) => {}
            SessionEvent::Confirms => {
                self.tracker.confirmation_asked(Instant::now());
                let probe = probe::stands_at(self.shard, self.overlay.end(), self.overlay.newest());
                self.mode = Mode::Confirming(Some(probe));
            }
            SessionEvent::ReadsOn => self.tracker.foreign_appends(),
            SessionEvent::AppendFinished(finished) => self.append_finished(*finished),
            SessionEvent::Looked(looked) => {
                self.looked(looked?);
                self.prune();
            }
            SessionEvent::Probed(probed) => self.probed(probed)?,
            SessionEvent::Scanned(page) => self.head_refresher.found(page?, Instant::now()),
            SessionEvent::Arrived(count) => self.closed = count == 0,
            SessionEvent::Asked(ask) => self.asked(ask),
            SessionEvent::Notified(notice) => self.notified(notice),
            SessionEvent::Committed => self.prune(),
            SessionEvent::ConnectionChanged => self.connection_changed(),
            SessionEvent::Quiet => {
                self.probe = Some(probe::range(self.shard, self.overlay.end(), self.wanted_end()));
            }
            SessionEvent::LookForHeads => {
                let (receipts, horizons) = (self.receipts.clone(), self.shard.horizons());
                let server_time = self.shard.connection.server_clock().now();
                self.head_refresher.look(receipts, horizons, self.overlay.now(), server_time);
            }
            SessionEvent::Drain => {
                self.draining = true;
                self.inbox.queue.close();
            }
            SessionEvent::LookForPause => self.give_up_expired(),
            SessionEvent::TrialDue => self.refusal.woken(),
            SessionEvent::GroupComplete | SessionEvent::Written => {}
        }
        Ok(())
    }

    /// Starts or stops reading, as the tracker says.
    fn switch(&mut self) {
        match self.tracker.mode() {
            TrackingMode::Confirming if self.mode.is_reading() => self.stop_reading(),
            TrackingMode::Reading if !self.mode.is_reading() => {
                self.heard_at = Instant::now();
                self.mode = Mode::reading(self.shard.reader(self.overlay.unconfirmed_from(), self.known()));
            }
            TrackingMode::Confirming | TrackingMode::Reading => {}
        }
    }

    fn stop_reading(&mut self) {
        self.mode = Mode::Confirming(None);
    }

    /// The newest position that was read or confirmed.
    fn known(&self) -> Position {
        let start = Position::start(self.created);
        self.overlay.newest().map_or(start.clone(), |(cursor, mark)| Position { cursor, mark: Some(mark), ..start })
    }

    fn is_drained(&self) -> bool {
        let empty = self.arrived.is_empty() && self.ready.is_empty();
        self.closed && empty && self.looking.is_none() && self.append.is_idle()
    }

    /// Starts a look-up of the arrived submissions in the file.
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

/// Waits for the future in the slot and empties it; never returns while it is empty. Safe to cancel.
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

/// Waits until the connection changes, counted from this call.
fn changed(connection: &Connection) -> Changed {
    let connection = connection.clone();
    Box::pin(async move { connection.changed().await })
}

/// redb asserts where it meets damaged pages.
fn panicked<T>(error: tokio::task::JoinError) -> Result<T, StorageError> {
    Err(StorageError::Corrupted(error.to_string()))
}

//! One shard at work: reads the log, decides, appends. One append is in flight, everything else waits and rides in the
//! next one.
//!
//! ```text
//! inbox → arrived → looking (the file, on a blocking thread) → ready → decide → flight (append) → overlay, answers
//!                                                                ↑ conflict, no answer: read on │
//! reader → overlay, unwritten → writer (the file) → prune        └──────────────────────────────┘
//! ```
//!
//! Nothing is decided before the overlay reaches `target`, the end that the log is known to have. The overlay keeps what
//! lies behind the oldest look-up that may still be used, so that the file's answer and the overlay never leave a gap.

use std::{collections::VecDeque, future::Future, mem, pin::Pin, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep_until},
};
use weft_index::{
    projection::{Mark, Mismatch, StorageError, Writer},
    receipts::{Apply, Change, Committed, Receipts},
};
use weft_nats::{
    append::{AppendError, AppendErrorKind, Appender, BATCH_BYTES_MAX, BATCH_MESSAGES_MAX},
    connect::Connection,
    message::Outgoing,
    reader::{Batch, OrderedReader, ReadError},
    streams::StreamState,
};
use weft_proto::ids::StreamSeq;

use super::{
    SubmitError,
    flight::{Flight, Left},
    heads::{Carrier, Page},
    lookup::{Looking, look_up},
    overlay::Overlay,
    probe::{self, Probe, Probed},
    shard::{Ask, Fault, Inbox, Shard},
    submission::Submission,
};

/// Submissions that may wait for their turn, asked about already: two groups, so that the next is always there.
const READY_MAX: usize = 2 * BATCH_MESSAGES_MAX;
/// Changes that may wait for the writer before nothing more is read: a few reads, since the writer has a queue.
const UNWRITTEN_MAX: usize = 1_000;
/// Messages beyond the file with which nothing more is appended: some seconds of the highest rate, and some 20 MiB. The
/// file falls so far behind only on a disk that hangs.
const OVERLAY_MAX: usize = 50_000;
/// Callers that may wait for the log to be read on to some end.
const REACHING_MAX: usize = 1_000;
/// Without a message for so long while the log is known to have more, the server is asked whether there is any: the
/// messages up to the end may have been deleted.
const QUIET: Duration = Duration::from_millis(250);
/// The pauses before an append that failed is tried again: the first as short as a stolen turn, the last as long as an
/// outage can wait.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// So often the log may end before what was acked before that is believed: a new leader may not have applied everything
/// yet.
const BEHIND_MAX: u32 = 10;
/// After so many failures in a row without the log having moved on, events go one by one: something in the group may be
/// what the server does not take. Of a batch it only says that it is incomplete.
const FAILURES_TOGETHER_MAX: u32 = 2;

type Append = Pin<Box<dyn Future<Output = Landed> + Send>>;
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
    reader: OrderedReader,
    /// The connection was lost, or is there again.
    connection_changed: Option<Changed>,
    /// When the reader last brought something.
    heard_at: Instant,
    overlay: Overlay,
    unwritten: Vec<Change>,
    arrived: Vec<Submission>,
    looking: Option<Looking>,
    /// What the overlay must keep for `looking`.
    looking_from: StreamSeq,
    ready: VecDeque<Submission>,
    /// Not there while it appends.
    appender: Option<Appender>,
    flight: Option<Flight>,
    append: Option<Append>,
    /// The log is known to reach here: nothing is decided before.
    target: StreamSeq,
    probe: Option<Probe>,
    /// Appends that failed in a row.
    failures: u32,
    /// Answers in a row by which the log ends before what was acked.
    behind: u32,
    /// So many of the next submissions go alone.
    alone: usize,
    carrier: Carrier,
    reaching: Vec<(StreamSeq, oneshot::Sender<()>)>,
    /// No submission will come any more.
    closed: bool,
    draining: bool,
}

/// An append has ended.
struct Landed {
    appender: Appender,
    messages: Vec<Outgoing>,
    result: Result<StreamSeq, AppendError>,
}

/// What the session has waited for.
enum Happening {
    Read(Result<Batch, ReadError>),
    Landed(Landed),
    Looked(Result<Vec<Submission>, StorageError>),
    Probed(Probed),
    Scanned(Result<Page, StorageError>),
    Arrived(usize),
    Asked(Option<Ask>),
    /// Changes went to the writer.
    Written,
    Committed,
    ConnectionChanged,
    Quiet,
    LookForHeads,
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
            reader,
            connection_changed: Some(changed(&shard.connection)),
            heard_at: Instant::now(),
            target: overlay.end(),
            overlay,
            unwritten: Vec::new(),
            arrived: Vec::new(),
            looking: None,
            looking_from: StreamSeq(0),
            ready: VecDeque::new(),
            appender: Some(Appender::new(shard.connection.clone())),
            flight: None,
            append: None,
            probe: None,
            failures: 0,
            behind: 0,
            alone: 0,
            carrier,
            reaching: Vec::new(),
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
            self.look_up();
            self.launch();
            if self.is_drained() {
                return Ok(());
            }
            let happening = self.happening().await?;
            self.take(happening)?;
        }
    }

    async fn happening(&mut self) -> Result<Happening, Fault> {
        let takes_in = !self.closed && self.arrived.is_empty() && self.ready.len() < READY_MAX;
        let quiet_at = (self.probe.is_none() && self.wanted_end() > self.overlay.end()).then(|| self.heard_at + QUIET);
        let look_at = self.carrier.wakes_at();
        Ok(tokio::select! {
            batch = self.reader.next(), if self.unwritten.len() < UNWRITTEN_MAX => Happening::Read(batch),
            landed = settled(&mut self.append) => Happening::Landed(landed),
            looked = settled(&mut self.looking) => Happening::Looked(looked.unwrap_or_else(panicked)),
            probed = settled(&mut self.probe) => Happening::Probed(probed),
            scanned = settled(&mut self.carrier.scan) => Happening::Scanned(scanned.unwrap_or_else(panicked)),
            arrived = self.inbox.queue.recv_many(&mut self.arrived, BATCH_MESSAGES_MAX), if takes_in => {
                Happening::Arrived(arrived)
            }
            asked = self.inbox.asks.recv() => Happening::Asked(asked),
            room = self.writer.reserve(), if !self.unwritten.is_empty() => {
                room.map_err(|_| Fault::Written)?.send(mem::take(&mut self.unwritten));
                Happening::Written
            }
            committed = self.committed.changed() => {
                committed.map_err(|_| Fault::Written)?;
                Happening::Committed
            }
            () = settled(&mut self.connection_changed) => Happening::ConnectionChanged,
            () = at(quiet_at) => Happening::Quiet,
            () = at(look_at) => Happening::LookForHeads,
            () = self.shard.drain.cancelled(), if !self.draining => Happening::Drain,
        })
    }

    fn take(&mut self, happening: Happening) -> Result<(), Fault> {
        match happening {
            Happening::Read(batch) => self.read(batch?)?,
            Happening::Landed(landed) => self.land(landed),
            Happening::Looked(group) => self.ready.extend(group?),
            Happening::Probed(probed) => self.probed(probed)?,
            Happening::Scanned(page) => self.carrier.found(page?),
            Happening::Arrived(count) => self.closed = count == 0,
            Happening::Asked(ask) => self.asked(ask),
            Happening::Committed => self.prune(),
            Happening::ConnectionChanged => {
                self.connection_changed = Some(changed(&self.shard.connection));
                // It would find out by itself, by the silence.
                self.reader = self.shard.reader(self.reader.position());
            }
            Happening::Quiet => {
                self.probe = Some(probe::nothing_between(self.shard, self.overlay.end(), self.wanted_end()));
            }
            Happening::LookForHeads => {
                let (receipts, horizons) = (self.receipts.clone(), self.shard.horizons());
                self.carrier.look(receipts, horizons, self.overlay.now());
            }
            Happening::Drain => {
                self.draining = true;
                self.inbox.queue.close();
            }
            Happening::Written => {}
        }
        Ok(())
    }

    fn is_drained(&self) -> bool {
        let empty = self.arrived.is_empty() && self.ready.is_empty();
        self.closed && empty && self.looking.is_none() && self.append.is_none()
    }

    /// Asks the file about what has arrived.
    fn look_up(&mut self) {
        if self.looking.is_none() && !self.arrived.is_empty() {
            self.looking_from = self.overlay.base();
            self.looking = Some(look_up(self.receipts.clone(), mem::take(&mut self.arrived)));
        }
    }

    /// Decides for what is ready and sends it off, unless something must come first.
    fn launch(&mut self) {
        let waits = self.probe.is_some() || self.overlay.end() < self.target || self.overlay.len() >= OVERLAY_MAX;
        while !waits
            && (!self.ready.is_empty() || self.carrier.has_page())
            && let Some(mut appender) = self.appender.take()
        {
            let group = self.next_group();
            let carry = self.carrier.board(&self.overlay);
            let (flight, messages) = Flight::decide(&self.overlay, self.shard.horizons(), group, carry);
            if messages.is_empty() {
                // All of them were known, and have been answered.
                self.appender = Some(appender);
                continue;
            }
            let expected = flight.expected();
            self.flight = Some(flight);
            let lost = changed(&self.shard.connection);
            self.append = Some(Box::pin(async move {
                let result = tokio::select! {
                    result = appender.append(expected, &messages) => result,
                    // No ack comes over another connection than the one that the append went over.
                    () = lost => Err(connection_lost()),
                };
                Landed { appender, messages, result }
            }));
        }
    }

    /// The next submissions that go together, without those that have been given up.
    fn next_group(&mut self) -> Vec<Submission> {
        // One place is left for heads.
        let messages_max = if self.alone > 0 { 1 } else { BATCH_MESSAGES_MAX - 1 };
        let now = Instant::now();
        let mut group = Vec::with_capacity(self.ready.len().min(messages_max));
        let mut bytes = 0;
        while group.len() < messages_max
            && let Some(next) = self.ready.front()
            && (group.is_empty() || bytes + next.bytes <= BATCH_BYTES_MAX)
            && let Some(submission) = self.ready.pop_front()
        {
            if submission.deadline <= now {
                submission.answer(Err(SubmitError::Unavailable));
            } else if submission.looked.cursor < self.overlay.base() {
                self.arrived.push(submission);
            } else {
                bytes += submission.bytes;
                group.push(submission);
            }
        }
        self.alone = self.alone.saturating_sub(1);
        group
    }

    fn land(&mut self, landed: Landed) {
        let Landed { appender, messages, result } = landed;
        self.appender = Some(appender);
        let Some(flight) = self.flight.take() else { return };
        let sent = messages.len();
        let stored = result.as_ref().map_or_else(|error| error.stored, |_| sent).min(sent);
        let ours = flight.expected().0 + stored as u64;
        let left = flight.land(stored, messages, &mut self.overlay);
        self.carrier.landed(left.carried);
        self.answer_reached();
        match result {
            Ok(_) => self.failures = 0,
            Err(AppendError { kind, .. }) => self.failed(kind, sent, self.overlay.end().0 > ours, left),
        }
    }

    /// Sees to what is left of a flight. `moved_on`: somebody else's messages have been read since it was decided.
    fn failed(&mut self, kind: AppendErrorKind, sent: usize, moved_on: bool, mut left: Left) {
        tracing::debug!(shard = self.shard.id.0, %kind, left = left.submissions.len(), "append not wholly stored");
        self.failures = self.failures.saturating_add(1);
        match kind {
            AppendErrorKind::Conflict { last: Some(last) } if last > self.overlay.end() => {
                self.failures = 0;
                self.target = self.target.max(last);
            }
            AppendErrorKind::Conflict { .. } if moved_on => self.failures = 0,
            AppendErrorKind::Full(_) => {
                for submission in left.submissions.drain(..) {
                    submission.answer(Err(SubmitError::Full));
                }
            }
            AppendErrorKind::Refused(_) if sent > 1 => self.alone = left.submissions.len(),
            AppendErrorKind::Refused(reason) => {
                tracing::warn!(shard = self.shard.id.0, reason, "the log refuses an event");
                let too_large = reason.contains("exceed");
                let answer = if too_large { SubmitError::TooLarge } else { SubmitError::Unavailable };
                if let Some(submission) = left.submissions.pop_front() {
                    submission.answer(Err(answer));
                }
            }
            kind => {
                if !matches!(kind, AppendErrorKind::Unavailable(_)) && self.failures >= FAILURES_TOGETHER_MAX {
                    self.alone = left.submissions.len();
                }
                self.probe_end();
            }
        }
        for submission in left.submissions.into_iter().rev() {
            self.ready.push_front(submission);
        }
    }

    /// Asks where the log ends, after a pause that grows with each failure.
    fn probe_end(&mut self) {
        let doubled = PAUSE.0.saturating_mul(1 << self.failures.min(8));
        self.probe = Some(probe::end(self.shard, doubled.min(PAUSE.1)));
    }

    fn probed(&mut self, probed: Probed) -> Result<(), Fault> {
        match probed {
            Probed::End(state) => self.ends(&state)?,
            Probed::Nothing { behind, up_to } => {
                if behind == self.overlay.end() {
                    self.overlay.skip_to(up_to);
                    self.answer_reached();
                }
            }
            // The reader brings it.
            Probed::Something => self.heard_at = Instant::now(),
            Probed::Unavailable(reason) => {
                tracing::debug!(shard = self.shard.id.0, reason, "log does not answer");
                self.give_up_expired();
                self.failures = self.failures.saturating_add(1);
                self.probe_end();
            }
        }
        Ok(())
    }

    /// The log is known to end there.
    fn ends(&mut self, state: &StreamState) -> Result<(), Fault> {
        let (cursor, last) = (self.overlay.end(), state.last);
        if state.created != self.created {
            return Err(Mismatch::Created { expected: self.created, found: state.created }.into());
        }
        if last < cursor {
            self.behind += 1;
            if self.behind > BEHIND_MAX {
                return Err(Mismatch::Behind { cursor, last }.into());
            }
            self.probe_end();
            return Ok(());
        }
        self.behind = 0;
        self.target = self.target.max(last);
        Ok(())
    }

    /// Makes room for those who still wait.
    fn give_up_expired(&mut self) {
        let now = Instant::now();
        for submission in mem::take(&mut self.ready) {
            if submission.deadline <= now {
                submission.answer(Err(SubmitError::Unavailable));
            } else {
                self.ready.push_back(submission);
            }
        }
    }

    fn read(&mut self, batch: Batch) -> Result<(), Fault> {
        self.heard_at = Instant::now();
        for message in &batch.messages {
            let mark = Mark::of(message);
            let change = match self.overlay.read_back(message.seq, mark)? {
                Some(change) => change,
                None => {
                    let change = Change::of(self.shard.layout, message);
                    self.overlay.observe(&change)?;
                    change
                }
            };
            self.unwritten.push(change);
        }
        self.answer_reached();
        Ok(())
    }

    /// Forgets what the file holds, as far as no look-up may still need it.
    fn prune(&mut self) {
        let mut floor = self.committed.borrow_and_update().cursor;
        let looked = self.ready.iter().map(|submission| submission.looked.cursor);
        let in_flight = self.flight.as_ref().and_then(Flight::looked_at);
        let looking = self.looking.is_some().then_some(self.looking_from);
        for needed in looked.chain(in_flight).chain(looking) {
            floor = floor.min(needed);
        }
        self.overlay.prune(floor);
    }

    fn asked(&mut self, ask: Option<Ask>) {
        match ask {
            Some(Ask::Position { id, answer }) => {
                let _ = answer.send(self.overlay.accepted(id).map(|accepted| accepted.seq));
            }
            Some(Ask::Reach { end, answer }) => {
                self.reaching.retain(|(_, waiting)| !waiting.is_closed());
                if self.reaching.len() < REACHING_MAX {
                    self.reaching.push((end, answer));
                }
                self.answer_reached();
            }
            None => {}
        }
    }

    fn answer_reached(&mut self) {
        let end = self.overlay.end();
        for (_, answer) in self.reaching.extract_if(.., |(wanted, _)| *wanted <= end) {
            let _ = answer.send(());
        }
    }

    /// Where the overlay is to arrive for all who wait.
    fn wanted_end(&self) -> StreamSeq {
        self.reaching.iter().map(|(end, _)| *end).fold(self.target, StreamSeq::max)
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

fn connection_lost() -> AppendError {
    AppendError { stored: 0, kind: AppendErrorKind::Unknown("connection lost".into()) }
}

/// redb asserts where it meets damaged pages.
fn panicked<T>(error: tokio::task::JoinError) -> Result<T, StorageError> {
    Err(StorageError::Corrupted(error.to_string()))
}

//! Queries of the history, each on one state of its file.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use redb::{ReadableDatabase as _, ReadableTable as _};
use weft_catalog::Snapshot;
use weft_nats::cursor::Cursor;
use weft_proto::{
    ids::{EventId, Run, ShardId, StreamSeq, SubscriptionUid, WorkflowId},
    internal,
};

use super::{
    AuditCursor, AuditFilter, AuditPage, CommandItem, DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterId,
    DeadLetterPage, EventHistory, EventPage, EventQuery, EventRef, History, HistoryError, ItemProgress, LaneCursor,
    LaneFilter, LanePage, Lost, ReceiverHistory, ReplayCursor, ReplayPage, StoredCommand, adoption_effects,
    apply::StreamKind,
    audit, dead_letters, events, lanes, list, names,
    names::Subscriptions,
    receivers, replays, requests,
    stats::{self, Backlogs, Minutes, StatsQuery, StatsReport},
    tables::{View, get},
};

impl History {
    /// An event with its deliveries, the newest one if its id occurs several times; `None` if no such event is kept.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn event(&self, event: EventRef) -> Result<Option<EventHistory>, HistoryError> {
        self.read(move |view, subscriptions| {
            match events::places(view, event.event)?.into_iter().rfind(|(_, seq)| event.is_at(*seq)) {
                Some((shard, seq)) => events::event(view, subscriptions, shard, seq),
                None => Ok(None),
            }
        })
        .await
    }

    /// The event at this place with its deliveries; `None` if it is not known.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn event_at(&self, shard: ShardId, seq: StreamSeq) -> Result<Option<EventHistory>, HistoryError> {
        self.read(move |view, subscriptions| events::event(view, subscriptions, shard, seq)).await
    }

    /// The EVENTS sequence of the record that the event's payload was erased; `None`: it was not.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn erased_by(&self, shard: ShardId, seq: StreamSeq) -> Result<Option<StreamSeq>, HistoryError> {
        self.read(move |view, _| Ok(view.erased.get((shard.0, seq.0))?.map(|record| StreamSeq(record.value())))).await
    }

    /// The recorded calls that erase events and are not finished.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn unfinished_erasures(&self) -> Result<Vec<StoredCommand>, HistoryError> {
        self.read(move |view, _| {
            let mut unfinished = Vec::new();
            for row in view.erasures.range((0, 0)..)? {
                let (shard, seq) = row?.0.value();
                if let Some(command) = get(&view.commands, (shard, seq))? {
                    unfinished.push(StoredCommand { shard: ShardId(shard), run: Run(seq), command });
                }
            }
            Ok(unfinished)
        })
        .await
    }

    /// The places in the log of all events of this id, the newest last; also where only a dead letter is kept.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn places_of(&self, id: EventId) -> Result<Vec<(ShardId, StreamSeq)>, HistoryError> {
        self.read(move |view, _| events::places(view, id)).await
    }

    /// The newest place before `before` of an event with this id in a workflow.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn place_before(
        &self,
        id: EventId,
        workflow: WorkflowId,
        shard: ShardId,
        before: StreamSeq,
    ) -> Result<Option<StreamSeq>, HistoryError> {
        self.read(move |view, _| events::place_before(view, id, workflow.as_str(), shard, before)).await
    }

    /// Events after `after`, at most `limit`. A page does a bounded amount of work, so it may be short, even empty, before the end.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn list(
        &self,
        query: EventQuery,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<EventPage, HistoryError> {
        let layout = self.shared.layout;
        self.read(move |view, subscriptions| list::page(view, subscriptions, layout, &query, after.as_ref(), limit))
            .await
    }

    /// The events at these places with their deliveries, in the order given; `None` where none is known.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn events_at(
        &self,
        places: Vec<(ShardId, StreamSeq)>,
    ) -> Result<Vec<Option<EventHistory>>, HistoryError> {
        self.read(move |view, subscriptions| list::histories(view, subscriptions, &places)).await
    }

    /// Ids of events that are between these two, at most `limit`; the same id several times if it occurs so often.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn ids_between(&self, first: EventId, last: EventId, limit: usize) -> Result<Vec<EventId>, HistoryError> {
        self.read(move |view, _| {
            let found = events::ids_between(view, first.as_bytes(), last.as_bytes(), limit)?;
            Ok(found.into_iter().map(|(_, _, id)| id).collect())
        })
        .await
    }

    /// Those of these ids that events have, in the order given.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn known(&self, ids: Vec<EventId>) -> Result<Vec<EventId>, HistoryError> {
        self.read(move |view, _| {
            let mut known = Vec::new();
            for id in ids {
                if !events::places(view, id)?.is_empty() {
                    known.push(id);
                }
            }
            Ok(known)
        })
        .await
    }

    /// The sources that events have had, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn sources(&self, limit: usize) -> Result<Vec<String>, HistoryError> {
        self.read(move |view, _| view.sources.iter()?.take(limit).map(|row| Ok(row?.0.value().to_owned())).collect())
            .await
    }

    /// The place of an event in the log, or its former place if a dead letter of it is kept.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn position_of(&self, id: EventId) -> Result<Option<(ShardId, StreamSeq)>, HistoryError> {
        self.read(move |view, _| Ok(events::places(view, id)?.pop())).await
    }

    /// The dead letters that each of these ids names, in the order given: several if an event's id occurs at several
    /// places of the log.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn find_dead_letters(&self, ids: Vec<DeadLetterId>) -> Result<Vec<Vec<DeadLetter>>, HistoryError> {
        self.read(move |view, subscriptions| ids.iter().map(|id| dead_letters::find(view, subscriptions, id)).collect())
            .await
    }

    /// Dead letters after `after`, the newest first, at most `limit`. A page may be short, even empty, before the end: it ends
    /// after some ten thousand rows, also with a selective filter.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn dead_letters(
        &self,
        filter: DeadLetterFilter,
        after: Option<DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, HistoryError> {
        self.read(move |view, subscriptions| dead_letters::page(view, subscriptions, &filter, after, limit)).await
    }

    /// The commands of a request, by shard; empty when the request is unknown.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn request(&self, request_id: String) -> Result<Vec<StoredCommand>, HistoryError> {
        self.read(move |view, _| requests::request(view, &request_id)).await
    }

    /// Whether the shard's owner has executed a command; [`item_progress`](Self::item_progress) returns the state of its items.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn is_carried_out(&self, shard: ShardId, command: Run) -> Result<bool, HistoryError> {
        self.read(move |view, _| requests::is_carried_out(view, shard, command)).await
    }

    /// Whether a shard's owner has executed a command to adopt it.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn is_adopted(&self, shard: ShardId, command: Run) -> Result<bool, HistoryError> {
        self.read(move |view, _| Ok(view.adoptions.get((shard.0, command.0))?.is_some())).await
    }

    /// The effects of an adoption of a shard that keeps events up to `events` and runs of commands up to `commands`;
    /// names at most `limit` of each.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn lost(
        &self,
        shard: ShardId,
        events: StreamSeq,
        commands: u64,
        limit: usize,
    ) -> Result<Lost, HistoryError> {
        self.read(move |view, subscriptions| {
            adoption_effects::lost(view, subscriptions, shard, events, commands, limit)
        })
        .await
    }

    /// Whether a shard's owner has refused an item of a command.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn is_refused(&self, item: CommandItem) -> Result<bool, HistoryError> {
        self.read(move |view, _| requests::is_refused(view, &item)).await
    }

    /// Lanes after `after`, by workflow, at most `limit`. A page may be short, even empty, before the end.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn lanes(
        &self,
        filter: LaneFilter,
        after: Option<LaneCursor>,
        limit: usize,
    ) -> Result<LanePage, HistoryError> {
        let layout = self.shared.layout;
        self.read(move |view, subscriptions| lanes::page(view, subscriptions, layout, &filter, after, limit)).await
    }

    /// The attempt of an event's live run that has ended last.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn last_attempt(
        &self,
        shard: ShardId,
        seq: StreamSeq,
        uid: SubscriptionUid,
    ) -> Result<Option<internal::Attempt>, HistoryError> {
        self.read(move |view, _| events::last_attempt(view, shard, seq, uid)).await
    }

    /// Receivers that are away or held, as the owners of the shards see them.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn receivers(&self) -> Result<Vec<ReceiverHistory>, HistoryError> {
        self.read(move |view, _| receivers::all(view)).await
    }

    /// Subscriptions that are paused, by the catalog.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn paused_subscriptions(&self) -> Result<BTreeSet<SubscriptionUid>, HistoryError> {
        self.read(move |_, subscriptions| {
            let paused = subscriptions.uids().filter(|uid| subscriptions.get(uid).is_some_and(|known| known.paused));
            Ok(paused.map(|uid| SubscriptionUid::from_bytes(*uid)).collect())
        })
        .await
    }

    /// Which of these deliveries an operator has resolved or discarded, in the order given; `run` is not used.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn decisions(&self, items: Vec<CommandItem>) -> Result<Vec<Option<internal::OutcomeKind>>, HistoryError> {
        self.read(move |view, _| requests::decisions(view, &items)).await
    }

    /// The request ids of replays, the newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn replays(&self, after: Option<ReplayCursor>, limit: usize) -> Result<ReplayPage, HistoryError> {
        self.read(move |view, _| replays::page(view, after, limit)).await
    }

    /// As [`unknown_subscriptions`](Self::unknown_subscriptions), after all outcomes that the log holds at this moment have
    /// been read.
    ///
    /// # Errors
    ///
    /// [`HistoryError`], also when that takes longer than `patience`.
    pub async fn unknown_subscriptions_now(
        &self,
        catalog: &Snapshot,
        patience: Duration,
    ) -> Result<Vec<(ShardId, internal::SubscriptionState)>, HistoryError> {
        let ends = self.ends(|source| matches!(source, StreamKind::Outcomes(_))).await?;
        let reached = |positions: &Vec<StreamSeq>| ends.iter().all(|(index, end)| positions[*index] >= *end);
        self.wait(patience, reached).await?;
        self.unknown_subscriptions(catalog).await
    }

    /// The subscriptions that the shards' owners have opened and not closed, as far as the history has read, and that a
    /// catalog neither has nor knows to be removed.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn unknown_subscriptions(
        &self,
        catalog: &Snapshot,
    ) -> Result<Vec<(ShardId, internal::SubscriptionState)>, HistoryError> {
        let mut uids = self.read(|view, _| names::uids(view)).await?;
        uids.retain(|(_, uid)| !catalog.knows(uid));
        if uids.is_empty() {
            return Ok(Vec::new());
        }
        self.read(move |view, _| names::open(view, &uids)).await
    }

    /// Calls of operators before `before`, the newest first, at most `limit`. A page may be short, even empty, before the end.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn audit(
        &self,
        filter: AuditFilter,
        before: Option<AuditCursor>,
        limit: usize,
    ) -> Result<AuditPage, HistoryError> {
        let shards = self.shared.layout.shards();
        self.read(move |view, _| audit::page(view, shards, &filter, before, limit)).await
    }

    /// Sums of counts and durations over a period.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn stats(&self, query: StatsQuery) -> Result<StatsReport, HistoryError> {
        self.read(move |view, subscriptions| stats::report(view, subscriptions, query)).await
    }

    /// Counts of sources and dead letters of subscriptions, minute by minute, in [`from`, `until`).
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn minutes(&self, from: u64, until: u64) -> Result<Minutes, HistoryError> {
        self.read(move |view, _| stats::minutes(view, from, until)).await
    }

    /// Backlogs of subscriptions.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn backlogs(&self) -> Result<Backlogs, HistoryError> {
        let layout = self.shared.layout;
        self.read(move |view, subscriptions| stats::backlogs(view, subscriptions, layout)).await
    }

    /// The number of dead letters of each subscription that are open or being redriven. Reads all that are kept.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn open_dead_letters(&self) -> Result<BTreeMap<SubscriptionUid, u64>, HistoryError> {
        self.read(|view, _| dead_letters::open_counts(view)).await
    }

    /// The newest command to a replay.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn replay_order(&self, replay: String) -> Result<Option<internal::ReplayAction>, HistoryError> {
        self.read(move |view, _| replays::order(view, &replay)).await
    }

    /// Whether an operator has cancelled a call: a replay, or one about dead letters.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn is_cancelled(&self, request_id: String) -> Result<bool, HistoryError> {
        Ok(self.replay_order(request_id).await? == Some(internal::ReplayAction::Cancel))
    }

    /// Progress of these items of commands, in the order given.
    ///
    /// # Errors
    ///
    /// [`HistoryError`].
    pub async fn item_progress(&self, items: Vec<CommandItem>) -> Result<Vec<ItemProgress>, HistoryError> {
        self.read(move |view, _| requests::progress(view, &items)).await
    }

    /// Runs a query on a thread that may block, on one state of the file.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&View, &Subscriptions) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let database = self.shared.database.read().clone();
        let Some(database) = database else {
            return Err(HistoryError::Building(self.shared.progress.borrow().clone().unwrap_or_default()));
        };
        let subscriptions = self.shared.subscriptions();
        let answer = tokio::task::spawn_blocking(move || {
            let view = View::open(&database.begin_read()?)?;
            query(&view, &subscriptions)
        });
        Ok(answer.await.unwrap_or_else(|error| Err(redb::Error::Corrupted(error.to_string())))?)
    }
}

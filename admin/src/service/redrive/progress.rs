//! Progress of a redrive, by the history: one message with the number of selected items, then one for each item that
//! settles, until none is left.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::unfold};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_index::history::{CommandItem, History, ItemProgress, StoredCommand};
use weft_proto::{
    ids::{EventId, ShardId, StreamSeq, SubscriptionUid},
    internal::{self, OutcomeKind},
    v1::{self, RedriveStatus},
};

use super::Responses;
use crate::{
    auth, convert,
    service::{shares::Place, state::draining},
};

/// Interval of checks: a check reads a row for each item that is not settled.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The causes that end a stream before its redrive.
pub(super) struct Ends {
    pub draining: CancellationToken,
    /// The caller's key no longer holds.
    pub ended: BoxFuture<'static, ()>,
}

/// One redrive that is followed.
pub(super) struct Progress {
    history: History,
    changes: watch::Receiver<Vec<StreamSeq>>,
    ends: Ends,
    /// The counts of the next message.
    counts: v1::RedriveDeadLettersResponse,
    /// Not settled yet, with the dead letters' ids.
    pending: Vec<(CommandItem, String)>,
    /// The subscriptions' names.
    names: BTreeMap<SubscriptionUid, String>,
    /// The last message said that everything that is left waits for these.
    waits_for: Vec<v1::WaitsFor>,
    ready: VecDeque<v1::RedriveDeadLettersResponse>,
    _place: Place,
}

impl Progress {
    /// Follows what these commands name.
    pub fn new(history: History, request_id: String, commands: &[StoredCommand], ends: Ends, place: Place) -> Self {
        let pending: Vec<_> =
            commands.iter().flat_map(StoredCommand::items).map(|(place, item)| (place, dead_letter_id(item))).collect();
        let selected = u32::try_from(pending.len()).unwrap_or(u32::MAX);
        let counts = v1::RedriveDeadLettersResponse { selected, request_id, ..Default::default() };
        let first = v1::RedriveDeadLettersResponse { status: RedriveStatus::Redriving.into(), ..counts.clone() };
        let changes = history.changes();
        let named = commands.iter().flat_map(StoredCommand::items);
        let names = named.map(|(place, item)| (place.uid, item.subscription_name.clone())).collect();
        let (ready, waits_for) = (VecDeque::from([first]), Vec::new());
        Self { history, changes, ends, counts, pending, names, waits_for, ready, _place: place }
    }

    /// The messages; the last one is that of the item that settles last.
    pub fn into_responses(self) -> Responses {
        let responses = unfold(Some(self), async |progress| {
            let mut progress = progress?;
            match progress.next().await? {
                Ok(response) => Some((Ok(response), Some(progress))),
                Err(status) => Some((Err(status), None)),
            }
        });
        responses.boxed()
    }

    async fn next(&mut self) -> Option<Result<v1::RedriveDeadLettersResponse, Status>> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(Ok(response));
            }
            if self.pending.is_empty() {
                return None;
            }
            self.changes.mark_unchanged();
            self.look().await;
            self.look_at_receivers().await;
            if self.ready.is_empty() {
                let next = async {
                    // A history that has ended changes no more.
                    let _ = self.changes.changed().await;
                    sleep(LOOK_INTERVAL).await;
                };
                tokio::select! {
                    biased;
                    () = self.ends.draining.cancelled() => return Some(Err(draining())),
                    () = &mut self.ends.ended => return Some(Err(auth::ended())),
                    () = next => {}
                }
            }
        }
    }

    /// Says when everything that is left waits for receivers that are away or held, or for paused subscriptions: once for
    /// each way that they stand.
    async fn look_at_receivers(&mut self) {
        let (receivers, paused) = match (self.history.receivers().await, self.history.paused_subscriptions().await) {
            (Ok(receivers), Ok(paused)) => (receivers, paused),
            (Err(error), _) | (_, Err(error)) => {
                return tracing::debug!(%error, "how receivers stand is not known now");
            }
        };
        let receivers: BTreeMap<_, _> =
            receivers.iter().map(|receiver| ((receiver.shard, receiver.uid), &receiver.state)).collect();
        let wanted: BTreeSet<_> = self.pending.iter().map(|(item, _)| (item.shard, item.uid)).collect();
        let mut waits_for = Vec::new();
        for (shard, uid) in &wanted {
            let subscription = self.names.get(uid).cloned().unwrap_or_default();
            let receiver = match receivers.get(&(*shard, *uid)) {
                _ if paused.contains(uid) => paused_receiver(*shard),
                Some(state) => convert::receiver(*shard, state),
                None => continue,
            };
            waits_for.push(v1::WaitsFor { subscription, receiver: Some(receiver) });
        }
        let all = !wanted.is_empty() && waits_for.len() == wanted.len();
        if !all {
            self.waits_for.clear();
        } else if !same_receivers(&self.waits_for, &waits_for) {
            self.waits_for.clone_from(&waits_for);
            self.ready.push_back(v1::RedriveDeadLettersResponse {
                status: RedriveStatus::Waiting.into(),
                waits_for,
                ..self.counts.clone()
            });
        }
    }

    /// Asks how the pending items stand. A history that is being opened again is asked at its next change.
    async fn look(&mut self) {
        let items = self.pending.iter().map(|(item, _)| *item).collect();
        let states = match self.history.item_progress(items).await {
            Ok(states) => states,
            Err(error) => {
                tracing::debug!(%error, "progress of a redrive is not known now");
                return;
            }
        };
        let pending = std::mem::take(&mut self.pending);
        for ((item, id), state) in pending.into_iter().zip(states) {
            match count(&mut self.counts, state) {
                None => self.pending.push((item, id)),
                Some(status) => {
                    let settled = v1::RedriveDeadLettersResponse { id, status: status.into(), ..self.counts.clone() };
                    self.ready.push_back(settled);
                }
            }
        }
    }
}

fn paused_receiver(shard: ShardId) -> v1::Receiver {
    let reason = "the subscription is paused".to_owned();
    v1::Receiver { state: v1::ReceiverCondition::Paused.into(), reason, shard: shard.0, ..Default::default() }
}

/// Whether these say the same, but for the next probe's time and the newest failure.
fn same_receivers(one: &[v1::WaitsFor], other: &[v1::WaitsFor]) -> bool {
    let known = |waits_for: &v1::WaitsFor| {
        let receiver = waits_for.receiver.clone().unwrap_or_default();
        (
            waits_for.subscription.clone(),
            receiver.shard,
            receiver.state,
            receiver.since.map(|at| (at.seconds, at.nanos)),
        )
    };
    one.iter().map(known).eq(other.iter().map(known))
}

/// Counts an item; its status once it is settled.
fn count(counts: &mut v1::RedriveDeadLettersResponse, state: ItemProgress) -> Option<RedriveStatus> {
    let (counter, status) = match state {
        ItemProgress::Pending => return None,
        ItemProgress::NotApplicable => (&mut counts.not_applicable, RedriveStatus::NotApplicable),
        ItemProgress::Settled(OutcomeKind::Delivered) => (&mut counts.delivered, RedriveStatus::Redriven),
        ItemProgress::Settled(OutcomeKind::Discarded) => (&mut counts.failed, RedriveStatus::Discarded),
        ItemProgress::Settled(OutcomeKind::Resolved) => (&mut counts.failed, RedriveStatus::Resolved),
        ItemProgress::Settled(OutcomeKind::Cancelled) => (&mut counts.cancelled, RedriveStatus::Cancelled),
        ItemProgress::Settled(OutcomeKind::DeadLettered | OutcomeKind::Unrouted | OutcomeKind::Unspecified) => {
            (&mut counts.failed, RedriveStatus::Open)
        }
    };
    *counter += 1;
    Some(status)
}

fn dead_letter_id(item: &internal::RedriveItem) -> String {
    if !item.dead_letter_id.is_empty() {
        return item.dead_letter_id.clone();
    }
    let event = EventId::from_slice(&item.event_id).map(|id| id.to_string()).unwrap_or_default();
    format!("{}:{event}", item.subscription_name)
}

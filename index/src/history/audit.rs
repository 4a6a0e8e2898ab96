//! Reading: the audit log, which is COMMANDS as a person reads it. One entry a call, the newest first.
//!
//! Each shard has its own commands, in the order of their sequences; a page merges them by their times. The cursor holds the
//! position in each shard, so that a page continues exactly, regardless of later appends.

use weft_nats::pattern::pattern_matches;
use weft_proto::{
    ids::{EventId, Run, ShardId, StreamSeq, SubscriptionUid},
    internal::{self, LaneAction, OutcomeKind, ReplayAction, command::Action},
    v1::{self, AuditResult, AuditTargetKind},
};

use super::{
    CommandItem, ItemProgress, StoredCommand,
    apply::base_request_id,
    requests::{self, is_carried_out, is_refused},
    tables::{View, decode},
};

/// Maximum number of commands that one page reads, so that a selective filter costs a bounded time.
const READ_MAX: usize = 10_000;
/// Maximum number of items whose progress one page counts. An entry with more is a separate page.
const ITEMS_MAX: usize = 20_000;
/// Targets of one entry that are named.
const TARGETS_MAX: usize = 100;
/// A command is stored within this time after the time in it: its append is repeated for some seconds.
const STORE_SLACK_MS: i64 = 60_000;

/// Which entries are wanted. The default wants all.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Of this operator.
    pub operator: Option<String>,
    /// Methods, with `*` for any run of characters.
    pub action: Option<String>,
    /// The target of the action.
    pub target: Option<String>,
    /// Of this request.
    pub request_id: Option<String>,
    /// Then or later.
    pub since_ms: Option<i64>,
    /// Before.
    pub until_ms: Option<i64>,
}

/// Position before which a page ends: for each shard a sequence of its COMMANDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditCursor(pub Vec<u64>);

/// A page of the audit log.
#[derive(Debug, Default)]
pub struct AuditPage {
    /// Newest first.
    pub entries: Vec<AuditEntry>,
    /// `None` at the end.
    pub next: Option<AuditCursor>,
}

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    /// Its commands, at least one.
    pub parts: Vec<StoredCommand>,
    /// The method that was called.
    pub action: String,
    /// At most 100.
    pub targets: Vec<v1::AuditTarget>,
    /// How many there are.
    pub target_count: usize,
    /// The result.
    pub counts: v1::AuditCounts,
}

impl AuditEntry {
    /// The result, in one word.
    pub fn result(&self) -> AuditResult {
        let v1::AuditCounts { selected, done, failed, not_applicable, pending, .. } = self.counts;
        match () {
            () if pending > 0 => AuditResult::Pending,
            () if selected > 0 && not_applicable == selected => AuditResult::NotApplicable,
            () if failed > 0 && done == 0 => AuditResult::Failed,
            () => AuditResult::Done,
        }
    }
}

impl AuditFilter {
    /// By what a single command says.
    fn takes(&self, command: &internal::Command) -> bool {
        self.operator.as_ref().is_none_or(|operator| *operator == command.operator)
            && self.action.as_ref().is_none_or(|pattern| pattern_matches(pattern, action_name(command)))
            && self.request_id.as_ref().is_none_or(|id| id == base_request_id(&command.request_id))
            && self.since_ms.is_none_or(|since_ms| command.at_ms >= since_ms)
            && self.until_ms.is_none_or(|until_ms| command.at_ms < until_ms)
    }

    fn takes_target(&self, parts: &[StoredCommand]) -> bool {
        self.target.as_ref().is_none_or(|target| parts.iter().any(|part| concerns(&part.command, target)))
    }

    /// Whether nothing that a shard stored before this command can be wanted.
    fn ends_at(&self, command: &internal::Command) -> bool {
        self.since_ms.is_some_and(|since_ms| command.at_ms < since_ms.saturating_sub(STORE_SLACK_MS))
    }
}

/// The page before `before`; `None`: from the newest.
pub(super) fn page(
    view: &View,
    shards: u32,
    filter: &AuditFilter,
    before: Option<AuditCursor>,
    limit: usize,
) -> Result<AuditPage, redb::Error> {
    let ends = before.map(|cursor| cursor.0).unwrap_or_default();
    let mut readers = Vec::new();
    for shard in 0..shards {
        let end = ends.get(shard as usize).copied().unwrap_or(u64::MAX);
        readers.push(Reader::new(view, shard, end)?);
    }
    let mut page = AuditPage::default();
    let (mut read, mut items) = (0, 0);
    while let Some(reader) =
        readers.iter_mut().max_by_key(|reader| reader.at_ms()).filter(|reader| reader.next.is_some())
    {
        let full = page.entries.len() >= limit.max(1) || read >= READ_MAX || items >= ITEMS_MAX;
        if full {
            page.next = Some(AuditCursor(readers.iter().map(|reader| reader.end).collect()));
            break;
        }
        let Some(stored) = reader.take(view)? else { break };
        read += 1;
        if filter.ends_at(&stored.command) {
            reader.finish();
            continue;
        }
        if !filter.takes(&stored.command) {
            continue;
        }
        // A call is shown once, where its first command is. A command that was stored again under the same id is none.
        let base = base_request_id(&stored.command.request_id);
        if requests::first(view, base)? != Some((stored.shard, stored.run)) {
            continue;
        }
        let parts = requests::request(view, base)?;
        if filter.takes_target(&parts) {
            items += parts.iter().map(|part| part.items().count()).sum::<usize>();
            page.entries.push(entry(view, parts)?);
        }
    }
    Ok(page)
}

/// The commands of a shard, the newest first.
struct Reader {
    shard: ShardId,
    /// All commands from here on have been taken.
    end: u64,
    next: Option<StoredCommand>,
}

impl Reader {
    fn new(view: &View, shard: u32, end: u64) -> Result<Self, redb::Error> {
        let mut reader = Self { shard: ShardId(shard), end, next: None };
        reader.next = reader.before(view)?;
        // Later commands belong to no page that follows, also of a shard from which this one takes nothing.
        reader.end = end.min(reader.next.as_ref().map_or(1, |newest| newest.run.0 + 1));
        Ok(reader)
    }

    /// Time of the next command; the least time at the end.
    fn at_ms(&self) -> i64 {
        self.next.as_ref().map_or(i64::MIN, |stored| stored.command.at_ms)
    }

    fn before(&self, view: &View) -> Result<Option<StoredCommand>, redb::Error> {
        let row = view.commands.range((self.shard.0, 0)..(self.shard.0, self.end))?.next_back().transpose()?;
        let Some((key, row)) = row else { return Ok(None) };
        Ok(Some(StoredCommand { shard: self.shard, run: Run(key.value().1), command: decode(row.value())? }))
    }

    fn take(&mut self, view: &View) -> Result<Option<StoredCommand>, redb::Error> {
        let Some(taken) = self.next.take() else { return Ok(None) };
        self.end = taken.run.0;
        self.next = self.before(view)?;
        Ok(Some(taken))
    }

    /// Takes nothing any more.
    fn finish(&mut self) {
        (self.end, self.next) = (0, None);
    }
}

fn entry(view: &View, parts: Vec<StoredCommand>) -> Result<AuditEntry, redb::Error> {
    let action = parts.first().map(|part| action_name(&part.command).to_owned()).unwrap_or_default();
    let mut all = Vec::new();
    let mut counts = v1::AuditCounts::default();
    for part in &parts {
        all.extend(targets(part));
        count(view, part, &mut counts)?;
    }
    let mut targets = Vec::new();
    for target in all {
        // Parts of one call for several shards name the same.
        if targets.last() != Some(&target) {
            targets.push(target);
        }
    }
    let target_count = targets.len();
    targets.truncate(TARGETS_MAX);
    Ok(AuditEntry { parts, action, targets, target_count, counts })
}

/// The method that a command was stored for.
fn action_name(command: &internal::Command) -> &str {
    match &command.action {
        Some(Action::Redrive(_)) => "RedriveDeadLetters",
        Some(Action::Catalog(edit)) => &edit.method,
        Some(Action::Retry(_)) => "RetryRejected",
        Some(Action::Close(close)) if close.kind() == OutcomeKind::Resolved => "ResolveDeadLetters",
        Some(Action::Close(_)) => "DiscardDeadLetters",
        Some(Action::Lane(order)) => match order.action() {
            LaneAction::Retry => "RetryLane",
            LaneAction::Skip => "SkipLane",
            LaneAction::Pause => "PauseLane",
            LaneAction::Resume => "ResumeLane",
            LaneAction::Unspecified => "",
        },
        Some(Action::Replay(_)) => "StartReplay",
        Some(Action::ReplayOrder(order)) => match order.action() {
            ReplayAction::Pause => "PauseReplay",
            ReplayAction::Resume => "ResumeReplay",
            ReplayAction::Cancel => "CancelReplay",
            ReplayAction::Unspecified => "",
        },
        Some(Action::Cancel(_)) => "CancelDeadLetterOperation",
        Some(Action::DiscardSubscription(_)) => "DiscardSubscription",
        Some(Action::Adopt(_)) => "AdoptShard",
        Some(Action::Erase(_)) => "EraseEvents",
        None => "",
    }
}

/// The target of a command.
fn targets(part: &StoredCommand) -> Vec<v1::AuditTarget> {
    let target = |kind: AuditTargetKind, name: String| v1::AuditTarget { kind: kind.into(), name };
    let items = |items: &[internal::RedriveItem], kind| items.iter().map(|item| target(kind, item_id(item))).collect();
    match &part.command.action {
        Some(Action::Redrive(redrive)) => items(&redrive.items, AuditTargetKind::DeadLetter),
        Some(Action::Close(close)) => items(&close.items, AuditTargetKind::DeadLetter),
        Some(Action::Replay(replay)) => items(&replay.items, AuditTargetKind::Delivery),
        Some(Action::Retry(retry)) => {
            retry.entries.iter().map(|entry| target(AuditTargetKind::Rejected, entry.to_string())).collect()
        }
        Some(Action::Lane(order)) => {
            vec![target(AuditTargetKind::Lane, format!("{}/{}", order.subscription_name, order.workflow_id))]
        }
        Some(Action::ReplayOrder(order)) => vec![target(AuditTargetKind::Replay, order.replay.clone())],
        Some(Action::Cancel(cancel)) => {
            vec![target(AuditTargetKind::DeadLetterOperation, cancel.operation.clone())]
        }
        Some(Action::DiscardSubscription(discard)) => {
            vec![target(AuditTargetKind::Subscription, discard.subscription_name.clone())]
        }
        Some(Action::Adopt(adopt)) => vec![target(AuditTargetKind::Shard, adopt.shard.to_string())],
        Some(Action::Erase(erase)) => {
            erase.items.iter().map(|item| target(AuditTargetKind::Event, erased_id(item))).collect()
        }
        Some(Action::Catalog(edit)) if edit.changes.is_empty() && !edit.name.is_empty() => {
            vec![target(kind_of_method(&edit.method), edit.name.clone())]
        }
        Some(Action::Catalog(edit)) => {
            edit.changes.iter().map(|change| target(kind_of(&change.kind), change.name.clone())).collect()
        }
        None => Vec::new(),
    }
}

fn kind_of(kind: &str) -> AuditTargetKind {
    match kind {
        "source" => AuditTargetKind::Source,
        "subscription" => AuditTargetKind::Subscription,
        "key" => AuditTargetKind::ApiKey,
        _ => AuditTargetKind::Unspecified,
    }
}

fn kind_of_method(method: &str) -> AuditTargetKind {
    match method {
        method if method.ends_with("Source") => AuditTargetKind::Source,
        method if method.ends_with("Subscription") => AuditTargetKind::Subscription,
        method if method.ends_with("ApiKey") => AuditTargetKind::ApiKey,
        _ => AuditTargetKind::Unspecified,
    }
}

/// The id of an item as operators write it.
fn item_id(item: &internal::RedriveItem) -> String {
    if !item.dead_letter_id.is_empty() {
        return item.dead_letter_id.clone();
    }
    let event = EventId::from_slice(&item.event_id).map(|id| id.to_string()).unwrap_or_default();
    format!("{}:{event}", item.subscription_name)
}

fn erased_id(item: &internal::ErasedItem) -> String {
    EventId::from_slice(&item.event_id).map(|id| id.to_string()).unwrap_or_default()
}

/// Whether a command is about this.
fn concerns(command: &internal::Command, target: &str) -> bool {
    let id = target.parse::<EventId>().ok().map(EventId::to_vec);
    let is_event = |bytes: &[u8]| id.as_ref().is_some_and(|id| id[..] == *bytes);
    let items = |items: &[internal::RedriveItem]| {
        items.iter().any(|item| {
            item.subscription_name == target
                || item.workflow_id == target
                || is_event(&item.event_id)
                || item_id(item) == target
        })
    };
    let is_request = base_request_id(&command.request_id) == target;
    match &command.action {
        Some(Action::Redrive(redrive)) => items(&redrive.items) || is_request,
        Some(Action::Close(close)) => items(&close.items) || is_request,
        Some(Action::Replay(replay)) => items(&replay.items) || is_request,
        Some(Action::Retry(retry)) => retry.entries.iter().any(|entry| entry.to_string() == target),
        Some(Action::Lane(order)) => {
            let Some((subscription, workflow)) = target.split_once('/') else {
                return order.subscription_name == target || order.workflow_id == target || is_event(&order.event_id);
            };
            (order.subscription_name == subscription && order.workflow_id == workflow) || order.workflow_id == target
        }
        Some(Action::ReplayOrder(order)) => order.replay == target,
        Some(Action::Cancel(cancel)) => cancel.operation == target,
        Some(Action::DiscardSubscription(discard)) => discard.subscription_name == target,
        Some(Action::Adopt(adopt)) => adopt.shard.to_string() == target,
        Some(Action::Erase(erase)) => {
            erase.items.iter().any(|item| item.workflow_id == target || is_event(&item.event_id))
        }
        Some(Action::Catalog(edit)) => edit.name == target || edit.changes.iter().any(|change| change.name == target),
        None => false,
    }
}

/// Adds what became of a command.
fn count(view: &View, part: &StoredCommand, counts: &mut v1::AuditCounts) -> Result<(), redb::Error> {
    let closes = matches!(part.command.action, Some(Action::Close(_)));
    let items: Vec<_> = part.items().map(|(item, _)| item).collect();
    for progress in requests::progress(view, &items)? {
        counts.selected += 1;
        let counter = match progress {
            ItemProgress::Pending => &mut counts.pending,
            ItemProgress::NotApplicable => &mut counts.not_applicable,
            ItemProgress::Settled(OutcomeKind::Delivered) => &mut counts.done,
            ItemProgress::Settled(OutcomeKind::Resolved | OutcomeKind::Discarded) if closes => &mut counts.done,
            ItemProgress::Settled(OutcomeKind::Resolved | OutcomeKind::Discarded) => &mut counts.discarded,
            ItemProgress::Settled(OutcomeKind::Cancelled) => &mut counts.cancelled,
            ItemProgress::Settled(_) => &mut counts.failed,
        };
        *counter += 1;
    }
    let executed = |uid: &[u8], seq: u64| -> Result<ItemProgress, redb::Error> {
        if !is_carried_out(view, part.shard, part.run)? {
            return Ok(ItemProgress::Pending);
        }
        let Some(uid) = SubscriptionUid::from_slice(uid) else { return Ok(ItemProgress::NotApplicable) };
        let item = CommandItem { shard: part.shard, seq: StreamSeq(seq), uid, run: part.run };
        let refused = is_refused(view, &item)?;
        Ok(if refused { ItemProgress::NotApplicable } else { ItemProgress::Settled(OutcomeKind::Delivered) })
    };
    let progress = match &part.command.action {
        Some(Action::Lane(order)) => executed(&order.subscription, order.sequence)?,
        Some(Action::DiscardSubscription(discard)) => executed(&discard.subscription, 0)?,
        Some(Action::ReplayOrder(_) | Action::Cancel(_)) if !is_carried_out(view, part.shard, part.run)? => {
            ItemProgress::Pending
        }
        Some(Action::Adopt(_)) => match view.adoptions.get((part.shard.0, part.run.0))? {
            Some(_) => ItemProgress::Settled(OutcomeKind::Delivered),
            // Executed, but not applied: the streams were not as the command says.
            None if is_carried_out(view, part.shard, part.run)? => ItemProgress::NotApplicable,
            None => ItemProgress::Pending,
        },
        Some(Action::Catalog(_) | Action::ReplayOrder(_) | Action::Cancel(_)) => {
            ItemProgress::Settled(OutcomeKind::Delivered)
        }
        Some(Action::Retry(retry)) => {
            // The first record counts all of them as pending, the following ones hold the results.
            counts.selected += size(retry.entries.len());
            counts.pending += size(retry.entries.len());
            for outcome in &retry.outcomes {
                counts.pending = counts.pending.saturating_sub(1);
                *(if outcome.code.is_empty() { &mut counts.done } else { &mut counts.failed }) += 1;
            }
            return Ok(());
        }
        Some(Action::Erase(erase)) => {
            let items = size(erase.items.len());
            counts.selected += items;
            let is_pending = view.erasures.get((part.shard.0, part.run.0))?.is_some();
            *(if is_pending { &mut counts.pending } else { &mut counts.done }) += items;
            return Ok(());
        }
        Some(Action::Redrive(_) | Action::Close(_) | Action::Replay(_)) | None => return Ok(()),
    };
    counts.selected += 1;
    *match progress {
        ItemProgress::Pending => &mut counts.pending,
        ItemProgress::NotApplicable => &mut counts.not_applicable,
        ItemProgress::Settled(_) => &mut counts.done,
    } += 1;
    Ok(())
}

fn size(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(counts: v1::AuditCounts) -> AuditResult {
        AuditEntry { parts: Vec::new(), action: String::new(), targets: Vec::new(), target_count: 0, counts }.result()
    }

    /// An operator reads in one word whether the call has done what it was for.
    #[test]
    fn a_result_is_the_worst_that_is_left() {
        let counts = |done, failed, not_applicable, pending| v1::AuditCounts {
            selected: done + failed + not_applicable + pending,
            done,
            failed,
            not_applicable,
            pending,
            ..v1::AuditCounts::default()
        };
        assert_eq!(entry(counts(3, 0, 0, 0)), AuditResult::Done);
        assert_eq!(entry(counts(3, 1, 1, 0)), AuditResult::Done);
        assert_eq!(entry(counts(3, 0, 0, 1)), AuditResult::Pending);
        assert_eq!(entry(counts(0, 0, 2, 0)), AuditResult::NotApplicable);
        assert_eq!(entry(counts(0, 2, 1, 0)), AuditResult::Failed);
        assert_eq!(entry(counts(0, 0, 0, 0)), AuditResult::Done);
    }

    #[test]
    fn targets_are_found_by_each_of_their_names() {
        let event = EventId::unique();
        let lane = internal::LaneOrder {
            subscription_name: "billing".into(),
            workflow_id: "order-42".into(),
            action: LaneAction::Skip.into(),
            event_id: event.to_vec(),
            ..internal::LaneOrder::default()
        };
        let command = internal::Command { action: Some(Action::Lane(lane)), ..internal::Command::default() };
        assert_eq!(action_name(&command), "SkipLane");
        for target in ["billing", "order-42", "billing/order-42", &event.to_string()] {
            assert!(concerns(&command, target), "{target}");
        }
        assert!(!concerns(&command, "order-4") && !concerns(&command, ""));
    }
}

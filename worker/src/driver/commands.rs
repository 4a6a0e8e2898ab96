//! Operators' commands, from COMMANDS.

use std::collections::HashSet;

use weft_nats::{
    message::Stored,
    reader::{Batch, OrderedReader, ReadError},
    records,
};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, command::Action},
};

use super::{Driver, DriverError};
use crate::lane::{Command, CommandAction, HeadRef, Input, LaneCommand, LaneKey, RedriveItem, ReplayCommand, interval};

/// Reads the commands of a shard.
#[derive(Debug)]
pub(super) struct CommandReader {
    reader: OrderedReader,
    /// Ids of requests that the lanes have, and whose results are not committed.
    requests: HashSet<String>,
}

impl CommandReader {
    pub fn new(reader: OrderedReader) -> Self {
        Self { reader, requests: HashSet::new() }
    }

    /// Waits for the next commands. Cancel safe.
    pub async fn next(&mut self) -> Result<Batch, ReadError> {
        self.reader.next().await
    }

    /// The result of a request is committed: the ledger has it.
    pub fn answered(&mut self, request_id: &str) {
        self.requests.remove(request_id);
    }
}

impl Driver {
    /// Passes commands to the lanes: each takes effect once, by its request id, under the condition that it names.
    pub(super) fn on_commands(&mut self, batch: &Batch) -> Result<(), DriverError> {
        let cancelled: HashSet<u64> = batch.messages.iter().filter_map(cancels).collect();
        for message in &batch.messages {
            self.commits.commands().read(message);
            let command = message.seq.0;
            let Some(decoded) = records::decode::<internal::Command>(message) else {
                tracing::warn!(command, "ignored a message of COMMANDS that is not a command");
                self.handle(Input::CommandSkipped { command })?;
                continue;
            };
            let is_repeated = self.commands.requests.contains(&decoded.request_id);
            if is_repeated || self.commits.ledger().has_request(&decoded.request_id)? {
                self.handle(Input::CommandSkipped { command })?;
                continue;
            }
            match self.action(decoded.action)? {
                Some(mut action) => {
                    if cancelled.contains(&command) {
                        not_applicable(&mut action);
                    }
                    let internal::Command { request_id, operator, reason, .. } = decoded;
                    self.commands.requests.insert(request_id.clone());
                    let command = Command { run: Run(command), request_id, operator, reason, action };
                    let discards = matches!(command.action, CommandAction::DiscardSubscription { .. });
                    self.handle(Input::CommandReceived(command))?;
                    if discards {
                        self.report_orphans();
                    }
                }
                None => self.handle(Input::CommandSkipped { command })?,
            }
        }
        Ok(())
    }

    /// The action of a command; `None` where the shard has nothing to do.
    fn action(&self, action: Option<Action>) -> Result<Option<CommandAction>, DriverError> {
        Ok(match action {
            Some(Action::Redrive(redrive)) => Some(CommandAction::Redrive(self.items(&redrive.items)?)),
            Some(Action::Replay(replay)) => {
                let live = |item: RedriveItem| RedriveItem { dead_run: Run::LIVE, ..item };
                let items = self.items(&replay.items)?.into_iter().map(live).collect();
                Some(CommandAction::Replay { items, min_interval: interval(replay.interval_us) })
            }
            Some(Action::Close(close)) => match close.kind() {
                kind @ (internal::OutcomeKind::Resolved | internal::OutcomeKind::Discarded) => {
                    Some(CommandAction::Close { kind, items: self.items(&close.items)? })
                }
                _ => None,
            },
            Some(Action::Lane(lane)) => lane_command(&lane),
            Some(Action::DiscardSubscription(discard)) => {
                SubscriptionUid::from_slice(&discard.subscription).map(|uid| CommandAction::DiscardSubscription { uid })
            }
            Some(Action::ReplayOrder(order)) => {
                let run = Run(order.run);
                replay_command(order.action()).map(|command| CommandAction::Runs { run, command })
            }
            Some(Action::Cancel(cancel)) => {
                Some(CommandAction::Runs { run: Run(cancel.run), command: ReplayCommand::Reopen })
            }
            // Records of actions that are complete.
            Some(Action::Catalog(_) | Action::Retry(_)) => None,
            // The records of erased events are read with the events.
            Some(Action::Erase(_)) => None,
            // Carried out only before the shard is driven, while its streams are not those of its commits.
            Some(Action::Adopt(_)) => None,
            None => {
                tracing::warn!("ignored a command of a later version");
                None
            }
        })
    }

    fn items(&self, items: &[internal::RedriveItem]) -> Result<Vec<RedriveItem>, DriverError> {
        items.iter().filter_map(|item| self.item(item).transpose()).collect()
    }

    fn item(&self, item: &internal::RedriveItem) -> Result<Option<RedriveItem>, DriverError> {
        let (Some(subscription), Some(event), Ok(workflow)) = (
            SubscriptionUid::from_slice(&item.subscription),
            EventId::from_slice(&item.event_id),
            WorkflowId::new(item.workflow_id.as_str()),
        ) else {
            return Ok(None);
        };
        let seq = StreamSeq(item.sequence);
        let open = self.commits.ledger().open_dead_letter(subscription, seq)?;
        Ok(Some(RedriveItem {
            lane: LaneKey::of_workflow(subscription, workflow),
            subscription_name: item.subscription_name.clone(),
            seq,
            event,
            dead_run: Run(item.run),
            applicable: open == Some(Run(item.run)),
        }))
    }
}

/// The command that a message cancels.
fn cancels(message: &Stored) -> Option<u64> {
    match records::decode::<internal::Command>(message)?.action? {
        Action::Cancel(cancel) => Some(cancel.run),
        _ => None,
    }
}

/// Dead letters of a call that was cancelled before it was carried out are left as they are.
fn not_applicable(action: &mut CommandAction) {
    if let CommandAction::Redrive(items) | CommandAction::Close { items, .. } = action {
        items.iter_mut().for_each(|item| item.applicable = false);
    }
}

fn lane_command(order: &internal::LaneOrder) -> Option<CommandAction> {
    let lane = LaneKey::of_workflow(
        SubscriptionUid::from_slice(&order.subscription)?,
        WorkflowId::new(order.workflow_id.as_str()).ok()?,
    );
    let head = HeadRef { seq: StreamSeq(order.sequence), next: StreamSeq(order.next.min(order.sequence)) };
    let command = match order.action() {
        internal::LaneAction::Retry => LaneCommand::Retry { head },
        internal::LaneAction::Skip => LaneCommand::Skip { head, event: EventId::from_slice(&order.event_id)? },
        internal::LaneAction::Pause => LaneCommand::Pause,
        internal::LaneAction::Resume => LaneCommand::Resume,
        internal::LaneAction::Unspecified => return None,
    };
    Some(CommandAction::Lane { lane, command })
}

fn replay_command(action: internal::ReplayAction) -> Option<ReplayCommand> {
    match action {
        internal::ReplayAction::Pause => Some(ReplayCommand::Pause),
        internal::ReplayAction::Resume => Some(ReplayCommand::Resume),
        internal::ReplayAction::Cancel => Some(ReplayCommand::Cancel),
        internal::ReplayAction::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(action: internal::LaneAction, event_id: Vec<u8>) -> internal::LaneOrder {
        internal::LaneOrder {
            subscription: vec![1; 16],
            workflow_id: "order-1".into(),
            sequence: 7,
            next: 9,
            event_id,
            action: action.into(),
            ..Default::default()
        }
    }

    /// A head is never after the place from which it is looked for, and a skip names its event.
    #[test]
    fn a_lane_command_names_its_head() {
        let lane = LaneKey::of_workflow(SubscriptionUid::from_bytes([1; 16]), WorkflowId::new("order-1").unwrap());
        let head = HeadRef { seq: StreamSeq(7), next: StreamSeq(7) };
        let of = |action, id| lane_command(&order(action, id));
        let command = |command| Some(CommandAction::Lane { lane: lane.clone(), command });
        assert_eq!(of(internal::LaneAction::Retry, vec![]), command(LaneCommand::Retry { head }));
        let event = EventId::from_bytes([2; 16]);
        assert_eq!(of(internal::LaneAction::Skip, event.to_vec()), command(LaneCommand::Skip { head, event }));
        assert_eq!(of(internal::LaneAction::Skip, vec![]), None, "a skip without an event");
        assert_eq!(of(internal::LaneAction::Unspecified, vec![]), None, "an action of a later version");
    }
}

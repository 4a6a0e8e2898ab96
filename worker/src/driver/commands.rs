//! What operators ask for, from COMMANDS.

use weft_nats::{reader::Batch, records};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    v1::{self, command::Action},
};

use super::{Driver, DriverError};
use crate::lane::{Command, CommandAction, HeadRef, Input, LaneCommand, LaneKey, RedriveItem, ReplayCommand};

impl Driver {
    /// Hands commands to the lanes: each acts once, by its request id, and under the condition that it names.
    pub(super) fn on_commands(&mut self, batch: &Batch) -> Result<(), DriverError> {
        for message in &batch.messages {
            self.commits.commands().read(message);
            let command = message.seq.0;
            let Some(decoded) = records::decode::<v1::Command>(message) else {
                tracing::warn!(command, "message of COMMANDS is no command of ours and is passed over");
                self.handle(Input::CommandSkipped { command })?;
                continue;
            };
            // The ledger knows a request once its result is committed.
            let is_repeated = self.requests.contains(&decoded.request_id);
            if is_repeated || self.commits.ledger().has_request(&decoded.request_id)? {
                self.handle(Input::CommandSkipped { command })?;
                continue;
            }
            match self.action(decoded.action)? {
                Some(action) => {
                    let v1::Command { request_id, operator, reason, .. } = decoded;
                    self.requests.insert(request_id.clone());
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

    /// What a command asks for; `None` where nothing of it is a shard's to do.
    fn action(&self, action: Option<Action>) -> Result<Option<CommandAction>, DriverError> {
        Ok(match action {
            Some(Action::Redrive(redrive)) => Some(CommandAction::Redrive(self.items(&redrive.items)?)),
            Some(Action::Replay(replay)) => {
                let live = |item: RedriveItem| RedriveItem { dead_run: Run::LIVE, ..item };
                Some(CommandAction::Replay(self.items(&replay.items)?.into_iter().map(live).collect()))
            }
            Some(Action::Close(close)) => match close.kind() {
                kind @ (v1::OutcomeKind::Resolved | v1::OutcomeKind::Discarded) => {
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
            // The record of what has been done.
            Some(Action::Catalog(_) | Action::Retry(_)) => None,
            // Carried out before the shard is driven, or not at all: its streams are those of its commits.
            Some(Action::Adopt(_)) => None,
            None => {
                tracing::warn!("command of a later version is passed over");
                None
            }
        })
    }

    fn items(&self, items: &[v1::RedriveItem]) -> Result<Vec<RedriveItem>, DriverError> {
        items.iter().filter_map(|item| self.item(item).transpose()).collect()
    }

    fn item(&self, item: &v1::RedriveItem) -> Result<Option<RedriveItem>, DriverError> {
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

fn lane_command(order: &v1::LaneOrder) -> Option<CommandAction> {
    let lane = LaneKey::of_workflow(
        SubscriptionUid::from_slice(&order.subscription)?,
        WorkflowId::new(order.workflow_id.as_str()).ok()?,
    );
    let head = HeadRef { seq: StreamSeq(order.sequence), next: StreamSeq(order.next.min(order.sequence)) };
    let command = match order.action() {
        v1::LaneAction::Retry => LaneCommand::Retry { head },
        v1::LaneAction::Skip => LaneCommand::Skip { head, event: EventId::from_slice(&order.event_id)? },
        v1::LaneAction::Pause => LaneCommand::Pause,
        v1::LaneAction::Resume => LaneCommand::Resume,
        v1::LaneAction::Unspecified => return None,
    };
    Some(CommandAction::Lane { lane, command })
}

fn replay_command(action: v1::ReplayAction) -> Option<ReplayCommand> {
    match action {
        v1::ReplayAction::Pause => Some(ReplayCommand::Pause),
        v1::ReplayAction::Resume => Some(ReplayCommand::Resume),
        v1::ReplayAction::Cancel => Some(ReplayCommand::Cancel),
        v1::ReplayAction::Unspecified => None,
    }
}

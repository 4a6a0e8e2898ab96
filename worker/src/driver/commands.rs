//! What operators ask for, from COMMANDS.

use prost::Message as _;
use weft_nats::reader::Batch;
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    v1::{self, command::Action},
};

use super::{Driver, DriverError};
use crate::lane::{Input, LaneKey, RedriveItem};

impl Driver {
    /// Hands commands to the lanes: each acts once, by its request id, and under the condition that it names.
    pub(super) fn commanded(&mut self, batch: &Batch) -> Result<(), DriverError> {
        for message in &batch.messages {
            let command = message.seq.0;
            let Ok(decoded) = v1::Command::decode(message.payload.clone()) else {
                tracing::warn!(command, "command cannot be read and is passed over");
                self.handle(Input::CommandPassed { command })?;
                continue;
            };
            if self.commits.ledger().has_request(&decoded.request_id)? {
                self.handle(Input::CommandPassed { command })?;
                continue;
            }
            match decoded.action {
                Some(Action::Redrive(redrive)) => {
                    let mut items = Vec::with_capacity(redrive.items.len());
                    for item in &redrive.items {
                        items.extend(self.redrive_item(item)?);
                    }
                    self.handle(Input::Redrive { command: Run(command), request_id: decoded.request_id, items })?;
                }
                // The record of what has been done; nothing of it is a shard's to do.
                Some(Action::Catalog(_) | Action::Retry(_)) => self.handle(Input::CommandPassed { command })?,
                None => {
                    tracing::warn!(command, "command of a later version is passed over");
                    self.handle(Input::CommandPassed { command })?;
                }
            }
        }
        Ok(())
    }

    fn redrive_item(&self, item: &v1::RedriveItem) -> Result<Option<RedriveItem>, DriverError> {
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
            lane: LaneKey { subscription, workflow },
            subscription_name: item.subscription_name.clone(),
            seq,
            event,
            dead_run: Run(item.run),
            applicable: open == Some(Run(item.run)),
        }))
    }
}

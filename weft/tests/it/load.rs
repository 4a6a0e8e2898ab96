//! Senders that do not give up.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use weft_services::sender::Receipt;

use crate::mesh::{Mesh, send};

/// Senders under way: one a workflow, each event after the one before was accepted.
pub struct Load {
    senders: JoinSet<Vec<Receipt>>,
    accepted: watch::Receiver<usize>,
    stop: CancellationToken,
}

impl Load {
    /// `each` events for each of `workflows` workflows, sent again and again until each has its receipt.
    pub fn start(mesh: &Mesh, workflows: usize, each: usize) -> Self {
        Self::paced(mesh, workflows, each, Duration::ZERO)
    }

    /// Events for each of `workflows` workflows, each `pause` after the one before was accepted, until
    /// [`stop`](Self::stop).
    pub fn steady(mesh: &Mesh, workflows: usize, pause: Duration) -> Self {
        Self::paced(mesh, workflows, usize::MAX, pause)
    }

    fn paced(mesh: &Mesh, workflows: usize, each: usize, pause: Duration) -> Self {
        let stop = CancellationToken::new();
        let (sender, accepted) = watch::channel(0);
        let accepted_so_far = Arc::new(sender);
        let mut senders = JoinSet::new();
        for workflow in 0..workflows {
            let (sender, wiring, accepted) = (mesh.sender(), mesh.wiring.clone(), accepted_so_far.clone());
            let stop = stop.clone();
            senders.spawn(async move {
                let mut receipts = Vec::new();
                for number in 0..each {
                    let id = format!("w{workflow}-{number}");
                    receipts.push(send(&sender, &wiring, &format!("w{workflow}"), &id).await);
                    accepted.send_modify(|count| *count += 1);
                    let stopped = tokio::time::timeout(pause, stop.cancelled());
                    if !pause.is_zero() && stopped.await.is_ok() {
                        break;
                    }
                }
                receipts
            });
        }
        Self { senders, accepted, stop }
    }

    /// From now on no new event is sent.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// How many events have been accepted.
    pub fn accepted(&self) -> usize {
        *self.accepted.borrow()
    }

    /// Waits until this number of events has been accepted.
    pub async fn until_accepted(&mut self, count: usize) {
        self.accepted.wait_for(|accepted| *accepted >= count).await.unwrap();
    }

    /// Waits until every event has its receipt. P1, P2: they are numbered 1, 2, 3, … in their workflow, each naming the one
    /// before. How many each workflow has.
    pub async fn finish(self) -> BTreeMap<String, u64> {
        let mut sent = BTreeMap::new();
        for receipts in self.senders.join_all().await {
            assert_numbered(&receipts);
            sent.insert(receipts[0].workflow_id.clone(), receipts.len() as u64);
        }
        sent
    }
}

fn assert_numbered(receipts: &[Receipt]) {
    let mut previous = None;
    for (index, receipt) in receipts.iter().enumerate() {
        assert_eq!(receipt.sequence_number, index as u64 + 1, "{}", receipt.workflow_id);
        assert_eq!(receipt.previous_event_id, previous, "{}", receipt.workflow_id);
        previous = Some(receipt.event_id.clone());
    }
}

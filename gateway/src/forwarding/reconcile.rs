//! Reconciles the answers to an event that was forwarded to an appender that then fell silent, and was queued locally as
//! well.
//!
//! A local "duplicate" may mean the copy that the appender appended. Then this sender was the first, which only the
//! appender knows, so its late reply is awaited. At most one of the two says "new": both compare before they append.

use std::time::Duration;

use tokio::{sync::oneshot, time::timeout};

use crate::sequencer::{SubmitError, submission::Answer};

/// Longest wait for the late reply once the event is known to be in the log: longer than a busy appender takes, and far
/// less than a sender waits. Without the reply the sender is answered "duplicate", which is correct for any sender.
pub(crate) const LATE_MAX: Duration = Duration::from_secs(1);

/// The answer to the sender, of the local and the remote decision.
pub(crate) async fn reconcile(mut here: oneshot::Receiver<Answer>, mut there: oneshot::Receiver<Answer>) -> Answer {
    let mut told = None;
    let decided = loop {
        tokio::select! {
            // If both are ready, the remote reply may be the better one.
            biased;
            answer = &mut there, if told.is_none() => match answer {
                Ok(answer) if is_new(&answer) => return answer,
                other => told = Some(other),
            },
            decided = &mut here => break decided.unwrap_or(Err(SubmitError::Unavailable)),
        }
    };
    if told.is_some() || !decided.as_ref().is_ok_and(|receipt| receipt.duplicate) {
        return decided;
    }
    match timeout(LATE_MAX, there).await {
        Ok(Ok(answer)) if is_new(&answer) => answer,
        _ => decided,
    }
}

fn is_new(answer: &Answer) -> bool {
    answer.as_ref().is_ok_and(|receipt| !receipt.duplicate)
}

#[cfg(test)]
mod tests {
    use weft_proto::ids::{EventId, SequenceNumber, WorkflowId};

    use super::*;
    use crate::sequencer::Receipt;

    fn receipt(duplicate: bool) -> Answer {
        Ok(Receipt {
            event_id: EventId::from_bytes([1; 16]),
            sequence_number: SequenceNumber(1),
            workflow: WorkflowId::new("a").unwrap(),
            previous: None,
            duplicate,
        })
    }

    /// `None`: the decision never comes.
    async fn reconciled(here: Option<Answer>, there: Option<Answer>, there_first: bool) -> Answer {
        let (tell_here, told_here) = oneshot::channel();
        let (tell_there, told_there) = oneshot::channel();
        let notifying = async {
            let ours = async { here.map(|answer| tell_here.send(answer)) };
            let theirs = async { there.map(|answer| tell_there.send(answer)) };
            if there_first {
                theirs.await;
                tokio::task::yield_now().await;
                ours.await;
            } else {
                ours.await;
                tokio::time::sleep(LATE_MAX / 2).await;
                theirs.await;
            }
        };
        tokio::join!(reconcile(told_here, told_there), notifying).0
    }

    /// P2: the sender is answered "new" exactly if one of the two accepted its event.
    #[tokio::test(start_paused = true)]
    async fn only_one_of_two_gateways_calls_an_event_new() {
        for there_first in [false, true] {
            let told = async |here, there| reconciled(here, there, there_first).await;
            assert_eq!(told(Some(receipt(false)), Some(receipt(true))).await, receipt(false));
            assert_eq!(told(Some(receipt(true)), Some(receipt(false))).await, receipt(false));
            assert_eq!(told(Some(receipt(true)), Some(receipt(true))).await, receipt(true));
            assert_eq!(told(Some(receipt(true)), None).await, receipt(true));
            assert_eq!(told(Some(receipt(false)), None).await, receipt(false));
            assert_eq!(told(None, None).await, Err(SubmitError::Unavailable));
        }
        assert_eq!(reconciled(None, Some(receipt(false)), true).await, receipt(false));
    }

    /// An appender that is gone costs at most [`LATE_MAX`].
    #[tokio::test(start_paused = true)]
    async fn a_silent_gateway_is_not_waited_for_long() {
        let (tell, here) = oneshot::channel();
        let (_never, there) = oneshot::channel();
        tell.send(receipt(true)).unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(reconcile(here, there).await, receipt(true));
        assert!(began.elapsed() >= LATE_MAX && began.elapsed() < LATE_MAX * 2);
    }
}

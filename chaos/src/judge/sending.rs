//! P1 and P2: receipts.

use super::{Index, Rule, Violation};
use crate::record::{Answer, FaultKind, Receipt, Submission};

/// Name space of event ids made from delivery ids, as the contract fixes it.
const NAMESPACE: uuid::Uuid = uuid::Uuid::from_u128(0x7e5496a8_ed57_55d9_8282_6c44b8daa238);
/// Name of the only source.
pub const SOURCE: &str = "shop";

/// The event id that the contract gives a delivery.
pub fn event_id(delivery: &str) -> String {
    uuid::Uuid::new_v5(&NAMESPACE, format!("{SOURCE}\0{delivery}").as_bytes()).to_string()
}

/// Judges the answers to the senders.
pub fn judge(index: &Index<'_>, found: &mut Vec<Violation>) {
    for (delivery, submissions) in &index.submissions {
        let id = event_id(delivery);
        receipts(index, &id, submissions, found);
        accepted_once(index, &id, submissions, found);
        for submission in submissions {
            refused(index, &id, submission, found);
        }
        if !submissions.iter().any(|submission| submission.answer.receipt().is_some()) {
            let last = submissions.last().map(|last| last.answer.to_string()).unwrap_or_default();
            let text = format!("{delivery}: no 2xx in {} submissions, the last: {last}", submissions.len());
            found.push(Violation::new(Rule::NeverAccepted, &id, text));
        }
    }
}

fn receipts(index: &Index<'_>, id: &str, submissions: &[&Submission], found: &mut Vec<Violation>) {
    let receipts: Vec<&Receipt> = submissions.iter().filter_map(|submission| submission.answer.receipt()).collect();
    let Some(first) = receipts.first() else { return };
    let mut differs = |text: String| found.push(Violation::new(Rule::ReceiptDiffers, id, text));
    if let Some(other) = receipts.iter().find(|receipt| *receipt != first) {
        differs(format!("two receipts: {first:?} and {other:?}"));
    }
    if first.event_id != id || first.workflow_id != submissions[0].workflow {
        differs(format!("the receipt is of another event: {first:?}"));
    }
    let Some(stored) = index.by_id.get(id) else {
        let text = format!("{first:?}: not in the log");
        found.push(Violation::new(Rule::Lost, id, text));
        return;
    };
    let same = |event: &&crate::record::Stored| {
        event.number == first.sequence_number
            && event.previous == first.previous_event_id
            && event.workflow == first.workflow_id
    };
    if !stored.iter().any(same) {
        let stored = stored[0];
        differs(format!(
            "the receipt says number {} after {:?}, the log {} after {:?}",
            first.sequence_number, first.previous_event_id, stored.number, stored.previous
        ));
    }
}

fn accepted_once(index: &Index<'_>, id: &str, submissions: &[&Submission], found: &mut Vec<Violation>) {
    let accepted: Vec<_> = submissions.iter().filter(|one| matches!(one.answer, Answer::Accepted(_))).collect();
    if accepted.len() > 1 {
        let at: Vec<_> = accepted.iter().map(|one| format!("gateway{} at {} ms", one.gateway, one.ended)).collect();
        found.push(Violation::new(Rule::AcceptedTwice, id, format!("202 from {}", at.join(" and "))));
    }
    let failed = submissions.iter().any(|one| one.answer.receipt().is_none());
    let (from, until) = (
        submissions.iter().map(|one| one.sent).min().unwrap_or(0),
        submissions.iter().map(|one| one.ended).max().unwrap_or(0),
    );
    let known = submissions.iter().any(|one| matches!(one.answer, Answer::Known(_)));
    if accepted.is_empty() && known && !failed && !index.disturbed(from, until) {
        let text = format!("200 and no 202 in {} submissions, none of which failed", submissions.len());
        found.push(Violation::new(Rule::KnownAtFirst, id, text));
    }
}

/// A sender may be asked to come again, and told that the gateway's clock or its own is wrong while one is.
fn refused(index: &Index<'_>, id: &str, submission: &Submission, found: &mut Vec<Violation>) {
    let Answer::Refused { status, code } = &submission.answer else { return };
    let clock = index.records.faults.iter().any(|fault| {
        fault.kind == FaultKind::Clock && fault.from <= submission.ended && submission.sent <= fault.until
    });
    let excused = *status >= 500 || *status == 429 || (*status == 401 && clock);
    if !excused || code == "internal" {
        let text = format!("{}: {status} {code} from gateway{}", submission.delivery, submission.gateway);
        found.push(Violation::new(Rule::RefusedWrongly, id, text));
    }
}

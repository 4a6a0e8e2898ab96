//! The proof: what the gateway answered and what the receiver recorded, judged against the promises.
//!
//! Pure: evidence in, verdicts out. Nothing here knows the mesh's own state, except for the dead letters, which are the
//! operator's view; everything about delivery is computed from the receiver's own record.

use std::collections::BTreeMap;

/// A sender's receipt for an accepted event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The event's id.
    pub event_id: String,
    /// Its number in its workflow.
    pub sequence_number: u64,
    /// Workflow of the event.
    pub workflow_id: String,
    /// The event before it.
    pub previous_event_id: Option<String>,
}

/// Why something was posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A new event.
    Fresh,
    /// An event that was posted before.
    Repeat,
    /// Something that must be refused, with this code.
    Refusable(&'static str),
}

/// One request and its answer.
#[derive(Debug, Clone)]
pub struct Post {
    /// Why it was posted.
    pub kind: Kind,
    /// The sender's id for it.
    pub delivery_id: String,
    /// The workflow it was posted to.
    pub workflow_id: String,
    /// The HTTP status.
    pub status: u16,
    /// The receipt, where it was accepted.
    pub receipt: Option<Receipt>,
    /// Whether the answer says that it is the first one again.
    pub replayed: bool,
    /// The problem's code, where it was refused.
    pub code: Option<String>,
}

/// One attempt to deliver, as the receiver saw it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// `webhook-id`.
    pub event_id: String,
    /// `weft-workflow-id`.
    pub workflow_id: String,
    /// `weft-sequence`.
    pub sequence: u64,
    /// `weft-previous-event-id`.
    pub previous_event_id: Option<String>,
    /// `weft-lane-previous-event-id`.
    pub lane_previous_event_id: Option<String>,
    /// `weft-attempt`.
    pub number: u32,
    /// `weft-replay`.
    pub replay: bool,
    /// Whether the signature holds.
    pub signed: bool,
    /// The receiver's answer.
    pub status: u16,
}

impl Attempt {
    fn succeeded(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// A dead letter, as an operator sees it before and after the redrive.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Id of the event.
    pub event_id: String,
    /// Why.
    pub reason: String,
    /// Attempts that it took.
    pub attempts: u32,
    /// Its status after the redrive.
    pub status: String,
}

/// Everything there is to judge.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// In the order of sending.
    pub posts: Vec<Post>,
    /// In the order of arrival.
    pub attempts: Vec<Attempt>,
    /// Before the redrive.
    pub dead_letters: Vec<DeadLetter>,
    /// The delivery id of the event that the receiver never takes until it is redriven.
    pub poison: String,
}

/// One line of the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The claim.
    pub claim: String,
    /// The proof if the claim holds, the fault if it does not.
    pub finding: Result<String, String>,
}

/// Judges the evidence.
pub fn verdicts(evidence: &Evidence) -> Vec<Verdict> {
    let accepted = accepted(&evidence.posts);
    let mut verdicts = vec![
        verdict("accepted", numbered(evidence, &accepted)),
        verdict("duplicates", repeats(evidence)),
        verdict("rejected", refusals(evidence)),
        verdict("signatures", signatures(evidence)),
        verdict("nothing else", strangers(evidence, &accepted)),
    ];
    for (workflow, receipts) in &accepted {
        verdicts.push(verdict(&format!("workflow {workflow}"), in_order(evidence, workflow, receipts)));
    }
    verdicts.push(verdict("dead letter", dead_letter(evidence)));
    verdicts.push(verdict("redrive", redriven(evidence)));
    verdicts
}

fn verdict(claim: &str, finding: Result<String, String>) -> Verdict {
    Verdict { claim: claim.to_owned(), finding }
}

type Accepted<'a> = BTreeMap<&'a str, Vec<&'a Receipt>>;

/// The receipts of new events, by workflow, in the order of sending.
fn accepted(posts: &[Post]) -> Accepted<'_> {
    let mut accepted = Accepted::new();
    for post in posts.iter().filter(|post| post.kind == Kind::Fresh) {
        if let Some(receipt) = &post.receipt {
            accepted.entry(&post.workflow_id).or_default().push(receipt);
        }
    }
    accepted
}

/// Every new event has a receipt, and the receipts of a workflow are a chain from 1.
fn numbered(evidence: &Evidence, accepted: &Accepted<'_>) -> Result<String, String> {
    let fresh: Vec<_> = evidence.posts.iter().filter(|post| post.kind == Kind::Fresh).collect();
    if let Some(post) = fresh.iter().find(|post| post.status != 202 || post.receipt.is_none()) {
        return Err(format!("{} was answered {}, not 202", post.delivery_id, post.status));
    }
    if fresh.is_empty() {
        return Err("nothing was sent".into());
    }
    for (workflow, receipts) in accepted {
        let mut previous: Option<&Receipt> = None;
        for (receipt, number) in receipts.iter().zip(1..) {
            let before = previous.map(|receipt| receipt.event_id.as_str());
            if receipt.sequence_number != number {
                return Err(format!("{workflow}: number {} where {number} was due", receipt.sequence_number));
            }
            if receipt.workflow_id != **workflow || receipt.previous_event_id.as_deref() != before {
                return Err(format!("{workflow}: the receipt of number {number} names another predecessor"));
            }
            previous = Some(receipt);
        }
    }
    Ok(format!("{} events in {} workflows, each numbered 1, 2, 3, …", fresh.len(), accepted.len()))
}

/// Every repeat got the first receipt again.
fn repeats(evidence: &Evidence) -> Result<String, String> {
    let repeats: Vec<_> = evidence.posts.iter().filter(|post| post.kind == Kind::Repeat).collect();
    for repeat in &repeats {
        let id = &repeat.delivery_id;
        let first = evidence.posts.iter().find(|post| post.kind == Kind::Fresh && post.delivery_id == *id);
        let first = first.and_then(|first| first.receipt.as_ref());
        if repeat.status != 200 || !repeat.replayed {
            return Err(format!("{id}, sent again, was answered {}, not 200 with the first receipt", repeat.status));
        }
        if first.is_none() || repeat.receipt.as_ref() != first {
            return Err(format!("{id}, sent again, got another receipt"));
        }
    }
    match repeats.len() {
        0 => Err("nothing was sent twice".into()),
        count => Ok(format!("{count} sent again, each answered with its first receipt")),
    }
}

/// Everything that must be refused was, for the right reason.
fn refusals(evidence: &Evidence) -> Result<String, String> {
    let mut found = Vec::new();
    for post in &evidence.posts {
        let Kind::Refusable(expected) = post.kind else { continue };
        if post.code.as_deref() != Some(expected) || post.receipt.is_some() {
            let code = post.code.as_deref().unwrap_or("no code");
            return Err(format!("{} was answered {} {code}, not {expected}", post.delivery_id, post.status));
        }
        found.push(format!("{} {expected}", post.status));
    }
    if found.is_empty() { Err("nothing was refused".into()) } else { Ok(found.join(", ")) }
}

fn signatures(evidence: &Evidence) -> Result<String, String> {
    match evidence.attempts.iter().find(|attempt| !attempt.signed) {
        Some(attempt) => Err(format!("{} #{} came with a bad signature", attempt.workflow_id, attempt.sequence)),
        None => Ok(format!("{} deliveries, each verified by the receiver", evidence.attempts.len())),
    }
}

/// The receiver got nothing that was not accepted.
fn strangers(evidence: &Evidence, accepted: &Accepted<'_>) -> Result<String, String> {
    let known = |attempt: &&Attempt| {
        let receipts = accepted.get(attempt.workflow_id.as_str());
        receipts.is_some_and(|receipts| receipts.iter().any(|receipt| receipt.event_id == attempt.event_id))
    };
    match evidence.attempts.iter().find(|attempt| !known(attempt)) {
        Some(attempt) => Err(format!("{} was delivered but never accepted", attempt.event_id)),
        None => Ok("nothing was delivered that had not been accepted".into()),
    }
}

/// One workflow as the receiver saw it: each event only after the one before it was settled, once, with its true
/// predecessors. The finding is the sequence as received; `r` marks a retry, `x` the attempt after which it was given up.
fn in_order(evidence: &Evidence, workflow: &str, receipts: &[&Receipt]) -> Result<String, String> {
    let live = evidence.attempts.iter().filter(|attempt| attempt.workflow_id == workflow && !attempt.replay);
    let mut received = Vec::new();
    let mut due = receipts.iter().copied().peekable();
    let mut failures = 0;
    let mut lane_previous: Option<&str> = None;
    for attempt in live {
        let Some(receipt) = due.peek().copied() else {
            return Err(format!("#{} came after everything was settled", attempt.sequence));
        };
        check_head(attempt, receipt, lane_previous, failures)?;
        let given_up = !attempt.succeeded() && is_given_up(evidence, receipt, failures + 1);
        let mark = match (failures, given_up) {
            (_, true) => "x",
            (0, false) => "",
            _ => "r",
        };
        received.push(format!("{}{mark}", attempt.sequence));
        if attempt.succeeded() {
            lane_previous = Some(&receipt.event_id);
        }
        if attempt.succeeded() || given_up {
            due.next();
            failures = 0;
        } else {
            failures += 1;
        }
    }
    match due.next() {
        Some(missing) => Err(format!("#{} was never settled", missing.sequence_number)),
        None => Ok(received.join(" ")),
    }
}

/// Whether an attempt is the next one of the head of its lane, with true predecessors.
fn check_head(attempt: &Attempt, head: &Receipt, lane_previous: Option<&str>, failures: u32) -> Result<(), String> {
    let Attempt { sequence, number, .. } = attempt;
    if attempt.event_id != head.event_id || *sequence != head.sequence_number {
        return Err(format!("#{sequence} came while #{} was due", head.sequence_number));
    }
    if attempt.previous_event_id != head.previous_event_id {
        return Err(format!("#{sequence} names another predecessor than its receipt"));
    }
    if attempt.lane_previous_event_id.as_deref() != lane_previous {
        return Err(format!("#{sequence} names another event as the last one delivered"));
    }
    if *number != failures + 1 {
        return Err(format!("#{sequence} came as attempt {number} where {} was due", failures + 1));
    }
    Ok(())
}

/// Whether the event became a dead letter with this failure.
fn is_given_up(evidence: &Evidence, receipt: &Receipt, failures: u32) -> bool {
    let letter = evidence.dead_letters.iter().find(|letter| letter.event_id == receipt.event_id);
    letter.is_some_and(|letter| letter.attempts == failures)
}

/// The receipt of the event that the receiver refused for good.
fn poison(evidence: &Evidence) -> Result<&Receipt, String> {
    let post = evidence.posts.iter().find(|post| post.kind == Kind::Fresh && post.delivery_id == evidence.poison);
    post.and_then(|post| post.receipt.as_ref()).ok_or_else(|| "the event to be refused was not accepted".into())
}

/// The event that was refused for good, and no other, is a dead letter.
fn dead_letter(evidence: &Evidence) -> Result<String, String> {
    let receipt = poison(evidence)?;
    let [letter] = evidence.dead_letters.as_slice() else {
        return Err(format!("{} dead letters where 1 was due", evidence.dead_letters.len()));
    };
    if letter.event_id != receipt.event_id {
        return Err(format!("{} is a dead letter but was not refused permanently", letter.event_id));
    }
    let refused = evidence.attempts.iter().filter(|attempt| attempt.event_id == letter.event_id && !attempt.replay);
    let refused = refused.filter(|attempt| !attempt.succeeded()).count();
    if refused != letter.attempts as usize {
        return Err(format!("it lists {} attempts, the receiver saw {refused}", letter.attempts));
    }
    let (workflow, number) = (&receipt.workflow_id, receipt.sequence_number);
    Ok(format!("{workflow} #{number}, {} after {refused} attempts", letter.reason))
}

/// The dead letter was delivered again, marked as a replay, and accepted.
fn redriven(evidence: &Evidence) -> Result<String, String> {
    let receipt = poison(evidence)?;
    let replays: Vec<_> = evidence.attempts.iter().filter(|attempt| attempt.replay).collect();
    let [replay] = replays.as_slice() else {
        return Err(format!("{} deliveries were marked as replays where 1 was due", replays.len()));
    };
    if replay.event_id != receipt.event_id || replay.sequence != receipt.sequence_number {
        return Err(format!(
            "{} #{} was delivered again instead of the dead letter",
            replay.workflow_id, replay.sequence
        ));
    }
    if !replay.succeeded() {
        return Err(format!("the receiver answered {}", replay.status));
    }
    match evidence.dead_letters.iter().find(|letter| letter.event_id == receipt.event_id) {
        Some(letter) if letter.status == "redriven" => {
            Ok(format!("{} #{} delivered, its dead letter is redriven", replay.workflow_id, replay.sequence))
        }
        Some(letter) => Err(format!("it was delivered, but its dead letter is {}", letter.status)),
        None => Err("there was no dead letter".into()),
    }
}

#[cfg(test)]
mod tests;

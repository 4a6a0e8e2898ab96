//! The judge notices each kind of violation, and nothing where all is well.

use std::collections::BTreeMap;

use super::{Rule, judge, sending::event_id};
use crate::record::*;

const UID: &str = "01";

fn id(number: u64) -> String {
    event_id(&format!("d{number}"))
}

fn receipt(number: u64) -> Receipt {
    Receipt {
        event_id: id(number),
        sequence_number: number,
        workflow_id: "w".into(),
        previous_event_id: (number > 1).then(|| id(number - 1)),
    }
}

fn submission(number: u64, sent: Millis, answer: Answer) -> Submission {
    Submission {
        delivery: format!("d{number}"),
        workflow: "w".into(),
        event_type: "order.paid".into(),
        gateway: 0,
        sent,
        ended: sent + 10,
        answer,
    }
}

fn stored(number: u64) -> Stored {
    Stored {
        shard: 0,
        seq: number,
        event_id: id(number),
        workflow: "w".into(),
        number,
        previous: (number > 1).then(|| id(number - 1)),
        delivery: format!("d{number}"),
        event_type: "order.paid".into(),
        at: 1000 * number,
    }
}

fn arrival(number: u64, at: Millis, epoch: u64, status: u16) -> Arrival {
    // Number 3 becomes a dead letter: it is not given.
    let given = match number {
        1 => None,
        4 => Some(id(2)),
        _ => Some(id(number - 1)),
    };
    Arrival {
        subscription: "main".into(),
        event_id: id(number),
        workflow: "w".into(),
        number,
        previous: (number > 1).then(|| id(number - 1)),
        lane_previous: given,
        delivery: format!("d{number}"),
        attempt: 1,
        epoch,
        replay: false,
        at,
        ended: at + 1,
        reply: Reply::Status(status),
    }
}

fn outcome(number: u64, kind: OutcomeKind) -> Outcome {
    Outcome {
        shard: 0,
        uid: UID.into(),
        seq: number,
        from: 0,
        run: 0,
        kind,
        expired: false,
        workflow: "w".into(),
        operator: String::new(),
        epoch: 1,
        commit: 10 + number,
    }
}

fn shown(number: u64, status: &str) -> Shown {
    Shown {
        event_id: id(number),
        workflow: "w".into(),
        number,
        previous: (number > 1).then(|| id(number - 1)),
        status: status.into(),
    }
}

/// Four events of one workflow, of which the third becomes a dead letter.
fn sound() -> Records {
    let submit = |number| submission(number, 1000 * number, Answer::Accepted(receipt(number)));
    Records {
        submissions: (1..=4).map(submit).collect(),
        log: (1..=4).map(stored).collect(),
        outcomes: vec![
            outcome(1, OutcomeKind::Delivered),
            outcome(2, OutcomeKind::Delivered),
            outcome(3, OutcomeKind::DeadLettered),
            outcome(4, OutcomeKind::Delivered),
        ],
        changes: vec![SubscriptionChange {
            shard: 0,
            uid: UID.into(),
            change: Change::Opened { from: 1, revision: 7 },
        }],
        subscriptions: vec![Subscription {
            key: "main".into(),
            name: "main".into(),
            uid: UID.into(),
            ordered: true,
            created: (0, 1),
            deleted: None,
            types: BTreeMap::from([(7, vec!["order.*".to_owned()]), (8, vec!["stock.*".to_owned()])]),
            timeout: 2000,
        }],
        arrivals: vec![
            arrival(1, 1100, 1, 500),
            arrival(1, 1200, 1, 200),
            arrival(2, 2100, 1, 200),
            arrival(3, 3100, 1, 422),
            arrival(4, 4100, 1, 200),
        ],
        faults: Vec::new(),
        dead_letters: vec![DeadLetter {
            subscription: "main".into(),
            event_id: id(3),
            number: 3,
            status: "open".into(),
        }],
        redriven: Vec::new(),
        copies: BTreeMap::from([(("main".to_owned(), id(3)), 1)]),
        shown: vec![shown(1, "delivered"), shown(2, "delivered"), shown(3, "dead_lettered"), shown(4, "delivered")],
        stats: Counts { accepted: 4, delivered: 3, dead_lettered: 1, ..Counts::default() },
        failures: Vec::new(),
    }
}

/// Asserts that a change to the sound history breaks a rule.
#[track_caller]
fn breaks(rule: Rule, change: impl FnOnce(&mut Records)) {
    let mut records = sound();
    change(&mut records);
    let found = judge(&records);
    assert!(found.iter().any(|violation| violation.rule == rule), "{rule} not found in {found:?}");
}

/// Asserts that a change to the sound history breaks nothing.
#[track_caller]
fn breaks_nothing(change: impl FnOnce(&mut Records)) {
    let mut records = sound();
    change(&mut records);
    records.stats = super::history::counted(&records);
    assert_eq!(judge(&records), []);
}

fn fault(kind: FaultKind, from: Millis, until: Millis) -> Fault {
    Fault { kind, what: "worker0".into(), from, until }
}

#[test]
fn a_sound_history_has_no_violation() {
    breaks_nothing(|_| {});
}

#[test]
fn a_repeat_after_a_failure_is_allowed() {
    breaks_nothing(|records| {
        records.submissions[0].answer = Answer::None("time-out".into());
        records.submissions.push(submission(1, 1500, Answer::Known(receipt(1))));
        let refused = Answer::Refused { status: 503, code: "log_unavailable".into() };
        records.submissions.insert(1, submission(2, 1900, refused));
    });
}

#[test]
fn wrong_answers_to_senders_are_noticed() {
    breaks(Rule::Lost, |records| {
        records.log.pop();
        records.outcomes.pop();
    });
    breaks(Rule::ReceiptDiffers, |records| {
        let other = Receipt { sequence_number: 9, ..receipt(4) };
        records.submissions.push(submission(4, 5000, Answer::Known(other)));
    });
    breaks(Rule::ReceiptDiffers, |records| {
        records.submissions[1].answer = Answer::Accepted(Receipt { sequence_number: 9, ..receipt(2) });
    });
    breaks(Rule::AcceptedTwice, |records| {
        records.submissions.push(submission(4, 5000, Answer::Accepted(receipt(4))));
    });
    breaks(Rule::KnownAtFirst, |records| records.submissions[0].answer = Answer::Known(receipt(1)));
    let refuse = |status, code: &str| Answer::Refused { status, code: code.into() };
    breaks(Rule::RefusedWrongly, |records| {
        records.submissions.push(submission(4, 5000, refuse(409, "id_reused")));
    });
    breaks(Rule::RefusedWrongly, |records| {
        records.submissions.push(submission(4, 5000, refuse(500, "internal")));
    });
    breaks(Rule::RefusedWrongly, |records| {
        records.submissions.push(submission(4, 5000, refuse(401, "timestamp_out_of_window")));
    });
    breaks_nothing(|records| {
        records.submissions.push(submission(4, 5000, refuse(401, "timestamp_out_of_window")));
        records.faults.push(fault(FaultKind::Clock, 4900, 5100));
    });
    breaks(Rule::NeverAccepted, |records| {
        records.submissions.push(submission(5, 5000, refuse(503, "log_unavailable")));
    });
}

#[test]
fn wrong_logs_are_noticed() {
    breaks(Rule::StoredTwice, |records| records.log.push(Stored { seq: 5, number: 5, ..stored(4) }));
    breaks(Rule::Stranger, |records| records.log.push(stored(5)));
    breaks(Rule::NumberTwice, |records| {
        records.log[3] = Stored { number: 3, previous: Some(id(2)), ..stored(4) };
    });
    breaks(Rule::Gap, |records| records.log[3] = Stored { number: 5, ..stored(4) });
    breaks(Rule::WrongPredecessor, |records| records.log[3] = Stored { previous: Some(id(2)), ..stored(4) });
    breaks(Rule::WrongPredecessor, |records| records.log[0] = Stored { previous: Some(id(2)), ..stored(1) });
}

#[test]
fn wrong_outcomes_are_noticed() {
    breaks(Rule::NoOutcome, |records| drop(records.outcomes.remove(1)));
    breaks(Rule::NoOutcome, |records| records.outcomes.clear());
    breaks(Rule::OutcomeTwice, |records| records.outcomes.push(outcome(4, OutcomeKind::DeadLettered)));
    breaks(Rule::LostByOwner, |records| {
        records.outcomes.push(Outcome { from: 2, ..outcome(3, OutcomeKind::DeadLettered) });
    });
    breaks(Rule::Expired, |records| records.outcomes[2].expired = true);
    breaks(Rule::DiscardedByNobody, |records| records.outcomes[1].kind = OutcomeKind::Discarded);
    breaks(Rule::DiscardedByNobody, |records| {
        records.outcomes.remove(1);
        let change = Change::Closed { operator: String::new(), up_to: 4 };
        records.changes.push(SubscriptionChange { shard: 0, uid: UID.into(), change });
    });
    breaks(Rule::NotMatching, |records| {
        let change = Change::Revised { from: 4, revision: 8 };
        records.changes.push(SubscriptionChange { shard: 0, uid: UID.into(), change });
    });
    breaks(Rule::DeliveredUnseen, |records| records.arrivals[4].reply = Reply::None);
}

#[test]
fn a_deletion_by_an_operator_may_discard() {
    breaks_nothing(|records| {
        records.subscriptions[0].deleted = Some((4500, 4600));
        records.outcomes.pop();
        records.arrivals.pop();
        records.shown[3] = shown(4, "discarded");
        let change = Change::Closed { operator: "ops".into(), up_to: 4 };
        records.changes.push(SubscriptionChange { shard: 0, uid: UID.into(), change });
    });
}

/// The owner read the last events after the removal had reached it, so they were not taken. Without its record of the
/// removal they are missed.
#[test]
fn a_deletion_counts_from_the_owners_record_of_it() {
    let delete = |records: &mut Records, up_to| {
        records.outcomes.pop();
        records.arrivals.pop();
        records.shown[3].status = "unrouted".into();
        records.subscriptions[0].deleted = Some((9_000, 9_100));
        let change = Change::Closed { operator: "bob".into(), up_to };
        records.changes.push(SubscriptionChange { shard: 0, uid: UID.into(), change });
    };
    breaks_nothing(|records| delete(records, 3));
    breaks(Rule::NoOutcome, |records| {
        delete(records, 3);
        records.changes.pop();
    });
}

#[test]
fn wrong_deliveries_are_noticed() {
    breaks(Rule::Reordered, |records| records.arrivals.swap(2, 4));
    breaks(Rule::Reordered, |records| records.arrivals[1].reply = Reply::Status(500));
    breaks(Rule::Reordered, |records| records.arrivals.push(arrival(3, 5000, 1, 422)));
    breaks(Rule::Doubled, |records| records.arrivals.push(arrival(4, 5000, 1, 200)));
    breaks(Rule::EpochBack, |records| {
        records.arrivals[3].epoch = 2;
        records.arrivals[4].epoch = 1;
    });
    breaks(Rule::DeliveryDiffers, |records| records.arrivals[4].delivery = "d1".into());
    breaks(Rule::DeliveryDiffers, |records| records.arrivals[4].number = 5);
    breaks(Rule::LaneChain, |records| records.arrivals[4].lane_previous = Some(id(3)));
}

#[test]
fn an_owner_names_what_it_has_given() {
    // Taken from the first owner, dead-lettered by the second: what was attempted in between names it.
    breaks_nothing(|records| {
        records.arrivals[3].reply = Reply::Status(200);
        records.arrivals[4].lane_previous = Some(id(3));
        records.arrivals.push(arrival(3, 5000, 2, 422));
        records.arrivals.push(arrival(4, 5100, 2, 200));
        records.outcomes[2].epoch = 2;
        records.outcomes[3].epoch = 2;
    });
}

#[test]
fn a_new_owner_may_repeat_the_tail_in_order() {
    breaks_nothing(|records| {
        records.arrivals.extend([arrival(2, 5000, 2, 200), arrival(4, 5100, 2, 500), arrival(4, 5200, 2, 200)]);
    });
    breaks(Rule::Reordered, |records| {
        records.arrivals.extend([arrival(4, 5000, 2, 200), arrival(2, 5100, 2, 200)]);
    });
    breaks_nothing(|records| {
        records.faults.push(fault(FaultKind::Stop, 4000, 5000));
        records.arrivals.extend([arrival(4, 5000, 2, 200), arrival(4, 5100, 1, 200)]);
    });
}

#[test]
fn wrong_views_of_the_admin_are_noticed() {
    breaks(Rule::HistoryDiffers, |records| drop(records.shown.pop()));
    breaks(Rule::HistoryDiffers, |records| records.shown[2].status = "delivered".into());
    breaks(Rule::HistoryDiffers, |records| records.shown[3].status = "pending".into());
    breaks(Rule::HistoryDiffers, |records| records.shown[3].number = 5);
    breaks(Rule::StatsDiffer, |records| records.stats.accepted = 5);
    breaks(Rule::StatsDiffer, |records| records.stats.delivered = 2);
    breaks(Rule::StatsDiffer, |records| records.stats.unrouted = 1);
    breaks(Rule::DeadLetterDiffers, |records| records.dead_letters.clear());
    breaks(Rule::DeadLetterDiffers, |records| records.copies.clear());
    breaks(Rule::DeadLetterDiffers, |records| {
        records.dead_letters.push(DeadLetter { event_id: id(4), number: 4, ..records.dead_letters[0].clone() });
    });
}

#[test]
fn a_dead_letter_that_is_not_redriven_is_noticed() {
    let redriven = |records: &mut Records| {
        records.redriven.push("main".into());
        records.dead_letters[0].status = "redriven".into();
        records.arrivals.push(Arrival { replay: true, ..arrival(3, 9000, 1, 200) });
    };
    breaks_nothing(redriven);
    breaks(Rule::NotRedriven, |records| {
        redriven(records);
        records.arrivals.pop();
    });
    breaks(Rule::NotRedriven, |records| {
        redriven(records);
        records.dead_letters[0].status = "open".into();
    });
}

#[test]
fn a_failed_process_is_a_violation() {
    breaks(Rule::Process, |records| {
        records.failures.push(ProcessFailure { process: "worker0".into(), at: 1, what: "exit 1".into() });
    });
}

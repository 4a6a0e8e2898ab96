//! The checker is what the demo's word is worth: sound evidence passes, and each kind of damage fails the line that is
//! there for it.

use super::*;

fn id(workflow: &str, number: u64) -> String {
    format!("{workflow}-{number}")
}

fn before(workflow: &str, number: u64) -> Option<String> {
    (number > 1).then(|| id(workflow, number - 1))
}

fn post(workflow: &str, number: u64) -> Post {
    Post {
        kind: Kind::Fresh,
        delivery_id: format!("evt-{workflow}-{number}"),
        workflow_id: workflow.into(),
        status: 202,
        receipt: Some(Receipt {
            event_id: id(workflow, number),
            sequence_number: number,
            workflow_id: workflow.into(),
            previous_event_id: before(workflow, number),
        }),
        replayed: false,
        code: None,
    }
}

fn attempt(workflow: &str, sequence: u64, number: u32, status: u16) -> Attempt {
    Attempt {
        event_id: id(workflow, sequence),
        workflow_id: workflow.into(),
        sequence,
        previous_event_id: before(workflow, sequence),
        lane_previous_event_id: before(workflow, sequence),
        number,
        replay: false,
        signed: true,
        status,
    }
}

/// Two workflows of four: `a` with a retry at 2, `b` with 3 refused for good and redriven; one repeat, one refusal.
fn sound() -> Evidence {
    let mut posts: Vec<_> =
        ["a", "b"].into_iter().flat_map(|workflow| (1..=4).map(move |n| post(workflow, n))).collect();
    posts.push(Post { kind: Kind::Repeat, status: 200, replayed: true, ..post("a", 1) });
    posts.push(Post {
        kind: Kind::Refusable("signature_invalid"),
        delivery_id: "evil".into(),
        status: 401,
        receipt: None,
        code: Some("signature_invalid".into()),
        ..post("a", 9)
    });
    let after_poison = Attempt { lane_previous_event_id: Some(id("b", 2)), ..attempt("b", 4, 1, 200) };
    let attempts = vec![
        attempt("a", 1, 1, 200),
        attempt("b", 1, 1, 200),
        attempt("a", 2, 1, 500),
        attempt("b", 2, 1, 200),
        attempt("b", 3, 1, 422),
        attempt("a", 2, 2, 200),
        attempt("a", 3, 1, 200),
        after_poison,
        attempt("a", 4, 1, 200),
        Attempt { replay: true, ..attempt("b", 3, 1, 200) },
    ];
    let dead_letters =
        vec![DeadLetter { event_id: id("b", 3), reason: "permanent".into(), attempts: 1, status: "redriven".into() }];
    Evidence { posts, attempts, dead_letters, poison: "evt-b-3".into() }
}

/// The claims that do not hold.
fn broken(evidence: &Evidence) -> Vec<String> {
    verdicts(evidence).into_iter().filter(|verdict| verdict.finding.is_err()).map(|verdict| verdict.claim).collect()
}

#[track_caller]
fn assert_breaks(claim: &str, damage: impl FnOnce(&mut Evidence)) {
    let mut evidence = sound();
    damage(&mut evidence);
    let broken = broken(&evidence);
    assert!(broken.iter().any(|broken| broken == claim), "{claim} should not hold; broken: {broken:?}");
}

/// Where the receiver's record has a live attempt of `a`.
fn place(evidence: &Evidence, workflow: &str, sequence: u64) -> usize {
    let matches = |attempt: &Attempt| attempt.workflow_id == workflow && attempt.sequence == sequence;
    evidence.attempts.iter().position(matches).unwrap()
}

#[test]
fn sound_evidence_holds_and_shows_what_was_received() {
    let evidence = sound();
    assert_eq!(broken(&evidence), Vec::<String>::new());
    let verdicts = verdicts(&evidence);
    let finding =
        |claim: &str| verdicts.iter().find(|verdict| verdict.claim == claim).unwrap().finding.clone().unwrap();
    assert_eq!(finding("workflow a"), "1 2 2r 3 4");
    assert_eq!(finding("workflow b"), "1 2 3x 4");
    assert_eq!(finding("dead letter"), "b #3, permanent after 1 attempts");
    assert_eq!(finding("rejected"), "401 signature_invalid");
}

#[test]
fn a_check_without_evidence_fails() {
    let broken = broken(&Evidence::default());
    assert!(
        ["accepted", "duplicates", "rejected", "dead letter", "redrive"]
            .iter()
            .all(|claim| { broken.iter().any(|broken| broken == claim) })
    );
}

#[test]
fn a_swapped_pair_is_noticed() {
    assert_breaks("workflow a", |evidence| {
        let (three, four) = (place(evidence, "a", 3), place(evidence, "a", 4));
        evidence.attempts.swap(three, four);
    });
}

#[test]
fn a_missing_event_is_noticed_at_the_end_and_in_the_middle() {
    for sequence in [3, 4] {
        assert_breaks("workflow a", |evidence| {
            evidence.attempts.remove(place(evidence, "a", sequence));
        });
    }
}

#[test]
fn a_repeated_event_is_noticed() {
    for sequence in [1, 3, 4] {
        assert_breaks("workflow a", |evidence| {
            let at = place(evidence, "a", sequence);
            let again = evidence.attempts[at].clone();
            evidence.attempts.insert(at + 1, again);
        });
    }
}

#[test]
fn a_wrong_predecessor_is_noticed() {
    assert_breaks("workflow a", |evidence| {
        let at = place(evidence, "a", 3);
        evidence.attempts[at].previous_event_id = Some(id("a", 1));
    });
    assert_breaks("workflow b", |evidence| {
        let at = evidence.attempts.iter().position(|attempt| attempt.workflow_id == "b" && attempt.sequence == 4);
        // The event before it was given up: the last one *delivered* is the one before that.
        evidence.attempts[at.unwrap()].lane_previous_event_id = Some(id("b", 3));
    });
    assert_breaks("accepted", |evidence| {
        evidence.posts[2].receipt.as_mut().unwrap().previous_event_id = Some("x".into());
    });
}

#[test]
fn a_bad_signature_is_noticed() {
    assert_breaks("signatures", |evidence| evidence.attempts[4].signed = false);
}

#[test]
fn an_event_that_overtakes_a_failed_one_is_noticed() {
    assert_breaks("workflow a", |evidence| {
        let retry = evidence.attempts.remove(place(evidence, "a", 2) + 3);
        assert_eq!((retry.sequence, retry.number), (2, 2));
        let three = place(evidence, "a", 3);
        evidence.attempts.insert(three + 1, retry);
    });
}

#[test]
fn answers_that_break_the_contract_are_noticed() {
    assert_breaks("accepted", |evidence| evidence.posts[0].status = 503);
    assert_breaks("accepted", |evidence| evidence.posts[2].receipt.as_mut().unwrap().sequence_number = 4);
    assert_breaks("duplicates", |evidence| evidence.posts[8].status = 202);
    assert_breaks("duplicates", |evidence| evidence.posts[8].replayed = false);
    assert_breaks("duplicates", |evidence| evidence.posts[8].receipt.as_mut().unwrap().event_id = "other".into());
    assert_breaks("rejected", |evidence| evidence.posts[9].code = Some("malformed_body".into()));
    assert_breaks("rejected", |evidence| evidence.posts[9].receipt = evidence.posts[0].receipt.clone());
}

#[test]
fn dead_letters_that_do_not_fit_are_noticed() {
    assert_breaks("nothing else", |evidence| evidence.attempts[0].event_id = "unknown".into());
    assert_breaks("dead letter", |evidence| evidence.dead_letters.clear());
    assert_breaks("dead letter", |evidence| evidence.dead_letters[0].attempts = 4);
    assert_breaks("dead letter", |evidence| evidence.dead_letters[0].event_id = id("a", 1));
    assert_breaks("redrive", |evidence| evidence.dead_letters[0].status = "open".into());
    assert_breaks("redrive", |evidence| {
        evidence.attempts.pop();
    });
    assert_breaks("redrive", |evidence| evidence.attempts.last_mut().unwrap().status = 500);
}

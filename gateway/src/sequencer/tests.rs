use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use weft_nats::event::Event;
use weft_proto::ids::EventId;

use super::SubmitError;

mod ages;
mod model;
mod steps;

use model::{Answer, Fate, Mutant, Sent, Step, World};
use steps::{faultless_steps, faulty_steps, replicated_steps, rolled_back_steps};

/// P2: no id stands in the log twice.
fn one_event_an_id(events: &[Event]) -> Result<(), String> {
    let mut seen = HashMap::new();
    for event in events {
        if seen.insert(event.id, ()).is_some() {
            return Err(format!("{} was accepted twice", event.id));
        }
    }
    Ok(())
}

/// P3: numbers are contiguous from 1 in each workflow, and each event names the one before it.
fn contiguous_and_linked(events: &[Event]) -> Result<(), String> {
    let mut heads: HashMap<&str, (u64, EventId)> = HashMap::new();
    for event in events {
        let before = heads.insert(event.workflow.as_str(), (event.sequence_number.0, event.id));
        let expected = before.map_or((1, None), |(number, id)| (number + 1, Some(id)));
        if (event.sequence_number.0, event.previous) != expected {
            return Err(format!("{} {} does not follow {before:?}", event.workflow, event.sequence_number));
        }
    }
    Ok(())
}

/// P1, P2: every answer agrees with the log; at most one of an id's senders is answered that its event is new, and without
/// faults exactly one; and a sender of another body is answered that the id was reused.
fn told_the_truth(events: &[Event], answers: &[Answer], faults: bool) -> Result<(), String> {
    let mut firsts: HashMap<EventId, u32> = HashMap::new();
    for Answer { sent, answer } in answers {
        let id = model::id_of(sent.delivery);
        let stored = events.iter().find(|event| event.id == id);
        let same_body = |stored: &Event| stored.payload == body_of(sent);
        match answer {
            None | Some(Err(SubmitError::Unavailable)) if faults => {}
            Some(Err(SubmitError::PredecessorRefused)) if sent.chain.is_some() => {}
            Some(Err(SubmitError::IdReused)) if stored.is_some_and(|stored| !same_body(stored)) => {}
            Some(Ok(receipt)) => {
                let stored = stored.ok_or(format!("{id} was answered and is not in the log"))?;
                let told = (receipt.event_id, receipt.sequence_number, receipt.previous);
                if told != (stored.id, stored.sequence_number, stored.previous) || !same_body(stored) {
                    return Err(format!("{receipt:?} is not what stands in the log"));
                }
                *firsts.entry(id).or_default() += u32::from(!receipt.duplicate);
            }
            other => return Err(format!("{sent:?} was answered {other:?}")),
        }
    }
    for event in events {
        let count = firsts.get(&event.id).copied().unwrap_or_default();
        if count > 1 || (count == 0 && !faults) {
            return Err(format!("{} senders of {} were answered that it is new", count, event.id));
        }
    }
    Ok(())
}

/// Where a member of a chain was stored, everything before it in the chain had been: as it was sent, or with another body
/// in a chain that continues after a reused id.
fn chains_have_no_holes(events: &[Event], answers: &[Answer]) -> Result<(), String> {
    let mut members: HashMap<usize, Vec<&Sent>> = HashMap::new();
    for Answer { sent, .. } in answers {
        let Some(chain) = sent.chain else { continue };
        let before = members.entry(chain).or_default();
        if let Some(at) = events.iter().position(|event| event.received_at.as_second() == sent.number) {
            for earlier in before.iter() {
                let id = model::id_of(earlier.delivery);
                let accepted = events[..at].iter().find(|event| event.id == id);
                let as_sent = |event: &Event| event.payload == body_of(earlier) || !model::reuse_breaks(chain);
                if !accepted.is_some_and(as_sent) {
                    return Err(format!("{sent:?} was accepted without {earlier:?}"));
                }
            }
        }
        before.push(sent);
    }
    Ok(())
}

/// No sender is answered that a predecessor was refused unless one was. Faults leave answers out.
fn who_is_behind_is_behind_something(answers: &[Answer]) -> Result<(), String> {
    let mut refused = HashSet::new();
    for Answer { sent, answer } in answers {
        let Some(chain) = sent.chain else { continue };
        match answer {
            Some(Err(SubmitError::PredecessorRefused)) if !refused.contains(&chain) => {
                return Err(format!("{sent:?} is behind nothing that was refused"));
            }
            Some(Err(_)) => {
                refused.insert(chain);
            }
            Some(Ok(_)) | None => {}
        }
    }
    Ok(())
}

fn body_of(sent: &Sent) -> &'static [u8] {
    if sent.other_body { b"other" } else { b"body" }
}

fn run(gateways: usize, mutant: Mutant, steps: &[Step]) -> Result<(), String> {
    // Time stands still, so that a word comes late only where a step says so.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run_in_time(gateways, mutant, steps))
}

async fn run_in_time(gateways: usize, mutant: Mutant, steps: &[Step]) -> Result<(), String> {
    let mut world = World::new(gateways, mutant);
    for step in steps {
        world.step(*step);
    }
    world.settle().await;
    let events = world.events()?;
    one_event_an_id(&events)?;
    contiguous_and_linked(&events)?;
    let answers = world.answers();
    if let Some(lie) = world.lie() {
        return Err(lie.to_owned());
    }
    if world.rolled_back {
        // What was answered before holds for the log of that moment.
        return Ok(());
    }
    let (rebuilt, dropped) = world.restarts();
    // What was acked and erased before it was read is not found again, as on another log.
    if rebuilt > 0 || (dropped > 0 && !world.log.has_erased()) {
        return Err(format!("(rebuilt, dropped) = {:?} on one and the same log", (rebuilt, dropped)));
    }
    chains_have_no_holes(&events, &answers)?;
    let faults = world.faults || dropped > 0;
    if !faults {
        who_is_behind_is_behind_something(&answers)?;
    }
    told_the_truth(&events, &answers, faults)
}

proptest! {
    #[test]
    fn ids_are_unique_and_numbers_contiguous_whatever_messages_get_lost(
        gateways in 1..4usize, steps in faulty_steps(),
    ) {
        prop_assert_eq!(run(gateways, Mutant::None, &steps), Ok(()));
    }

    /// Appends that are refused by what cannot be read yet, proposals that vanish, leaders that lag: numbers stay contiguous,
    /// and no gateway takes the log for another one.
    #[test]
    fn what_is_only_proposed_is_never_concluded_from(gateways in 1..4usize, steps in replicated_steps()) {
        prop_assert_eq!(run(gateways, Mutant::None, &steps), Ok(()));
    }

    /// A log that loses its tail and grows again while gateways are away: each answer is true of the log in which it was
    /// given, and the log is sound.
    #[test]
    fn what_was_rolled_back_is_not_known_any_more(gateways in 1..4usize, steps in rolled_back_steps()) {
        prop_assert_eq!(run(gateways, Mutant::None, &steps), Ok(()));
    }

    /// "One 202, one 200 with the same receipt", also where a gateway hands an event to another one and does not wait for it.
    #[test]
    fn without_faults_exactly_one_sender_is_the_first(gateways in 1..4usize, steps in faultless_steps()) {
        prop_assert_eq!(run(gateways, Mutant::None, &steps), Ok(()));
    }
}

/// P3: if the first event of a forwarded batch waits for too long at the other gateway, no event after it is accepted; and
/// the properties notice a gateway that does not know that the events are a batch.
#[test]
fn a_batch_that_is_handed_on_remains_one() {
    let submit = |delivery| Step::Submit { gateway: 0, delivery, other_body: false, chain: Some(0) };
    let steps = [
        submit(0),
        submit(1),
        Step::EndChain { gateway: 0, chain: 0 },
        Step::Forward { gateway: 0, to: 1 },
        Step::LookUp { gateway: 1 },
        Step::Expire { gateway: 1, count: 1 },
    ];
    assert_eq!(run(2, Mutant::None, &steps), Ok(()));
    assert!(run(2, Mutant::BatchesFallApart, &steps).is_err());
}

/// P3: a member of a publish stream that waits with an event of the same id is not refused because of the member after it,
/// when both wait for longer than expected because another gateway appended first.
#[test]
fn a_waiting_repeat_is_answered_before_later_refusals() {
    let submit = |gateway, delivery| Step::Submit { gateway, delivery, other_body: false, chain: None };
    let line = |delivery, other_body| Step::Submit { gateway: 1, delivery, other_body, chain: Some(1) };
    let steps = [
        // The first chain is a batch, the second a line.
        Step::Submit { gateway: 0, delivery: 0, other_body: false, chain: Some(0) },
        submit(1, 1),
        submit(1, 0),
        submit(1, 11),
        Step::LookUp { gateway: 1 },
        line(11, false),
        line(0, true),
        Step::Launch { gateway: 1, carry: false, more: 1 },
        submit(0, 2),
        Step::LookUp { gateway: 1 },
        Step::Land { gateway: 1, fate: Fate::Acked },
        Step::Launch { gateway: 1, carry: false, more: 2 },
    ];
    assert_eq!(run(2, Mutant::None, &steps), Ok(()));
}

/// Two gateways, followers that do not answer, and B behind A: what was concluded from the refusal of Z gave B the number of
/// A.
#[test]
fn an_append_that_cannot_be_read_yet_is_not_taken_for_removed() {
    let submit = |gateway, delivery| Step::Submit { gateway, delivery, other_body: false, chain: None };
    let launch = |gateway| Step::Launch { gateway, carry: false, more: 0 };
    let steps = [
        // A, of workflow `a`, is on its way.
        submit(0, 0),
        Step::LookUp { gateway: 0 },
        launch(0),
        Step::Propose { gateway: 0 },
        // Z, of workflow `b`, is refused.
        submit(1, 1),
        Step::LookUp { gateway: 1 },
        launch(1),
        Step::Propose { gateway: 1 },
        Step::Ask { gateway: 1 },
        // B, of workflow `a`.
        submit(1, 3),
        Step::LookUp { gateway: 1 },
        Step::Launch { gateway: 1, carry: false, more: 1 },
        Step::Propose { gateway: 1 },
        Step::Apply { messages: 3 },
    ];
    assert_eq!(run(2, Mutant::None, &steps), Ok(()));
    assert!(run(2, Mutant::ProposalsConclude, &steps).is_err());
}

/// If the log lost its tail, the entries beyond the file are dropped; the file is dropped only if it is of another log, too.
/// Dropping the file for a doubt about the overlay would cost ten minutes with ten million ids.
#[tokio::test(start_paused = true)]
async fn a_lost_tail_costs_the_overlay_and_only_another_log_the_file() {
    for (keep, restarts) in [(2, (0, 0)), (1, (0, 1)), (0, (1, 1))] {
        let mut world = World::new(1, Mutant::None);
        let accept = |delivery| {
            [
                Step::Submit { gateway: 0, delivery, other_body: false, chain: None },
                Step::LookUp { gateway: 0 },
                Step::Launch { gateway: 0, carry: false, more: 0 },
                Step::Land { gateway: 0, fate: Fate::Acked },
            ]
        };
        let in_the_file =
            [Step::ReadOn { gateway: 0 }, Step::Read { gateway: 0, messages: 1 }, Step::Commit { gateway: 0 }];
        let lost = [Step::RollBack { keep }, Step::Compare { gateway: 0 }];
        for step in accept(0).into_iter().chain(in_the_file).chain(accept(1)).chain(lost) {
            world.step(step);
        }
        assert_eq!(world.restarts(), restarts, "{keep} of 2 messages were kept");
    }
}

/// The properties hold on a cluster and through roll-backs because absence is concluded from a state that reaches so far, a
/// lagging leader is not believed, and a log in doubt is compared before anything is decided.
#[test]
fn the_properties_notice_conclusions_from_too_little() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let noticed = |mutant, gateways, rolled_back: bool| {
        let mut runner = TestRunner::deterministic();
        (0..1024).any(|_| {
            let steps = if rolled_back {
                rolled_back_steps().new_tree(&mut runner).unwrap().current()
            } else {
                replicated_steps().new_tree(&mut runner).unwrap().current()
            };
            std::panic::catch_unwind(|| run(gateways, mutant, &steps)).map_or(true, |result| result.is_err())
        })
    };
    assert!(noticed(Mutant::ProposalsConclude, 2, false));
    assert!(noticed(Mutant::LaggingLeaderBelieved, 2, false));
    assert!(noticed(Mutant::NoDoubt, 2, true));
}

/// An event that was acked and not read back is lost with the log's tail, and another gateway's stands in its place: the
/// newest message that was read is still there, and must not vouch for the one that was only acked.
#[test]
fn what_was_only_acked_is_read_back_before_it_counts() {
    let accept = |gateway, delivery| {
        [
            Step::Submit { gateway, delivery, other_body: false, chain: None },
            Step::LookUp { gateway },
            Step::Launch { gateway, carry: false, more: 0 },
            Step::Land { gateway, fate: Fate::Acked },
        ]
    };
    let mut steps = accept(0, 0).to_vec();
    steps.extend([Step::RollBack { keep: 0 }, Step::Compare { gateway: 1 }]);
    steps.extend(accept(1, 1));
    steps.push(Step::Compare { gateway: 0 });
    steps.extend(accept(0, 0));
    assert_eq!(run(2, Mutant::None, &steps), Ok(()));
    assert!(run(2, Mutant::AckedIsTrusted, &steps).is_err());
}

/// An event that was acked and not read back is lost with the log's tail, and another gateway stores one with the same id and
/// another body at the same sequence: the sender of the first learns that its id was reused, not that its event is stored.
#[tokio::test(start_paused = true)]
async fn another_body_under_the_same_id_and_sequence_is_noticed() {
    let accept = |gateway, delivery, other_body| {
        [
            Step::Submit { gateway, delivery, other_body, chain: None },
            Step::LookUp { gateway },
            Step::Launch { gateway, carry: false, more: 0 },
            Step::Land { gateway, fate: Fate::Acked },
        ]
    };
    let mut steps = [accept(0, 0, false), accept(0, 1, false)].concat();
    steps.extend([Step::RollBack { keep: 1 }, Step::Compare { gateway: 1 }, Step::Read { gateway: 1, messages: 1 }]);
    steps.extend(accept(1, 1, true));
    let mut world = World::new(2, Mutant::None);
    steps.into_iter().for_each(|step| world.step(step));
    world.settle().await;
    assert_eq!(world.restarts(), (0, 1));
    world.step(Step::Submit { gateway: 0, delivery: 1, other_body: false, chain: None });
    world.settle().await;
    let answers = world.answers();
    assert_eq!(answers.last().map(|answer| answer.answer.clone()), Some(Some(Err(SubmitError::IdReused))));
}

/// P2, P3: the record of an erased event, or a head of the shard's owner, which is older than the head in the file, comes
/// after the overlay has forgotten the later event: the next event follows the later one all the same.
#[test]
fn a_record_of_an_older_event_sets_no_number_back() {
    let accept = |delivery| {
        [
            Step::Submit { gateway: 0, delivery, other_body: false, chain: None },
            Step::LookUp { gateway: 0 },
            Step::Launch { gateway: 0, carry: false, more: 0 },
            Step::Land { gateway: 0, fate: Fate::Acked },
        ]
    };
    let read = |messages| [Step::ReadOn { gateway: 0 }, Step::Read { gateway: 0, messages }];
    for record in [Step::Erase { back: 2 }, Step::CarryUncompared { back: 2 }] {
        // Three events of one workflow.
        let mut steps = [accept(0), accept(3), accept(6)].concat();
        steps.extend(read(3));
        steps.extend([Step::Commit { gateway: 0 }, record]);
        steps.extend(read(1));
        steps.extend(accept(9));
        assert_eq!(run(1, Mutant::None, &steps), Ok(()), "{record:?}");
    }
}

/// A message at the end of the log that was removed says nothing about when the one before it was stored.
#[test]
fn a_removed_message_at_the_end_confirms_nothing() {
    let steps = [
        Step::Submit { gateway: 0, delivery: 0, other_body: false, chain: None },
        Step::LookUp { gateway: 0 },
        Step::Launch { gateway: 0, carry: false, more: 0 },
        Step::Land { gateway: 0, fate: Fate::Acked },
        Step::Submit { gateway: 0, delivery: 1, other_body: false, chain: None },
        Step::LookUp { gateway: 0 },
        Step::Launch { gateway: 0, carry: false, more: 0 },
        Step::Hole,
        Step::Propose { gateway: 0 },
        Step::Ask { gateway: 0 },
        Step::Tell { gateway: 0, of: 0 },
        Step::Confirm { gateway: 0, back: 0 },
    ];
    assert_eq!(run(1, Mutant::None, &steps), Ok(()));
}

/// The properties above hold because of the comparison, the overlay, the chains and the late replies, because members of
/// publish streams are not forwarded, and because no gateway applies a notice after a gap: without any of them, even
/// faultless runs break them.
#[test]
fn the_properties_notice_what_is_missing() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    for (gateways, mutant) in [
        (2, Mutant::NoComparison),
        (1, Mutant::NoOverlay),
        (1, Mutant::NoChain),
        (2, Mutant::NoLateWord),
        (2, Mutant::LinesHandedOn),
        (2, Mutant::GapsUnnoticed),
    ] {
        let mut runner = TestRunner::deterministic();
        let noticed = (0..256).any(|_| {
            let steps = faultless_steps().new_tree(&mut runner).unwrap().current();
            assert_eq!(run(gateways, Mutant::None, &steps), Ok(()));
            // The mutants also break what the model takes for granted.
            std::panic::catch_unwind(|| run(gateways, mutant, &steps)).map_or(true, |result| result.is_err())
        });
        assert!(noticed, "{mutant:?}");
    }
}

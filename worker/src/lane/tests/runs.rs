//! Scripts of redrives and replays: further runs of settled events.

use super::{
    script::{check, model_with},
    *,
};

/// The runs of one workflow go in the order of their events; paused ones wait, cancelled ones are discarded.
#[test]
fn a_replay_goes_in_order_waits_and_ends() {
    check(
        "arrive 1 2 => attempt 1
         end 1 delivered => attempt 2
         end 2 delivered | commit => delivered 1, delivered 2
         arrive 3        => attempt 3
         end 3 delivered | commit => delivered 3
         replay 3 2 1
         commit          => taken, taken, taken, load 1 of run 1
         load            => attempt 1 of run 1
         pause run 1
         end 1 delivered
         commit          => delivered 1 of run 1
         resume run 1
         commit          => load 2 of run 1
         load            => attempt 2 of run 1
         cancel run 1
         end 2 failed
         commit          => discarded 2 of run 1 by ann, discarded 3 of run 1 by ann",
    );
}

/// At the rate of a replay one attempt starts at a time, also of workflows that do not wait for each other. Live events do not wait
/// for it.
#[test]
fn a_replay_with_a_rate_starts_one_attempt_an_interval() {
    check(
        "arrive 1 2@1 => attempt 1, attempt 2
         end 1 delivered | end 2 delivered | commit => delivered 1, delivered 2
         slowly replay 1 2
         commit       => taken, taken, load 1 of run 1, load 2 of run 1
         load         => attempt 1 of run 1
         load
         arrive 3@1   => attempt 3
         end 1 delivered | end 3 delivered | commit => delivered 1 of run 1, delivered 3
         wait         => load 2 of run 1
         load         => attempt 2 of run 1
         crash        => load 2 of run 1
         load         => attempt 2 of run 1",
    );
}

/// The rest of a cancelled redrive is open as before. The receiver may have the event that is being
/// attempted, so that attempt decides about it, also after a crash.
#[test]
fn a_cancelled_redrive_leaves_the_rest_open() {
    let begin = "arrive 1! | commit => dead (schemainvalid) 1 with its event
                 arrive 2! | commit => dead (schemainvalid) 2 with its event
                 redrive 1 2
                 commit             => taken, taken, load 1 of run 1
                 load               => attempt 1 of run 1
                 reopen run 1
                 commit             => cancelled 2 of run 1 by ann";
    check(&format!("{begin}\nend 1 delivered | commit => delivered 1 of run 1"));
    check(&format!("{begin}\nend 1 failed | commit => cancelled 1 of run 1 by ann"));
    let crash = "crash             => load 1 of run 1
                 load              => attempt 1 of run 1
                 end 1 failed
                 commit            => cancelled 1 of run 1 by ann";
    check(&format!("{begin}\n{crash}"));
}

/// The first command has closed its dead letter, though nothing is committed when the second comes.
#[test]
fn a_discarded_dead_letter_is_not_redriven() {
    check(
        "arrive 1! | commit => dead (schemainvalid) 1 with its event
         discard 1 | redrive 1
         commit             => discarded 1 of run 1 by ann, taken, not applicable",
    );
}

#[test]
fn a_dead_letter_that_is_not_open_is_not_applicable() {
    let mut model = model_with(1);
    model.read();
    let dead = RedriveItem { applicable: false, ..item(0, &model.log[0].clone(), Run::LIVE) };
    let discard = CommandAction::Close { kind: internal::OutcomeKind::Discarded, items: vec![dead.clone()] };
    for action in [CommandAction::Redrive(vec![dead]), discard] {
        model.command(action);
        let pending = model.lanes.take_commit().unwrap();
        assert_eq!(pending.commit.results[0].items[0].status(), internal::CommandStatus::NotApplicable);
        assert!(pending.commit.outcomes.is_empty() && pending.commit.runs.is_empty());
        model.commits_taken.push_back(pending);
        model.commit();
    }
}

#[test]
fn a_redrive_releases_a_quarantined_event() {
    check(
        "arrive 1!
         commit          => dead (schemainvalid) 1 with its event
         redrive 1
         commit          => taken, load 1 of run 1
         load            => attempt 1 of run 1
         end 1 delivered
         commit          => delivered 1 of run 1",
    );
}

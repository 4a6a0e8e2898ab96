//! Events whose payload is erased before they are settled.

use super::script::check;

/// An erased event does not wait for its retry: it is a dead letter, and its lane continues.
#[test]
fn an_erased_head_is_a_dead_letter_and_the_lane_continues() {
    check(
        "arrive 1 2   => attempt 1
         end 1 failed | commit
         erase 1
         commit       => dead (permanent) 1 with its event, attempt 2",
    );
}

/// One behind the head becomes a dead letter at its turn, without an attempt.
#[test]
fn an_erased_event_keeps_its_place() {
    check(
        "arrive 1 2 3    => attempt 1
         erase 2
         end 1 delivered
         commit          => delivered 1, dead (permanent) 2 with its event, read 3..=3
         read            => attempt 3",
    );
}

/// No operator can retry it: a lane that is blocked by it continues.
#[test]
fn a_blocked_event_that_is_erased_frees_its_lane() {
    check(
        "block
         arrive 1 2 => attempt 1
         end 1 rejected | commit
         erase 1
         commit     => dead (permanent) 1, read 2..=2
         read       => attempt 2",
    );
}

/// The attempt that is under way decides, if it succeeds; otherwise none follows.
#[test]
fn an_event_that_is_erased_during_its_attempt_is_not_attempted_again() {
    check(
        "arrive 1 2      => attempt 1
         erase 1
         end 1 delivered => attempt 2",
    );
    check(
        "arrive 1 2      => attempt 1
         erase 1
         end 1 failed | commit
         wait
         commit          => dead (permanent) 1 with its event, attempt 2",
    );
}

//! What can happen, in random order.

use super::*;

#[derive(Debug, Clone)]
pub enum Step {
    Append {
        workflow: u8,
        quarantined: bool,
    },
    Read,
    Backfill,
    End {
        which: u8,
        result: u8,
    },
    /// The catalog takes a pause that was asked for.
    TakePause,
    TakeCommit,
    Commit,
    CatchUp {
        which: u8,
        few: bool,
    },
    Load {
        which: u8,
    },
    Wait {
        seconds: u8,
    },
    Pause {
        subscription: u8,
    },
    Resume {
        subscription: u8,
    },
    Redrive {
        which: u8,
    },
    Crash {
        committed: bool,
    },
    Resolve {
        which: u8,
    },
    Replay {
        subscription: u8,
        which: u8,
    },
    OrderReplay {
        which: u8,
        order: u8,
    },
    RetryLane {
        which: u8,
    },
    SkipLane {
        which: u8,
    },
    PauseLane {
        subscription: u8,
        workflow: u8,
    },
    ResumeLane {
        subscription: u8,
        workflow: u8,
    },
    /// The wall clocks step: this owner's lanes do not notice, the next owner's clock is another.
    SetClock {
        hours: i16,
    },
    /// Another part of the log leaves it soon.
    Age {
        events: u8,
    },
    /// The owner learns how far the one before may have read.
    LearnEnd,
    /// Another filter.
    Refilter {
        subscription: u8,
        narrow: bool,
    },
    /// The catalog loses a subscription.
    Lose {
        subscription: u8,
    },
    Adopt {
        subscription: u8,
    },
    /// An operator removes a subscription.
    Remove {
        subscription: u8,
    },
    /// An operator discards a subscription that was lost.
    Discard {
        subscription: u8,
    },
    /// A subscription that has ended is in the catalog again, with its uid.
    BringBack {
        subscription: u8,
    },
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        7 => (0..WORKFLOWS).prop_map(|workflow| Step::Append { workflow, quarantined: false }),
        1 => (0..WORKFLOWS).prop_map(|workflow| Step::Append { workflow, quarantined: true }),
        8 => Just(Step::Read),
        4 => Just(Step::Backfill),
        10 => (any::<u8>(), 0u8..24).prop_map(|(which, result)| Step::End { which, result }),
        6 => Just(Step::TakeCommit),
        6 => Just(Step::Commit),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(which, few)| Step::CatchUp { which, few }),
        2 => any::<u8>().prop_map(|which| Step::Load { which }),
        2 => Just(Step::TakePause),
        4 => (1u8..20).prop_map(|seconds| Step::Wait { seconds }),
        1 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Pause { subscription }),
        2 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Resume { subscription }),
        2 => any::<u8>().prop_map(|which| Step::Redrive { which }),
        1 => any::<u8>().prop_map(|which| Step::Resolve { which }),
        1 => (0..SUBSCRIPTIONS, any::<u8>()).prop_map(|(subscription, which)| Step::Replay { subscription, which }),
        1 => (any::<u8>(), 0u8..3).prop_map(|(which, order)| Step::OrderReplay { which, order }),
        1 => any::<u8>().prop_map(|which| Step::RetryLane { which }),
        1 => any::<u8>().prop_map(|which| Step::SkipLane { which }),
        1 => (0..SUBSCRIPTIONS, 0..WORKFLOWS)
            .prop_map(|(subscription, workflow)| Step::PauseLane { subscription, workflow }),
        2 => (0..SUBSCRIPTIONS, 0..WORKFLOWS)
            .prop_map(|(subscription, workflow)| Step::ResumeLane { subscription, workflow }),
        1 => (1u8..6).prop_map(|events| Step::Age { events }),
        1 => (-170i16..=170).prop_map(|hours| Step::SetClock { hours }),
        1 => any::<bool>().prop_map(|committed| Step::Crash { committed }),
        2 => Just(Step::LearnEnd),
        2 => (0..SUBSCRIPTIONS, any::<bool>())
            .prop_map(|(subscription, narrow)| Step::Refilter { subscription, narrow }),
        1 => ending(),
    ]
}

/// How subscriptions come to be missing, and to be there again.
fn ending() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Lose { subscription }),
        4 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Adopt { subscription }),
        1 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Remove { subscription }),
        1 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::Discard { subscription }),
        3 => (0..SUBSCRIPTIONS).prop_map(|subscription| Step::BringBack { subscription }),
    ]
}

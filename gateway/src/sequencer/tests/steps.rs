//! Random steps: what senders, gateways, the server and the network may do in a history.

use proptest::prelude::*;

use super::model::{self, Fate, Step};

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Acked),
        1 => Just(Fate::AckLost),
        1 => Just(Fate::Lost),
        1 => any::<u8>().prop_map(Fate::Partial),
        1 => Just(Fate::Late),
    ]
}

fn between_gateways() -> impl Strategy<Value = Step> {
    let gateway = 0..3usize;
    prop_oneof![
        2 => (gateway.clone(), gateway.clone()).prop_map(|(gateway, to)| Step::Forward { gateway, to }),
        2 => gateway.clone().prop_map(|gateway| Step::Hear { gateway }),
        1 => gateway.prop_map(|gateway| Step::GiveUp { gateway }),
    ]
}

/// Steps of senders: submit, alone or in a chain, and give up waiting.
fn among_senders(faulty: bool) -> impl Strategy<Value = Step> {
    let (gateway, chain) = (0..3usize, 0..model::CHAINS);
    prop_oneof![
        8 => (gateway.clone(), 0..12u8, prop::bool::weighted(0.1), prop::option::of(chain.clone())).prop_map(
            |(gateway, delivery, other_body, chain)| Step::Submit { gateway, delivery, other_body, chain },
        ),
        2 => (gateway.clone(), chain).prop_map(|(gateway, chain)| Step::EndChain { gateway, chain }),
        u32::from(faulty) => (gateway, 0..4u8).prop_map(|(gateway, count)| Step::Expire { gateway, count }),
    ]
}

/// Steps by which a gateway learns of the log's contents.
fn what_the_log_says() -> impl Strategy<Value = Step> {
    let gateway = 0..3usize;
    prop_oneof![
        8 => (gateway.clone(), 0..8u8).prop_map(|(gateway, messages)| Step::Read { gateway, messages }),
        3 => (gateway.clone(), any::<u8>()).prop_map(|(gateway, back)| Step::Confirm { gateway, back }),
        6 => (gateway.clone(), 0..4u8).prop_map(|(gateway, of)| Step::Tell { gateway, of }),
        6 => gateway.clone().prop_map(|gateway| Step::Ask { gateway }),
        4 => gateway.clone().prop_map(|gateway| Step::Compare { gateway }),
        1 => gateway.prop_map(|gateway| Step::ReadOn { gateway }),
    ]
}

/// Messages of writers that compare nothing.
fn without_a_comparison() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..6u8).prop_map(|back| Step::Erase { back }),
        1 => (0..6u8).prop_map(|back| Step::CarryUncompared { back }),
    ]
}

fn step(fate: impl Strategy<Value = Fate>, faulty: bool) -> impl Strategy<Value = Step> {
    let gateway = 0..3usize;
    prop_oneof![
        10 => among_senders(faulty),
        10 => between_gateways(),
        8 => gateway.clone().prop_map(|gateway| Step::LookUp { gateway }),
        8 => (gateway.clone(), prop::bool::weighted(0.2), 0..12u8).prop_map(|(gateway, carry, more)| {
            Step::Launch { gateway, carry, more }
        }),
        8 => (gateway.clone(), fate).prop_map(|(gateway, fate)| Step::Land { gateway, fate }),
        12 => what_the_log_says(),
        3 => gateway.clone().prop_map(|gateway| Step::Commit { gateway }),
        u32::from(faulty) => gateway.prop_map(|gateway| Step::Kill { gateway }),
        1 => Just(Step::Arrive),
        2 => without_a_comparison(),
    ]
}

pub(super) fn faulty_steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(fate(), true), 1..250)
}

/// Steps of a cluster that lose nothing of its log.
fn of_a_cluster() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3usize).prop_map(|gateway| Step::Propose { gateway }),
        4 => (0..4u8).prop_map(|messages| Step::Apply { messages }),
        1 => Just(Step::Vanish),
        3 => (0..6u8).prop_map(|messages| Step::Lag { messages }),
    ]
}

pub(super) fn replicated_steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(prop_oneof![16 => step(fate(), true), 4 => of_a_cluster(), 1 => Just(Step::Hole)], 1..250)
}

/// Single senders, to gateways that contend, on a log that is rolled back now and then. Nothing is removed from it: where
/// the message at a cursor is gone, there is nothing to compare with.
pub(super) fn rolled_back_steps() -> impl Strategy<Value = Vec<Step>> {
    let gateway = 0..3usize;
    let step = prop_oneof![
        8 => (gateway.clone(), 0..12u8, prop::bool::weighted(0.1)).prop_map(|(gateway, delivery, other_body)| {
            Step::Submit { gateway, delivery, other_body, chain: None }
        }),
        8 => gateway.clone().prop_map(|gateway| Step::LookUp { gateway }),
        8 => (gateway.clone(), prop::bool::weighted(0.2), 0..12u8).prop_map(|(gateway, carry, more)| {
            Step::Launch { gateway, carry, more }
        }),
        8 => (gateway.clone(), fate()).prop_map(|(gateway, fate)| Step::Land { gateway, fate }),
        16 => what_the_log_says(),
        3 => gateway.clone().prop_map(|gateway| Step::Commit { gateway }),
        1 => gateway.prop_map(|gateway| Step::Kill { gateway }),
        4 => of_a_cluster(),
        1 => any::<u8>().prop_map(|keep| Step::RollBack { keep }),
    ];
    proptest::collection::vec(step, 1..250)
}

pub(super) fn faultless_steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(Just(Fate::Acked), false), 1..250)
}

//! Lanes alone, against a model: a log, a receiver, a committed record, and a driver that answers late, in any order, and
//! crashes.
//!
//! The invariants: L1 the head of a lane settles before the next event is attempted, and any outcome but a success is
//! committed before that; L2 at most one attempt of a lane is in flight; L3 every event settles exactly once in the
//! committed record; L4 nothing is lost: after healing, everything is settled and memory is empty; L5 no attempt before
//! its time, none of a paused subscription or one whose receiver is gone, none beyond the bounds; L6 a quarantined event
//! is attempted by a redrive only, and its live run ends as a dead letter; L7 nothing is exhausted before as many attempts
//! have counted as the policy allows, and then it is; an attempt while the receiver is away or without a connection does
//! not count, and what our own configuration kept from being sent is no attempt. The last subscription is not ordered: for
//! it L1 is that an event waits for no other, and L2 that none is attempted twice at a time. L8: what leaves the log soon,
//! and only that, expires. L9: no wait is longer than the retry policy's, also where the clock of the next owner shows
//! another time. L10: an event ends for a subscription by the filter that was in force at its place; a subscription that is
//! missing from the catalog keeps everything, and one that is removed keeps nothing of what it had, also when its uid comes
//! back. L11: a batch is consecutive events of one lane within its bounds; accepted events, and no others, are delivered; and
//! only an event that failed alone, or right after accepted ones, is exhausted or rejected. Events are erased at any time, also
//! before they are read: they keep L1 to L4, and are not attempted any more (L6).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use weft_nats::event::{Event, StoredEvent};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    internal, v1,
};

use super::{
    circuit::{self, Cause, Condition},
    lane::{EVENT_OVERHEAD_BYTES, event_bytes},
    *,
};
use model::Model;
use mutants::Mutant;
use record::{Record, recorded_lane};
use step::{Step, step};

mod batches;
mod catalog;
mod end;
mod erasure;
mod expiry;
mod filters;
mod isolation;
mod memory;
mod model;
pub(super) mod mutants;
mod record;
mod runs;
mod script;
mod soak;
mod step;
mod tidy;
mod unordered;

const SUBSCRIPTIONS: u8 = 3;
/// The subscription that is not ordered.
const UNORDERED: u8 = 2;
const WORKFLOWS: u8 = 3;
const RETRIES: u32 = 2;
/// The longest wait: of an event that a receiver is unavailable to. The retry policy's are shorter, three seconds doubled
/// once, with jitter.
const WAIT_MAX: SignedDuration = SignedDuration::from_secs(10);
const QUARANTINE: &str = "schema_invalid: /total: value is not a number";
const PAYLOAD: &[u8] = &[b'x'; 100];

fn limits() -> Limits {
    Limits {
        attempts_max: 3,
        lane_events_max: 2,
        event_lanes_max: 3,
        lanes_max: 100,
        still_lanes_max: 2,
        buffered_bytes_max: 4 * (PAYLOAD.len() + EVENT_OVERHEAD_BYTES),
        uncommitted_max: 6,
        catch_ups_max: 2,
        catch_ups_waiting_max: 1,
        commit_bytes_max: 1500,
    }
}

/// In every fourth history a subscription has fewer lanes than there are workflows.
fn limits_of(seed: u64) -> Limits {
    Limits { lanes_max: if seed.is_multiple_of(4) { 2 } else { limits().lanes_max }, ..limits() }
}

/// Events of a batch of an ordered subscription: one in every third history, the memory's bound in another third.
fn batch_of(seed: u64) -> usize {
    [4, 1, 2][(seed % 3) as usize]
}

fn uid(number: u8) -> SubscriptionUid {
    SubscriptionUid::from_bytes([number + 1; 16])
}

fn event(seq: u64, workflow: u8) -> Arc<StoredEvent> {
    quarantined_event(seq, workflow, None)
}

fn quarantined_event(seq: u64, workflow: u8, quarantine: Option<&str>) -> Arc<StoredEvent> {
    Arc::new(StoredEvent {
        seq: StreamSeq(seq),
        stored_at: Timestamp::UNIX_EPOCH,
        event: Event {
            id: EventId::from_bytes(u128::from(seq).to_be_bytes()),
            previous: None,
            event_type: kind(seq),
            source: "s".into(),
            quarantine: quarantine.map(str::to_owned),
            payload: Bytes::from_static(PAYLOAD),
            ..weft_testkit::event(&format!("w{workflow}")).number(seq).build()
        },
    })
}

/// Kinds of events: every filter of the model is a list of these.
const KINDS: u64 = 42;

/// The type of the event at a place.
fn kind(seq: u64) -> String {
    format!("k{}", seq % KINDS)
}

/// Subscription 0 takes nearly everything, the others every second event; what none takes is unrouted when 0 is absent. By
/// a narrow filter each takes a third of that.
fn filter_takes(subscription: u8, narrow: bool, seq: u64) -> bool {
    let wide = subscription == 0 && !seq.is_multiple_of(7) || subscription > 0 && seq.is_multiple_of(2);
    wide && (!narrow || seq.is_multiple_of(3))
}

/// By the filter that the scripts have.
fn takes(subscription: u8, seq: StreamSeq) -> bool {
    filter_takes(subscription, false, seq.0)
}

pub(super) fn policy(subscription: u8, paused: bool, revision: u64) -> SubscriptionPolicy {
    policy_of(subscription, paused, revision, false)
}

fn policy_of(subscription: u8, paused: bool, revision: u64, narrow: bool) -> SubscriptionPolicy {
    SubscriptionPolicy {
        uid: uid(subscription),
        name: format!("s{subscription}"),
        revision,
        start: StreamSeq(1),
        types: (0..KINDS).filter(|kind| filter_takes(subscription, narrow, *kind)).map(kind).collect(),
        sources: vec![],
        expression: String::new(),
        author: weft_catalog::Author { operator: "ann".into(), is_creator: true },
        catalog: internal::CatalogPosition { created_ns: 1, sequence: revision },
        concurrency: 2,
        min_interval: None,
        max_events: 1,
        retry: RetryPolicy::Exponential {
            max_retries: RETRIES,
            base: std::time::Duration::from_secs(3),
            factor: 2.0,
            max: std::time::Duration::from_secs(60),
            jitter: 0.2,
        },
        on_exhausted: OnExhausted::DeadLetter,
        ordered: subscription != UNORDERED,
        paused,
    }
}

fn lane(subscription: u8, workflow: u8) -> LaneKey {
    LaneKey::of_workflow(uid(subscription), WorkflowId::new(format!("w{workflow}")).unwrap())
}

fn item(subscription: u8, event: &StoredEvent, dead_run: Run) -> RedriveItem {
    RedriveItem {
        lane: LaneKey::of_workflow(uid(subscription), event.event.workflow.clone()),
        subscription_name: "s".into(),
        seq: event.seq,
        event: event.event.id,
        dead_run,
        applicable: true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// P3, P5 and the bounds, over random histories with crashes.
    #[test]
    fn lanes_keep_their_promises(steps in proptest::collection::vec(step(), 1..250), seed in any::<u64>()) {
        let mut model = Model::new(seed);
        for step in steps {
            model.run(step);
        }
        model.heal();
    }
}

//! The order in which a receiver of ours got its deliveries.

use std::collections::BTreeMap;

use weft_services::receiver::Arrival;
use weft_testkit::order::{self, Attempt};

/// Judges everything that a receiver got, in the order of arrival, against how many events each workflow has.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn check(arrivals: &[Arrival], events: &BTreeMap<String, u64>) -> Result<(), String> {
    fn attempt(arrival: &Arrival) -> Attempt<'_> {
        Attempt {
            workflow: &arrival.workflow_id,
            number: arrival.sequence_number,
            event_id: &arrival.event_id,
            previous: Some(arrival.previous_event_id.as_deref()),
            epoch: arrival.epoch,
            signed: arrival.signed,
            replay: arrival.replay,
            accepted: (200..300).contains(&arrival.status),
        }
    }
    order::check(arrivals.iter().map(attempt), events)
}

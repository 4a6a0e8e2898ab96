//! P3 as a receiver sees it, also through crashes.

use std::collections::BTreeMap;

use weft_services::receiver::Arrival;

/// Judges everything that a receiver got, in the order of arrival, against how many events each workflow has.
///
/// Within a workflow an attempt is of the event after the last one that was taken, or of that one again. Only with a new
/// owner of the shard (a greater epoch) may it step back, to an event that was taken without the owner knowing; from
/// there it continues in order. Every event is delivered in the end.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn check(arrivals: &[Arrival], events: &BTreeMap<String, u64>) -> Result<(), String> {
    let mut lanes: BTreeMap<&str, Lane<'_>> = BTreeMap::new();
    for arrival in arrivals.iter().filter(|arrival| !arrival.replay) {
        let workflow = arrival.workflow_id.as_str();
        if !arrival.signed {
            return Err(format!("{workflow} #{} has a bad signature", arrival.sequence_number));
        }
        lanes.entry(workflow).or_default().take(arrival)?;
    }
    for (workflow, count) in events {
        let taken = lanes.get(workflow.as_str()).map_or(0, |lane| lane.taken_max);
        if taken != *count {
            return Err(format!("{workflow} ends at #{taken}, not at #{count}"));
        }
    }
    match lanes.keys().find(|workflow| !events.contains_key(**workflow)) {
        Some(stranger) => Err(format!("{stranger} was never sent to")),
        None => Ok(()),
    }
}

#[derive(Default)]
struct Lane<'a> {
    /// The last event taken, by its number.
    taken: u64,
    taken_max: u64,
    epoch: u64,
    ids: BTreeMap<u64, &'a str>,
}

impl<'a> Lane<'a> {
    fn take(&mut self, arrival: &'a Arrival) -> Result<(), String> {
        let Arrival { workflow_id, sequence_number, epoch, .. } = arrival;
        let place = || format!("{workflow_id} #{sequence_number} (epoch {epoch})");
        if *epoch < self.epoch {
            return Err(format!("{} came from an owner before epoch {}", place(), self.epoch));
        }
        let new_owner = *epoch > self.epoch;
        self.epoch = *epoch;
        let forward = *sequence_number == self.taken + 1;
        let back = new_owner && *sequence_number <= self.taken;
        if !forward && !back {
            return Err(format!("{} came after #{} was taken", place(), self.taken));
        }
        let id = *self.ids.entry(*sequence_number).or_insert(&arrival.event_id);
        if id != arrival.event_id {
            return Err(format!("{} has two event ids", place()));
        }
        let previous = sequence_number.checked_sub(1).and_then(|previous| self.ids.get(&previous).copied());
        if arrival.previous_event_id.as_deref() != previous {
            return Err(format!("{} names another predecessor", place()));
        }
        if (200..300).contains(&arrival.status) {
            self.taken = *sequence_number;
            self.taken_max = self.taken_max.max(self.taken);
        } else if back {
            self.taken = sequence_number - 1;
        }
        Ok(())
    }
}

fn arrival(sequence: u64, epoch: u64, status: u16) -> Arrival {
    let id = |sequence: u64| format!("e{sequence}");
    Arrival {
        at: jiff::Timestamp::UNIX_EPOCH,
        event_id: id(sequence),
        workflow_id: "w".into(),
        sequence_number: sequence,
        previous_event_id: (sequence > 1).then(|| id(sequence - 1)),
        lane_previous_event_id: None,
        event_type: "t".into(),
        delivery_id: None,
        attempt: 1,
        replay: false,
        epoch,
        signed: true,
        in_order: None,
        status,
        payload: weft_services::receiver::Payload::default(),
    }
}

fn verdict(arrivals: &[(u64, u64, u16)]) -> Result<(), String> {
    let arrivals: Vec<_> =
        arrivals.iter().map(|(sequence, epoch, status)| arrival(*sequence, *epoch, *status)).collect();
    check(&arrivals, &BTreeMap::from([("w".to_owned(), 3)]))
}

/// The checker of the kill tests takes what the contract allows, and nothing else.
#[test]
fn a_new_owner_may_repeat_the_tail_and_nobody_else() {
    verdict(&[(1, 1, 200), (2, 1, 500), (2, 1, 200), (3, 1, 200)]).unwrap();
    verdict(&[(1, 1, 200), (2, 1, 200), (2, 2, 200), (3, 2, 200)]).unwrap();
    verdict(&[(1, 1, 200), (2, 1, 200), (3, 1, 200), (1, 2, 500), (1, 2, 200), (2, 2, 200), (3, 2, 200)]).unwrap();
    for wrong in [
        &[(1, 1, 200), (3, 1, 200), (2, 1, 200)][..],
        &[(1, 1, 200), (2, 1, 200)],
        &[(1, 1, 200), (2, 1, 500), (3, 1, 200)],
        &[(1, 1, 200), (2, 1, 200), (2, 1, 200), (3, 1, 200)],
        &[(1, 1, 200), (2, 2, 200), (2, 1, 200), (3, 2, 200)],
        &[(1, 1, 200), (2, 1, 200), (3, 1, 200), (1, 2, 200), (3, 2, 200)],
        &[(1, 1, 200), (2, 1, 200), (1, 2, 500), (2, 2, 200), (3, 2, 200)],
    ] {
        assert!(verdict(wrong).is_err(), "{wrong:?}");
    }
}

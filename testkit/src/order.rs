//! P3 as a receiver sees it, also through crashes.

use std::collections::BTreeMap;

/// An attempt to deliver, as its receiver saw it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The workflow.
    pub workflow: &'a str,
    /// Number of the event in its workflow.
    pub number: u64,
    /// Id of the event.
    pub event_id: &'a str,
    /// Id of the event before it; `None`: this receiver keeps no such ids.
    pub previous: Option<Option<&'a str>>,
    /// Epoch of the shard's owner.
    pub epoch: u64,
    /// Whether the signature holds.
    pub signed: bool,
    /// Whether it is part of a redrive or replay, which have no order.
    pub replay: bool,
    /// Whether the receiver has accepted it.
    pub accepted: bool,
}

/// Judges all attempts that a receiver got, in the order of arrival, against how many events each workflow has.
///
/// Within a workflow an attempt is of the event after the last one that was accepted, or of that one again. Only with a new
/// owner of the shard (a greater epoch) may it step back, to an event that was accepted without the owner knowing; from
/// there it continues in order. Every event is delivered in the end.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn check<'a>(
    attempts: impl IntoIterator<Item = Attempt<'a>>,
    events: &BTreeMap<String, u64>,
) -> Result<(), String> {
    let mut lanes: BTreeMap<&str, Lane<'_>> = BTreeMap::new();
    for attempt in attempts.into_iter().filter(|attempt| !attempt.replay) {
        let Attempt { workflow, number, signed, .. } = attempt;
        if !signed {
            return Err(format!("{workflow} #{number} has a bad signature"));
        }
        lanes.entry(workflow).or_default().take(&attempt)?;
    }
    for (workflow, count) in events {
        let accepted = lanes.get(workflow.as_str()).map_or(0, |lane| lane.accepted_max);
        if accepted != *count {
            return Err(format!("{workflow} ends at #{accepted}, not at #{count}"));
        }
    }
    match lanes.keys().find(|workflow| !events.contains_key(**workflow)) {
        Some(stranger) => Err(format!("{stranger} was never sent to")),
        None => Ok(()),
    }
}

#[derive(Default)]
struct Lane<'a> {
    /// The last event accepted, by its number.
    accepted: u64,
    accepted_max: u64,
    epoch: u64,
    ids: BTreeMap<u64, &'a str>,
}

impl<'a> Lane<'a> {
    fn take(&mut self, attempt: &Attempt<'a>) -> Result<(), String> {
        let Attempt { workflow, number, epoch, event_id, .. } = *attempt;
        let place = || format!("{workflow} #{number} (epoch {epoch})");
        if epoch < self.epoch {
            return Err(format!("{} came from an owner before epoch {}", place(), self.epoch));
        }
        let new_owner = epoch > self.epoch;
        self.epoch = epoch;
        let forward = number == self.accepted + 1;
        let back = new_owner && number <= self.accepted;
        if !forward && !back {
            return Err(format!("{} came after #{} was accepted", place(), self.accepted));
        }
        if *self.ids.entry(number).or_insert(event_id) != event_id {
            return Err(format!("{} has two event ids", place()));
        }
        let previous = number.checked_sub(1).and_then(|previous| self.ids.get(&previous).copied());
        if attempt.previous.is_some_and(|named| named != previous) {
            return Err(format!("{} names another predecessor", place()));
        }
        if attempt.accepted {
            self.accepted = number;
            self.accepted_max = self.accepted_max.max(number);
        } else if back {
            self.accepted = number - 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 4] = ["", "e1", "e2", "e3"];

    fn verdict(attempts: &[(usize, u64, bool)]) -> Result<(), String> {
        let attempt = |&(number, epoch, accepted): &(usize, u64, bool)| Attempt {
            workflow: "w",
            number: number as u64,
            event_id: IDS[number],
            previous: Some((number > 1).then(|| IDS[number - 1])),
            epoch,
            signed: true,
            replay: false,
            accepted,
        };
        check(attempts.iter().map(attempt), &BTreeMap::from([("w".to_owned(), 3)]))
    }

    /// The judge accepts what the contract allows, and nothing else.
    #[test]
    fn only_a_new_owner_may_repeat_the_last_events() {
        const OK: bool = true;
        const FAILED: bool = false;
        verdict(&[(1, 1, OK), (2, 1, FAILED), (2, 1, OK), (3, 1, OK)]).unwrap();
        verdict(&[(1, 1, OK), (2, 1, OK), (2, 2, OK), (3, 2, OK)]).unwrap();
        verdict(&[(1, 1, OK), (2, 1, OK), (3, 1, OK), (1, 2, FAILED), (1, 2, OK), (2, 2, OK), (3, 2, OK)]).unwrap();
        for wrong in [
            &[(1, 1, OK), (3, 1, OK), (2, 1, OK)][..],
            &[(1, 1, OK), (2, 1, OK)],
            &[(1, 1, OK), (2, 1, FAILED), (3, 1, OK)],
            &[(1, 1, OK), (2, 1, OK), (2, 1, OK), (3, 1, OK)],
            &[(1, 1, OK), (2, 2, OK), (2, 1, OK), (3, 2, OK)],
            &[(1, 1, OK), (2, 1, OK), (3, 1, OK), (1, 2, OK), (3, 2, OK)],
            &[(1, 1, OK), (2, 1, OK), (1, 2, FAILED), (2, 2, OK), (3, 2, OK)],
        ] {
            assert!(verdict(wrong).is_err(), "{wrong:?}");
        }
    }
}

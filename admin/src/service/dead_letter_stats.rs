//! Counts of dead letters.

use std::collections::HashMap;

use prost::Message as _;
use tonic::Status;
use weft_index::history::{DeadLetter, DeadLetterFilter};
use weft_proto::{
    v1::{self, DeadLetterField},
    words::Word as _,
};

use super::{
    selection::{PAGE, SELECTED_MAX},
    state::LogState,
};
use crate::{
    convert::milliseconds,
    error::{Code, of_history, refuse},
};

/// Counts of one answer: the largest.
const COUNTS_MAX: usize = 1_000;
/// The fields that are grouped by where a request names none.
const FIELDS_DEFAULT: [DeadLetterField; 3] =
    [DeadLetterField::Subscription, DeadLetterField::Reason, DeadLetterField::Status];

/// The fields of a request.
///
/// # Errors
///
/// BAD_QUERY: one is unknown.
pub(super) fn fields_of(fields: &[i32]) -> Result<Vec<DeadLetterField>, Status> {
    if fields.is_empty() {
        return Ok(FIELDS_DEFAULT.to_vec());
    }
    let field = |number: &i32| match DeadLetterField::try_from(*number) {
        Ok(DeadLetterField::Unspecified) | Err(_) => {
            Err(refuse(Code::BadQuery, format!("group_by: {number} is not a field")))
        }
        Ok(field) => Ok(field),
    };
    fields.iter().map(field).collect()
}

/// The group of a dead letter: these fields of it, the others empty.
fn group(dead_letter: &DeadLetter, fields: &[DeadLetterField]) -> v1::DeadLetterCount {
    let mut group = v1::DeadLetterCount::default();
    for field in fields {
        match field {
            DeadLetterField::Subscription => group.subscription.clone_from(&dead_letter.place.subscription),
            DeadLetterField::Reason => group.reason = dead_letter.reason.into(),
            DeadLetterField::Status => group.status = dead_letter.status.into(),
            DeadLetterField::Type => group.r#type.clone_from(&dead_letter.event_type),
            DeadLetterField::Source => group.source.clone_from(&dead_letter.source),
            DeadLetterField::Workflow => dead_letter.place.workflow.as_str().clone_into(&mut group.workflow_id),
            DeadLetterField::LastStatus => group.last_status = dead_letter.last_status,
            DeadLetterField::LastError => group.last_error.clone_from(&dead_letter.last_error),
            DeadLetterField::Unspecified => {}
        }
    }
    group
}

/// The groups with their counts, the largest first.
fn sorted(counts: HashMap<Vec<u8>, v1::DeadLetterCount>) -> Vec<v1::DeadLetterCount> {
    let words = |count: &v1::DeadLetterCount| (count.reason().word(), count.status().word());
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(one, a), (other, b)| {
        let by_name = || a.subscription.cmp(&b.subscription).then_with(|| words(a).cmp(&words(b)));
        b.count.cmp(&a.count).then_with(by_name).then_with(|| one.cmp(other))
    });
    counts.into_iter().map(|(_, count)| count).take(COUNTS_MAX).collect()
}

/// Counts the newest [`SELECTED_MAX`], by these fields.
pub(super) async fn count(
    log: &LogState,
    filter: DeadLetterFilter,
    fields: &[DeadLetterField],
) -> Result<v1::DeadLetterStatsResponse, Status> {
    let filter = DeadLetterFilter { without_repeats: true, ..filter };
    let mut counts: HashMap<Vec<u8>, v1::DeadLetterCount> = HashMap::new();
    let (mut oldest, mut newest) = (i64::MAX, i64::MIN);
    let (mut counted, mut after) = (0, None);
    let truncated = loop {
        let page = log.history.dead_letters(filter.clone(), after, PAGE).await.map_err(of_history)?;
        for dead_letter in page.dead_letters {
            oldest = oldest.min(dead_letter.dead_lettered_at_ms);
            newest = newest.max(dead_letter.dead_lettered_at_ms);
            let group = group(&dead_letter, fields);
            counts.entry(group.encode_to_vec()).or_insert(group).count += 1;
            counted += 1;
        }
        after = page.next;
        if after.is_none() || counted >= SELECTED_MAX {
            break after.is_some();
        }
    };
    let time = |ms| if counted == 0 { None } else { milliseconds(ms) };
    Ok(v1::DeadLetterStatsResponse { oldest: time(oldest), newest: time(newest), counts: sorted(counts), truncated })
}

//! Counts of dead letters.

use std::collections::BTreeMap;

use tonic::Status;
use weft_index::history::{DeadLetterFilter, status::reason_name};
use weft_proto::v1;

use super::{
    selection::{PAGE, SELECTED_MAX},
    state::LogState,
};
use crate::{convert::milliseconds, error::of_history};

/// Counts the newest [`SELECTED_MAX`].
pub(super) async fn count(log: &LogState, filter: DeadLetterFilter) -> Result<v1::DeadLetterStatsResponse, Status> {
    let mut counts: BTreeMap<(String, &str, &str), u64> = BTreeMap::new();
    let (mut oldest, mut newest) = (i64::MAX, i64::MIN);
    let (mut counted, mut after) = (0, None);
    let truncated = loop {
        let page = log.history.dead_letters(filter.clone(), after, PAGE).await.map_err(of_history)?;
        for dead_letter in page.dead_letters {
            oldest = oldest.min(dead_letter.dead_lettered_at_ms);
            newest = newest.max(dead_letter.dead_lettered_at_ms);
            let key = (dead_letter.place.subscription, reason_name(dead_letter.reason), dead_letter.status.as_str());
            *counts.entry(key).or_default() += 1;
            counted += 1;
        }
        after = page.next;
        if after.is_none() || counted >= SELECTED_MAX {
            break after.is_some();
        }
    };
    let counts: Vec<_> = counts
        .into_iter()
        .map(|((subscription, reason, status), count)| v1::DeadLetterCount {
            subscription,
            reason: reason.to_owned(),
            status: status.to_owned(),
            count,
        })
        .collect();
    let time = |ms| if counted == 0 { None } else { milliseconds(ms) };
    Ok(v1::DeadLetterStatsResponse { oldest: time(oldest), newest: time(newest), counts, truncated })
}

//! Selection of dead letters by a request.

use std::collections::{BTreeMap, btree_map::Entry};

use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::history::{DeadLetter, status::DeadLetterStatus};
use weft_proto::v1;

use super::{
    dead_letter_query::{by_id, filter_of, limited},
    state::LogState,
};
use crate::error::{Code, of_history, refuse};

/// Maximum number of dead letters of one request: they are held in memory while it is followed, some 20 MB.
pub(super) const SELECTED_MAX: usize = 100_000;
/// Dead letters of one query of the history.
pub(super) const PAGE: usize = 1_000;

/// The selection of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Selection {
    Ids(Vec<String>),
    Filter(v1::DeadLetterFilter),
}

impl Selection {
    /// # Errors
    ///
    /// BAD_QUERY: none, or more than one of the three.
    pub fn of(ids: Vec<String>, filter: Option<v1::DeadLetterFilter>, all: bool) -> Result<Self, Status> {
        let selection = match (ids.is_empty(), filter, all) {
            (false, None, false) => Self::Ids(ids),
            (true, Some(filter), false) => Self::Filter(filter),
            (true, None, true) => Self::Filter(v1::DeadLetterFilter::default()),
            _ => return Err(refuse(Code::BadQuery, "give ids, or a filter, or all; exactly one of them")),
        };
        if let Self::Filter(filter) = &selection
            && filter.statuses.iter().any(|status| *status != i32::from(DeadLetterStatus::Open))
        {
            return Err(refuse(Code::BadQuery, "filter.statuses: only open dead letters can be chosen; leave it out"));
        }
        Ok(selection)
    }

    /// The dead letters, sorted by shard and in the order of their events: a redriven lane keeps its order. With ids also
    /// those that are not open: their shard's owner reports them as not applicable.
    pub async fn select(self, log: &LogState, grant: &Grant) -> Result<Vec<DeadLetter>, Status> {
        let found = match self {
            Self::Ids(ids) => {
                check_count(ids.len())?;
                by_id(log, grant, &ids).await?
            }
            Self::Filter(filter) => by_filter(log, grant, filter).await?,
        };
        let mut selected = BTreeMap::new();
        for dead_letter in found {
            let place = &dead_letter.place;
            if let Entry::Vacant(entry) = selected.entry((place.shard, place.seq, place.uid)) {
                entry.insert(dead_letter);
            }
        }
        Ok(selected.into_values().collect())
    }
}

async fn by_filter(log: &LogState, grant: &Grant, filter: v1::DeadLetterFilter) -> Result<Vec<DeadLetter>, Status> {
    let filter = limited(grant, filter_of(filter)?);
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = log.history.dead_letters(filter.clone(), after, PAGE).await.map_err(of_history)?;
        found.extend(page.dead_letters);
        check_count(found.len())?;
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
    }
}

fn check_count(selected: usize) -> Result<(), Status> {
    let problem = || format!("more than {SELECTED_MAX} dead letters are selected; take them in narrower parts");
    if selected <= SELECTED_MAX { Ok(()) } else { Err(refuse(Code::BadQuery, problem())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_selects_in_one_way() {
        let (ids, filter) = (vec!["a:b".to_owned()], Some(v1::DeadLetterFilter::default()));
        assert_eq!(Selection::of(ids.clone(), None, false).unwrap(), Selection::Ids(ids.clone()));
        assert_eq!(Selection::of(vec![], None, true).unwrap(), Selection::Filter(Default::default()));
        let redriven = v1::DeadLetterFilter { statuses: vec![DeadLetterStatus::Redriven.into()], ..Default::default() };
        for (ids, filter, all) in [
            (vec![], None, false),
            (ids.clone(), None, true),
            (ids, filter.clone(), false),
            (vec![], filter, true),
            (vec![], Some(redriven), false),
        ] {
            assert!(Selection::of(ids, filter, all).is_err());
        }
    }
}

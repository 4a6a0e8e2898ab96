//! The filters that a subscription has had in one shard. Pure.
//!
//! An event is matched by the filter that was in force at its place in EVENTS, however often the catalog changes before the
//! event is settled: what a subscription has taken ends with an outcome. So the owner of a shard commits each filter with
//! the sequence that it counts from, and every reader of OUTCOMES keeps the ones that unsettled events were matched by.

use weft_expression::Input;
use weft_nats::{
    event::{OWN_SOURCE, StoredEvent},
    pattern::pattern_matches,
};
use weft_proto::{
    ids::StreamSeq,
    internal::{self, subscription_change::Change},
};

use super::expression::{FilterExpression, Verdict, input_of};

/// Filters kept of one subscription. Only changes of the filter while events are unsettled add to them. Beyond this many
/// the two oldest become one that takes what either took: an event too many is delivered rather than one lost.
const FILTERS_MAX: usize = 32;

/// Result of matching an event against the filters of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The filter that was in force took it.
    Taken,
    /// The filter that was in force did not take it.
    Ignored,
    /// The filter that was in force is not known, and the oldest known one does not take the event. Only an earlier version
    /// of Weft can have taken it.
    Unknown,
}

/// The filters of a subscription, by the sequence that each counts from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filters {
    start: StreamSeq,
    filters: Vec<Filter>,
}

/// A filter of the record with its compiled expression.
#[derive(Debug, Clone, PartialEq)]
struct Filter {
    revision: internal::FilterRevision,
    expression: FilterExpression,
}

impl Filter {
    fn of(revision: &internal::FilterRevision) -> Self {
        Self { expression: FilterExpression::of(&revision.expression), revision: revision.clone() }
    }

    fn takes_kind(&self, event_type: &str, source: &str) -> bool {
        takes(&self.revision.types, &self.revision.sources, event_type, source)
    }
}

impl Filters {
    /// The filters that the committed record holds.
    pub fn of(state: &internal::SubscriptionState) -> Self {
        Self { start: StreamSeq(state.from), filters: state.filters.iter().map(Filter::of).collect() }
    }

    /// Only the newest filter, as if it had always been in force.
    pub fn present(&self) -> Self {
        let mut filters: Vec<_> = self.filters.last().cloned().into_iter().collect();
        filters.iter_mut().for_each(|filter| filter.revision.from = 0);
        Self { start: self.start, filters }
    }

    /// The filter that came into force last; `None` where no version of Weft has recorded one.
    pub fn newest(&self) -> Option<&internal::FilterRevision> {
        self.filters.last().map(|filter| &filter.revision)
    }

    /// How an event stands. Without any known filter everything from the start on counts as taken.
    pub fn judge(&self, event: &StoredEvent) -> Match {
        let (kind, source) = (&event.event.event_type, &event.event.source);
        let input = input_of(&event.event);
        self.judged(event.seq, |filter| filter.takes_kind(kind, source) && filter.expression.takes(&input))
    }

    /// As [`judge`](Self::judge), of an event whose data is not at hand: where the type and the source match, so may the
    /// expression.
    pub fn judge_kind(&self, seq: StreamSeq, event_type: &str, source: &str) -> Match {
        self.judged(seq, |filter| filter.takes_kind(event_type, source))
    }

    /// Why nothing can be said about an event that was taken: the expression in force at its place has failed on it, and so
    /// does the newest. An event that either takes is delivered.
    pub fn failure(&self, event: &StoredEvent) -> Option<String> {
        let in_force = self.in_force(event.seq).or(self.filters.first())?;
        let newest = self.filters.last()?;
        let input = input_of(&event.event);
        let failed = |filter: &Filter, input: &Input<'_>| match filter.expression.verdict(input) {
            Verdict::Failed(error) => Some(error),
            Verdict::Taken | Verdict::Ignored => None,
        };
        let error = failed(in_force, &input)?;
        if newest.expression == in_force.expression { Some(error) } else { failed(newest, &input) }
    }

    fn in_force(&self, seq: StreamSeq) -> Option<&Filter> {
        self.filters.iter().rfind(|filter| filter.revision.from <= seq.0)
    }

    fn judged(&self, seq: StreamSeq, taken: impl Fn(&Filter) -> bool) -> Match {
        if seq < self.start {
            return Match::Ignored;
        }
        let Some(oldest) = self.filters.first() else { return Match::Taken };
        match self.in_force(seq) {
            Some(filter) if taken(filter) => Match::Taken,
            Some(_) => Match::Ignored,
            None if taken(oldest) => Match::Taken,
            None => Match::Unknown,
        }
    }
}

/// Whether a filter surely takes no event that `wide` does not take. Patterns and expressions are not compared with each
/// other, so each counts as covered only where `wide` holds the same one, or no expression.
pub fn is_covered(types: &[String], sources: &[String], expression: &str, wide: &internal::FilterRevision) -> bool {
    if !wide.expression.is_empty() && wide.expression != expression {
        return false;
    }
    let covers = |wide: &String, kind: &String| wide == kind || !kind.contains('*') && pattern_matches(wide, kind);
    let all_types = types.iter().all(|kind| wide.types.iter().any(|pattern| covers(pattern, kind)));
    let all_sources = !sources.is_empty() && sources.iter().all(|source| wide.sources.contains(source));
    let is_within_all = wide.sources.is_empty() && sources.iter().all(|source| source != OWN_SOURCE);
    all_types && (is_within_all || all_sources)
}

/// Whether a filter takes an event; no sources stand for all but the mesh's own, whose events would surprise a receiver.
pub(super) fn takes(types: &[String], sources: &[String], event_type: &str, source: &str) -> bool {
    (sources.is_empty() && source != OWN_SOURCE || sources.iter().any(|name| name == source))
        && types.iter().any(|pattern| pattern_matches(pattern, event_type))
}

/// Applies a committed change to what is known of its subscription, as every reader of OUTCOMES does.
pub fn apply_change(state: &mut internal::SubscriptionState, change: &internal::SubscriptionChange) {
    match &change.change {
        Some(Change::Opened(opened)) => {
            let filter = filter(opened.from, opened.revision, &opened.types, &opened.sources, &opened.expression);
            *state = internal::SubscriptionState {
                name: opened.name.clone(),
                revision: opened.revision,
                from: opened.from,
                detached: None,
                closed: false,
                closed_through: None,
                filters: filter.into_iter().collect(),
                ordered: opened.ordered,
                ..std::mem::take(state)
            };
        }
        Some(Change::Revised(revised)) => {
            state.revision = revised.revision;
            state.ordered = revised.ordered.or(state.ordered);
            let internal::Revised { from, revision, types, sources, expression, .. } = revised;
            if let Some(filter) = filter(*from, *revision, types, sources, expression) {
                revise(&mut state.filters, filter, revised.settled_below);
            }
        }
        Some(Change::Detached(detached)) => state.detached = (detached.next > 0).then_some(detached.next),
        Some(Change::Closed(closed)) => {
            state.closed = true;
            state.closed_through = Some(closed.up_to);
        }
        None => {}
    }
    if change.catalog.is_some() {
        state.catalog.clone_from(&change.catalog);
    }
}

/// Voids what was counted in a lost part of EVENTS, of which only events up to `kept` are left, as every reader of an
/// adoption does: starts, filters and ends count from the beginning of that part.
pub fn cut_off(state: &mut internal::SubscriptionState, kept: u64) {
    let lost = kept.saturating_add(1);
    state.from = state.from.min(lost);
    state.detached = state.detached.filter(|next| *next <= kept);
    state.closed_through = state.closed_through.map(|through| through.min(kept));
    // Of the filters that came into force in the lost part, the newest is in force from its beginning on.
    let newest = state.filters.iter().rposition(|filter| filter.from > kept);
    let mut at = 0;
    state.filters.retain_mut(|filter| {
        let is_kept = filter.from <= kept || Some(at) == newest;
        filter.from = filter.from.min(lost);
        at += 1;
        is_kept
    });
}

/// The filter of a record; `None` where an earlier version wrote it.
fn filter(
    from: u64,
    revision: u64,
    types: &[String],
    sources: &[String],
    expression: &str,
) -> Option<internal::FilterRevision> {
    let (types, sources, expression) = (types.to_vec(), sources.to_vec(), expression.to_owned());
    (!types.is_empty()).then_some(internal::FilterRevision { from, revision, types, sources, expression })
}

/// Adds a filter, and drops those that ended at or below `settled_below`.
fn revise(filters: &mut Vec<internal::FilterRevision>, mut filter: internal::FilterRevision, settled_below: u64) {
    // The filters stay sorted regardless of what a record says.
    filter.from = filters.last().map_or(filter.from, |last| last.from.max(filter.from));
    let is_same = |last: &internal::FilterRevision| {
        last.types == filter.types && last.sources == filter.sources && last.expression == filter.expression
    };
    if filters.last().is_some_and(is_same) {
        return;
    }
    filters.push(filter);
    let ended = filters.windows(2).take_while(|pair| pair[1].from <= settled_below).count();
    filters.drain(..ended);
    // An empty range: the filter before it never took an event.
    filters.dedup_by(|later, earlier| {
        let replaced = later.from == earlier.from;
        if replaced {
            *earlier = std::mem::take(later);
        }
        replaced
    });
    while filters.len() > FILTERS_MAX {
        let oldest = filters.remove(0);
        if let Some(next) = filters.first_mut() {
            merge(next, oldest);
        }
    }
}

/// Makes `next` take from `earlier.from` on what either takes.
fn merge(next: &mut internal::FilterRevision, earlier: internal::FilterRevision) {
    next.from = earlier.from;
    if next.sources.is_empty() || earlier.sources.is_empty() {
        next.sources.clear();
    } else {
        add_missing(&mut next.sources, earlier.sources);
    }
    add_missing(&mut next.types, earlier.types);
    if next.expression != earlier.expression {
        next.expression.clear();
    }
}

fn add_missing(list: &mut Vec<String>, more: Vec<String>) {
    for text in more {
        if !list.contains(&text) {
            list.push(text);
        }
    }
}

#[cfg(test)]
mod tests;

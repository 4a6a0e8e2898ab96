//! Merges neighbouring segments, some rows at a time, so that no commit waits for long.

use std::{ops::Bound, sync::Arc};

use jiff::Timestamp;
use redb::{AccessGuard, Key, Range, ReadableTable as _, Value, WriteTransaction};
use weft_proto::ids::EventId;

use super::{
    Horizons,
    filter::{self, Filter},
    segments::{self, Group, LEVEL_MAX, Segment},
    tables::{self, Statement},
};

/// Rows of one step: some tens of milliseconds.
const STEP_ROWS: usize = 32_768;

/// A merge in progress. Its rows are not a segment until it is complete: after a crash they are removed.
#[derive(Debug)]
pub(super) struct Merge {
    /// The newest part of the log first.
    inputs: Vec<Segment>,
    number: u64,
    filter: Filter,
    rows: u64,
    /// The last key that was merged.
    after: Option<Vec<u8>>,
}

impl Merge {
    /// Of `inputs`, the newest part of the log first, into a segment with that number.
    pub fn new(inputs: Vec<Segment>, number: u64) -> Self {
        let rows = inputs.iter().map(|segment| segment.rows).sum();
        Self { inputs, number, filter: Filter::with_room(rows), rows: 0, after: None }
    }

    /// The number of the segment that it makes.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The numbers of the segments that are merged.
    pub fn inputs(&self) -> impl Iterator<Item = u64> {
        self.inputs.iter().map(|segment| segment.number)
    }

    /// Merges some rows. Returns the segment after the last ones; it has then replaced its inputs in the file. Heads
    /// that are not remembered at `now`, in stream time, are left out.
    pub fn step(
        &mut self,
        transaction: &WriteTransaction,
        horizons: Horizons,
        now: Option<Timestamp>,
    ) -> Result<Option<Segment>, redb::Error> {
        let Some(newest) = self.inputs.first() else { return Ok(None) };
        let (group, end) = (newest.group, newest.end);
        let done = match group {
            Group::Ids(_) => self.step_ids(transaction)?,
            Group::Heads => self.step_heads(transaction, horizons, now)?,
        };
        if !done {
            return Ok(None);
        }
        let level = self.inputs.iter().map(|segment| segment.level).max().unwrap_or(0).saturating_add(1);
        let segment = Segment {
            number: self.number,
            group,
            level: level.max(segments::level_of(self.rows)).min(LEVEL_MAX),
            rows: self.rows,
            end,
            filter: Arc::new(std::mem::replace(&mut self.filter, Filter::with_room(0))),
        };
        segments::store(transaction, &segment)?;
        self.inputs().try_for_each(|number| segments::remove(transaction, number))?;
        Ok(Some(segment))
    }

    fn step_ids(&mut self, transaction: &WriteTransaction) -> Result<bool, redb::Error> {
        let names: Vec<String> = self.inputs().map(Segment::table).collect();
        let tables =
            names.iter().map(|name| transaction.open_table(tables::ids(name))).collect::<Result<Vec<_>, _>>()?;
        let after = self.after.as_deref().and_then(|after| <&[u8; 16]>::try_from(after).ok());
        let from = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let ranges = tables.iter().map(|table| table.range::<&[u8; 16]>(from)).collect::<Result<Vec<_>, _>>()?;
        let name = Segment::table(self.number);
        let mut output = transaction.open_table(tables::ids(&name))?;
        let mut sources = Sources::new(ranges)?;
        for _ in 0..STEP_ROWS {
            let Some(rows) = sources.next()? else { return Ok(true) };
            // The newest event of an id is kept.
            let Some((key, row)) = rows.first() else { continue };
            output.insert(key.value(), row.value())?;
            self.filter.insert(filter::of_id(&EventId::from_bytes(*key.value())));
            self.rows += 1;
            self.after = Some(key.value().to_vec());
        }
        Ok(false)
    }

    fn step_heads(
        &mut self,
        transaction: &WriteTransaction,
        horizons: Horizons,
        now: Option<Timestamp>,
    ) -> Result<bool, redb::Error> {
        let names: Vec<String> = self.inputs().map(Segment::table).collect();
        let tables =
            names.iter().map(|name| transaction.open_table(tables::heads(name))).collect::<Result<Vec<_>, _>>()?;
        let after = self.after.as_deref().and_then(|after| std::str::from_utf8(after).ok());
        let from = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let ranges = tables.iter().map(|table| table.range::<&str>(from)).collect::<Result<Vec<_>, _>>()?;
        let name = Segment::table(self.number);
        let mut output = transaction.open_table(tables::heads(&name))?;
        let mut sources = Sources::new(ranges)?;
        for _ in 0..STEP_ROWS {
            let Some(rows) = sources.next()? else { return Ok(true) };
            let Some((key, _)) = rows.first() else { continue };
            let Some(statement) = fold(rows.iter().map(|(_, row)| tables::statement(row.value())))? else { continue };
            if now.is_none_or(|now| horizons.remembers(&statement.head, now)) {
                output.insert(key.value(), tables::statement_row(&statement))?;
                self.filter.insert(filter::of_workflow(&tables::workflow(key.value())?));
                self.rows += 1;
            }
            self.after = Some(key.value().as_bytes().to_vec());
        }
        Ok(false)
    }
}

/// The head of a workflow from several parts of the log, the newest first.
pub(super) fn fold(
    statements: impl DoubleEndedIterator<Item = Result<Statement, redb::Error>>,
) -> Result<Option<Statement>, redb::Error> {
    statements.rev().try_fold(None, |older, statement| Ok(Some(statement?.after(older))))
}

/// A row of a table.
pub(super) type Row<'a, K, V> = (AccessGuard<'a, K>, AccessGuard<'a, V>);

/// The rest of a table, and the row before it.
type Source<'a, K, V> = (Range<'a, K, V>, Option<Row<'a, K, V>>);

/// Several tables, walked through together in the order of their keys.
pub(super) struct Sources<'a, K: Key + 'static, V: Value + 'static> {
    sources: Vec<Source<'a, K, V>>,
}

impl<'a, K: Key + 'static, V: Value + 'static> Sources<'a, K, V> {
    /// Of `ranges`, the newest part of the log first.
    pub fn new(ranges: Vec<Range<'a, K, V>>) -> Result<Self, redb::Error> {
        let mut sources = Vec::with_capacity(ranges.len());
        for mut range in ranges {
            let row = range.next().transpose()?;
            sources.push((range, row));
        }
        Ok(Self { sources })
    }

    /// The rows of the next key, the newest part of the log first; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Vec<Row<'a, K, V>>>, redb::Error> {
        let compare = |a: &Row<'a, K, V>, b: &Row<'a, K, V>| {
            let (a, b) = (a.0.value(), b.0.value());
            K::compare(K::as_bytes(&a).as_ref(), K::as_bytes(&b).as_ref())
        };
        let Some(lowest) = self
            .sources
            .iter()
            .enumerate()
            .filter_map(|(index, (_, row))| Some((index, row.as_ref()?)))
            .min_by(|a, b| compare(a.1, b.1))
            .map(|(index, _)| index)
        else {
            return Ok(None);
        };
        let mut rows = Vec::with_capacity(1);
        // Of equal keys `min_by` has found the first: those before it are greater.
        for index in lowest..self.sources.len() {
            let equal = match (rows.first(), &self.sources[index].1) {
                (None, Some(_)) => true,
                (Some(first), Some(row)) => compare(first, row).is_eq(),
                (_, None) => false,
            };
            if equal {
                let (range, row) = &mut self.sources[index];
                let next = range.next().transpose()?;
                rows.extend(std::mem::replace(row, next));
            }
        }
        Ok(Some(rows))
    }
}

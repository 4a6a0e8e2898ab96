//! Segments of a receipts file, and their merges.
//!
//! A log-structured merge tree whose write-ahead log is the stream. Rows are never changed in place, since random writes into
//! one large B-tree touch a page each. The rows of a commit are sorted and become a *segment*, a separate table that is
//! written once, in key order. Segments are merged into larger ones, so that a look-up reads few of them, and each has a
//! [`Filter`] that rejects most of the keys that it does not have.
//!
//! Segments of a group are ordered by their part of the log, and only neighbours are merged. So the newest
//! segment that has a key decides, before and after a merge.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use redb::{ReadableTable, TableDefinition, TableHandle as _, WriteTransaction};

use super::{
    filter::Filter,
    tables::{self, Bucket},
};

/// Kind, level, bucket's start and length (milliseconds; ids only), rows, end.
type SegmentRow = (u8, u8, i64, i64, u64, u64);
/// By the segment's number.
pub(super) const SEGMENTS: TableDefinition<u64, SegmentRow> = TableDefinition::new("segments");
/// [`Filter::to_bytes`], by the segment's number.
pub(super) const FILTERS: TableDefinition<u64, &[u8]> = TableDefinition::new("filters");

/// Prefix of the names of the segments' tables.
const ROWS: &str = "rows.";
/// Neighbours of a level that are merged: each row is written again once a level.
const FAN_IN: usize = 8;
/// The highest level: 2^57 segments of level 0.
pub(super) const LEVEL_MAX: u8 = 19;
/// Maximum number of segments of one merge: after a catch-up there are many of the lowest level.
const FAN_IN_MAX: usize = 64;
/// Maximum number of rows of a segment of level 0: those of one commit while a gateway follows the log.
const LEVEL_ROWS: u64 = 32_768;

/// Segments that are looked up and merged together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Group {
    /// Ids of events that were stored in this stretch of time.
    Ids(Bucket),
    /// Workflows' heads.
    Heads,
}

/// A sorted table that is not changed any more.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// Grows with each segment; names its table.
    pub number: u64,
    pub group: Group,
    pub level: u8,
    pub rows: u64,
    /// The last sequence that it covers; orders the segments of a group.
    pub end: u64,
    pub filter: Arc<Filter>,
}

/// The filters of a file's segments, read once and shared by its views and its writer. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Filters {
    by_number: Arc<Mutex<HashMap<u64, Arc<Filter>>>>,
}

impl Filters {
    fn get(&self, number: u64) -> Option<Arc<Filter>> {
        self.lock().get(&number).cloned()
    }

    pub fn insert(&self, segment: &Segment) {
        self.lock().insert(segment.number, segment.filter.clone());
    }

    /// Views that have it keep it.
    pub fn remove(&self, number: u64) {
        self.lock().remove(&number);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Filter>>> {
        self.by_number.lock()
    }
}

impl Segment {
    /// The name of the table of the segment with that number.
    pub fn table(number: u64) -> String {
        format!("{ROWS}{number}")
    }

    /// The number of the segment whose table has that name; `None` for other tables.
    pub fn number_of(table: &str) -> Option<u64> {
        table.strip_prefix(ROWS)?.parse().ok()
    }

    fn row(&self) -> SegmentRow {
        let (kind, bucket) = match self.group {
            Group::Ids(bucket) => (0, bucket.to_row()),
            Group::Heads => (1, (0, 0)),
        };
        (kind, self.level, bucket.0, bucket.1, self.rows, self.end)
    }

    fn of_row(number: u64, row: SegmentRow, filter: Arc<Filter>) -> Self {
        let (kind, level, start_ms, length_ms, rows, end) = row;
        let group = if kind == 0 { Group::Ids(Bucket::of_row(start_ms, length_ms)) } else { Group::Heads };
        Self { number, group, level, rows, end, filter }
    }
}

/// Reads the segments of a file, in the order of [`sort`].
pub(super) fn read(
    segments: &impl ReadableTable<u64, SegmentRow>,
    stored: &impl ReadableTable<u64, &'static [u8]>,
    known: &Filters,
) -> Result<Vec<Segment>, redb::Error> {
    let mut all = Vec::new();
    for row in segments.iter()? {
        let (number, row) = row?;
        let number = number.value();
        let filter = match known.get(number) {
            Some(filter) => filter,
            None => {
                let filter = stored.get(number)?.and_then(|bytes| Filter::from_bytes(bytes.value()));
                Arc::new(filter.ok_or_else(|| redb::Error::Corrupted(format!("segment {number} has no filter")))?)
            }
        };
        let segment = Segment::of_row(number, row.value(), filter);
        known.insert(&segment);
        all.push(segment);
    }
    sort(&mut all);
    Ok(all)
}

/// Enters a segment whose rows have been written.
pub(super) fn store(transaction: &WriteTransaction, segment: &Segment) -> Result<(), redb::Error> {
    transaction.open_table(SEGMENTS)?.insert(segment.number, segment.row())?;
    transaction.open_table(FILTERS)?.insert(segment.number, segment.filter.to_bytes().as_slice())?;
    Ok(())
}

/// Removes a segment with its rows.
pub(super) fn remove(transaction: &WriteTransaction, number: u64) -> Result<(), redb::Error> {
    transaction.open_table(SEGMENTS)?.remove(number)?;
    transaction.open_table(FILTERS)?.remove(number)?;
    transaction.delete_table(tables::ids(&Segment::table(number)))?;
    Ok(())
}

/// Removes the rows of unfinished segments: merges that a crash has ended.
pub(super) fn remove_unfinished(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    let unfinished: Vec<u64> = {
        let segments = transaction.open_table(SEGMENTS)?;
        let numbers = transaction.list_tables()?.filter_map(|table| Segment::number_of(table.name()));
        let mut unfinished = Vec::new();
        for number in numbers {
            if segments.get(number)?.is_none() {
                unfinished.push(number);
            }
        }
        unfinished
    };
    unfinished.into_iter().try_for_each(|number| remove(transaction, number))
}

/// The newest bucket first; in a group, the newest part of the log first.
pub(super) fn sort(segments: &mut [Segment]) {
    segments.sort_unstable_by_key(|segment| Reverse((segment.group, segment.end, segment.number)));
}

/// The level of a segment by its size.
pub(super) fn level_of(rows: u64) -> u8 {
    let factor = (rows / LEVEL_ROWS).max(1);
    let level = factor.ilog(FAN_IN as u64) + u32::from(rows > LEVEL_ROWS);
    u8::try_from(level).unwrap_or(LEVEL_MAX).min(LEVEL_MAX)
}

/// The neighbours to merge next, in the order of `segments`, which is that of [`sort`]: at the lowest level, those
/// that together weigh as much as a segment of the next level. `newest`: the newest bucket of ids; older buckets, which get no
/// new segments, are merged into one.
pub(super) fn plan(segments: &[Segment], newest: Option<Bucket>) -> Option<Vec<u64>> {
    let groups = || segments.chunk_by(|a, b| a.group == b.group);
    let levels = segments.iter().map(|segment| segment.level).max().unwrap_or(0);
    let leveled = || {
        (0..=levels).find_map(|level| {
            let enough = |run: &&[Segment]| {
                let low = run.iter().all(|segment| segment.level <= level);
                low && run.len() > 1
                    && run.iter().map(|segment| weight(segment.level)).sum::<u64>() >= weight(level + 1)
            };
            groups().find_map(|group| group.chunk_by(|a, b| (a.level <= level) == (b.level <= level)).find(enough))
        })
    };
    let closed = || {
        groups().find(|group| {
            group.len() > 1
                && matches!(group[0].group, Group::Ids(bucket) if newest.is_some_and(|newest| bucket < newest))
        })
    };
    let run = leveled().or_else(closed)?;
    Some(run.iter().rev().take(FAN_IN_MAX).rev().map(|segment| segment.number).collect())
}

/// A segment's size in segments of level 0.
fn weight(level: u8) -> u64 {
    (FAN_IN as u64).saturating_pow(level.min(LEVEL_MAX).into())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    const DEDUP_MS: i64 = 7 * 24 * 60 * 60 * 1000;

    fn bucket(day: i64) -> Bucket {
        Bucket::of(Timestamp::from_second(day * 24 * 60 * 60).unwrap(), DEDUP_MS)
    }

    /// Segments of `levels`, the oldest part of the log first.
    fn group(group: Group, levels: &[u8]) -> Vec<Segment> {
        let filter = Arc::new(Filter::with_room(1));
        let segment = |(level, number): (&u8, u64)| Segment {
            number,
            group,
            level: *level,
            rows: 1,
            end: number,
            filter: filter.clone(),
        };
        let mut segments: Vec<_> = levels.iter().zip(1..).map(segment).collect();
        sort(&mut segments);
        segments
    }

    #[test]
    fn neighbours_of_the_lowest_level_are_merged_first() {
        let plan = |levels: &[u8]| plan(&group(Group::Heads, levels), None);
        assert_eq!(plan(&[0; 7]), None);
        assert_eq!(plan(&[0; 8]), Some((1..=8).rev().collect()));
        assert_eq!(plan(&[2, 1, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(plan(&[2, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Some((3..=10).rev().collect()));
        // Larger ones among small ones are merged with them, so that only neighbours are merged.
        assert_eq!(plan(&[2, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(plan(&[2, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]), Some((2..=16).rev().collect()));
        assert_eq!(plan(&[1; 8]), Some((1..=8).rev().collect()));
        // The oldest first.
        assert_eq!(plan(&[0; 70]), Some((1..=64).rev().collect()));
    }

    #[test]
    fn a_past_bucket_becomes_one_segment() {
        let mut segments = group(Group::Ids(bucket(1)), &[2, 1, 0]);
        assert_eq!(plan(&segments, Some(bucket(1))), None);
        assert_eq!(plan(&segments, Some(bucket(2))), Some(vec![3, 2, 1]));
        segments.truncate(1);
        assert_eq!(plan(&segments, Some(bucket(2))), None);
    }

    #[test]
    fn levels_grow_with_the_rows() {
        assert_eq!([0, 1, LEVEL_ROWS].map(level_of), [0; 3]);
        assert_eq!([LEVEL_ROWS + 1, 8 * LEVEL_ROWS - 1].map(level_of), [1; 2]);
        assert_eq!(level_of(8 * LEVEL_ROWS), 2);
    }

    /// Each row is written again at most a few times, for any size of commits, and a look-up has few segments.
    #[test]
    fn merging_ends_and_leaves_few_segments() {
        for commit in [10u64, 16_384, 131_072] {
            let (mut segments, mut written, mut number) = (Vec::new(), 0, 0);
            let filter = Arc::new(Filter::with_room(1));
            for at in 0..3_000u64 {
                number += 1;
                let group = Group::Heads;
                let level = level_of(commit);
                segments.push(Segment { number, group, level, rows: commit, end: at, filter: filter.clone() });
                sort(&mut segments);
                while let Some(merged) = plan(&segments, None) {
                    let inputs: Vec<_> = segments.extract_if(.., |segment| merged.contains(&segment.number)).collect();
                    let rows = inputs.iter().map(|segment| segment.rows).sum();
                    let level = inputs.iter().map(|segment| segment.level).max().unwrap() + 1;
                    written += rows;
                    number += 1;
                    let (end, level) = (inputs[0].end, level.max(level_of(rows)));
                    segments.push(Segment { number, group, level, rows, end, filter: filter.clone() });
                    sort(&mut segments);
                }
            }
            assert!(segments.len() <= 4 * (FAN_IN - 1), "{} segments of {commit} rows", segments.len());
            assert!(
                written <= 4 * 3_000 * commit,
                "each row of {commit} is written {} times",
                written / 3_000 / commit
            );
        }
    }
}

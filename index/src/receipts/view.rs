//! A snapshot of the receipts for reading.

use std::sync::Arc;

use jiff::Timestamp;
use redb::{ReadOnlyTable, ReadTransaction, TableError};
use weft_proto::ids::{EventId, StreamSeq, WorkflowId};

use super::{
    Accepted, Horizons, WorkflowHead,
    filter::{self, Filter},
    merge::{Sources, fold},
    segments::{self, FILTERS, Filters, Group, SEGMENTS, Segment},
    tables::{self, AcceptedRow, HeadRow},
};
use crate::projection::{self, Position};

/// The receipts after one commit: made once for a group of look-ups. Look-ups block for as long as the disk takes.
pub struct View {
    position: Option<Position>,
    /// The newest part of the log first: most repeats arrive soon after the first.
    ids: Vec<Filtered<&'static [u8; 16], AcceptedRow>>,
    /// The newest part of the log first.
    heads: Vec<Filtered<&'static str, HeadRow>>,
}

/// A segment's rows with its filter.
type Filtered<K, V> = (Arc<Filter>, ReadOnlyTable<K, V>);

/// Heads whose newest record is about to leave the log.
#[derive(Debug, Clone, Default)]
pub struct DueHeads {
    /// In the order of their workflows' ids.
    pub heads: Vec<(WorkflowId, WorkflowHead)>,
    /// The last workflow read, if there may be more.
    pub more_after: Option<WorkflowId>,
}

impl View {
    pub(super) fn new(transaction: &ReadTransaction, stream: &str, filters: &Filters) -> Result<Self, redb::Error> {
        let segments = match (transaction.open_table(SEGMENTS), transaction.open_table(FILTERS)) {
            (Ok(segments), Ok(stored)) => segments::read(&segments, &stored, filters)?,
            (Err(TableError::TableDoesNotExist(_)), _) | (_, Err(TableError::TableDoesNotExist(_))) => Vec::new(),
            (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        };
        let (mut ids, mut heads) = (Vec::new(), Vec::new());
        for Segment { number, group, filter, .. } in segments {
            let name = Segment::table(number);
            match group {
                Group::Ids(_) => ids.push((filter, transaction.open_table(tables::ids(&name))?)),
                Group::Heads => heads.push((filter, transaction.open_table(tables::heads(&name))?)),
            }
        }
        Ok(Self { position: projection::position(transaction, stream)?, ids, heads })
    }

    /// Position of the receipts in their stream; `None` in a new file.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Everything up to here is in the view.
    pub fn cursor(&self) -> StreamSeq {
        self.position.as_ref().map_or(StreamSeq(0), |position| position.cursor)
    }

    /// The newest stored event of this id; [`Horizons::knows`] decides whether it is still known.
    ///
    /// # Errors
    ///
    /// The error of redb.
    pub fn receipt(&self, id: EventId) -> Result<Option<Accepted>, redb::Error> {
        let hash = filter::of_id(&id);
        for (filter, table) in &self.ids {
            if filter.may_contain(hash)
                && let Some(row) = table.get(id.as_bytes())?
            {
                return tables::accepted(row.value()).map(Some);
            }
        }
        Ok(None)
    }

    /// The newest stored event of this replay key, and its id; [`Horizons::knows`] decides whether it is still known.
    ///
    /// # Errors
    ///
    /// The error of redb.
    pub fn replayed(&self, key: EventId) -> Result<Option<(EventId, Accepted)>, redb::Error> {
        Ok(self.receipt(key)?.map(|row| (tables::id_of_replayed(&row), row)))
    }

    /// The head of a workflow; [`Horizons::remembers`] decides whether it is still known.
    ///
    /// # Errors
    ///
    /// The error of redb.
    pub fn head(&self, workflow: &WorkflowId) -> Result<Option<WorkflowHead>, redb::Error> {
        let hash = filter::of_workflow(workflow);
        let mut statements = Vec::new();
        for (filter, table) in &self.heads {
            if filter.may_contain(hash)
                && let Some(row) = table.get(workflow.as_str())?
            {
                let statement = tables::statement(row.value())?;
                statements.push(Ok(statement));
                if statement.by_event {
                    break;
                }
            }
        }
        Ok(fold(statements.into_iter())?.map(|statement| statement.head))
    }

    /// Remembered heads whose newest record was stored before `carried_before`: at most `max`, of workflows after
    /// `after`. Reads all heads.
    ///
    /// # Errors
    ///
    /// The error of redb.
    pub fn heads_due(
        &self,
        horizons: Horizons,
        now: Timestamp,
        carried_before: Timestamp,
        after: Option<&WorkflowId>,
        max: usize,
    ) -> Result<DueHeads, redb::Error> {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut due = DueHeads::default();
        let lower = after.map_or(Unbounded, |workflow| Excluded(workflow.as_str()));
        let ranges = self.heads.iter().map(|(_, table)| table.range::<&str>((lower, Unbounded)));
        let mut sources = Sources::new(ranges.collect::<Result<_, _>>()?)?;
        while let Some(rows) = sources.next()? {
            let Some((workflow, _)) = rows.first() else { continue };
            let Some(statement) = fold(rows.iter().map(|(_, row)| tables::statement(row.value())))? else { continue };
            let head = statement.head;
            if head.carried_at < carried_before && horizons.remembers(&head, now) {
                due.heads.push((tables::workflow(workflow.value())?, head));
                if due.heads.len() >= max {
                    due.more_after = due.heads.last().map(|(workflow, _)| workflow.clone());
                    break;
                }
            }
        }
        Ok(due)
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("position", &self.position).finish_non_exhaustive()
    }
}

//! What the receipts know at one moment.

use jiff::Timestamp;
use redb::{ReadOnlyTable, ReadTransaction, TableError, TableHandle as _};
use weft_proto::ids::{EventId, StreamSeq, WorkflowId};

use super::{
    Accepted, Head, Horizons,
    tables::{self, AcceptedRow, Bucket, HEADS, HeadRow, ids},
};
use crate::projection::{self, Position};

/// The receipts as one commit left them: made once for a group of look-ups. Look-ups block for as long as the disk takes.
pub struct View {
    position: Option<Position>,
    /// Newest bucket first: repeats come soon after the first, if they come.
    ids: Vec<ReadOnlyTable<&'static [u8; 16], AcceptedRow>>,
    heads: Option<ReadOnlyTable<&'static str, HeadRow>>,
}

/// Heads whose last statement is about to leave the log.
#[derive(Debug, Clone, Default)]
pub struct DueHeads {
    /// In the order of their workflows' ids.
    pub heads: Vec<(WorkflowId, Head)>,
    /// The last workflow looked at, where there may be more.
    pub more_after: Option<WorkflowId>,
}

impl View {
    pub(super) fn new(transaction: &ReadTransaction, stream: &str) -> Result<Self, redb::Error> {
        let mut buckets: Vec<Bucket> = Vec::new();
        for table in transaction.list_tables()? {
            buckets.extend(Bucket::of_table(table.name()));
        }
        buckets.sort_unstable_by(|a, b| b.cmp(a));
        let mut id_tables = Vec::with_capacity(buckets.len());
        for bucket in buckets {
            id_tables.push(transaction.open_table(ids(&bucket.table()))?);
        }
        let heads = match transaction.open_table(HEADS) {
            Ok(table) => Some(table),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { position: projection::position(transaction, stream)?, ids: id_tables, heads })
    }

    /// Where the receipts stand in their stream; `None` in a new file.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Everything up to here is in the view.
    pub fn cursor(&self) -> StreamSeq {
        self.position.as_ref().map_or(StreamSeq(0), |position| position.cursor)
    }

    /// The newest event of this id that is remembered; [`Horizons::knows`] says whether it still counts.
    ///
    /// # Errors
    ///
    /// What redb says.
    pub fn receipt(&self, id: EventId) -> Result<Option<Accepted>, redb::Error> {
        for table in &self.ids {
            if let Some(row) = table.get(id.as_bytes())? {
                return tables::accepted(row.value()).map(Some);
            }
        }
        Ok(None)
    }

    /// The head of a workflow; [`Horizons::remembers`] says whether it still counts.
    ///
    /// # Errors
    ///
    /// What redb says.
    pub fn head(&self, workflow: &WorkflowId) -> Result<Option<Head>, redb::Error> {
        let Some(table) = &self.heads else { return Ok(None) };
        match table.get(workflow.as_str())? {
            Some(row) => tables::head(row.value()).map(Some),
            None => Ok(None),
        }
    }

    /// Remembered heads whose last statement was stored before `carried_before`: at most `max`, of workflows behind
    /// `after`. Walks through all heads.
    ///
    /// # Errors
    ///
    /// What redb says.
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
        let Some(table) = &self.heads else { return Ok(due) };
        let lower = after.map_or(Unbounded, |workflow| Excluded(workflow.as_str()));
        for row in table.range::<&str>((lower, Unbounded))? {
            let (workflow, head) = row?;
            let head = tables::head(head.value())?;
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

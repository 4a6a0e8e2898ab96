//! Changes become rows.

use std::collections::{HashMap, hash_map::Entry};

use redb::{ReadableTable as _, TableHandle as _, WriteTransaction};
use weft_proto::ids::{EventId, StreamSeq, WorkflowId};

use super::{
    Accepted, Change, Content, Head, Horizons, elsewhere,
    tables::{self, Bucket, HEADS, accepted_row, head_row, ids},
};
use crate::projection::{Position, Projector, set_position};

/// Applies changes to the receipts of one stream. A change is what one read brought, in stream order.
#[derive(Debug)]
pub struct Apply {
    stream: String,
    position: Position,
    horizons: Horizons,
    committed: Committed,
    /// The bucket in which old buckets were last looked for.
    swept: Option<Bucket>,
}

/// What the file holds, and what was odd about it since the writer's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Committed {
    /// Everything up to here is in the file.
    pub cursor: StreamSeq,
    /// Events that broke the order of their workflow, or ids that were accepted twice.
    pub violations: u64,
    /// Messages that are not ours.
    pub foreign: u64,
}

/// Heads that one commit touches: read once and written once, however many events their workflows have in it.
#[derive(Default)]
struct Heads {
    /// `None`: the workflow has none.
    touched: HashMap<WorkflowId, Option<Head>>,
}

impl Apply {
    pub(super) fn new(stream: String, position: Position, horizons: Horizons) -> Self {
        let committed = Committed { cursor: position.cursor, ..Committed::default() };
        Self { stream, position, horizons, committed, swept: None }
    }

    fn take_heads(&mut self, transaction: &WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
        let mut table = transaction.open_table(HEADS)?;
        let mut heads = Heads::default();
        for change in changes {
            match &change.content {
                Content::Event(id, accepted) => {
                    let head = heads.get(&table, &accepted.workflow)?;
                    if !self.horizons.may_follow(head.as_ref(), accepted) {
                        self.report_order(*id, accepted, head.as_ref());
                    }
                    *head = Some(Head {
                        sequence_number: accepted.sequence_number,
                        event_id: *id,
                        stored_at: accepted.stored_at,
                        carried_at: accepted.stored_at,
                    });
                }
                Content::Heads(carried) => {
                    for (workflow, carried) in carried {
                        let head = heads.get(&table, workflow)?;
                        if head.is_none_or(|head| head.sequence_number <= carried.sequence_number) {
                            *head = Some(*carried);
                        }
                    }
                }
                Content::Foreign => self.committed.foreign += 1,
            }
        }
        let mut touched: Vec<_> = heads.touched.into_iter().collect();
        touched.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (workflow, head) in touched {
            if let Some(head) = head {
                table.insert(workflow.as_str(), head_row(&head))?;
            }
        }
        Ok(())
    }

    fn take_ids(&mut self, transaction: &WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
        let mut buckets: HashMap<Bucket, Vec<(EventId, &Accepted)>> = HashMap::new();
        for change in changes {
            if let Content::Event(id, accepted) = &change.content {
                let bucket = Bucket::of(accepted.stored_at, self.horizons.dedup_ms);
                buckets.entry(bucket).or_default().push((*id, accepted));
            }
        }
        for (bucket, mut events) in buckets {
            // In key order, neighbours share pages. The sort is stable: of two of one id the later one stays.
            events.sort_by_key(|(id, _)| *id);
            let name = bucket.table();
            let mut table = transaction.open_table(ids(&name))?;
            for (id, accepted) in events {
                let before = table.insert(id.as_bytes(), accepted_row(accepted))?;
                let before = before.map(|row| tables::accepted(row.value())).transpose()?;
                if before.is_some_and(|before| {
                    before.seq != accepted.seq && self.horizons.knows(&before, elsewhere(accepted.stored_at))
                }) {
                    self.committed.violations += 1;
                    tracing::error!(stream = self.stream, seq = accepted.seq.0, event = %id, "event accepted twice");
                }
            }
        }
        Ok(())
    }

    /// Drops the buckets that are wholly past, once a bucket's time.
    fn sweep(&mut self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        let Some(now) = self.position.mark.map(|mark| mark.stored_at) else { return Ok(()) };
        let current = Bucket::of(now, self.horizons.dedup_ms);
        if self.swept.replace(current) == Some(current) {
            return Ok(());
        }
        let past: Vec<String> = transaction
            .list_tables()?
            .map(|table| table.name().to_owned())
            .filter(|name| Bucket::of_table(name).is_some_and(|bucket| bucket.is_past(now, self.horizons.dedup_ms)))
            .collect();
        for name in past {
            transaction.delete_table(ids(&name))?;
            tracing::debug!(stream = self.stream, table = name, "ids beyond the dedup horizon dropped");
        }
        Ok(())
    }

    fn report_order(&mut self, id: EventId, accepted: &Accepted, head: Option<&Head>) {
        self.committed.violations += 1;
        tracing::error!(
            stream = self.stream,
            seq = accepted.seq.0,
            event = %id,
            workflow = %accepted.workflow,
            number = accepted.sequence_number.0,
            head = head.map(|head| head.sequence_number.0),
            "event does not follow its workflow's head"
        );
    }
}

impl Projector for Apply {
    type Change = Vec<Change>;
    type Committed = Committed;

    fn apply(&mut self, transaction: &WriteTransaction, changes: Vec<Vec<Change>>) -> Result<Committed, redb::Error> {
        let changes: Vec<Change> = changes.into_iter().flatten().collect();
        if let Some(last) = changes.last() {
            self.position.cursor = last.seq;
            self.position.mark = Some(last.mark);
        }
        self.take_heads(transaction, &changes)?;
        self.take_ids(transaction, &changes)?;
        self.sweep(transaction)?;
        set_position(transaction, &self.stream, &self.position)?;
        self.committed.cursor = self.position.cursor;
        Ok(self.committed)
    }
}

impl Heads {
    fn get(
        &mut self,
        table: &redb::Table<'_, &'static str, tables::HeadRow>,
        workflow: &WorkflowId,
    ) -> Result<&mut Option<Head>, redb::Error> {
        match self.touched.entry(workflow.clone()) {
            Entry::Occupied(head) => Ok(head.into_mut()),
            Entry::Vacant(place) => {
                let row = table.get(workflow.as_str())?;
                Ok(place.insert(row.map(|row| tables::head(row.value())).transpose()?))
            }
        }
    }
}

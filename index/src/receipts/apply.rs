//! Changes become segments, and segments are merged.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use jiff::Timestamp;
use redb::{Database, ReadableDatabase as _, WriteTransaction};
use weft_proto::ids::{EventId, StreamSeq, WorkflowId};

use super::{
    Accepted, Change, Content, Horizons, WorkflowHead, elsewhere,
    filter::{self, Filter},
    merge::Merge,
    segments::{self, FILTERS, Filters, Group, SEGMENTS, Segment},
    tables::{self, Bucket, Statement},
    view::View,
};
use crate::projection::{Position, Projector, set_position};

/// The changes of one read or one append, in stream order.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// In stream order.
    pub changes: Vec<Change>,
    /// The log is being read from far back. Then commits are larger, and an event is compared only with the events of the
    /// same commit: a look-up for each would take longer than everything else.
    pub catching_up: bool,
}

/// Factor of a commit's size while catching up: larger segments are merged less often. The sequencer holds nothing else in
/// memory then.
const CATCH_UP_FACTOR: usize = 4;

/// Applies changes to the receipts of one stream.
#[derive(Debug)]
pub struct Apply {
    database: Arc<Database>,
    filters: Filters,
    stream: String,
    position: Position,
    horizons: Horizons,
    committed: Committed,
    segments: Vec<Segment>,
    next_segment: u64,
    merge: Option<Merge>,
    /// A message was missing between others: events have been erased, and their records come later.
    has_gaps: bool,
}

/// State of the file, and faults since the writer's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Committed {
    /// Everything up to here is in the file.
    pub cursor: StreamSeq,
    /// Events that broke the order of their workflow, or ids that were accepted twice.
    pub violations: u64,
    /// Foreign messages.
    pub foreign: u64,
}

impl Changes {
    /// Of a gateway that follows the log.
    pub fn new(changes: Vec<Change>) -> Self {
        Self { changes, catching_up: false }
    }
}

impl Apply {
    /// Prepares the file for writing: removes the rows of an unfinished merge.
    pub(super) fn new(
        database: Arc<Database>,
        filters: Filters,
        stream: String,
        position: Position,
        horizons: Horizons,
        transaction: &WriteTransaction,
    ) -> Result<Self, redb::Error> {
        segments::remove_unfinished(transaction)?;
        let next_segment = tables::next_segment(transaction)?;
        let segments = segments::read(&transaction.open_table(SEGMENTS)?, &transaction.open_table(FILTERS)?, &filters)?;
        let committed = Committed { cursor: position.cursor, ..Committed::default() };
        Ok(Self {
            database,
            filters,
            stream,
            position,
            horizons,
            committed,
            segments,
            next_segment,
            merge: None,
            has_gaps: false,
        })
    }

    /// Everything up to here is in the file.
    pub(super) fn committed(&self) -> Committed {
        self.committed
    }

    /// The newest head of each workflow in the changes. `view` is the file; without it an event is
    /// compared only with the changes before it.
    fn statements(&mut self, changes: &[Change], view: Option<&View>) -> Result<Statements, redb::Error> {
        let mut statements = Statements::default();
        let mut read = self.position.cursor;
        for change in changes {
            self.has_gaps |= read > StreamSeq(0) && change.seq > read.next();
            read = change.seq;
            match &change.content {
                Content::Event(id, accepted) => {
                    let known = statements.get(&accepted.workflow, view)?;
                    let head = known.as_ref().map(|statement| statement.head);
                    let follows = self.horizons.may_follow(head.as_ref(), accepted);
                    // Those between may be erased.
                    let skips = head.is_some_and(|head| head.sequence_number < accepted.sequence_number);
                    if (head.is_some() || view.is_some()) && !follows && !(skips && self.has_gaps) {
                        self.report_order(*id, accepted, head.as_ref());
                    }
                    let head = WorkflowHead {
                        sequence_number: accepted.sequence_number,
                        event_id: *id,
                        stored_at: accepted.stored_at,
                        carried_at: accepted.stored_at,
                    };
                    statements.put(&accepted.workflow, Statement { head, by_event: true });
                }
                Content::Heads(carried) => {
                    for (workflow, head) in carried {
                        let known = statements.get(workflow, view)?;
                        let carried = Statement { head: *head, by_event: false };
                        statements.put(workflow, carried.after(known));
                    }
                }
                Content::Erased(_, accepted, head) => {
                    let known = statements.get(&accepted.workflow, view)?;
                    let erased = Statement { head: *head, by_event: false };
                    statements.put(&accepted.workflow, erased.after(known));
                }
                Content::Foreign => self.committed.foreign += 1,
            }
        }
        Ok(statements)
    }

    fn write_heads(&mut self, transaction: &WriteTransaction, statements: Statements) -> Result<(), redb::Error> {
        let rows = statements.into_sorted();
        if rows.is_empty() {
            return Ok(());
        }
        let number = self.take_number(transaction)?;
        let mut filter = Filter::with_room(rows.len() as u64);
        {
            let name = Segment::table(number);
            let mut table = transaction.open_table(tables::heads(&name))?;
            for (workflow, statement) in &rows {
                table.insert(workflow.as_str(), tables::statement_row(statement))?;
                filter.insert(filter::of_workflow(workflow));
            }
        }
        self.enter(transaction, number, Group::Heads, rows.len() as u64, filter)
    }

    fn write_ids(
        &mut self,
        transaction: &WriteTransaction,
        changes: &[Change],
        view: Option<&View>,
    ) -> Result<(), redb::Error> {
        let mut buckets: BTreeMap<Bucket, Vec<(EventId, Cow<'_, Accepted>)>> = BTreeMap::new();
        for change in changes {
            if let Content::Event(id, accepted) | Content::Erased(id, accepted, _) = &change.content {
                let bucket = Bucket::of(accepted.stored_at, self.horizons.dedup_ms);
                let rows = buckets.entry(bucket).or_default();
                rows.push((*id, Cow::Borrowed(accepted)));
                let replayed = |key| (key, Cow::Owned(tables::replayed(*id, accepted)));
                rows.extend(accepted.replay_key.map(replayed));
            }
        }
        for (bucket, mut events) in buckets {
            // The sort is stable: of two events with one id the later one is the last.
            events.sort_by_key(|(id, _)| *id);
            let number = self.take_number(transaction)?;
            let mut filter = Filter::with_room(events.len() as u64);
            let mut rows = 0;
            {
                let name = Segment::table(number);
                let mut table = transaction.open_table(tables::ids(&name))?;
                for same in events.chunk_by(|a, b| a.0 == b.0) {
                    let mut before = match (view, same) {
                        (Some(view), [(id, _), ..]) => view.receipt(*id)?,
                        _ => None,
                    };
                    for (id, accepted) in same {
                        self.check_once(*id, accepted, before.as_ref());
                        before = Some(Accepted::clone(accepted));
                    }
                    if let Some((id, accepted)) = same.last() {
                        table.insert(id.as_bytes(), tables::accepted_row(accepted))?;
                        filter.insert(filter::of_id(id));
                        rows += 1;
                    }
                }
            }
            self.enter(transaction, number, Group::Ids(bucket), rows, filter)?;
        }
        Ok(())
    }

    fn take_number(&mut self, transaction: &WriteTransaction) -> Result<u64, redb::Error> {
        let number = self.next_segment;
        self.next_segment += 1;
        tables::set_next_segment(transaction, self.next_segment)?;
        Ok(number)
    }

    fn enter(
        &mut self,
        transaction: &WriteTransaction,
        number: u64,
        group: Group,
        rows: u64,
        filter: Filter,
    ) -> Result<(), redb::Error> {
        let (level, end) = (segments::level_of(rows), self.position.cursor.0);
        let segment = Segment { number, group, level, rows, end, filter: Arc::new(filter) };
        segments::store(transaction, &segment)?;
        self.filters.insert(&segment);
        self.segments.push(segment);
        segments::sort(&mut self.segments);
        Ok(())
    }

    /// Removes the ids of buckets that are completely expired.
    fn sweep(&mut self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        let Some(now) = self.now() else { return Ok(()) };
        let past = |segment: &mut Segment| match segment.group {
            Group::Ids(bucket) => bucket.is_past(now, self.horizons.dedup_ms),
            Group::Heads => false,
        };
        let merging: Vec<u64> = self.merge.iter().flat_map(Merge::inputs).collect();
        let past: Vec<u64> = self.segments.extract_if(.., past).map(|segment| segment.number).collect();
        if past.iter().any(|number| merging.contains(number))
            && let Some(merge) = self.merge.take()
        {
            segments::remove(transaction, merge.number())?;
        }
        for number in past {
            segments::remove(transaction, number)?;
            self.filters.remove(number);
            tracing::debug!(stream = self.stream, segment = number, "ids beyond the dedup horizon dropped");
        }
        Ok(())
    }

    /// Stream time.
    fn now(&self) -> Option<Timestamp> {
        self.position.mark.map(|mark| mark.stored_at)
    }

    fn planned(&self) -> Option<Vec<u64>> {
        segments::plan(&self.segments, self.now().map(|now| Bucket::of(now, self.horizons.dedup_ms)))
    }

    fn check_once(&mut self, id: EventId, accepted: &Accepted, before: Option<&Accepted>) {
        let known = |before: &Accepted| self.horizons.knows(before, elsewhere(accepted.stored_at));
        if before.is_some_and(|before| before.seq < accepted.seq && known(before)) {
            self.committed.violations += 1;
            tracing::error!(stream = self.stream, seq = accepted.seq.0, event = %id, "event accepted twice");
        }
    }

    fn report_order(&mut self, id: EventId, accepted: &Accepted, head: Option<&WorkflowHead>) {
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
    type Change = Changes;
    type Committed = Committed;

    fn weight(changes: &Changes) -> usize {
        let factor = if changes.catching_up { CATCH_UP_FACTOR } else { 1 };
        changes.changes.len().div_ceil(factor)
    }

    fn apply(&mut self, transaction: &WriteTransaction, changes: Vec<Changes>) -> Result<Committed, redb::Error> {
        let catching_up = changes.iter().any(|changes| changes.catching_up);
        let changes: Vec<Change> = changes.into_iter().flat_map(|changes| changes.changes).collect();
        let view = match catching_up {
            true => None,
            false => Some(View::new(&self.database.begin_read()?, &self.stream, &self.filters)?),
        };
        let statements = self.statements(&changes, view.as_ref())?;
        if let Some(last) = changes.last() {
            self.position.cursor = last.seq;
            self.position.mark = Some(last.mark);
        }
        self.write_heads(transaction, statements)?;
        self.write_ids(transaction, &changes, view.as_ref())?;
        self.sweep(transaction)?;
        set_position(transaction, &self.stream, &self.position)?;
        self.committed.cursor = self.position.cursor;
        Ok(self.committed)
    }

    fn wants_upkeep(&self) -> bool {
        self.merge.is_some() || self.planned().is_some()
    }

    fn upkeep(&mut self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        let now = self.now();
        if self.merge.is_none()
            && let Some(planned) = self.planned()
        {
            let inputs = self.segments.iter().filter(|segment| planned.contains(&segment.number)).cloned().collect();
            self.merge = Some(Merge::new(inputs, self.take_number(transaction)?));
        }
        let Some(merge) = &mut self.merge else { return Ok(()) };
        let Some(segment) = merge.step(transaction, self.horizons, now)? else { return Ok(()) };
        let inputs: Vec<u64> = merge.inputs().collect();
        self.merge = None;
        self.segments.retain(|segment| !inputs.contains(&segment.number));
        inputs.into_iter().for_each(|number| self.filters.remove(number));
        self.filters.insert(&segment);
        self.segments.push(segment);
        segments::sort(&mut self.segments);
        Ok(())
    }
}

/// Heads of the workflows in one commit, from the file and from the commit's changes.
#[derive(Default)]
struct Statements {
    /// `None`: the workflow is unknown.
    touched: HashMap<WorkflowId, Option<Statement>>,
}

impl Statements {
    fn get(&mut self, workflow: &WorkflowId, view: Option<&View>) -> Result<Option<Statement>, redb::Error> {
        match self.touched.entry(workflow.clone()) {
            Entry::Occupied(statement) => Ok(*statement.get()),
            Entry::Vacant(place) => {
                let stored = match view {
                    Some(view) => view.head(workflow)?,
                    None => None,
                };
                // Of the file's own statements nothing older counts either.
                Ok(*place.insert(stored.map(|head| Statement { head, by_event: true })))
            }
        }
    }

    fn put(&mut self, workflow: &WorkflowId, statement: Statement) {
        self.touched.insert(workflow.clone(), Some(statement));
    }

    fn into_sorted(self) -> Vec<(WorkflowId, Statement)> {
        let rows = self.touched.into_iter().filter_map(|(workflow, statement)| Some((workflow, statement?)));
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        rows
    }
}

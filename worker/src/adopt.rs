//! An operator's order that a stopped shard goes on in the streams as they are.
//!
//! The order is a command on COMMANDS that names the positions of the commits before and those after. It takes effect by
//! one commit that also fences off every earlier owner; how that changes the ledger says `ledger::apply`.

use jiff::Timestamp;
use weft_nats::{append::Appender, records, streams};
use weft_proto::{
    ids::StreamSeq,
    v1::{self, command::Action, outcome_record::Record},
};

use crate::{
    driver::{DriverError, append_until_stored},
    identity,
    ledger::{RecoveryError, tables::Positions},
    log::{Bounds, Log},
};

/// Commands of one read.
const READ: Bounds = Bounds { messages: 500, bytes: 8 << 20 };

/// An order that applies.
#[derive(Debug)]
pub(crate) struct Order {
    /// Its COMMANDS sequence.
    seq: StreamSeq,
    command: v1::Command,
    events: v1::LogPosition,
    commands: v1::LogPosition,
}

/// Looks for orders; remembers how far it has come.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// The COMMANDS that was read, and the next sequence of it.
    at: Option<(Timestamp, StreamSeq)>,
}

impl Orders {
    /// The newest order that applies to a shard at `positions`, among those that were stored since the last look.
    pub async fn find(&mut self, log: &Log, positions: &Positions) -> Result<Option<Order>, RecoveryError> {
        let stream = log.layout.commands_stream(log.shard);
        let state = streams::state(&log.connection, &stream).await?;
        let mut next = match self.at {
            Some((created, next)) if created == state.created && next <= state.last.next() => next,
            _ => first(log, positions).await?,
        };
        let mut found = None;
        while next <= state.last {
            let subject = log.layout.commands_subject(log.shard);
            let read = log.try_range(&stream, &subject, next, state.last, READ).await?;
            for message in &read.messages {
                let Some(command) = records::decode::<v1::Command>(message) else { continue };
                if let Some(order) = Order::of(log, positions, message.seq, command).await? {
                    found = Some(order);
                }
            }
            next = read.known.next();
        }
        self.at = Some((state.created, next));
        Ok(found)
    }
}

/// Where to begin: after what has been carried out, where that can be told.
async fn first(log: &Log, positions: &Positions) -> Result<StreamSeq, RecoveryError> {
    Ok(if identity::commands_are_known(log, positions).await? {
        StreamSeq(positions.commands + 1)
    } else {
        StreamSeq(1)
    })
}

impl Order {
    /// The order of a command, if it is one that applies: the shard stands where it says, and the streams hold the
    /// positions where it is to go on.
    async fn of(
        log: &Log,
        positions: &Positions,
        seq: StreamSeq,
        command: v1::Command,
    ) -> Result<Option<Self>, RecoveryError> {
        let Some(Action::Adopt(wanted)) = &command.action else { return Ok(None) };
        let is_here = wanted.shard == log.shard.0
            && wanted.events_before.as_ref() == Some(&positions.events_position())
            && wanted.commands_before.as_ref() == Some(&positions.commands_position());
        let (Some(events), Some(commands)) = (&wanted.events_after, &wanted.commands_after) else { return Ok(None) };
        let holds = is_here
            && identity::holds(log, log.layout.events_stream(log.shard), events).await?
            && identity::holds(log, log.layout.commands_stream(log.shard), commands).await?;
        if !holds {
            tracing::warn!(shard = %log.shard, command = seq.0, "order to adopt the shard is of another state of it");
            return Ok(None);
        }
        let (events, commands) = (events.clone(), commands.clone());
        Ok(Some(Self { seq, command, events, commands }))
    }
}

/// Commits an order. When this returns the ledger has to be read again.
pub(crate) async fn commit(log: &Log, positions: &Positions, worker: &str, order: Order) -> Result<(), DriverError> {
    let Order { seq, command, events, commands } = order;
    let v1::Command { request_id, operator, reason, .. } = command;
    tracing::warn!(
        shard = %log.shard, operator, reason, events = events.sequence, commands = commands.sequence,
        "shard is adopted: what its outcomes say of later events is void"
    );
    let commit = v1::Commit {
        epoch: positions.epoch + 1,
        worker: worker.to_owned(),
        cursor: events.sequence,
        commands_cursor: commands.sequence,
        events: Some(events),
        commands: Some(commands),
        results: vec![v1::CommandResult { command: seq.0, request_id, items: Vec::new() }],
        at_ms: Timestamp::now().as_millisecond(),
        copied: positions.copied,
        adopted: Some(v1::Adoption {
            command: seq.0,
            operator,
            reason,
            events_before: Some(positions.events_position()),
            commands_before: Some(positions.commands_position()),
        }),
        ..Default::default()
    };
    let record = v1::OutcomeRecord { record: Some(Record::Commit(commit)) };
    let message = records::encode(log.layout.outcomes_subject(log.shard), &record);
    let appender = Appender::new(log.connection.clone());
    let stream = log.layout.outcomes_stream(log.shard);
    let stored = append_until_stored(log.clone(), stream, appender, positions.outcomes, message).await;
    stored.map(drop).map_err(|_| DriverError::Fenced)
}

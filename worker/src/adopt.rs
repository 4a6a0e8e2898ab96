//! Adoption: an operator's command that a stopped shard continues in the streams as they are.
//!
//! The command names the positions of the commits before and after. It takes effect by one commit, which also fences off every
//! earlier owner; `ledger::apply` has its effect on the ledger.

use jiff::Timestamp;
use weft_nats::{append::Appender, records, streams};
use weft_proto::{
    ids::StreamSeq,
    internal::{self, command::Action, outcome_record::Record},
};

use crate::{
    driver::{DriverError, append_until_stored},
    ledger::{RecoveryError, tables::Positions},
    log::{Bounds, Log},
    stream_identity,
};

/// Bounds of one read.
const READ: Bounds = Bounds { messages: 500, bytes: 8 << 20 };

/// An adoption that applies.
#[derive(Debug)]
pub(crate) struct Adoption {
    /// Its COMMANDS sequence.
    seq: StreamSeq,
    command: internal::Command,
    events: internal::LogPosition,
    commands: internal::LogPosition,
}

/// Finds adoptions in COMMANDS.
#[derive(Debug, Default)]
pub(crate) struct AdoptionFinder {
    /// Creation time of the COMMANDS that was read, and its next sequence.
    at: Option<(Timestamp, StreamSeq)>,
}

impl AdoptionFinder {
    /// The newest adoption that applies to a shard at `positions`, of those that were stored since the last call.
    pub async fn find(&mut self, log: &Log, positions: &Positions) -> Result<Option<Adoption>, RecoveryError> {
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
                let Some(command) = records::decode::<internal::Command>(message) else { continue };
                if let Some(adoption) = Adoption::of(log, positions, message.seq, command).await? {
                    found = Some(adoption);
                }
            }
            next = read.known.next();
        }
        self.at = Some((state.created, next));
        Ok(found)
    }
}

/// The sequence to start from: after the commands that are carried out, if those are known.
async fn first(log: &Log, positions: &Positions) -> Result<StreamSeq, RecoveryError> {
    Ok(if stream_identity::commands_are_known(log, positions).await? {
        StreamSeq(positions.commands + 1)
    } else {
        StreamSeq(1)
    })
}

impl Adoption {
    /// The adoption of a command, if it applies: the shard is at the positions before, and the streams have the positions after.
    async fn of(
        log: &Log,
        positions: &Positions,
        seq: StreamSeq,
        command: internal::Command,
    ) -> Result<Option<Self>, RecoveryError> {
        let Some(Action::Adopt(wanted)) = &command.action else { return Ok(None) };
        let is_here = wanted.shard == log.shard.0
            && wanted.events_before.as_ref() == Some(&positions.events_position())
            && wanted.commands_before.as_ref() == Some(&positions.commands_position());
        let (Some(events), Some(commands)) = (&wanted.events_after, &wanted.commands_after) else { return Ok(None) };
        let holds = is_here
            && stream_identity::holds(log, log.layout.events_stream(log.shard), events).await?
            && stream_identity::holds(log, log.layout.commands_stream(log.shard), commands).await?;
        if !holds {
            tracing::warn!(shard = %log.shard, command = seq.0, "ignored an adoption that names other positions than the shard's");
            return Ok(None);
        }
        let (events, commands) = (events.clone(), commands.clone());
        Ok(Some(Self { seq, command, events, commands }))
    }
}

/// Commits an adoption. Afterwards the ledger must be recovered again.
pub(crate) async fn commit(
    log: &Log,
    positions: &Positions,
    worker: &str,
    adoption: Adoption,
) -> Result<(), DriverError> {
    let Adoption { seq, command, events, commands } = adoption;
    let internal::Command { request_id, operator, reason, .. } = command;
    tracing::warn!(
        shard = %log.shard, operator, reason, events = events.sequence, commands = commands.sequence,
        "shard adopted: outcomes of later events are void"
    );
    let commit = internal::Commit {
        epoch: positions.epoch + 1,
        worker: worker.to_owned(),
        cursor: events.sequence,
        commands_cursor: commands.sequence,
        events: Some(events),
        commands: Some(commands),
        results: vec![internal::CommandResult { command: seq.0, request_id, items: Vec::new() }],
        at_ms: Timestamp::now().as_millisecond(),
        copied: positions.copied,
        adopted: Some(internal::Adoption {
            command: seq.0,
            operator,
            reason,
            events_before: Some(positions.events_position()),
            commands_before: Some(positions.commands_position()),
        }),
        ..Default::default()
    };
    let record = internal::OutcomeRecord { record: Some(Record::Commit(commit)) };
    let message = records::encode(log.layout.outcomes_subject(log.shard), &record);
    let appender = Appender::new(log.connection.clone());
    let stream = log.layout.outcomes_stream(log.shard);
    let stored = append_until_stored(log.clone(), stream, appender, positions.outcomes, message).await;
    stored.map(drop).map_err(|_| DriverError::Fenced)
}

//! `ShardService`: whether the streams of shards are those of their outcomes, and the adoption of a stopped shard.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};
use weft_index::history::{Lost, StoredCommand};
use weft_nats::{
    position::{Mismatch, Position, PositionCheck, verify_once},
    streams,
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{self, command::Action},
    v1::{self, shard_service_server::ShardService},
};

use super::{
    command::Call,
    state::{LogState, State},
};
use crate::{
    auth, convert,
    error::{Code, of_history, refuse},
};

mod common;

use common::{SearchError, Stream, last_common, newest_commit, position_at};

/// Maximum number of ids of each kind in an answer.
const NAMES_MAX: usize = 100;
/// Time-out of the shard's owner, which looks for commands once a second, and commits.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time-out for the history to notice that a stream was restored: its readers compare after seconds of silence.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval of checks whether it has.
const ADOPT_LOOK: Duration = Duration::from_millis(200);

/// `ShardService` over the log.
#[derive(Debug)]
pub(super) struct Shards {
    state: Arc<State>,
}

impl Shards {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl ShardService for Shards {
    async fn list_shards(
        &self,
        request: Request<v1::ListShardsRequest>,
    ) -> Result<Response<v1::ListShardsResponse>, Status> {
        let log = self.state.log()?;
        auth::grant(&request)?;
        let mut shards = Vec::new();
        for shard in log.layout.all() {
            shards.push(show(log, shard).await.map_err(of_search)?);
        }
        Ok(Response::new(v1::ListShardsResponse { shards }))
    }

    async fn adopt_shard(
        &self,
        request: Request<v1::AdoptShardRequest>,
    ) -> Result<Response<v1::AdoptShardResponse>, Status> {
        let log = self.state.log()?;
        let grant = auth::grant(&request)?;
        let asked = request.into_inner();
        let call = Call::new(&grant, &asked.request_id, &asked.reason)?;
        let shard = log.layout.all().find(|shard| shard.0 == asked.shard);
        let shard = shard.ok_or_else(|| {
            refuse(Code::NotFound, format!("no shard {}; the log has {}", asked.shard, log.layout.shards()))
        })?;
        // Until the history has noticed that a stream was restored, it shows events that no longer exist.
        log.history.verify(shard, HISTORY_TIMEOUT).await.map_err(of_history)?;
        log.catch_up_shard(shard).await?;
        let is_same = |action: &Action| matches!(action, Action::Adopt(adopt) if adopt.shard == shard.0);
        if let Some(stored) = call.stored(log, is_same).await?.into_iter().next() {
            return self.repeated(log, call.request_id, shard, &stored).await;
        }
        let plan = Plan::of(log, shard, asked.from).await?;
        let mut answer = plan.answer(log, shard).await?;
        answer.request_id.clone_from(&call.request_id);
        if !asked.dry_run {
            let stored = call.command(log, &[], vec![(shard, Action::Adopt(plan.command(shard)))]).await?;
            let command = stored.first().ok_or_else(|| refuse(Code::Internal, "the command is not in the history"))?;
            until_adopted(log, shard, command).await?;
            answer.adopted = true;
        }
        Ok(Response::new(answer))
    }
}

impl Shards {
    /// The answer to a repeated call.
    async fn repeated(
        &self,
        log: &LogState,
        request_id: String,
        shard: ShardId,
        stored: &StoredCommand,
    ) -> Result<Response<v1::AdoptShardResponse>, Status> {
        until_adopted(log, shard, stored).await?;
        let Some(Action::Adopt(adopt)) = &stored.command.action else {
            return Err(refuse(Code::IdReused, "request_id was used for another call; use a new one"));
        };
        let shown = |stream: Stream, position: Option<&internal::LogPosition>| {
            position.map(|position| show_position(stream.name(log, shard), position))
        };
        Ok(Response::new(v1::AdoptShardResponse {
            request_id,
            adopted: true,
            events_before: shown(Stream::Events, adopt.events_before.as_ref()),
            commands_before: shown(Stream::Commands, adopt.commands_before.as_ref()),
            events_after: shown(Stream::Events, adopt.events_after.as_ref()),
            commands_after: shown(Stream::Commands, adopt.commands_after.as_ref()),
            ..Default::default()
        }))
    }
}

/// A planned adoption.
struct Plan {
    newest: internal::Commit,
    events: Position,
    commands: Position,
}

impl Plan {
    async fn of(log: &LogState, shard: ShardId, from: u64) -> Result<Self, Status> {
        let newest = newest_commit(log, shard).await.map_err(of_search)?;
        let newest = newest.ok_or_else(|| refuse(Code::Conflict, "nothing has been committed for the shard yet"))?;
        let mut differs = false;
        for stream in [Stream::Events, Stream::Commands] {
            differs |= difference(log, shard, stream, &newest).await.map_err(of_search)?.is_some();
        }
        if !differs {
            let message = format!("shard {shard} is not stopped: its streams are those of its outcomes");
            return Err(refuse(Code::Conflict, message));
        }
        let mut events = last_common(log, shard, Stream::Events).await.map_err(of_search)?;
        let commands = last_common(log, shard, Stream::Commands).await.map_err(of_search)?;
        if from > 0 {
            events = earlier(log, shard, &events, from).await?;
        }
        Ok(Self { newest, events, commands })
    }

    fn command(&self, shard: ShardId) -> internal::AdoptShard {
        internal::AdoptShard {
            shard: shard.0,
            events_before: Some(Stream::Events.position(&self.newest)),
            commands_before: Some(Stream::Commands.position(&self.newest)),
            events_after: Some((&self.events).into()),
            commands_after: Some((&self.commands).into()),
        }
    }

    async fn answer(&self, log: &LogState, shard: ShardId) -> Result<v1::AdoptShardResponse, Status> {
        let lost = log.history.lost(shard, self.events.cursor, self.commands.cursor.0, NAMES_MAX).await;
        let Lost { events, delivered, runs, dead_letters } = lost.map_err(of_history)?;
        let shown =
            |stream: Stream, position: &internal::LogPosition| Some(show_position(stream.name(log, shard), position));
        Ok(v1::AdoptShardResponse {
            events_before: shown(Stream::Events, &Stream::Events.position(&self.newest)),
            commands_before: shown(Stream::Commands, &Stream::Commands.position(&self.newest)),
            events_after: shown(Stream::Events, &(&self.events).into()),
            commands_after: shown(Stream::Commands, &(&self.commands).into()),
            delivered_events: delivered.count,
            delivered_event_ids: delivered.names,
            lost_events: events.count,
            lost_event_ids: events.names,
            closed_runs: runs,
            closed_dead_letters: dead_letters.count,
            closed_dead_letter_ids: dead_letters.names,
            ..Default::default()
        })
    }
}

/// The position before an event that is earlier than the first one after the last common event.
async fn earlier(log: &LogState, shard: ShardId, common: &Position, from: u64) -> Result<Position, Status> {
    let first = streams::state(&log.connection, &log.layout.events_stream(shard)).await;
    let first = first.map_err(|error| refuse(Code::LogUnavailable, error.to_string()))?.first;
    let last = common.cursor.next();
    if !(first..=last).contains(&StreamSeq(from)) {
        let message = format!(
            "from: {from} is not between {first}, the first event that is kept, and {last}, the one after the last common \
             event: a later one would leave events undelivered"
        );
        return Err(refuse(Code::BadQuery, message));
    }
    position_at(log, shard, Stream::Events, StreamSeq(from - 1)).await.map_err(of_search)
}

/// Waits until the shard's owner has executed a command.
async fn until_adopted(log: &LogState, shard: ShardId, stored: &StoredCommand) -> Result<(), Status> {
    let end = Instant::now() + ADOPT_TIMEOUT;
    // If COMMANDS lost a part, the owner's position in the lost part is after the command's.
    let before = match &stored.command.action {
        Some(Action::Adopt(adopt)) => adopt.commands_before.as_ref().map_or(0, |position| position.sequence),
        _ => 0,
    };
    loop {
        if log.history.is_adopted(shard, stored.run).await.map_err(of_history)? {
            return Ok(());
        }
        if stored.run.0 > before && log.history.is_carried_out(shard, stored.run).await.map_err(of_history)? {
            let message = "the shard stands elsewhere by now, so the order was refused; see the dry run again";
            return Err(refuse(Code::Conflict, message));
        }
        if Instant::now() >= end {
            let message = "the order is stored, and is carried out once a worker owns the shard; call again under the same \
                           request_id to see";
            return Err(refuse(Code::Starting, message));
        }
        sleep(ADOPT_LOOK).await;
    }
}

/// The difference of a stream from the one of the newest commit.
async fn difference(
    log: &LogState,
    shard: ShardId,
    stream: Stream,
    newest: &internal::Commit,
) -> Result<Option<Mismatch>, SearchError> {
    let name = stream.name(log, shard);
    let position = match stream.of(newest) {
        (Some(position), _) => Position::from(position),
        (None, cursor) => {
            let created = streams::state(&log.connection, &name).await?.created;
            Position { cursor: StreamSeq(cursor), ..Position::start(created) }
        }
    };
    Ok(match verify_once(&log.connection, &name, &position).await?.1 {
        PositionCheck::Keep | PositionCheck::Skip { .. } => None,
        PositionCheck::Rebuild(mismatch) => Some(mismatch),
    })
}

async fn show(log: &LogState, shard: ShardId) -> Result<v1::Shard, SearchError> {
    let last = async |stream: Stream| streams::state(&log.connection, &stream.name(log, shard)).await;
    let shown = v1::Shard {
        shard: shard.0,
        state: v1::ShardState::New.into(),
        events_last: last(Stream::Events).await?.last.0,
        commands_last: last(Stream::Commands).await?.last.0,
        ..Default::default()
    };
    let Some(newest) = newest_commit(log, shard).await? else { return Ok(shown) };
    let mut problems = Vec::new();
    for stream in [Stream::Events, Stream::Commands] {
        if let Some(mismatch) = difference(log, shard, stream, &newest).await? {
            problems.push(format!("{}: {mismatch}", stream.name(log, shard)));
        }
    }
    let committed = |stream: Stream| Some(show_position(stream.name(log, shard), &stream.position(&newest)));
    Ok(v1::Shard {
        state: if problems.is_empty() { v1::ShardState::Consistent } else { v1::ShardState::Stopped }.into(),
        problem: problems.join("; "),
        events_committed: committed(Stream::Events),
        commands_committed: committed(Stream::Commands),
        epoch: newest.epoch,
        worker: newest.worker.clone(),
        ..shown
    })
}

fn show_position(stream: String, stored: &internal::LogPosition) -> v1::StreamPosition {
    let position = Position::from(stored);
    v1::StreamPosition {
        stream,
        sequence: position.cursor.0,
        created_at: (stored.created_ns != 0).then(|| convert::timestamp(position.created)),
        stored_at: position.mark.map(|mark| convert::timestamp(mark.stored_at)),
        event_id: position.mark.and_then(|mark| mark.id).map(|id| id.to_string()).unwrap_or_default(),
    }
}

fn of_search(error: SearchError) -> Status {
    refuse(Code::LogUnavailable, error.to_string())
}

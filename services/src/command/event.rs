//! `weft event send | list | get | explain | tail | erase | replay`.

use std::pin::pin;

use tonic::Code;
use weft_proto::v1::{self, TailEventsRequest};

use super::{
    admin::AdminClient,
    common::CommonArgs,
    output::{self, Format},
    paging::PAGE_MAX,
    replay,
    select::{EventFilterArgs, Since, parse_since},
    view,
};
use crate::failure::Failure;

mod erase;
mod list;
mod provider;
pub(super) mod send;

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum EventCommand {
    /// Sign an event and post it, as a sender would
    Send(send::SendArgs),
    /// List events with what became of them, newest first
    List(list::ListArgs),
    /// Show an event, what became of it, and its times stage by stage
    Get(GetArgs),
    /// Say what an event waits for, since when, and what can be done
    Explain(GetArgs),
    /// Show events as they are accepted
    Tail(TailArgs),
    /// Erase payload and kept headers of events; number, id and type stay
    Erase(erase::EraseArgs),
    /// Deliver settled events again, as `weft replay start`
    Replay(replay::StartArgs),
}

/// `weft event get | explain`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// The event's id, at least 8 characters that it begins with, or the sender's delivery id
    event_id: String,
    /// Of a delivery id: only this source's
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft event tail`.
#[derive(Debug, clap::Args)]
pub struct TailArgs {
    /// Begin earlier than now: an age (1h), a time, an event id or a cursor
    #[arg(long, value_name = "AGE|TIME|ID", value_parser = parse_since)]
    since: Option<Since>,
    /// Begin with the oldest event that is kept
    #[arg(long, conflicts_with = "since")]
    from_beginning: bool,
    #[command(flatten)]
    filter: EventFilterArgs,
    /// End after this many events
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Carries out one verb.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(command: EventCommand) -> Result<(), Failure> {
    match command {
        EventCommand::Send(args) => send::run(args).await,
        EventCommand::List(args) => list::run(args).await,
        EventCommand::Get(args) => get(args).await,
        EventCommand::Explain(args) => explain(args).await,
        EventCommand::Tail(args) => tail(args).await,
        EventCommand::Erase(args) => erase::run(args).await,
        EventCommand::Replay(args) => replay::start(args).await,
    }
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let GetArgs { event_id, source, common } = args;
    let admin = common.admin.connect().await?;
    let answer = found(&admin, &event_id, source).await?;
    let event = view::EventWithDeliveries::new(answer).ok_or_else(|| unknown(&event_id))?;
    output::one(format, &event, || event.human())
}

async fn explain(args: GetArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let GetArgs { event_id, source, common } = args;
    let admin = common.admin.connect().await?;
    let answer = found(&admin, &event_id, source).await?;
    let workflow_id = answer.event.as_ref().map(|event| event.workflow_id.clone()).unwrap_or_default();
    let request = v1::ListLanesRequest { workflow_id, page_size: PAGE_MAX, ..Default::default() };
    let lanes = match admin.workflows().list_lanes(admin.request(request)).await {
        Ok(lanes) => lanes.into_inner().lanes,
        // A key for some sources only sees no lanes.
        Err(status) if status.code() == Code::PermissionDenied => Vec::new(),
        Err(status) => return Err(admin.failure(&status)),
    };
    let explanation = view::Explanation::of_event(answer, &lanes).ok_or_else(|| unknown(&event_id))?;
    output::one(format, &explanation, || explanation.human())
}

/// The event that the arguments name.
async fn found(admin: &AdminClient, event_id: &str, source: Option<String>) -> Result<v1::GetEventResponse, Failure> {
    let source = source.unwrap_or_default();
    let request = admin.request(v1::GetEventRequest { event_id: event_id.to_owned(), source });
    let answer = admin.events().get_event(request).await.map_err(|status| admin.failure(&status))?;
    Ok(answer.into_inner())
}

fn unknown(event_id: &str) -> Failure {
    Failure::NotFound(format!("no event {event_id}"))
}

async fn tail(args: TailArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let (since, from_beginning, not_before) = match args.since {
        None => (String::new(), args.from_beginning, None),
        Some(Since::Place(place)) => (place, false, None),
        // Cursors are places, not times: everything older is read and passed over.
        Some(Since::Time(time)) => (String::new(), true, Some(view::Time(time))),
    };
    let request = TailEventsRequest { since, filter: Some(args.filter.into()), from_beginning };
    let answer = admin.events().tail_events(admin.request(request)).await;
    let mut events = answer.map_err(|status| admin.failure(&status))?.into_inner();
    let mut left = args.limit.unwrap_or(u64::MAX);
    if format == Format::Table {
        output::text(&view::Event::headings())?;
    }
    let mut closed = pin!(output::closed());
    while left > 0 {
        let next = tokio::select! {
            next = next_event(&mut events, &admin) => next?,
            () = &mut closed => return Err(Failure::Closed),
        };
        let Some(next) = next else { break };
        let event = view::Event::from(next);
        if not_before.is_some_and(|limit| event.received_at().is_some_and(|time| time < limit)) {
            continue;
        }
        output::next(format, &event, || event.line())?;
        left -= 1;
    }
    Ok(())
}

/// The next event of a tail; `None` at its end.
async fn next_event(
    events: &mut tonic::Streaming<v1::TailEventsResponse>,
    admin: &AdminClient,
) -> Result<Option<v1::Event>, Failure> {
    loop {
        match events.message().await {
            Ok(Some(v1::TailEventsResponse { event: Some(event), .. })) => return Ok(Some(event)),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            // The admin drains: it ends the stream on purpose.
            Err(status) if status.code() == Code::Cancelled => return Ok(None),
            Err(status) => return Err(admin.failure(&status)),
        }
    }
}

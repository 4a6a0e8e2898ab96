//! `weft replay plan | start | list | get | pause | resume | cancel`, and `weft event replay`.

use jiff::Timestamp;
use weft_gateway::admission::Rate;
use weft_proto::v1::{self, DeliveryStatus};

use super::{
    admin::AdminClient,
    common::{CommonArgs, ReasonArgs, request_id},
    output::{self, Format, Row as _},
    paging, prompt,
    select::{EventFilterArgs, numbers, one_of, one_way, parse_moment, to_proto},
    view,
};
use crate::{config::into_rate, failure::Failure};

/// Replays of one page: the most that the service gives.
const PAGE_MAX: u32 = 100;

/// Decisions of an operator that make replays leave an event out.
const DECISIONS: &[DeliveryStatus] = &[DeliveryStatus::Discarded, DeliveryStatus::Resolved];

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum ReplayCommand {
    /// Show what a replay would deliver
    Plan(PlanArgs),
    /// Deliver settled events again
    Start(StartArgs),
    /// List replays, newest first
    List(ListArgs),
    /// Show how a replay goes
    Get(GetArgs),
    /// Attempt nothing of a replay until it is resumed
    Pause(OrderArgs),
    /// Resume a paused replay
    Resume(OrderArgs),
    /// End a replay: what has not been delivered is discarded
    Cancel(OrderArgs),
}

/// Which events, and to whom.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SelectionArgs {
    /// The events' ids
    #[arg(value_name = "EVENT")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: EventFilterArgs,
    /// Accepted since: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// Accepted before: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    until: Option<Timestamp>,
    /// Everything that is kept
    #[arg(long)]
    all: bool,
    /// To this subscription only [default: each that takes the event]
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Also what an operator has discarded or resolved, which is left out unless events are named by id
    #[arg(long, value_name = "DECISION", value_delimiter = ',', value_parser = one_of(DECISIONS))]
    include: Vec<DeliveryStatus>,
}

impl SelectionArgs {
    fn into_selection(self) -> Result<v1::ReplaySelection, Failure> {
        let Self { ids, filter, since, until, all, subscription, include } = self;
        let EventFilterArgs { workflow, event_type, source } = filter;
        let filtered = [&workflow, &event_type, &source].into_iter().any(Option::is_some) || since.or(until).is_some();
        one_way("replay", "--workflow", [!ids.is_empty(), filtered, all])?;
        let filter = filtered.then(|| v1::ReplayFilter {
            workflow_id: workflow.unwrap_or_default(),
            r#type: event_type.unwrap_or_default(),
            source: source.unwrap_or_default(),
            since: since.map(to_proto),
            until: until.map(to_proto),
        });
        let subscription = subscription.unwrap_or_default();
        Ok(v1::ReplaySelection { event_ids: ids, filter, all, subscription, include: numbers(&include) })
    }
}

/// `weft replay plan`.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft replay start`, `weft event replay`.
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// At most this many attempts a second, minute or hour: 100/s, 600/min, 5000/h
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<v1::Rate>,
    /// Print what would be replayed; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft replay list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Print at most this many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft replay get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// The replay's id
    id: String,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft replay pause | resume | cancel`.
#[derive(Debug, clap::Args)]
pub struct OrderArgs {
    /// The replay's id
    id: String,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Carries out one verb.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(command: ReplayCommand) -> Result<(), Failure> {
    match command {
        ReplayCommand::Plan(args) => {
            let selection = args.selection.into_selection()?;
            let format = args.common.format();
            plan(&args.common.admin.connect().await?, selection, format).await
        }
        ReplayCommand::Start(args) => start(args).await,
        ReplayCommand::List(args) => list(args).await,
        ReplayCommand::Get(args) => {
            let format = args.common.format();
            let admin = args.common.admin.connect().await?;
            let request = admin.request(v1::GetReplayRequest { id: args.id });
            let answer = admin.replays().get_replay(request).await.map_err(|status| admin.failure(&status))?;
            print(answer.into_inner(), format)
        }
        ReplayCommand::Pause(OrderArgs { id, reason: ReasonArgs { reason }, common }) => {
            let format = common.format();
            let admin = common.admin.connect().await?;
            let request = v1::PauseReplayRequest { id, reason, request_id: request_id() };
            let answer = admin.replays().pause_replay(admin.request(request)).await;
            print(answer.map_err(|status| admin.failure(&status))?.into_inner(), format)
        }
        ReplayCommand::Resume(OrderArgs { id, reason: ReasonArgs { reason }, common }) => {
            let format = common.format();
            let admin = common.admin.connect().await?;
            let request = v1::ResumeReplayRequest { id, reason, request_id: request_id() };
            let answer = admin.replays().resume_replay(admin.request(request)).await;
            print(answer.map_err(|status| admin.failure(&status))?.into_inner(), format)
        }
        ReplayCommand::Cancel(OrderArgs { id, reason: ReasonArgs { reason }, common }) => {
            let format = common.format();
            let admin = common.admin.connect().await?;
            let request = v1::CancelReplayRequest { id, reason, request_id: request_id() };
            let answer = admin.replays().cancel_replay(admin.request(request)).await;
            print(answer.map_err(|status| admin.failure(&status))?.into_inner(), format)
        }
    }
}

/// `weft event replay` and `weft replay start`.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn start(args: StartArgs) -> Result<(), Failure> {
    let by_id = !args.selection.ids.is_empty();
    let selection = args.selection.into_selection()?;
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    if args.dry_run {
        return plan(&admin, selection, format).await;
    }
    if !by_id && !args.yes && prompt::is_attended() {
        let planned = ask_plan(&admin, selection.clone()).await?;
        if !prompt::confirmed(&format!("replay {} deliveries?", planned.count))? {
            return Err(Failure::Failed("nothing was replayed".into()));
        }
    }
    let (selection, request_id) = (Some(selection), request_id());
    let request = v1::StartReplayRequest { selection, reason: args.reason.reason, request_id, rate: args.rate };
    let answer = admin.replays().start_replay(admin.request(request)).await;
    print(answer.map_err(|status| admin.failure(&status))?.into_inner(), format)
}

fn parse_rate(text: &str) -> Result<v1::Rate, String> {
    let rate: Rate = text.parse()?;
    into_rate(rate).ok_or_else(|| "leave --rate out for no limit".to_owned())
}

async fn ask_plan(admin: &AdminClient, selection: v1::ReplaySelection) -> Result<v1::PlanReplayResponse, Failure> {
    let request = admin.request(v1::PlanReplayRequest { selection: Some(selection) });
    let answer = admin.replays().plan_replay(request).await.map_err(|status| admin.failure(&status))?;
    Ok(answer.into_inner())
}

async fn plan(admin: &AdminClient, selection: v1::ReplaySelection, format: Format) -> Result<(), Failure> {
    let plan = view::Plan::from(ask_plan(admin, selection).await?);
    output::one(format, &plan, || plan.human())
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let replays = paging::read(args.limit, PAGE_MAX, async |page_size, page_token| {
        let request = v1::ListReplaysRequest { page_size, page_token };
        let answer = admin.replays().list_replays(admin.request(request)).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((page.replays.into_iter().map(view::Replay::from).collect(), page.next_page_token))
    });
    output::list(format, &replays.await?.reported())
}

fn print(replay: v1::Replay, format: Format) -> Result<(), Failure> {
    let replay = view::Replay::from(replay);
    output::one(format, &replay, || output::table(view::Replay::HEADINGS, [replay.cells()]))
}

//! `weft workflow get | explain | lanes | retry | skip | pause | resume`.

use std::{mem, time::Duration};

use tonic::{Response, Status};
use weft_proto::{v1, words::Word as _};

use super::{
    admin::AdminClient,
    common::{CommonArgs, ReasonArgs, request_id},
    output::{self, Row as _},
    paging::{self, PAGE_MAX},
    select::{numbers, one_of},
    view,
};
use crate::failure::Failure;

/// Between two looks at a lane that is waited for.
const WAIT_INTERVAL: Duration = Duration::from_millis(500);

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum WorkflowCommand {
    /// Show a workflow's events in order, and its lanes
    Get(GetArgs),
    /// Say what a workflow waits for, since when, and what can be done
    Explain(ExplainArgs),
    /// List lanes that have something unsettled or are paused
    Lanes(LanesArgs),
    /// Attempt the head of a lane now, whether it waits or is blocked
    Retry(RetryArgs),
    /// Make the head of a lane a dead letter; the lane continues after it
    Skip(HeadArgs),
    /// Attempt nothing of a lane until it is resumed
    Pause(PauseArgs),
    /// Resume a paused lane
    Resume(LaneArgs),
}

/// `weft workflow get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// The workflow's id
    workflow: String,
    /// Print at most this many events
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Show the newest events, newest first, instead of the oldest
    #[arg(long)]
    newest: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft workflow explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// The workflow's id
    workflow: String,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft workflow lanes`.
#[derive(Debug, clap::Args)]
pub struct LanesArgs {
    /// Only this subscription
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Only this workflow
    #[arg(long, value_name = "ID")]
    workflow: Option<String>,
    /// Only these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = one_of(v1::LaneState::ALL))]
    state: Vec<v1::LaneState>,
    /// Print at most this many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// Which lane, and why.
#[derive(Debug, clap::Args)]
pub struct LaneArgs {
    /// The workflow's id
    workflow: String,
    /// The lane's subscription
    #[arg(long, value_name = "NAME")]
    subscription: String,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Which lane's head, and why.
#[derive(Debug, clap::Args)]
pub struct HeadArgs {
    #[command(flatten)]
    lane: LaneArgs,
    /// Only if this event is the head
    #[arg(long, value_name = "ID")]
    event: Option<String>,
}

/// `weft workflow retry`.
#[derive(Debug, clap::Args)]
pub struct RetryArgs {
    #[command(flatten)]
    head: HeadArgs,
    /// Wait until the event has come to its end, also while the receiver is away
    #[arg(long)]
    wait: bool,
}

/// `weft workflow pause`.
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    lane: LaneArgs,
    /// Also a workflow of which no event is kept, before its first event
    #[arg(long)]
    force: bool,
}

/// Carries out one verb.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(command: WorkflowCommand) -> Result<(), Failure> {
    match command {
        WorkflowCommand::Get(args) => get(args).await,
        WorkflowCommand::Explain(args) => explain(args).await,
        WorkflowCommand::Lanes(args) => lanes(args).await,
        WorkflowCommand::Retry(RetryArgs { head: HeadArgs { lane, event }, wait }) => {
            let wait = wait.then(|| (lane.subscription.clone(), lane.workflow.clone()));
            order(
                lane,
                "retried",
                wait,
                async move |admin: AdminClient, subscription, workflow_id, reason, request_id| {
                    let event_id = event.unwrap_or_default();
                    let request = v1::RetryLaneRequest { subscription, workflow_id, event_id, reason, request_id };
                    admin.workflows().retry_lane(admin.request(request)).await
                },
            )
            .await
        }
        WorkflowCommand::Skip(HeadArgs { lane, event }) => {
            order(
                lane,
                "skipped",
                None,
                async move |admin: AdminClient, subscription, workflow_id, reason, request_id| {
                    let event_id = event.unwrap_or_default();
                    let request = v1::SkipLaneRequest { subscription, workflow_id, event_id, reason, request_id };
                    admin.workflows().skip_lane(admin.request(request)).await
                },
            )
            .await
        }
        WorkflowCommand::Pause(PauseArgs { lane, force }) => {
            order(
                lane,
                "paused",
                None,
                async move |admin: AdminClient, subscription, workflow_id, reason, request_id| {
                    let request = v1::PauseLaneRequest { subscription, workflow_id, reason, request_id, force };
                    admin.workflows().pause_lane(admin.request(request)).await
                },
            )
            .await
        }
        WorkflowCommand::Resume(lane) => {
            order(
                lane,
                "resumed",
                None,
                async move |admin: AdminClient, subscription, workflow_id, reason, request_id| {
                    let request = v1::ResumeLaneRequest { subscription, workflow_id, reason, request_id };
                    admin.workflows().resume_lane(admin.request(request)).await
                },
            )
            .await
        }
    }
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let mut workflow = v1::GetWorkflowResponse::default();
    let events = paging::read(args.limit, PAGE_MAX, async |page_size, page_token| {
        let request = v1::GetWorkflowRequest {
            workflow_id: args.workflow.clone(),
            page_size,
            page_token,
            newest_first: args.newest,
        };
        let answer = admin.workflows().get_workflow(admin.request(request)).await;
        workflow = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((mem::take(&mut workflow.events), mem::take(&mut workflow.next_page_token)))
    });
    let listed = events.await?;
    if listed.has_more {
        output::notice(&left_out(&listed.entries, args.newest));
    }
    workflow = v1::GetWorkflowResponse { events: listed.entries, ..workflow };
    let workflow = view::Workflow::from(workflow);
    output::one(format, &workflow, || workflow.human())
}

async fn explain(args: ExplainArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let workflow_id = args.workflow;
    let request = v1::GetWorkflowRequest {
        workflow_id: workflow_id.clone(),
        page_size: 1,
        newest_first: true,
        ..Default::default()
    };
    let answer = admin.workflows().get_workflow(admin.request(request)).await;
    let workflow = answer.map_err(|status| admin.failure(&status))?.into_inner();
    let filter = Some(v1::DeadLetterFilter { workflow_id, ..Default::default() });
    let request = v1::ListDeadLettersRequest { filter, page_size: PAGE_MAX, ..Default::default() };
    let answer = admin.dead_letters().list_dead_letters(admin.request(request)).await;
    let dead = answer.map_err(|status| admin.failure(&status))?.into_inner();
    let more = !dead.next_page_token.is_empty();
    let explanation = view::Explanation::of_workflow(workflow, &dead.dead_letters, more);
    output::one(format, &explanation, || explanation.human())
}

/// The line for a workflow of which only a part is shown.
fn left_out(shown: &[v1::WorkflowEvent], newest: bool) -> String {
    let last = shown.last().and_then(|last| last.event.as_ref()).map_or(0, |event| event.sequence_number);
    let count = shown.len();
    if newest {
        return format!("only the newest {count} are shown, there are more: those before #{last}; -n sets how many");
    }
    format!(
        "only the first {count} are shown, there are more: those after #{last}; -n sets how many, --newest shows the \
         newest"
    )
}

async fn lanes(args: LanesArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let asked = v1::ListLanesRequest {
        subscription: args.subscription.unwrap_or_default(),
        workflow_id: args.workflow.unwrap_or_default(),
        states: numbers(&args.state),
        ..Default::default()
    };
    let lanes = paging::read(args.limit, PAGE_MAX, async |page_size, page_token| {
        let request = v1::ListLanesRequest { page_size, page_token, ..asked.clone() };
        let answer = admin.workflows().list_lanes(admin.request(request)).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((page.lanes.into_iter().map(view::Lane::from).collect(), page.next_page_token))
    });
    output::list(format, &lanes.await?.reported())
}

/// Sends a command to a lane what to do; `done` is what people read; `wait`: the subscription and workflow whose head is waited for.
async fn order(
    args: LaneArgs,
    done: &str,
    wait: Option<(String, String)>,
    call: impl AsyncFnOnce(AdminClient, String, String, String, String) -> Result<Response<v1::LaneResponse>, Status>,
) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let answer = call(admin.clone(), args.subscription, args.workflow, args.reason.reason, request_id()).await;
    let mut ordered = view::Ordered::from(answer.map_err(|status| admin.failure(&status))?.into_inner());
    let obstacle = ordered.lane.as_ref().and_then(view::Lane::obstacle).filter(|_| done == "retried");
    if let Some((subscription, workflow)) = wait {
        if let Some(obstacle) = &obstacle {
            output::notice(obstacle);
        }
        let event = ordered.event_id.clone().unwrap_or_default();
        ordered.lane = wait_for(&admin, subscription, workflow, &event).await?;
    }
    let obstacle = obstacle.filter(|_| ordered.lane.is_some());
    output::one(format, &ordered, || {
        let mut text = format!("{done} {}", ordered.event_id.as_deref().unwrap_or_default());
        if let Some(lane) = &ordered.lane {
            text.push_str(&format!("\n{}", output::table(view::Lane::HEADINGS, [lane.cells()])));
        }
        if let Some(obstacle) = obstacle {
            text.push_str(&format!(
                "\n{obstacle}\nthe event is attempted as soon as that is over; --wait waits for it"
            ));
        }
        text
    })
}

/// Waits until the event is no longer the head of a lane. How the lane stands then, if something of it is unsettled.
async fn wait_for(
    admin: &AdminClient,
    subscription: String,
    workflow_id: String,
    event: &str,
) -> Result<Option<view::Lane>, Failure> {
    let request = v1::ListLanesRequest { subscription, workflow_id, page_size: PAGE_MAX, ..Default::default() };
    loop {
        let answer = admin.workflows().list_lanes(admin.request(request.clone())).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        let lanes: Vec<_> = page.lanes.into_iter().map(view::Lane::from).collect();
        if !lanes.iter().any(|lane| lane.waits_with(event)) {
            return Ok(lanes.into_iter().next());
        }
        tokio::time::sleep(WAIT_INTERVAL).await;
    }
}

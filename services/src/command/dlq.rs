//! `weft dlq list | get | redrive | resolve | discard | cancel | stats`.

use weft_proto::{v1, words::Word as _};

use super::{
    admin::AdminClient,
    common::{CommonArgs, ReasonArgs},
    output::{self, Format},
    paging::{self, Listed, PAGE_MAX},
    select::{DeadLetterFilterArgs, one_of},
    view,
};
use crate::failure::Failure;

mod operation;

use operation::{Closing, cancel, close, redrive};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum DlqCommand {
    /// List dead letters, newest first
    List(ListArgs),
    /// Show one dead letter with its event
    Get(GetArgs),
    /// Deliver dead letters again
    Redrive(RedriveAndWaitArgs),
    /// Mark dead letters as resolved: their receivers have what they need
    Resolve(RedriveArgs),
    /// Discard dead letters; nothing is erased
    Discard(RedriveArgs),
    /// End a redrive, resolution or discard before it is done; the rest stays open
    Cancel(CancelArgs),
    /// Count dead letters, by subscription, reason and status or by other fields
    Stats(StatsArgs),
}

/// `weft dlq list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: DeadLetterFilterArgs,
    /// Only these statuses
    #[arg(long, value_name = "STATUS", value_delimiter = ',', default_value = "open,redriving", value_parser = one_of(v1::DeadLetterStatus::ALL))]
    status: Vec<v1::DeadLetterStatus>,
    /// Print at most this many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft dlq get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// The dead letter's id as `weft dlq list` prints it: SUBSCRIPTION:EVENT_ID, with @SEQUENCE where needed
    id: String,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft dlq stats`.
#[derive(Debug, clap::Args)]
pub struct StatsArgs {
    #[command(flatten)]
    filter: DeadLetterFilterArgs,
    /// Count together what agrees in these fields
    #[arg(long, value_name = "FIELD", value_delimiter = ',', default_value = "subscription,reason,status")]
    by: Vec<CountField>,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft dlq cancel`.
#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    /// The request id that the redrive printed, or that `weft audit list` shows
    #[arg(value_name = "REQUEST_ID")]
    id: String,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft dlq redrive | resolve | discard`.
#[derive(Debug, clap::Args)]
pub struct RedriveArgs {
    /// Ids as `weft dlq list` prints them, or event ids: the dead letters of these events for all subscriptions
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: DeadLetterFilterArgs,
    /// Every dead letter that is open
    #[arg(long)]
    all: bool,
    /// Change nothing; print how many it would be
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

/// `weft dlq redrive`.
#[derive(Debug, clap::Args)]
pub struct RedriveAndWaitArgs {
    #[command(flatten)]
    which: RedriveArgs,
    /// Wait to the end, also while their receivers are away
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// End as soon as the redrive is recorded; `weft audit list` shows how it goes
    #[arg(long)]
    no_wait: bool,
}

impl RedriveArgs {
    /// In which ways it says which.
    fn given(&self) -> [bool; 3] {
        [!self.ids.is_empty(), !self.filter.is_empty(), self.all]
    }
}

/// A field that dead letters are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CountField {
    /// The subscription.
    Subscription,
    /// Why it is a dead letter.
    Reason,
    /// Status of the dead letter.
    Status,
    /// The event's type.
    Type,
    /// The event's source.
    Source,
    /// The event's workflow.
    Workflow,
    /// The status of the receiver's last answer.
    LastStatus,
    /// The last error.
    LastError,
}

impl CountField {
    const fn to_proto(self) -> v1::DeadLetterField {
        match self {
            Self::Subscription => v1::DeadLetterField::Subscription,
            Self::Reason => v1::DeadLetterField::Reason,
            Self::Status => v1::DeadLetterField::Status,
            Self::Type => v1::DeadLetterField::Type,
            Self::Source => v1::DeadLetterField::Source,
            Self::Workflow => v1::DeadLetterField::Workflow,
            Self::LastStatus => v1::DeadLetterField::LastStatus,
            Self::LastError => v1::DeadLetterField::LastError,
        }
    }

    const fn heading(self) -> &'static str {
        match self {
            Self::Subscription => "SUBSCRIPTION",
            Self::Reason => "REASON",
            Self::Status => "STATUS",
            Self::Type => "TYPE",
            Self::Source => "SOURCE",
            Self::Workflow => "WORKFLOW",
            Self::LastStatus => "LAST STATUS",
            Self::LastError => "LAST",
        }
    }

    fn of(self, count: &view::DeadLetterCount) -> String {
        let text = match self {
            Self::Subscription => count.subscription.clone(),
            Self::Reason => count.reason.map(str::to_owned),
            Self::Status => count.status.map(str::to_owned),
            Self::Type => count.r#type.clone(),
            Self::Source => count.source.clone(),
            Self::Workflow => count.workflow_id.clone(),
            Self::LastStatus => count.last_status.map(|status| status.to_string()),
            Self::LastError => count.last_error.clone(),
        };
        text.unwrap_or_else(|| "-".to_owned())
    }
}

/// Carries out one verb.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(command: DlqCommand) -> Result<(), Failure> {
    match command {
        DlqCommand::List(args) => list(args).await,
        DlqCommand::Get(args) => get(args).await,
        DlqCommand::Redrive(args) => redrive(args).await,
        DlqCommand::Resolve(args) => close(args, Closing::Resolve).await,
        DlqCommand::Discard(args) => close(args, Closing::Discard).await,
        DlqCommand::Cancel(args) => cancel(args).await,
        DlqCommand::Stats(args) => stats(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let filter = args.filter.into_filter(&args.status);
    let letters = pages(&admin, filter, args.limit).await?;
    let rows: Vec<_> = letters.reported().into_iter().map(view::DeadLetter::from).collect();
    output::list(format, &rows)
}

/// Dead letters, page by page, at most `limit`.
///
/// # Errors
///
/// [`Failure`], as the admin answers.
pub async fn pages(
    admin: &AdminClient,
    filter: v1::DeadLetterFilter,
    limit: usize,
) -> Result<Listed<v1::DeadLetter>, Failure> {
    let letters = paging::read(limit, PAGE_MAX, async |page_size, page_token| {
        let request = v1::ListDeadLettersRequest { filter: Some(filter.clone()), page_size, page_token };
        let answer = admin.dead_letters().list_dead_letters(admin.request(request)).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((page.dead_letters, page.next_page_token))
    });
    letters.await
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = admin.request(v1::GetDeadLetterRequest { id: args.id.clone() });
    let answer = admin.dead_letters().get_dead_letter(request).await.map_err(|status| admin.failure(&status))?;
    let answer = answer.into_inner();
    let letter = answer.dead_letter.ok_or_else(|| Failure::NotFound(format!("no dead letter {}", args.id)))?;
    let letter = view::DeadLetter::with_event(letter, answer.event);
    output::one(format, &letter, || letter.human())
}

async fn stats(args: StatsArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let group_by = args.by.iter().map(|field| field.to_proto().into()).collect();
    let request = v1::DeadLetterStatsRequest { filter: Some(args.filter.into_filter(&[])), group_by };
    let answer = admin.dead_letters().dead_letter_stats(admin.request(request)).await;
    let answer = answer.map_err(|status| admin.failure(&status))?.into_inner();
    let rows: Vec<_> = answer.counts.into_iter().map(view::DeadLetterCount::from).collect();
    if format != Format::Table || rows.is_empty() {
        return output::list(format, &rows);
    }
    let headings: Vec<_> = args.by.iter().map(|field| field.heading()).chain(["COUNT"]).collect();
    let cells =
        rows.iter().map(|row| args.by.iter().map(|field| field.of(row)).chain([row.count.to_string()]).collect());
    output::text(&output::table(&headings, cells))
}

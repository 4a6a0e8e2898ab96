//! `weft rejected list | get | retry`: requests that gateways refused.

use jiff::Timestamp;
use weft_gateway::http::error::Code;
use weft_proto::v1::{self, RetryRejectedRequest};

use super::{
    admin::AdminClient,
    common::{CommonArgs, ReasonArgs, request_id},
    output::{self, Format},
    paging::{self, Listed, PAGE_MAX},
    prompt,
    select::{one_way, parse_moment, to_proto},
};
use crate::failure::Failure;

mod view;

/// Entries of one call: a fraction of a second, so that the bar moves.
const RETRIES: usize = 100;

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum RejectedCommand {
    /// List refused requests, newest first
    List(ListArgs),
    /// Show one refused request with its headers and body
    Get(GetArgs),
    /// Verify refused requests again, however old, and accept those that pass now
    Retry(RetryArgs),
}

/// Which of them.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FilterArgs {
    /// Only this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only this code, such as signature_invalid
    #[arg(long, value_name = "CODE", value_parser = parse_code)]
    reason_code: Option<String>,
    /// Received since: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// Received before: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    until: Option<Timestamp>,
}

/// A code that gateways answer with.
fn parse_code(text: &str) -> Result<String, String> {
    let code: Result<Code, _> = serde_json::from_value(text.into());
    code.map(|code| code.as_str().to_owned())
        .map_err(|_| "no gateway answers with it; docs/events.md lists the codes".into())
}

impl FilterArgs {
    fn is_empty(&self) -> bool {
        let Self { source, reason_code, since, until } = self;
        source.is_none() && reason_code.is_none() && since.is_none() && until.is_none()
    }
}

/// `weft rejected list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Print at most this many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft rejected get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// The number that the list shows
    id: String,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft rejected retry`.
#[derive(Debug, clap::Args)]
pub struct RetryArgs {
    /// The numbers that the list shows
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Everything that is kept
    #[arg(long)]
    all: bool,
    /// Print what would be retried; change nothing
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

/// Carries out one verb.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(command: RejectedCommand) -> Result<(), Failure> {
    match command {
        RejectedCommand::List(args) => list(args).await,
        RejectedCommand::Get(args) => get(args).await,
        RejectedCommand::Retry(args) => retry(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let entries = pages(&admin, args.filter, args.limit).await?;
    print(format, entries.reported())
}

fn print(format: Format, entries: Vec<v1::Rejected>) -> Result<(), Failure> {
    let rows: Vec<_> = entries.into_iter().map(view::Rejected::listed).collect();
    output::list(format, &rows)
}

/// Entries, page by page, at most `limit`, newest first.
async fn pages(admin: &AdminClient, filter: FilterArgs, limit: usize) -> Result<Listed<v1::Rejected>, Failure> {
    let asked = v1::ListRejectedRequest {
        source: filter.source.unwrap_or_default(),
        code: filter.reason_code.unwrap_or_default(),
        since: filter.since.map(to_proto),
        until: filter.until.map(to_proto),
        ..v1::ListRejectedRequest::default()
    };
    let entries = paging::read(limit, PAGE_MAX, async |page_size, page_token| {
        let request = v1::ListRejectedRequest { page_size, page_token, ..asked.clone() };
        let answer = admin.rejected().list_rejected(admin.request(request)).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((page.rejected, page.next_page_token))
    });
    entries.await
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = admin.request(v1::GetRejectedRequest { id: args.id });
    let answer = admin.rejected().get_rejected(request).await.map_err(|status| admin.failure(&status))?;
    let entry = view::Rejected::whole(answer.into_inner());
    output::one(format, &entry, || entry.human())
}

async fn retry(args: RetryArgs) -> Result<(), Failure> {
    one_way("retry", "--source", [!args.ids.is_empty(), !args.filter.is_empty(), args.all])?;
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let by_id = !args.ids.is_empty();
    let ids = if by_id && !args.dry_run {
        args.ids
    } else {
        let entries =
            if by_id { each(&admin, args.ids).await? } else { pages(&admin, args.filter, usize::MAX).await?.entries };
        if args.dry_run {
            return print(format, entries);
        }
        entries.into_iter().map(|entry| entry.id).collect()
    };
    let question = || format!("retry {} refused requests?", ids.len());
    if !by_id && !args.yes && prompt::is_attended() && !prompt::confirmed(&question())? {
        return Err(Failure::Failed("nothing was retried".into()));
    }
    let (results, failure) = carry_out(&admin, in_order(ids), &args.reason.reason).await;
    let refused = results.iter().filter(|result| !result.code.is_empty()).count();
    let rows: Vec<_> = results.into_iter().map(view::Retried::from).collect();
    output::list(format, &rows)?;
    match failure {
        Some(failure) => Err(failure),
        None if refused > 0 => Err(Failure::Failed(format!("{refused} of {} were refused again", rows.len()))),
        None => Ok(()),
    }
}

/// The entries of these ids.
async fn each(admin: &AdminClient, ids: Vec<String>) -> Result<Vec<v1::Rejected>, Failure> {
    let mut entries = Vec::with_capacity(ids.len());
    for id in ids {
        let answer = admin.rejected().get_rejected(admin.request(v1::GetRejectedRequest { id })).await;
        entries.push(answer.map_err(|status| admin.failure(&status))?.into_inner());
    }
    Ok(entries)
}

/// Sorts ids in the order in which the entries were kept. Invalid ids come first, and are refused before anything is done.
fn in_order(mut ids: Vec<String>) -> Vec<String> {
    ids.sort_by_cached_key(|id| id.parse::<u64>().ok());
    ids.dedup();
    ids
}

/// Retries them all, part by part; what came of it, and what ended it early.
async fn carry_out(admin: &AdminClient, ids: Vec<String>, reason: &str) -> (Vec<v1::RetriedRejected>, Option<Failure>) {
    let bar = prompt::bar("retrying");
    bar.set_length(ids.len() as u64);
    let mut results = Vec::with_capacity(ids.len());
    let mut failure = None;
    for part in ids.chunks(RETRIES) {
        let request_id = request_id();
        let request = RetryRejectedRequest { ids: part.to_vec(), reason: reason.to_owned(), request_id };
        match admin.rejected().retry_rejected(admin.request(request)).await {
            Ok(answer) => results.extend(answer.into_inner().results),
            Err(status) => {
                failure = Some(admin.failure(&status));
                break;
            }
        }
        bar.set_position(results.len() as u64);
    }
    bar.finish_and_clear();
    (results, failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_gateways() {
        assert_eq!(parse_code("signature_invalid").as_deref(), Ok("signature_invalid"));
        assert!(parse_code("bogus").is_err() && parse_code("SignatureInvalid").is_err());
    }

    /// Order is by number, not by spelling: 9 was kept before 10.
    #[test]
    fn entries_are_retried_in_the_order_in_which_they_were_kept() {
        let ids = ["10", "9", "x", "9", "100"].map(str::to_owned).to_vec();
        assert_eq!(in_order(ids), ["x", "9", "10", "100"]);
    }
}

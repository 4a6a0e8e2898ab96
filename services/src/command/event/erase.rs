//! `weft event erase`: payload and kept headers of events are removed for good.

use serde::Serialize;
use weft_proto::v1;

use crate::{
    command::{
        admin::AdminClient,
        common::{CommonArgs, request_id},
        output, prompt,
        select::one_way,
    },
    failure::Failure,
};

/// `weft event erase`.
#[derive(Debug, clap::Args)]
pub struct EraseArgs {
    /// The events' ids
    #[arg(value_name = "EVENT_ID")]
    event_ids: Vec<String>,
    /// Every event of this workflow
    #[arg(long, value_name = "ID", conflicts_with = "event_ids")]
    workflow: Option<String>,
    /// Change nothing; print how many it would be
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    /// Why, for the audit log
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Numbers of erased events, as they are printed.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Erased {
    /// One for each call: a large workflow takes several.
    request_ids: Vec<String>,
    dry_run: bool,
    selected: u64,
    erased: u64,
    copies: u64,
    rejected: u64,
}

impl Erased {
    fn take(&mut self, answer: v1::EraseEventsResponse) {
        self.selected += u64::from(answer.selected);
        self.erased += u64::from(answer.erased);
        self.copies += u64::from(answer.copies);
        self.rejected += u64::from(answer.rejected);
        self.request_ids.push(answer.request_id);
    }

    fn human(&self) -> String {
        let Self { selected, erased, copies, rejected, .. } = self;
        if self.dry_run {
            return format!("would erase {selected} events");
        }
        format!(
            "erased {erased} of {selected} events, {copies} copies of dead letters and {rejected} refused requests; backups \
             still hold what they held"
        )
    }
}

/// Erases.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub(super) async fn run(args: EraseArgs) -> Result<(), Failure> {
    one_way("erase", "--workflow", [!args.event_ids.is_empty(), args.workflow.is_some(), false])?;
    let reason = args.reason.unwrap_or_default();
    if reason.is_empty() && !args.dry_run {
        return Err(Failure::Usage("--reason is required: it is recorded in the audit log".into()));
    }
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = v1::EraseEventsRequest {
        event_ids: args.event_ids,
        workflow_id: args.workflow.unwrap_or_default(),
        dry_run: false,
        reason,
        request_id: String::new(),
    };
    let planned = call(&admin, &request, true).await?;
    if args.dry_run {
        let mut result = Erased { dry_run: true, ..Erased::default() };
        result.take(planned);
        return output::one(format, &result, || result.human());
    }
    let (count, more) = (planned.selected, if planned.has_more { " and more" } else { "" });
    prompt::confirm(args.yes, &format!("erase the payload of {count}{more} events for good?"))?;
    let mut result = Erased::default();
    loop {
        let answer = call(&admin, &request, false).await?;
        let has_more = answer.has_more;
        result.take(answer);
        if !has_more {
            break;
        }
    }
    output::one(format, &result, || result.human())
}

async fn call(
    admin: &AdminClient,
    request: &v1::EraseEventsRequest,
    dry_run: bool,
) -> Result<v1::EraseEventsResponse, Failure> {
    let request = v1::EraseEventsRequest { dry_run, request_id: request_id(), ..request.clone() };
    let answer = admin.events().erase_events(admin.request(request)).await;
    answer.map(tonic::Response::into_inner).map_err(|status| admin.failure(&status))
}

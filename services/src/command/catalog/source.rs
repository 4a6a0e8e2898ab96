//! `weft source create | get | list | update | delete`.

use std::path::{Path, PathBuf};

use weft_catalog::entry::Entry as _;
use weft_proto::v1;

use super::{
    CommonArgs, DeleteArgs, GetArgs, ListArgs, ReasonArgs, print_deleted, report_unchanged, request_id,
    view::Source,
    wanted::{self, Flags},
};
use crate::{
    command::{
        admin::AdminClient,
        event::send::check_gateway,
        output::{self, Format},
        paging::{self, PAGE_MAX},
    },
    failure::Failure,
};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum SourceCommand {
    /// Create a source, or every `[[source]]` of a file
    Create(CreateArgs),
    /// Show a source
    Get(GetArgs),
    /// List sources
    List(ListArgs),
    /// Replace a source by a file's, or its secrets
    Update(UpdateArgs),
    /// Delete a source: its senders are refused from then on
    Delete(DeleteArgs),
}

/// `weft source create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The name; with -f only the one of this name
    name: Option<String>,
    /// A file with [[source]], as in weft.toml; - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["scheme", "secrets", "workflow", "event_type", "delivery_id"])]
    file: Option<PathBuf>,
    /// How its requests are signed, such as standard or github
    #[arg(long)]
    scheme: Option<String>,
    /// A secret: env:NAME or file:PATH; several while they are rotated, newest first
    #[arg(long = "secret", value_name = "SECRET")]
    secrets: Vec<String>,
    /// JSON pointer to the workflow's id, such as /data/orderId
    #[arg(long, value_name = "POINTER")]
    workflow: Option<String>,
    /// JSON pointer to the event's type
    #[arg(long = "type", value_name = "POINTER")]
    event_type: Option<String>,
    /// Header with the delivery id
    #[arg(long, value_name = "HEADER")]
    delivery_id: Option<String>,
    /// The gateway's public address, for the URL that is printed [default: the one in client.toml of the data folder]
    #[arg(long, env = "WEFT_GATEWAY", value_name = "URL")]
    gateway: Option<String>,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft source update`.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// The name; with -f only the one of this name
    name: Option<String>,
    /// A file with [[source]], as in weft.toml; - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "secrets")]
    file: Option<PathBuf>,
    /// A new secret: env:NAME or file:PATH; several while they are rotated, newest first
    #[arg(long = "secret", value_name = "SECRET")]
    secrets: Vec<String>,
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
pub async fn run(command: SourceCommand) -> Result<(), Failure> {
    match command {
        SourceCommand::Create(args) => create(args).await,
        SourceCommand::Get(args) => get(args).await,
        SourceCommand::List(args) => list(args).await,
        SourceCommand::Update(args) => update(args).await,
        SourceCommand::Delete(args) => delete(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let sources = match (&args.file, &args.name) {
        (Some(file), name) => of_file(file, name.as_deref())?,
        (None, Some(name)) => of_flags(name, &args)?,
        (None, None) => return Err(wanted::nothing_named("source")),
    };
    let format = args.common.format();
    if let Some(gateway) = &args.gateway {
        check_gateway(gateway)?;
    }
    let admin = args.common.admin.connect().await?;
    let gateway = args.gateway.as_deref().or(admin.gateway());
    for source in sources {
        let reason = args.reason.reason.clone();
        warn_without_workflow(&source);
        let request = v1::CreateSourceRequest { source: Some(source), reason, request_id: request_id() };
        let answer = admin.catalog().create_source(admin.request(request)).await;
        let view = answer.map_err(|status| admin.failure(&status))?.into_inner();
        if gateway.is_none() {
            let name = view.source.as_ref().map_or("", |source| &source.name);
            output::notice(&format!("its URL is {} at your gateway", path(name)));
        }
        print(format, gateway, view)?;
    }
    Ok(())
}

/// The path at which a source's webhooks are posted.
fn path(name: &str) -> String {
    format!("/api/v1/webhooks/{name}")
}

/// A source whose workflow rule is missing takes only what names the workflow in the path.
fn warn_without_workflow(source: &v1::Source) {
    if source.workflow.is_none() {
        let name = &source.name;
        output::notice(&format!(
            "source {name} has no workflow rule: what is posted to {path} is refused (400 missing_workflow), only \
             {path}/<workflowId> is accepted; --workflow names the rule, such as /data/orderId",
            path = path(name)
        ));
    }
}

fn of_file(file: &Path, name: Option<&str>) -> Result<Vec<v1::Source>, Failure> {
    wanted::chosen(wanted::of_file(file)?.sources, name, |source| &source.name, "source", file)
}

fn of_flags(name: &str, args: &CreateArgs) -> Result<Vec<v1::Source>, Failure> {
    let mut flags = Flags::default();
    flags.put("name", Some(name));
    flags.put("verify.scheme", Some(args.scheme.as_deref().unwrap_or("standard")));
    flags.put_list("verify.secrets", &args.secrets);
    flags.put("workflow.pointer", args.workflow.as_deref());
    flags.put("type.pointer", args.event_type.as_deref());
    flags.put("delivery_id.header", args.delivery_id.as_deref());
    Ok(flags.into_desired("source")?.sources)
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    print(format, admin.gateway(), find(&admin, args.name).await?)
}

async fn find(admin: &AdminClient, name: String) -> Result<v1::SourceView, Failure> {
    let request = admin.request(v1::GetSourceRequest { name });
    let answer = admin.catalog().get_source(request).await;
    Ok(answer.map_err(|status| admin.failure(&status))?.into_inner())
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let rows: Vec<_> = all(&admin).await?.into_iter().map(Source::from).collect();
    output::list(format, &rows)
}

/// Every source of the catalog.
pub(super) async fn all(admin: &AdminClient) -> Result<Vec<v1::SourceView>, Failure> {
    let listed = paging::read(usize::MAX, PAGE_MAX, async |page_size, page_token| {
        let request = admin.request(v1::ListSourcesRequest { page_size, page_token });
        let answer = admin.catalog().list_sources(request).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((page.sources, page.next_page_token))
    });
    Ok(listed.await?.entries)
}

async fn update(args: UpdateArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let (sources, revision, admin) = match (args.file, args.name) {
        (Some(file), name) => {
            let sources = of_file(&file, name.as_deref())?;
            (sources, 0, args.common.admin.connect().await?)
        }
        (None, Some(name)) if !args.secrets.is_empty() => {
            let secrets = wanted::secrets(&args.secrets)?;
            let admin = args.common.admin.connect().await?;
            let view = find(&admin, name.clone()).await?;
            let mut source = view.source.unwrap_or_default();
            let stored = source.secrets_mut();
            *stored.ok_or_else(|| Failure::Usage(format!("source {name:?} has a scheme without secrets")))? = secrets;
            (vec![source], view.revision, admin)
        }
        (None, Some(_)) => return Err(Failure::Usage("name what to change: -f FILE, or --secret".into())),
        (None, None) => return Err(wanted::nothing_named("source")),
    };
    for source in sources {
        let reason = args.reason.reason.clone();
        let name = source.name.clone();
        let before = find(&admin, name.clone()).await?.revision;
        let request = v1::UpdateSourceRequest {
            source: Some(source),
            revision,
            reason,
            request_id: request_id(),
            secrets_change: None,
        };
        let answer = admin.catalog().update_source(admin.request(request)).await;
        let view = answer.map_err(|status| admin.failure(&status))?.into_inner();
        report_unchanged("source", &name, before, view.revision);
        print(format, admin.gateway(), view)?;
    }
    Ok(())
}

async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    args.confirm(&format!("delete source {}? its senders are refused from then on", args.name))?;
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = v1::DeleteSourceRequest {
        name: args.name.clone(),
        revision: 0,
        reason: args.reason.reason,
        request_id: request_id(),
    };
    let answer = admin.catalog().delete_source(admin.request(request)).await;
    answer.map_err(|status| admin.failure(&status))?;
    print_deleted(format, "source", &args.name)
}

fn print(format: Format, gateway: Option<&str>, view: v1::SourceView) -> Result<(), Failure> {
    let url = gateway
        .zip(view.source.as_ref())
        .map(|(gateway, source)| format!("{}{}", gateway.trim_end_matches('/'), path(&source.name)));
    let mut source = Source::from(view);
    if let Some(url) = url {
        source = Source(source.0.with_field("url", url));
    }
    output::one(format, &source, || source.0.human())
}

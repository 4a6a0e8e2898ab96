//! `weft key create | get | list | update | delete`.

use jiff::Timestamp;
use weft_nats::options::Span;
use weft_proto::v1;

use super::{
    CommonArgs, DeleteArgs, GetKeyArgs, ListArgs, ReasonArgs, print_deleted, request_id,
    view::{Key, parse_scope},
};
use crate::{
    command::{
        admin::AdminClient,
        output::{self, Format},
        paging::{self, PAGE_MAX},
        select::to_proto,
    },
    failure::Failure,
};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum KeyCommand {
    /// Make a key, and show it: the only time
    Create(CreateArgs),
    /// Show what a key may do
    Get(GetKeyArgs),
    /// List keys
    List(ListArgs),
    /// Change what a key may do
    Update(UpdateArgs),
    /// Revoke a key
    Delete(DeleteArgs),
}

/// `weft key create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Display name
    name: String,
    /// Scopes: ingest, read, operate, admin
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', required = true, value_parser = parse_scope)]
    scopes: Vec<v1::Scope>,
    /// Only these sources [default: all]
    #[arg(long = "source", value_name = "NAME", value_delimiter = ',')]
    sources: Vec<String>,
    /// Only workflows whose id begins so [default: all]
    #[arg(long = "workflow-prefix", value_name = "PREFIX")]
    workflow_prefixes: Vec<String>,
    /// How long it lives, such as 30d [default: for ever]
    #[arg(long, value_name = "DURATION")]
    expires: Option<Span>,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft key update`.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// Its id: the part behind weft_
    id: String,
    /// Display name
    #[arg(long)]
    name: Option<String>,
    /// New scopes: ingest, read, operate, admin
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', value_parser = parse_scope)]
    scopes: Vec<v1::Scope>,
    /// Only these sources from now on
    #[arg(long = "source", value_name = "NAME", value_delimiter = ',')]
    sources: Vec<String>,
    /// All sources from now on
    #[arg(long, conflicts_with = "sources")]
    all_sources: bool,
    /// Only workflows whose id begins so from now on
    #[arg(long = "workflow-prefix", value_name = "PREFIX")]
    workflow_prefixes: Vec<String>,
    /// All workflows from now on
    #[arg(long, conflicts_with = "workflow_prefixes")]
    all_workflows: bool,
    /// Expire after this time, counted from now, such as 30d
    #[arg(long, value_name = "DURATION")]
    expires: Option<Span>,
    /// Never expire
    #[arg(long, conflicts_with = "expires")]
    no_expires: bool,
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
pub async fn run(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Create(args) => create(args).await,
        KeyCommand::Get(args) => get(args).await,
        KeyCommand::List(args) => list(args).await,
        KeyCommand::Update(args) => update(args).await,
        KeyCommand::Delete(args) => delete(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let expires_at = args.expires.map(expiry).transpose()?.map(to_proto);
    let admin = args.common.admin.connect().await?;
    let request = v1::CreateApiKeyRequest {
        name: args.name,
        scopes: args.scopes.into_iter().map(i32::from).collect(),
        sources: args.sources,
        workflow_prefixes: args.workflow_prefixes,
        expires_at,
        reason: args.reason.reason,
        request_id: request_id(),
    };
    let answer = admin.catalog().create_api_key(admin.request(request)).await;
    let answer = answer.map_err(|status| admin.failure(&status))?.into_inner();
    let key = Key::from(answer.view.unwrap_or_default()).0.with("key", answer.key.as_str());
    output::one(format, &key, || format!("{}\n\n{}\n\nKeep it now: it is not shown again.", key.human(), answer.key))
}

async fn get(args: GetKeyArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    print(format, find(&admin, args.id).await?)
}

async fn find(admin: &AdminClient, id: String) -> Result<v1::ApiKeyView, Failure> {
    let request = admin.request(v1::GetApiKeyRequest { id });
    let answer = admin.catalog().get_api_key(request).await;
    Ok(answer.map_err(|status| admin.failure(&status))?.into_inner())
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let rows = paging::read(usize::MAX, PAGE_MAX, async |page_size, page_token| {
        let request = admin.request(v1::ListApiKeysRequest { page_size, page_token });
        let answer = admin.catalog().list_api_keys(request).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((page.keys.into_iter().map(Key::from).collect(), page.next_page_token))
    });
    output::list(format, &rows.await?.entries)
}

async fn update(args: UpdateArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let view = find(&admin, args.id).await?;
    let mut key = view.key.unwrap_or_default();
    key.name = args.name.unwrap_or(key.name);
    if !args.scopes.is_empty() {
        key.scopes = args.scopes.into_iter().map(i32::from).collect();
    }
    // An empty list stands for all.
    if args.all_sources || !args.sources.is_empty() {
        key.sources = args.sources;
    }
    if args.all_workflows || !args.workflow_prefixes.is_empty() {
        key.workflow_prefixes = args.workflow_prefixes;
    }
    if let Some(span) = args.expires {
        key.expires_at_ms = expiry(span)?.as_millisecond();
    } else if args.no_expires {
        key.expires_at_ms = 0;
    }
    let (revision, reason) = (view.revision, args.reason.reason);
    let request = v1::UpdateApiKeyRequest { key: Some(key), revision, reason, request_id: request_id() };
    let answer = admin.catalog().update_api_key(admin.request(request)).await;
    print(format, answer.map_err(|status| admin.failure(&status))?.into_inner())
}

async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    args.confirm(&format!("revoke key {}? requests with it are refused from then on", args.name))?;
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = v1::DeleteApiKeyRequest {
        id: args.name.clone(),
        revision: 0,
        reason: args.reason.reason,
        request_id: request_id(),
    };
    let answer = admin.catalog().delete_api_key(admin.request(request)).await;
    answer.map_err(|status| admin.failure(&status))?;
    print_deleted(format, "key", &args.name)
}

fn expiry(span: Span) -> Result<Timestamp, Failure> {
    let problem = |_| Failure::Usage(format!("--expires {span} is too far in the future"));
    Timestamp::now().checked_add(span.0).map_err(problem)
}

fn print(format: Format, view: v1::ApiKeyView) -> Result<(), Failure> {
    let key = Key::from(view);
    output::one(format, &key, || key.0.human())
}

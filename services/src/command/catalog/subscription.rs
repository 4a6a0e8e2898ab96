//! `weft subscription create | get | list | update | delete | pause | resume | adopt | discard | test | migrate`.

use std::path::{Path, PathBuf};

use weft_catalog::{DesiredSubscription, entry::Entry as _};
use weft_nats::options::Span;
use weft_proto::v1::{self, destination};

use super::{
    CommonArgs, DeleteArgs, GetArgs, ListArgs, ReasonArgs, print_deleted, report_unchanged, request_id,
    view::Subscription,
    wanted::{self, Flags},
    warn_unknown_sources,
};
use crate::{
    command::{
        admin::AdminClient,
        output::{self, Format},
        paging::{self, PAGE_MAX},
    },
    failure::Failure,
};

mod migrate;
mod orphans;
mod test;

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum SubscriptionCommand {
    /// Create a subscription, or every `[[subscription]]` of a file
    Create(CreateArgs),
    /// Show a subscription
    Get(GetArgs),
    /// List subscriptions
    List(ListArgs),
    /// Change a subscription, or replace it by a file's
    Update(UpdateArgs),
    /// Delete a subscription: what is pending for it is discarded
    Delete(DeleteArgs),
    /// Deliver nothing to a subscription until it is resumed; its backlog is kept
    Pause(SwitchArgs),
    /// Let a paused subscription continue
    Resume(SwitchArgs),
    /// Create a subscription again that the catalog has lost: it keeps its uid and its backlog
    Adopt(AdoptArgs),
    /// Give up a subscription that the catalog has lost: what it has pending is discarded
    Discard(DiscardArgs),
    /// Show whether a subscription takes an event, and the request that would be made; --send makes it
    Test(test::TestArgs),
    /// Create the tables that a destination of type postgres needs, where they are missing
    Migrate(MigrateArgs),
}

pub use migrate::MigrateArgs;

/// `weft subscription adopt`.
#[derive(Debug, clap::Args)]
pub struct AdoptArgs {
    /// Its name or uid, as `weft subscription list` shows it
    orphan: String,
    /// A file with its [[subscription]], as in weft.toml
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The name that it has from now on [default: the one it had]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    flags: FlagArgs,
    /// Print what would be done; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft subscription discard`.
#[derive(Debug, clap::Args)]
pub struct DiscardArgs {
    /// Its name or uid, as `weft subscription list` shows it
    orphan: String,
    /// Print what would be done; change nothing
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

/// Flags that define a subscription.
#[derive(Debug, Clone, clap::Args)]
pub struct FlagArgs {
    /// Where its deliveries go
    #[arg(long)]
    url: Option<String>,
    /// The types that it takes, such as 'order.*'
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    types: Vec<String>,
    /// The sources that it takes [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    sources: Vec<String>,
    /// A CEL expression that is true for the events that it takes, such as 'data.total > 100'
    #[arg(long, value_name = "CEL")]
    filter: Option<String>,
    /// A CEL expression whose value is delivered as data, such as "{'id': data.orderId}"
    #[arg(long, value_name = "CEL")]
    transform: Option<String>,
    /// The secret that signs its deliveries: env:NAME or file:PATH; several while they are rotated, newest first
    #[arg(long = "secret", value_name = "SECRET")]
    secrets: Vec<String>,
    /// Body of its deliveries
    #[arg(long, value_parser = ["envelope", "cloudevents", "raw"])]
    format: Option<String>,
    /// Signature of its deliveries: v1 is HMAC-SHA256, v1a is Ed25519
    #[arg(long, value_parser = ["v1", "v1a", "none"])]
    signature: Option<String>,
    /// How long an attempt may take, such as 15s
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// The most attempts in flight
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
}

impl FlagArgs {
    fn is_empty(&self) -> bool {
        let Self { url, types, sources, filter, transform, secrets, format, signature, timeout, concurrency } = self;
        url.is_none()
            && format.is_none()
            && signature.is_none()
            && types.is_empty()
            && sources.is_empty()
            && filter.is_none()
            && transform.is_none()
            && secrets.is_empty()
            && timeout.is_none()
            && concurrency.is_none()
    }
}

/// `weft subscription create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The name; with -f only the one of this name
    name: Option<String>,
    /// A file with [[subscription]], as in weft.toml; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    flags: FlagArgs,
    /// Where it begins: now, beginning, an event id or a time [default: now]
    #[arg(long, value_name = "START", conflicts_with = "file")]
    start: Option<String>,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft subscription update`.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// The name; with -f only the one of this name
    name: Option<String>,
    /// A file with [[subscription]], as in weft.toml; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    flags: FlagArgs,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft subscription pause` and `resume`.
#[derive(Debug, clap::Args)]
pub struct SwitchArgs {
    /// The name
    name: String,
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
pub async fn run(command: SubscriptionCommand) -> Result<(), Failure> {
    match command {
        SubscriptionCommand::Create(args) => create(args).await,
        SubscriptionCommand::Get(args) => get(args).await,
        SubscriptionCommand::List(args) => list(args).await,
        SubscriptionCommand::Update(args) => update(args).await,
        SubscriptionCommand::Delete(args) => delete(args).await,
        SubscriptionCommand::Pause(args) => pause(args).await,
        SubscriptionCommand::Resume(args) => resume(args).await,
        SubscriptionCommand::Adopt(args) => orphans::adopt(args).await,
        SubscriptionCommand::Discard(args) => orphans::discard(args).await,
        SubscriptionCommand::Test(args) => test::run(args).await,
        SubscriptionCommand::Migrate(args) => migrate::migrate(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let subscriptions = match (&args.file, &args.name) {
        (Some(file), name) => of_file(file, name.as_deref(), &args.flags)?,
        (None, Some(name)) => of_flags(name, &args.flags, args.start.as_deref())?,
        (None, None) => return Err(wanted::nothing_named("subscription")),
    };
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let values: Vec<_> = subscriptions.iter().map(|wanted| wanted.value.clone()).collect();
    warn_unknown_sources(&admin, &values, &[]).await?;
    for wanted in subscriptions {
        let v1::WantedSubscription { subscription, start } = wanted::subscription(wanted);
        let reason = args.reason.reason.clone();
        let request = v1::CreateSubscriptionRequest { subscription, start, reason, request_id: request_id() };
        let answer = admin.catalog().create_subscription(admin.request(request)).await;
        print(format, answer.map_err(|status| admin.failure(&status))?.into_inner())?;
    }
    Ok(())
}

fn of_file(file: &Path, name: Option<&str>, flags: &FlagArgs) -> Result<Vec<DesiredSubscription>, Failure> {
    if !flags.is_empty() {
        return Err(Failure::Usage("give either -f or flags, not both".into()));
    }
    let wanted = wanted::of_file(file)?.subscriptions;
    wanted::chosen(wanted, name, |wanted| &wanted.value.name, "subscription", file)
}

fn of_flags(name: &str, args: &FlagArgs, start: Option<&str>) -> Result<Vec<DesiredSubscription>, Failure> {
    let mut flags = Flags::default();
    flags.put("name", Some(name));
    flags.put_list("types", &args.types);
    flags.put_list("sources", &args.sources);
    flags.put("filter", args.filter.as_deref());
    flags.put("transform", args.transform.as_deref());
    flags.put("destination.type", Some("http"));
    flags.put("destination.url", args.url.as_deref());
    flags.put_list("destination.secrets", &args.secrets);
    flags.put("destination.format", args.format.as_deref());
    flags.put("destination.signature", args.signature.as_deref());
    flags.put("timeout", args.timeout.map(|span| span.to_string()));
    flags.put("concurrency", args.concurrency.map(i64::from));
    flags.put("start", start);
    Ok(flags.into_desired("subscription")?.subscriptions)
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    print(format, find(&admin, args.name).await?)
}

async fn find(admin: &AdminClient, name: String) -> Result<v1::SubscriptionView, Failure> {
    let request = admin.request(v1::GetSubscriptionRequest { name });
    let answer = admin.catalog().get_subscription(request).await;
    Ok(answer.map_err(|status| admin.failure(&status))?.into_inner())
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let lost = parking_lot::Mutex::new(Vec::new());
    let rows = paging::read(usize::MAX, PAGE_MAX, async |page_size, page_token| {
        let request = admin.request(v1::ListSubscriptionsRequest { page_size, page_token });
        let answer = admin.catalog().list_subscriptions(request).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        lost.lock().extend(page.orphans);
        Ok((page.subscriptions.into_iter().map(Subscription::from).collect(), page.next_page_token))
    });
    output::list(format, &rows.await?.entries)?;
    orphans::warn(&lost.into_inner());
    Ok(())
}

async fn update(args: UpdateArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let (subscriptions, revision, admin) = match (args.file, args.name) {
        (Some(file), name) => {
            let wanted = of_file(&file, name.as_deref(), &args.flags)?;
            let values = wanted.into_iter().map(|wanted| wanted.value).collect();
            (values, 0, args.common.admin.connect().await?)
        }
        (None, Some(_)) if args.flags.is_empty() => {
            return Err(Failure::Usage("name what to change: -f FILE, or flags such as --url".into()));
        }
        (None, Some(name)) => {
            let admin = args.common.admin.connect().await?;
            let view = find(&admin, name).await?;
            let mut value = view.subscription.unwrap_or_default();
            overlay(&mut value, args.flags)?;
            (vec![value], view.revision, admin)
        }
        (None, None) => return Err(wanted::nothing_named("subscription")),
    };
    warn_unknown_sources(&admin, &subscriptions, &[]).await?;
    for value in subscriptions {
        let name = value.name.clone();
        let before = find(&admin, name.clone()).await?.revision;
        let request = v1::UpdateSubscriptionRequest {
            subscription: Some(value),
            revision,
            reason: args.reason.reason.clone(),
            request_id: request_id(),
            secrets_change: None,
        };
        let answer = admin.catalog().update_subscription(admin.request(request)).await;
        let view = answer.map_err(|status| admin.failure(&status))?.into_inner();
        report_unchanged("subscription", &name, before, view.revision);
        print(format, view)?;
    }
    Ok(())
}

/// Changes what the flags name.
fn overlay(value: &mut v1::Subscription, flags: FlagArgs) -> Result<(), Failure> {
    let FlagArgs { url, types, sources, filter, transform, secrets, format, signature, timeout, concurrency } = flags;
    if !types.is_empty() {
        value.types = types;
    }
    if !sources.is_empty() {
        value.sources = sources;
    }
    // An empty expression removes the stored one.
    value.filter = filter.unwrap_or_else(|| std::mem::take(&mut value.filter));
    value.transform = transform.unwrap_or_else(|| std::mem::take(&mut value.transform));
    if let Some(Span(timeout)) = timeout {
        value.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    }
    value.concurrency = concurrency.unwrap_or(value.concurrency);
    let mut kind = value.destination.as_mut().and_then(|destination| destination.kind.as_mut());
    if let Some(url) = url {
        match kind.as_deref_mut() {
            Some(destination::Kind::Http(http)) => http.url = url,
            Some(destination::Kind::Grpc(grpc)) => grpc.url = url,
            Some(destination::Kind::Nats(nats)) => nats.url = url,
            _ => return Err(Failure::Usage("its destination has no url".into())),
        }
    }
    if format.is_some() || signature.is_some() {
        let Some(destination::Kind::Http(http)) = kind else {
            return Err(Failure::Usage("--format and --signature are of destinations of type http".into()));
        };
        match format.as_deref() {
            Some("cloudevents") => http.set_format(v1::HttpFormat::Cloudevents),
            Some("raw") => http.set_format(v1::HttpFormat::Raw),
            Some(_) => http.set_format(v1::HttpFormat::Envelope),
            None => {}
        }
        match signature.as_deref() {
            Some("v1a") => http.set_signature(v1::HttpSignature::V1a),
            Some("none") => http.set_signature(v1::HttpSignature::None),
            Some(_) => http.set_signature(v1::HttpSignature::Unspecified),
            None => {}
        }
    }
    if !secrets.is_empty() {
        let secrets = wanted::secrets(&secrets)?;
        *value.secrets_mut().ok_or_else(|| Failure::Usage("its destination has no secrets".into()))? = secrets;
    }
    Ok(())
}

async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    args.confirm(&format!("delete subscription {}? what it has pending is discarded", args.name))?;
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = v1::DeleteSubscriptionRequest {
        name: args.name.clone(),
        revision: 0,
        reason: args.reason.reason,
        request_id: request_id(),
    };
    let answer = admin.catalog().delete_subscription(admin.request(request)).await;
    answer.map_err(|status| admin.failure(&status))?;
    print_deleted(format, "subscription", &args.name)
}

async fn pause(args: SwitchArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let before = find(&admin, args.name.clone()).await?.revision;
    let request =
        v1::PauseSubscriptionRequest { name: args.name.clone(), reason: args.reason.reason, request_id: request_id() };
    let answer = admin.catalog().pause_subscription(admin.request(request)).await;
    let view = answer.map_err(|status| admin.failure(&status))?.into_inner();
    report_unchanged("subscription", &args.name, before, view.revision);
    let reason = view.subscription.as_ref().map(|subscription| subscription.pause_reason.clone()).unwrap_or_default();
    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let text = format!("{} is paused{because}; its events wait until `weft subscription resume {0}`", args.name);
    output::one(format, &Subscription::from(view), || text)
}

async fn resume(args: SwitchArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let before = find(&admin, args.name.clone()).await?.revision;
    let request =
        v1::ResumeSubscriptionRequest { name: args.name.clone(), reason: args.reason.reason, request_id: request_id() };
    let answer = admin.catalog().resume_subscription(admin.request(request)).await;
    let view = answer.map_err(|status| admin.failure(&status))?.into_inner();
    report_unchanged("subscription", &args.name, before, view.revision);
    let text = format!("{} is delivered to again, from where it stopped", args.name);
    output::one(format, &Subscription::from(view), || text)
}

fn print(format: Format, view: v1::SubscriptionView) -> Result<(), Failure> {
    let subscription = Subscription::from(view);
    output::one(format, &subscription, || subscription.0.human())
}

//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use weft_services::{
    command::{
        audit,
        catalog::{apply, key, reseal, source, subscription},
        check, config, dlq, event, healthcheck, listen, nats, rejected, replay, shard, sign, stats, top, verify,
        workflow,
    },
    config::Config,
    demo,
    failure::Failure,
    role::{self, Role},
    signal,
    telemetry::{self, LogOutputOptions},
    up,
};

use crate::{generate, help};

/// Default log filter of roles. `weft_nats` logs the state of NATS connections, so the client's messages are left out.
const ROLE_LOG: &str = "info,async_nats=warn";
/// Default log filter of commands: warnings and errors.
const COMMAND_LOG: &str = "warn";

/// An ordered, durable event mesh: webhooks in; signed webhooks, gRPC calls, JetStream messages or PostgreSQL rows out, in
/// order per workflow.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every role and a nats-server
    Up(RunArgs),
    /// Run a gateway against the nats-server of the configuration
    Gateway(RunArgs),
    /// Run a worker against the nats-server of the configuration
    Worker(RunArgs),
    /// Run an admin against the nats-server of the configuration
    Admin(RunArgs),
    /// Start a mesh, send signed traffic with failures, and show the proof
    Demo(demo::DemoArgs),
    /// Send, get, tail and replay events
    #[command(subcommand)]
    Event(event::EventCommand),
    /// Show workflows and their lanes; retry, skip, pause and resume lanes
    #[command(subcommand)]
    Workflow(workflow::WorkflowCommand),
    /// List, get, redrive, resolve, discard and count dead letters
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Deliver settled events again, and follow the progress
    #[command(subcommand)]
    Replay(replay::ReplayCommand),
    /// List the log's shards; let a shard continue after its streams were restored or lost a part
    #[command(subcommand)]
    Shard(shard::ShardCommand),
    /// Show how much the mesh carries, how fast, and what waits
    Stats(stats::StatsArgs),
    /// Show rates, percentiles, backlogs, stuck lanes and shards on the terminal, live
    Top(top::TopArgs),
    /// Create, show, change and delete sources
    #[command(subcommand)]
    Source(source::SourceCommand),
    /// Create, show, change, pause, test and delete subscriptions
    #[command(subcommand)]
    Subscription(subscription::SubscriptionCommand),
    /// Create, show, change and revoke API keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Apply the sources and subscriptions of a file
    Apply(apply::ApplyArgs),
    /// Seal the catalog with another master key
    #[command(subcommand)]
    Catalog(reseal::CatalogCommand),
    /// List, get and retry refused requests
    #[command(subcommand)]
    Rejected(rejected::RejectedCommand),
    /// List what operators have done: who, what, why and when
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Print the headers with which a sender would sign a body
    Sign(sign::SignArgs),
    /// Verify a request as a gateway does, and say why it would be refused
    Verify(verify::VerifyArgs),
    /// Receive deliveries, verify and print them, and fail on demand
    Listen(listen::ListenArgs),
    /// Check the configuration, whether a destination may be called, or how a running mesh is
    Check(check::CheckArgs),
    /// Show the effective configuration, and where each value comes from
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Configure a NATS server or cluster for a mesh
    #[command(subcommand)]
    Nats(nats::NatsCommand),
    /// Run benchmarks
    #[command(subcommand)]
    Bench(weft_bench::BenchCommand),
    /// Print the completion script of a shell
    Completion(generate::CompletionArgs),
    /// Print the manual page, or write those of all commands into a folder
    Man(generate::ManArgs),
    /// Succeed if this machine's operations port reports ready
    #[command(hide = true)]
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Start a program that dies with us
    #[command(hide = true)]
    Launch(LaunchArgs),
}

/// How a role is run.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The configuration [default: ./weft.toml, where there is one]
    #[arg(short, long, env = "WEFT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data folder [default: the configuration's, else ./weft-data]
    #[arg(long, env = "WEFT_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Create the log's streams although they existed before: what they held is given up
    #[arg(long)]
    new_log: bool,
}

/// A program and its arguments.
#[derive(Debug, clap::Args)]
pub struct LaunchArgs {
    /// As they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

impl Command {
    /// Whether it accepts connections.
    const fn serves(&self) -> bool {
        matches!(
            self,
            Self::Up(_) | Self::Gateway(_) | Self::Worker(_) | Self::Admin(_) | Self::Demo(_) | Self::Bench(_)
        )
    }

    /// Whether it ends in its own way at a signal.
    const fn handles_signals(&self) -> bool {
        matches!(self, Self::Up(_) | Self::Gateway(_) | Self::Worker(_) | Self::Admin(_) | Self::Listen(_))
    }

    /// True for processes that keep a data folder.
    pub const fn keeps_data(&self) -> bool {
        matches!(self, Self::Up(_) | Self::Gateway(_) | Self::Worker(_) | Self::Admin(_))
    }
}

/// The command line of this process. One that makes no sense ends it with exit code 2, a request for help with 0.
pub fn parse() -> Cli {
    let matches = help::grouped(Cli::command()).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Carries out a command.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(command: Command) -> Result<(), Failure> {
    // A role logs as its configuration says.
    if !command.keeps_data() {
        telemetry::log_to_stderr(COMMAND_LOG, LogOutputOptions::default())?;
    }
    if command.serves() {
        weft_serve::descriptors::raise();
    }
    if !command.handles_signals() {
        signal::end_as_first_process().map_err(|error| Failure::of(&error))?;
    }
    match command {
        Command::Up(args) => up::up(load(&args)?).await,
        Command::Gateway(args) => role::run(Role::Gateway, load(&args)?).await,
        Command::Worker(args) => role::run(Role::Worker, load(&args)?).await,
        Command::Admin(args) => role::run(Role::Admin, load(&args)?).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Event(command) => event::run(command).await,
        Command::Workflow(command) => workflow::run(command).await,
        Command::Dlq(command) => dlq::run(command).await,
        Command::Replay(command) => replay::run(command).await,
        Command::Shard(command) => shard::run(command).await,
        Command::Stats(args) => stats::run(args).await,
        Command::Top(args) => top::run(args).await,
        Command::Source(command) => source::run(command).await,
        Command::Subscription(command) => subscription::run(command).await,
        Command::Key(command) => key::run(command).await,
        Command::Apply(args) => apply::run(args).await,
        Command::Catalog(command) => reseal::run(command).await,
        Command::Rejected(command) => rejected::run(command).await,
        Command::Audit(command) => audit::run(command).await,
        Command::Sign(args) => sign::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Listen(args) => listen::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Config(command) => config::run(command),
        Command::Completion(args) => generate::completion(&args, Cli::command()),
        Command::Man(args) => generate::man(&args, Cli::command()),
        Command::Nats(command) => nats::run(command),
        Command::Bench(command) => weft_bench::run(command).await,
        Command::Healthcheck(args) => healthcheck::run(args).await,
        Command::Launch(args) => Err(Failure::of(&weft_nats::server::launch(args.command))),
    }
}

fn load(args: &RunArgs) -> Result<Config, Failure> {
    let mut config = Config::load(args.config.as_deref(), args.data.as_deref()).map_err(|error| Failure::of(&error))?;
    config.spec.new_log = args.new_log;
    telemetry::log_to_stderr(ROLE_LOG, config.log_output)?;
    config.warn();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clap's checks of the command line, such as duplicate flags, which otherwise fail at the first call.
    #[test]
    fn every_command_can_be_called() {
        Cli::command().debug_assert();
    }

    /// The debug output of a command's arguments contains no secret.
    #[test]
    fn arguments_print_without_their_secrets() {
        for line in [
            "weft dlq list --token hush",
            "weft rejected retry --all --token hush",
            "weft event send --source shop --type t --secret hush",
            "weft sign --secret hush",
            "weft verify --secret hush",
            "weft listen --secret hush",
            "weft source list --token hush",
            "weft key list --token hush",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let text = format!("{cli:?}");
            assert!(text.contains("[secret]") && !text.contains("hush"), "{text}");
        }
    }
}

//! `weft shard list | adopt`.

use std::fmt::Write as _;

use serde::Serialize;
use weft_proto::{v1, words::word};

use super::{
    common::{CommonArgs, request_id},
    output::{self, Row},
    prompt,
    view::Time,
};
use crate::failure::Failure;

/// Ids that a person is shown of each kind; programs get all that the admin names.
const SHOWN_MAX: usize = 10;

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum ShardCommand {
    /// List the shards, and whether their streams are those of their outcomes
    List(CommonArgs),
    /// Let a stopped shard continue in its streams as they are
    Adopt(AdoptArgs),
}

/// `weft shard adopt`.
#[derive(Debug, clap::Args)]
pub struct AdoptArgs {
    /// The shard's number
    shard: u32,
    /// Deliver again from this sequence of EVENTS on [default: the one after the last common event]
    #[arg(long, value_name = "SEQUENCE")]
    from: Option<u64>,
    /// Report what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Skip the confirmation prompt
    #[arg(short, long)]
    yes: bool,
    /// Why, for the audit log
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Carries out one verb.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(command: ShardCommand) -> Result<(), Failure> {
    match command {
        ShardCommand::List(common) => list(common).await,
        ShardCommand::Adopt(args) => adopt(args).await,
    }
}

async fn list(common: CommonArgs) -> Result<(), Failure> {
    let format = common.format();
    let admin = common.admin.connect().await?;
    let answer = admin.shards().list_shards(admin.request(v1::ListShardsRequest {})).await;
    let shards = answer.map_err(|status| admin.failure(&status))?.into_inner().shards;
    output::list(format, &shards.into_iter().map(Shard::from).collect::<Vec<_>>())
}

async fn adopt(args: AdoptArgs) -> Result<(), Failure> {
    let reason = args.reason.unwrap_or_default();
    if reason.is_empty() && !args.dry_run {
        return Err(Failure::Usage("--reason is required: it is recorded in the audit log".into()));
    }
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let call = async |dry_run: bool| {
        let (shard, from) = (args.shard, args.from.unwrap_or(0));
        let request = v1::AdoptShardRequest { shard, from, dry_run, reason: reason.clone(), request_id: request_id() };
        let answer = admin.shards().adopt_shard(admin.request(request)).await;
        answer.map(|answer| Adoption::from(answer.into_inner())).map_err(|status| admin.failure(&status))
    };
    if args.dry_run {
        let planned = call(true).await?;
        return output::one(format, &planned, || planned.human("would be"));
    }
    if !args.yes && prompt::is_attended() {
        let planned = call(true).await?;
        prompt::confirm(false, &format!("{}\nadopt shard {}?", planned.human("would be"), args.shard))?;
    }
    let adopted = call(false).await?;
    output::one(format, &adopted, || adopted.human("are"))
}

/// A shard, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shard {
    shard: u32,
    state: &'static str,
    problem: String,
    events_committed: Option<Position>,
    commands_committed: Option<Position>,
    events_last: u64,
    commands_last: u64,
    epoch: u64,
    worker: String,
}

/// A position, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Position {
    stream: String,
    sequence: u64,
    created_at: Option<Time>,
    stored_at: Option<Time>,
    event_id: String,
}

impl From<v1::StreamPosition> for Position {
    fn from(position: v1::StreamPosition) -> Self {
        let v1::StreamPosition { stream, sequence, created_at, stored_at, event_id } = position;
        let (created_at, stored_at) = (Time::of(created_at.as_ref()), Time::of(stored_at.as_ref()));
        Self { stream, sequence, created_at, stored_at, event_id }
    }
}

impl Position {
    fn human(&self) -> String {
        let stored = self.stored_at.as_ref().map(|at| format!(", stored at {at}")).unwrap_or_default();
        format!("{} {}{stored}", self.stream, self.sequence)
    }
}

impl From<v1::Shard> for Shard {
    fn from(shard: v1::Shard) -> Self {
        Self {
            shard: shard.shard,
            state: word::<v1::ShardState>(shard.state),
            problem: shard.problem,
            events_committed: shard.events_committed.map(Position::from),
            commands_committed: shard.commands_committed.map(Position::from),
            events_last: shard.events_last,
            commands_last: shard.commands_last,
            epoch: shard.epoch,
            worker: shard.worker,
        }
    }
}

impl Row for Shard {
    const HEADINGS: &'static [&'static str] = &["SHARD", "STATE", "COMMITTED", "LAST", "EPOCH", "WORKER", "PROBLEM"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.shard.to_string(),
            self.state.to_owned(),
            self.events_committed.as_ref().map(|position| position.sequence.to_string()).unwrap_or_default(),
            self.events_last.to_string(),
            self.epoch.to_string(),
            self.worker.clone(),
            self.problem.clone(),
        ]
    }
}

/// An adoption, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Adoption {
    request_id: String,
    adopted: bool,
    events_before: Option<Position>,
    commands_before: Option<Position>,
    events_after: Option<Position>,
    commands_after: Option<Position>,
    delivered_events: u64,
    delivered_event_ids: Vec<String>,
    lost_events: u64,
    lost_event_ids: Vec<String>,
    closed_runs: u64,
    closed_dead_letters: u64,
    closed_dead_letter_ids: Vec<String>,
}

impl From<v1::AdoptShardResponse> for Adoption {
    fn from(answer: v1::AdoptShardResponse) -> Self {
        Self {
            request_id: answer.request_id,
            adopted: answer.adopted,
            events_before: answer.events_before.map(Position::from),
            commands_before: answer.commands_before.map(Position::from),
            events_after: answer.events_after.map(Position::from),
            commands_after: answer.commands_after.map(Position::from),
            delivered_events: answer.delivered_events,
            delivered_event_ids: answer.delivered_event_ids,
            lost_events: answer.lost_events,
            lost_event_ids: answer.lost_event_ids,
            closed_runs: answer.closed_runs,
            closed_dead_letters: answer.closed_dead_letters,
            closed_dead_letter_ids: answer.closed_dead_letter_ids,
        }
    }
}

impl Adoption {
    fn human(&self, verb: &str) -> String {
        let mut text = String::new();
        // Into a string nothing fails.
        for (before, after) in
            [(&self.events_before, &self.events_after), (&self.commands_before, &self.commands_after)]
        {
            if let (Some(before), Some(after)) = (before, after) {
                let _ =
                    writeln!(text, "outcomes reach to {}; the shard continues after {}", before.human(), after.human());
            }
        }
        let mut line = |count: u64, what: &str, ids: &[String]| {
            let _ = writeln!(text, "{count} {what}");
            for id in ids.iter().take(SHOWN_MAX) {
                let _ = writeln!(text, "  {id}");
            }
            if count > SHOWN_MAX as u64 && !ids.is_empty() {
                let _ = writeln!(text, "  … see -o json for more");
            }
        };
        line(self.delivered_events, &format!("events after that {verb} delivered"), &self.delivered_event_ids);
        line(self.lost_events, "events with outcomes no longer exist", &self.lost_event_ids);
        line(self.closed_runs, &format!("redrives and replays {verb} closed"), &[]);
        line(self.closed_dead_letters, &format!("dead letters {verb} closed"), &self.closed_dead_letter_ids);
        text
    }
}

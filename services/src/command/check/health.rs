//! `weft check health`: the state of a running mesh for monitoring, in one line and with the exit codes of Nagios plugins.

use std::{fmt, time::Duration};

use serde::Serialize;
use tokio::time::timeout;
use weft_proto::{v1, words::word};

use crate::{
    command::{
        admin::{AdminArgs, AdminClient},
        output::{self, Format},
        paging::{self, PAGE_MAX},
    },
    failure::Failure,
};

/// Lanes that are counted; more is said as "at least".
const LANES_MAX: usize = 10_000;
/// `weft check health`.
#[derive(Debug, clap::Args)]
pub struct HealthArgs {
    /// Warning from this many open dead letters on
    #[arg(long, value_name = "N", default_value_t = 1)]
    warn_dead_letters: u64,
    /// Critical from this many open dead letters on [default: never]
    #[arg(long, value_name = "N")]
    critical_dead_letters: Option<u64>,
    /// Unknown if it takes longer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    #[command(flatten)]
    admin: AdminArgs,
}

/// State of a service as monitoring knows it, with its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// 0
    Ok = 0,
    /// 1
    Warning = 1,
    /// 2
    Critical = 2,
    /// 3: it could not be found out.
    Unknown = 3,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        })
    }
}

/// The result of a check.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Findings {
    shards: usize,
    /// Shards that deliver nothing, with the difference.
    stopped: Vec<String>,
    /// Receivers that are not available, in words.
    receivers: Vec<String>,
    lanes_blocked: usize,
    dead_letters_open: u64,
}

/// The state, its reasons and the numbers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    state: State,
    reasons: Vec<String>,
    #[serde(flatten)]
    findings: Findings,
}

impl Health {
    fn of(findings: Findings, args: &HealthArgs) -> Self {
        let mut reasons = Vec::new();
        let mut state = State::Ok;
        let mut add = |of: State, reason: String| {
            state = state.max(of);
            reasons.push(reason);
        };
        for stopped in &findings.stopped {
            add(State::Critical, stopped.clone());
        }
        for receiver in &findings.receivers {
            add(State::Warning, receiver.clone());
        }
        if findings.lanes_blocked > 0 {
            let at_least = if findings.lanes_blocked >= LANES_MAX { "at least " } else { "" };
            add(State::Warning, format!("{at_least}{} lanes blocked", findings.lanes_blocked));
        }
        let open = findings.dead_letters_open;
        if open > 0 && open >= args.warn_dead_letters {
            let is_critical = args.critical_dead_letters.is_some_and(|from| open >= from);
            add(if is_critical { State::Critical } else { State::Warning }, format!("{open} dead letters open"));
        }
        Self { state, reasons, findings }
    }

    /// The line of a plugin: state, text, and performance data.
    fn line(&self) -> String {
        let Findings { shards, lanes_blocked, dead_letters_open, .. } = &self.findings;
        let text = if self.reasons.is_empty() {
            format!("{shards} shards, nothing stands still")
        } else {
            self.reasons.join("; ")
        };
        let receivers = self.findings.receivers.len();
        format!(
            "{}: {} | dead_letters_open={dead_letters_open} lanes_blocked={lanes_blocked} receivers_away={receivers}",
            self.state,
            // Separates the performance data.
            text.replace('|', "/")
        )
    }
}

/// Asks a running mesh, prints its state, and ends with its exit code.
///
/// # Errors
///
/// [`Failure::Check`] with the exit code of the state, unless that is 0.
pub async fn run(args: HealthArgs, format: Option<Format>) -> Result<(), Failure> {
    let limit = Duration::from_secs(args.timeout);
    let found = match timeout(limit, find(args.admin.clone())).await {
        Ok(found) => found,
        Err(_) => {
            output::text(&format!("UNKNOWN: no answer in {limit:?}"))?;
            return ended(State::Unknown);
        }
    };
    let (state, line) = match found {
        Ok(findings) => {
            let health = Health::of(findings, &args);
            if let Some(format) = format.filter(|format| *format != Format::Table) {
                output::one(format, &health, String::new)?;
                return ended(health.state);
            }
            (health.state, health.line())
        }
        // No worker delivers.
        Err(Failure::Unavailable(problem)) => (State::Critical, format!("CRITICAL: {problem}")),
        Err(other) => (State::Unknown, format!("UNKNOWN: {other}")),
    };
    output::text(&line)?;
    ended(state)
}

fn ended(state: State) -> Result<(), Failure> {
    match state {
        State::Ok => Ok(()),
        state => Err(Failure::Check(state as u8)),
    }
}

async fn find(args: AdminArgs) -> Result<Findings, Failure> {
    let admin = args.connect().await?;
    let mut findings = Findings::default();
    let answer = admin.shards().list_shards(admin.request(v1::ListShardsRequest {})).await;
    let shards = answer.map_err(|status| admin.failure(&status))?.into_inner().shards;
    findings.shards = shards.len();
    let stopped = shards.iter().filter(|shard| shard.state() == v1::ShardState::Stopped);
    findings.stopped = stopped.map(|shard| format!("shard {} is stopped: {}", shard.shard, shard.problem)).collect();
    findings.receivers = receivers(&admin).await?;
    findings.lanes_blocked = blocked(&admin).await?;
    let filter = v1::DeadLetterFilter { statuses: vec![v1::DeadLetterStatus::Open.into()], ..Default::default() };
    let request = v1::DeadLetterStatsRequest { filter: Some(filter), ..Default::default() };
    let answer = admin.dead_letters().dead_letter_stats(admin.request(request)).await;
    let counts = answer.map_err(|status| admin.failure(&status))?.into_inner().counts;
    findings.dead_letters_open = counts.iter().map(|count| count.count).sum();
    Ok(findings)
}

/// The receivers that are not available, one line each.
async fn receivers(admin: &AdminClient) -> Result<Vec<String>, Failure> {
    let subscriptions = paging::read(usize::MAX, PAGE_MAX, async |page_size, page_token| {
        let request = v1::ListSubscriptionsRequest { page_size, page_token };
        let answer = admin.catalog().list_subscriptions(admin.request(request)).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((page.subscriptions, page.next_page_token))
    });
    let unavailable = subscriptions.await?.entries.into_iter().filter_map(|view| {
        // One of its shards stands for all.
        let receiver = view.receivers.into_iter().next()?;
        let name = view.subscription.map(|subscription| subscription.name).unwrap_or_default();
        let state = word::<v1::ReceiverCondition>(receiver.state);
        Some(format!("receiver of {name} is {state}: {}", receiver.reason))
    });
    Ok(unavailable.collect())
}

async fn blocked(admin: &AdminClient) -> Result<usize, Failure> {
    let states = vec![v1::LaneState::Blocked.into()];
    let lanes = paging::read(LANES_MAX, PAGE_MAX, async |page_size, page_token| {
        let request = v1::ListLanesRequest { states: states.clone(), page_size, page_token, ..Default::default() };
        let answer = admin.workflows().list_lanes(admin.request(request)).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((page.lanes, page.next_page_token))
    });
    Ok(lanes.await?.entries.len())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// An admin that accepts the connection and does not answer in time leaves the state unknown, as the help says.
    #[tokio::test]
    async fn no_answer_in_time_is_unknown() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Some(format!("http://{}", silent.local_addr().unwrap()));
        let admin = AdminArgs { server, token: Some("token".into()), ..AdminArgs::default() };
        let args = HealthArgs { warn_dead_letters: 1, critical_dead_letters: None, timeout: 0, admin };
        let ended = run(args, None).await;
        assert!(matches!(ended, Err(Failure::Check(3))), "{ended:?}");
    }

    fn health(findings: Findings, critical_dead_letters: Option<u64>) -> Health {
        let args = HealthArgs { warn_dead_letters: 2, critical_dead_letters, timeout: 1, admin: AdminArgs::default() };
        Health::of(findings, &args)
    }

    /// Monitoring reads the worst of what was found, with every reason in one line.
    #[test]
    fn the_state_is_the_worst_that_was_found() {
        let quiet = || Findings { shards: 1, ..Findings::default() };
        let ok = health(quiet(), None);
        assert_eq!(ok.state, State::Ok);
        assert_eq!(
            ok.line(),
            "OK: 1 shards, nothing stands still | dead_letters_open=0 lanes_blocked=0 receivers_away=0"
        );
        assert_eq!(health(Findings { dead_letters_open: 1, ..quiet() }, None).state, State::Ok);
        let dead = health(Findings { dead_letters_open: 2, lanes_blocked: 3, ..quiet() }, Some(3));
        assert_eq!(dead.state, State::Warning);
        assert!(dead.line().starts_with("WARNING: 3 lanes blocked; 2 dead letters open | "), "{}", dead.line());
        assert_eq!(health(Findings { dead_letters_open: 3, ..quiet() }, Some(3)).state, State::Critical);
        let stopped = Findings { stopped: vec!["shard 0 is stopped: a | b".into()], ..quiet() };
        let stopped = health(stopped, None);
        assert!(stopped.line().starts_with("CRITICAL: shard 0 is stopped: a / b | "), "{}", stopped.line());
    }
}

//! `weft audit list`: what operators have done.

use jiff::Timestamp;
use serde::Serialize;
use weft_proto::{v1, words::Word as _};

use super::{
    common::CommonArgs,
    output::{self, Row},
    paging::{self, PAGE_MAX},
    select::{parse_moment, to_proto},
    view::{Time, when},
};
use crate::failure::Failure;

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// List what operators have done, newest first
    List(ListArgs),
}

/// `weft audit list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only of this operator: the id of a key, or bootstrap for the token of the configuration
    #[arg(long, value_name = "KEY")]
    operator: Option<String>,
    /// Only this method of the admin, such as SkipLane; `*` is any run of characters
    #[arg(long, value_name = "METHOD")]
    action: Option<String>,
    /// Only what was done to this source, subscription, key, workflow, event, dead letter, replay or refused request
    #[arg(long, value_name = "NAME|ID")]
    target: Option<String>,
    /// Only the call of this request id
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Since: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// Before: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    until: Option<Timestamp>,
    /// Print at most this many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// Carries out one verb.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(command: AuditCommand) -> Result<(), Failure> {
    let AuditCommand::List(args) = command;
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let asked = v1::ListAuditRequest {
        operator: args.operator.unwrap_or_default(),
        action: args.action.unwrap_or_default(),
        target: args.target.unwrap_or_default(),
        request_id: args.request_id.unwrap_or_default(),
        since: args.since.map(to_proto),
        until: args.until.map(to_proto),
        ..v1::ListAuditRequest::default()
    };
    let entries = paging::read(args.limit, PAGE_MAX, async |page_size, page_token| {
        let request = v1::ListAuditRequest { page_size, page_token, ..asked.clone() };
        let answer = admin.audit().list_audit(admin.request(request)).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        Ok((page.entries.into_iter().map(Entry::from).collect(), page.next_page_token))
    });
    output::list(format, &entries.await?.reported())
}

/// One call, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: String,
    time: Option<Time>,
    operator: String,
    action: String,
    reason: String,
    request_id: String,
    result: &'static str,
    targets: Vec<Target>,
    target_count: u32,
    counts: Counts,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Target {
    kind: &'static str,
    name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    selected: u32,
    done: u32,
    failed: u32,
    discarded: u32,
    not_applicable: u32,
    cancelled: u32,
    pending: u32,
}

impl From<v1::AuditEntry> for Entry {
    fn from(entry: v1::AuditEntry) -> Self {
        let result = entry.result().word();
        let counts = entry.counts.unwrap_or_default();
        let v1::AuditCounts { selected, done, failed, discarded, not_applicable, cancelled, pending } = counts;
        let target = |target: v1::AuditTarget| Target { kind: target.kind().word(), name: target.name };
        Self {
            time: Time::of(entry.time.as_ref()),
            id: entry.id,
            operator: entry.operator,
            action: entry.action,
            reason: entry.reason,
            request_id: entry.request_id,
            result,
            targets: entry.targets.into_iter().map(target).collect(),
            target_count: entry.target_count,
            counts: Counts { selected, done, failed, discarded, not_applicable, cancelled, pending },
            changes: entry.changes,
        }
    }
}

impl Entry {
    /// The first target, and how many others there are.
    fn target(&self) -> String {
        match &self.targets[..] {
            [] => "-".to_owned(),
            [Target { kind, name }] => format!("{} {name}", kind.replace('_', " ")),
            [Target { kind, name }, ..] => {
                format!("{} {name} and {} more", kind.replace('_', " "), self.target_count.saturating_sub(1))
            }
        }
    }

    /// One word, with counts where there are several.
    fn outcome(&self) -> String {
        let Counts { selected, done, failed, discarded, not_applicable, cancelled, pending } = self.counts;
        let word = self.result.replace('_', " ");
        if selected < 2 {
            return word;
        }
        let counts = [
            (done, "done"),
            (failed, "failed"),
            (discarded, "discarded"),
            (not_applicable, "not applicable"),
            (cancelled, "cancelled"),
            (pending, "pending"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        counts.collect::<Vec<_>>().join(", ")
    }
}

impl Row for Entry {
    const HEADINGS: &'static [&'static str] = &["WHEN", "OPERATOR", "ACTION", "TARGET", "RESULT", "WHY"];

    fn cells(&self) -> Vec<String> {
        let reason = if self.reason.is_empty() { "-".to_owned() } else { self.reason.clone() };
        let operator = self.operator.clone();
        vec![when(self.time.as_ref()), operator, self.action.clone(), self.target(), self.outcome(), reason]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table says what the call was about and what became of it; JSON has the lower-case words.
    #[test]
    fn an_entry_reads_as_a_sentence() {
        let target =
            |name: &str| v1::AuditTarget { kind: v1::AuditTargetKind::DeadLetter.into(), name: name.to_owned() };
        let entry = v1::AuditEntry {
            action: "RedriveDeadLetters".into(),
            targets: vec![target("billing:a"), target("billing:b")],
            target_count: 12,
            result: v1::AuditResult::NotApplicable.into(),
            counts: Some(v1::AuditCounts { selected: 12, done: 10, not_applicable: 2, ..Default::default() }),
            ..v1::AuditEntry::default()
        };
        let entry = Entry::from(entry);
        assert_eq!(entry.target(), "dead letter billing:a and 11 more");
        assert_eq!(entry.outcome(), "10 done, 2 not applicable");
        let json = serde_json::to_value(&entry).unwrap();
        assert_eq!((&json["result"], &json["targets"][0]["kind"]), (&"not_applicable".into(), &"dead_letter".into()));
    }
}

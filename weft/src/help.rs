//! `weft --help`: the commands in groups, each noun with examples.

use std::fmt::Write as _;

use clap::{Arg, Command};
use weft_services::command::admin::HEADING;

/// The commands by what they are for, in the order in which a newcomer meets them.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Run", &["up", "gateway", "worker", "admin", "nats"]),
    ("Try", &["demo", "check", "listen", "sign", "verify", "bench"]),
    ("Look at events", &["event", "workflow", "replay", "stats", "top"]),
    ("Repair", &["dlq", "rejected", "shard", "audit"]),
    ("Configure", &["source", "subscription", "key", "apply", "catalog", "config"]),
    ("Shell", &["completion", "man"]),
];

/// Command lines by noun, each with what it does; first those of `weft` itself.
const EXAMPLES: [(&str, &[(&str, &str)]); 17] = [
    (
        "weft",
        &[
            ("weft up", "run a mesh on this machine until Ctrl-C"),
            ("weft workflow lanes --state waiting,blocked,away", "what stands still, since when, and why"),
            ("weft event get EVENT_ID", "what became of an event, attempt by attempt"),
            ("weft dlq redrive --subscription billing", "deliver dead letters again"),
            ("weft apply -f weft.toml --dry-run", "what a file would change"),
        ],
    ),
    (
        "event",
        &[
            ("weft event send --source shop --type order.paid --secret env:SHOP_SECRET", "sign and post one"),
            ("weft event tail --since 1h --type 'order.*'", "the last hour, then what comes"),
            ("weft event list --status dead_lettered,blocked --since 1d", "what failed since yesterday"),
            ("weft event list --delivery-id evt_1 --source shop", "by the sender's id"),
            ("weft event get EVENT_ID -o json", "with what the receiver answered"),
            ("weft event explain EVENT_ID", "what it waits for, since when, and what helps"),
            ("weft event erase --workflow customer-7 --reason GDPR", "payloads and kept headers, for good"),
        ],
    ),
    (
        "workflow",
        &[
            ("weft workflow lanes --state paused", "who paused what, and why"),
            ("weft workflow get order-42 --newest -n 20", "its last twenty events, newest first"),
            ("weft workflow explain order-42", "what it waits for, how many events wait, and what helps"),
            ("weft workflow retry order-42 --subscription billing", "attempt its head now"),
        ],
    ),
    (
        "dlq",
        &[
            ("weft dlq stats", "how many, by subscription and reason"),
            ("weft dlq list --since 1d --reason-code permanent", "refused for good since yesterday"),
            ("weft dlq redrive --type 'order.*' --dry-run", "how many that would be"),
            ("weft dlq discard billing:EVENT_ID --reason duplicate", "it is not to be delivered"),
            ("weft dlq cancel REQUEST_ID", "end a redrive; the rest stays open"),
        ],
    ),
    (
        "replay",
        &[
            ("weft replay plan --since 2h --subscription billing", "how many deliveries"),
            ("weft replay start --workflow order-42 --reason restored", "deliver them again"),
            ("weft replay list", "how each replay goes"),
        ],
    ),
    (
        "rejected",
        &[
            ("weft rejected list --source shop --since 2h --until 1h", "what was refused in one hour"),
            ("weft rejected get 4711", "its headers, its body, and why"),
            ("weft rejected retry --source shop --dry-run", "what would be verified again"),
        ],
    ),
    (
        "source",
        &[
            ("weft source create github --scheme github --secret env:GITHUB_SECRET", "prints the URL to paste"),
            ("weft source get github", "its settings, without secrets"),
        ],
    ),
    (
        "subscription",
        &[
            (
                "weft subscription create billing --url https://billing.example/hooks --secret env:BILLING_SECRET",
                "deliver every event there",
            ),
            ("weft subscription test billing --event ID", "whether it takes the event, and the request"),
            ("weft subscription test billing --send", "one signed test delivery"),
            ("weft subscription pause billing --reason migration", "everything is kept until resume"),
        ],
    ),
    (
        "key",
        &[
            ("weft key create ci --scope ingest --source ci-runs --expires 30d", "prints the key once"),
            ("weft key list", "which there are, and when each was used last"),
        ],
    ),
    (
        "shard",
        &[
            ("weft shard list", "whether each shard's streams fit its outcomes"),
            ("weft shard adopt 0 --dry-run", "what would be given up"),
        ],
    ),
    (
        "audit",
        &[
            ("weft audit list --since 1d", "who did what, why and when"),
            ("weft audit list --target billing --action '*Subscription'", "what was done to a subscription"),
            ("weft audit list --operator 7h3k2m9q -o json", "everything of one key, with the differences"),
        ],
    ),
    (
        "check",
        &[
            ("weft check -c weft.toml", "whether the file is valid, without a server"),
            ("weft check health --critical-dead-letters 100", "for monitoring: 0 ok, 1 warning, 2 critical, 3 unknown"),
            ("weft check destination https://billing.example/hooks", "whether it may be called from here"),
        ],
    ),
    (
        "config",
        &[
            ("weft config show", "every key, its value, and where that comes from"),
            ("weft config show --set", "only what the file or the environment sets"),
        ],
    ),
    (
        "completion",
        &[
            ("weft completion bash > /etc/bash_completion.d/weft", "for all users of bash"),
            ("weft completion fish > ~/.config/fish/completions/weft.fish", "for one user of fish"),
        ],
    ),
    (
        "stats",
        &[
            ("weft stats --since 24h", "counts, percentiles and backlogs of a day"),
            ("weft stats -o json", "with the series by minutes"),
        ],
    ),
    ("catalog", &[("weft catalog reseal --reason rotation", "after the new master key has come first everywhere")]),
    ("nats", &[("weft nats config --passwords /etc/weft/nats", "accounts, users and permissions for your own server")]),
];

/// The end of `weft --help`.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused or failed, 2 usage, 3 not found, 4 unavailable (try again).\n\
                          docs/command.md has formats, selections and times.";

/// The command with its subcommands in groups, and examples.
pub fn grouped(mut command: Command) -> Command {
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{}\n{}\n{{options}}{{after-help}}",
        groups(&command),
        heading(&command, "Options"),
    );
    let shared = shared_options(&command);
    let end = format!("{shared}\n{}\n{EXIT_CODES}", examples(&command, "weft"));
    for (noun, _) in EXAMPLES.iter().skip(1) {
        let text = examples(&command, noun);
        command = command.mut_subcommand(noun, |noun| noun.after_help(text));
    }
    command
        .mut_subcommands(|noun| with_short_forms(without_shared_options(noun)))
        .help_template(template)
        .after_help(end)
}

/// A noun and its verbs by the short forms that operators know from other commands.
fn with_short_forms(noun: Command) -> Command {
    const NOUNS: [(&str, &str); 3] = [("workflow", "wf"), ("subscription", "sub"), ("rejected", "rej")];
    const VERBS: [(&str, &str); 2] = [("list", "ls"), ("delete", "rm")];
    let short = |forms: &[(&str, &'static str)], name: &str| {
        forms.iter().find(|(long, _)| *long == name).map(|(_, short)| *short)
    };
    let noun = noun.mut_subcommands(|verb| match short(&VERBS, verb.get_name()) {
        Some(form) => verb.visible_alias(form),
        None => verb,
    });
    match short(&NOUNS, noun.get_name()) {
        Some(form) => noun.visible_alias(form),
        None => noun,
    }
}

/// The options of every command that talks to the admin, once, for `weft --help`.
fn shared_options(command: &Command) -> String {
    let list = command.find_subcommand("dlq").and_then(|dlq| dlq.find_subcommand("list"));
    let mut text = heading(command, "Options of every command that asks the admin");
    for arg in list.iter().flat_map(|list| list.get_arguments()).filter(|arg| is_shared(arg)) {
        let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
        let value = arg.get_value_names().and_then(<[_]>::first).map(|name| format!(" <{name}>")).unwrap_or_default();
        let name = format!("{short}--{}{value}", arg.get_long().unwrap_or_default());
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // Into a string nothing fails.
        let _ = write!(text, "\n  {name:<24}  {help}");
    }
    text.push('\n');
    text
}

fn is_shared(arg: &Arg) -> bool {
    arg.get_help_heading() == Some(HEADING)
}

/// The command without those options in its help, which names where they are.
fn without_shared_options(command: Command) -> Command {
    let command = command.mut_subcommands(without_shared_options);
    if !command.get_arguments().any(is_shared) {
        return command;
    }
    let command = command.mut_args(|arg| if is_shared(&arg) { arg.hide(true) } else { arg });
    let text = command.get_after_help().map(|text| format!("{text}\n")).unwrap_or_default();
    command.after_help(format!("{text}--server, --token, --ca, --data and -o: see weft --help"))
}

fn heading(command: &Command, text: &str) -> String {
    let style = command.get_styles().get_header();
    format!("{style}{text}:{style:#}")
}

/// A line a command, below the heading of its group.
fn groups(command: &Command) -> String {
    let name_style = command.get_styles().get_literal();
    let width = GROUPS.iter().flat_map(|(_, names)| *names).map(|name| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (group, names) in GROUPS {
        // Into a string nothing fails.
        let _ = write!(text, "\n{}\n", heading(command, group));
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {name_style}{name:<width$}{name_style:#}  {about}");
        }
    }
    text
}

fn examples(command: &Command, noun: &str) -> String {
    let Some((_, lines)) = EXAMPLES.iter().find(|(of, _)| *of == noun) else { return String::new() };
    let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    let mut text = heading(command, "Examples");
    for (line, what) in *lines {
        let _ = write!(text, "\n  {line:<width$}  # {what}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_is_in_one_group() {
        let command = Cli::command();
        let known: BTreeSet<_> =
            command.get_subcommands().filter(|command| !command.is_hide_set()).map(Command::get_name).collect();
        let grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        assert_eq!(grouped.len(), known.len(), "none is in two groups");
        assert_eq!(BTreeSet::from_iter(grouped), known);
    }

    /// A copied example is a valid command line.
    #[test]
    fn examples_are_commands() {
        for (noun, lines) in EXAMPLES {
            assert!(noun == "weft" || Cli::command().find_subcommand(noun).is_some(), "{noun}");
            for (line, _) in lines {
                // Up to a redirection, which is the shell's.
                let words = line.split(' ').take_while(|word| *word != ">");
                let parsed = Cli::try_parse_from(words.map(|word| word.trim_matches('\'')));
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn help_shows_groups_examples_and_exit_codes() {
        let mut command = grouped(Cli::command());
        let text = command.render_help().to_string();
        for part in ["Repair:\n  dlq ", "Examples:\n  weft up ", "Exit codes: 0", "Options:\n  -h, --help"] {
            assert!(text.contains(part), "{part:?}: {text}");
        }
        assert!(!text.contains("launch"), "{text}");
        let short = grouped(Cli::command()).try_get_matches_from(["weft", "wf", "lanes"]).unwrap();
        assert_eq!(short.subcommand_name(), Some("workflow"));
        assert!(text.contains("\n  --server <URL> ") && text.contains("-o, --output <FORMAT>"), "{text}");
        let list = command.find_subcommand_mut("dlq").unwrap().find_subcommand_mut("list").unwrap();
        let list = list.render_help().to_string();
        assert!(!list.contains("--token <") && list.contains("see weft --help"), "{list}");
        let dlq = command.find_subcommand_mut("dlq").unwrap().render_help().to_string();
        assert!(dlq.contains("Examples:\n  weft dlq stats "), "{dlq}");
    }
}

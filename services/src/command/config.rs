//! `weft config show`: the effective configuration, and where each value comes from.

use std::path::PathBuf;

use super::output::{self, Format, Row};
use crate::{
    config::{Config, Setting},
    failure::Failure,
};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Show each key with its value, and whether it comes from the file, the environment or the defaults; secrets are masked
    Show(ShowArgs),
}

/// `weft config show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// The configuration [default: ./weft.toml, where there is one]
    #[arg(short, long, env = "WEFT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only what the file or the environment sets
    #[arg(long)]
    set: bool,
    /// The output format [default: table on a terminal, jsonl in a pipe]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

impl Row for Setting {
    const HEADINGS: &'static [&'static str] = &["KEY", "VALUE", "FROM"];

    fn cells(&self) -> Vec<String> {
        vec![self.key.clone(), self.value.clone(), self.from.clone()]
    }
}

/// Carries out one verb.
///
/// # Errors
///
/// [`Failure::Failed`]: the configuration is not valid.
pub fn run(command: ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Show(args) = command;
    let mut settings = Config::settings(args.config.as_deref()).map_err(|error| Failure::of(&error))?;
    if args.set {
        settings.retain(|setting| setting.from != "default");
    }
    output::list(Format::or_default(args.output), &settings)
}

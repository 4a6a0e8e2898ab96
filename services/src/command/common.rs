//! Common arguments of commands.

use uuid::Uuid;

use super::{
    admin::{AdminArgs, HEADING},
    output::Format,
};

/// Of every command: where the admin is, and how to print.
#[derive(Debug, clap::Args)]
pub struct CommonArgs {
    /// Where the admin is, and who asks.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// The output format [default: table on a terminal, jsonl in a pipe]
    #[arg(short, long, value_name = "FORMAT", help_heading = HEADING)]
    output: Option<Format>,
}

impl CommonArgs {
    /// How to print.
    pub fn format(&self) -> Format {
        Format::or_default(self.output)
    }
}

/// Of every command that changes something.
#[derive(Debug, clap::Args)]
pub struct ReasonArgs {
    /// Why, for the audit log
    #[arg(long, default_value = "", hide_default_value = true)]
    pub reason: String,
}

/// Names a call: one that is repeated after its answer was lost acts once.
pub fn request_id() -> String {
    Uuid::now_v7().to_string()
}

//! Arguments that several benchmarks have.

use std::path::PathBuf;

use serde::Serialize;

use super::tmpdir::TmpDir;
use weft_services::{
    command::output::{self, Format},
    failure::Failure,
};

/// Where a benchmark works, and how it prints what it has found.
#[derive(Debug, Clone, clap::Args)]
pub struct OutputArgs {
    /// A folder on the disk to be used; a new one is made inside and removed at the end
    #[arg(long, value_name = "DIR", default_value = ".")]
    data: PathBuf,
    /// How to print [default: table on a terminal, jsonl in a pipe]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

impl OutputArgs {
    /// A fresh folder to work in.
    ///
    /// # Errors
    ///
    /// As [`TmpDir::new`].
    pub fn folder(&self) -> Result<TmpDir, Failure> {
        TmpDir::new(&self.data)
    }

    /// How to print.
    pub fn format(&self) -> Format {
        Format::or_default(self.output)
    }

    /// Prints a report; `human` is what people get.
    ///
    /// # Errors
    ///
    /// When stdout is gone.
    pub fn print<T: Serialize>(&self, report: &T, human: impl FnOnce() -> String) -> Result<(), Failure> {
        output::one(self.format(), report, human)
    }
}

/// Arguments of a benchmark that sends events.
#[derive(Debug, Clone, clap::Args)]
pub struct EventArgs {
    /// Bytes of each event's body
    #[arg(long, default_value_t = 512)]
    pub payload: usize,
    /// Where, and how to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

//! `weft source | subscription | key | apply`: what is in the catalog, through the admin.
//!
//! - `wanted`: what files and flags want, as messages.
//! - `view`: what the admin answers, as it is printed.

use self::view::Deleted;
use super::{
    common::{CommonArgs, ReasonArgs, request_id},
    output::{self, Format},
    prompt::confirm,
};
use crate::exit::Failure;

pub mod apply;
pub mod key;
pub mod source;
pub mod subscription;
mod view;
pub(super) mod wanted;

/// Of every command that shows one entry.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// Which
    name: String,
    #[command(flatten)]
    common: CommonArgs,
}

/// Of every command that shows all entries.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// Of every command that removes an entry.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Which
    name: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

impl DeleteArgs {
    fn confirm(&self, question: &str) -> Result<(), Failure> {
        confirm(self.yes, question)
    }
}

/// Says that an entry is gone.
fn print_deleted(format: Format, kind: &str, name: &str) -> Result<(), Failure> {
    let deleted = Deleted::new(kind, name);
    output::one(format, &deleted, || deleted.human())
}

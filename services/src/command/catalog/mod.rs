//! `weft source | subscription | key | apply | catalog`: what is in the catalog, through the admin.
//!
//! - `wanted`: what files and flags want, as messages.
//! - `view`: what the admin answers, as it is printed.

use weft_proto::v1;

use self::view::Deleted;
use super::{
    admin::AdminClient,
    common::{CommonArgs, ReasonArgs, request_id},
    output::{self, Format},
    prompt::confirm,
};
use crate::failure::Failure;

pub mod apply;
pub mod key;
pub mod reseal;
pub mod source;
pub mod subscription;
mod view;
pub(super) mod wanted;

/// Of every command that shows one entry.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    common: CommonArgs,
}

/// `weft key get`.
#[derive(Debug, clap::Args)]
pub struct GetKeyArgs {
    /// The key's id, as `weft key list` prints it
    id: String,
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
    /// The name
    name: String,
    /// Do not ask for confirmation
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

/// Warns of sources that a subscription names and the catalog does not have: they may be misspelt. `others`: sources that
/// are about to be there.
async fn warn_unknown_sources(
    admin: &AdminClient,
    subscriptions: &[v1::Subscription],
    others: &[String],
) -> Result<(), Failure> {
    let named = || {
        subscriptions.iter().flat_map(|subscription| subscription.sources.iter().map(move |name| (subscription, name)))
    };
    if named().next().is_none() {
        return Ok(());
    }
    let sources = source::all(admin).await?;
    let names: Vec<_> =
        sources.iter().filter_map(|view| view.source.as_ref()).map(|source| &source.name).chain(others).collect();
    for (subscription, name) in named().filter(|(_, name)| !names.contains(name)) {
        let distance = |known: &&&String| (strsim::normalized_damerau_levenshtein(known, name) * 1000.0) as u32;
        let nearest = names.iter().max_by_key(distance).filter(|known| distance(known) >= 600);
        let guess = nearest.map(|known| format!("; did you mean {known:?}?")).unwrap_or_default();
        output::notice(&format!(
            "subscription {}: the catalog has no source {name:?}, so it takes only events that are sent with an API key \
             under that source{guess}",
            subscription.name
        ));
    }
    Ok(())
}

/// Says that an update has changed nothing.
fn report_unchanged(kind: &str, name: &str, before: u64, after: u64) {
    if before == after {
        output::notice(&format!("{kind} {name} is so already: nothing has changed"));
    }
}

/// Says that an entry is gone.
fn print_deleted(format: Format, kind: &str, name: &str) -> Result<(), Failure> {
    let deleted = Deleted::new(kind, name);
    output::one(format, &deleted, || deleted.human())
}

//! `weft catalog reseal`: the catalog sealed with the first master key.

use serde::Serialize;
use weft_proto::v1;

use crate::{
    command::{
        common::{CommonArgs, ReasonArgs, request_id},
        output, prompt,
    },
    failure::Failure,
};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum CatalogCommand {
    /// Seal every entry with the first master key, while the mesh runs
    Reseal(ResealArgs),
}

/// `weft catalog reseal`.
#[derive(Debug, clap::Args)]
pub struct ResealArgs {
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Result of a resealing, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Resealed {
    request_id: String,
    key_id: String,
    sealed: u64,
}

/// Carries out one verb.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub async fn run(command: CatalogCommand) -> Result<(), Failure> {
    match command {
        CatalogCommand::Reseal(args) => reseal(args).await,
    }
}

async fn reseal(args: ResealArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = v1::ResealRequest { reason: args.reason.reason, request_id: request_id() };
    let answer = admin.catalog().reseal(admin.request(request)).await;
    let mut progress = answer.map_err(|status| admin.failure(&status))?.into_inner();
    let bar = prompt::bar("resealing");
    let mut done = None;
    while let Some(step) = progress.message().await.map_err(|status| admin.failure(&status))? {
        bar.set_length(step.sealed + step.remaining);
        bar.set_position(step.sealed);
        if step.done {
            done = Some(step);
        }
    }
    bar.finish_and_clear();
    let Some(v1::ResealResponse { key_id, sealed, request_id, .. }) = done else {
        return Err(Failure::Unavailable("the admin ended before all was sealed; run it again".into()));
    };
    let result = Resealed { request_id, key_id, sealed };
    output::one(format, &result, || match result.sealed {
        0 => format!("every entry is sealed with master key {} already", result.key_id),
        sealed => format!("{sealed} entries are sealed with master key {} now", result.key_id),
    })
}

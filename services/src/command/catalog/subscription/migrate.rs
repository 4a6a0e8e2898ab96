//! `weft subscription migrate`.

use serde::Serialize;
use weft_proto::v1;

use super::super::{CommonArgs, ReasonArgs, request_id};
use crate::{command::output, failure::Failure};

/// `weft subscription migrate`.
#[derive(Debug, clap::Args)]
pub struct MigrateArgs {
    /// The name
    name: String,
    /// Print the statements; run nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// The statements, and where they were run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Migrated {
    statements: Vec<String>,
    databases: Vec<String>,
}

pub(super) async fn migrate(args: MigrateArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = v1::MigrateSubscriptionRequest {
        name: args.name,
        dry_run: args.dry_run,
        reason: args.reason.reason,
        request_id: request_id(),
    };
    let answer = admin.catalog().migrate_subscription(admin.request(request)).await;
    let v1::MigrateSubscriptionResponse { statements, databases } =
        answer.map_err(|status| admin.failure(&status))?.into_inner();
    let migrated = Migrated { statements, databases };
    output::one(format, &migrated, || {
        let lines = migrated.statements.iter().map(|statement| format!("{statement};"));
        let places = migrated.databases.iter().map(|database| format!("-- done in {database}"));
        lines.chain(places).collect::<Vec<_>>().join("\n")
    })
}

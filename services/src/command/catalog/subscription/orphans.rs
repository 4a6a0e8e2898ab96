//! Subscriptions that the catalog has lost: adopted, or discarded.

use serde::Serialize;
use weft_proto::v1;

use super::{AdoptArgs, DiscardArgs, of_file, of_flags, print};
use crate::{
    command::{catalog::request_id, output, prompt},
    failure::Failure,
};

/// An orphaned subscription.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Orphan {
    name: String,
    uid: String,
    types: Vec<String>,
    sources: Vec<String>,
    shards: Vec<u32>,
    lanes: u32,
    dry_run: bool,
}

impl Orphan {
    fn dry(orphan: v1::OrphanedSubscription) -> Self {
        let v1::OrphanedSubscription { name, uid, types, sources, shards, lanes } = orphan;
        Self { name, uid, types, sources, shards, lanes, dry_run: true }
    }

    fn human(&self, verb: &str) -> String {
        let Self { name, uid, lanes, .. } = self;
        format!("would {verb} {name} ({uid}), which has {lanes} lanes with something pending")
    }
}

/// Says on standard error which subscriptions are missing from the catalog.
pub(super) fn warn(orphans: &[v1::OrphanedSubscription]) {
    for v1::OrphanedSubscription { name, uid, lanes, .. } in orphans {
        output::notice(&format!(
            "{name} ({uid}) is missing from the catalog, but no operator has removed it; {lanes} lanes wait: weft \
             subscription adopt {name}, or weft subscription discard {uid}"
        ));
    }
}

pub(super) async fn adopt(args: AdoptArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let given_name = args.name.clone().unwrap_or_else(|| args.orphan.clone());
    let wanted = match &args.file {
        Some(file) => of_file(file, Some(&given_name), &args.flags)?,
        None if args.flags.url.is_none() => {
            return Err(Failure::Usage(
                "the catalog no longer knows where it delivers to: say it with -f FILE, or with --url and the other flags"
                    .into(),
            ));
        }
        None => {
            // Without types it has the filter that it had last; what a file would have to say is taken out again.
            let mut flags = args.flags.clone();
            if flags.types.is_empty() {
                flags.types = vec!["*".into()];
            }
            let mut wanted = of_flags(&given_name, &flags, None)?;
            if args.flags.types.is_empty() {
                for wanted in &mut wanted {
                    wanted.value.types.clear();
                }
            }
            wanted
        }
    };
    for wanted in wanted {
        let request = v1::AdoptSubscriptionRequest {
            orphan: args.orphan.clone(),
            subscription: Some(wanted.value),
            dry_run: args.dry_run,
            reason: args.reason.reason.clone(),
            request_id: request_id(),
        };
        let answer = admin.catalog().adopt_subscription(admin.request(request)).await;
        let answer = answer.map_err(|status| admin.failure(&status))?.into_inner();
        match (answer.view, answer.orphan) {
            (Some(view), _) => print(format, view)?,
            (None, orphan) => {
                let orphan = Orphan::dry(orphan.unwrap_or_default());
                output::one(format, &orphan, || orphan.human("adopt"))?;
            }
        }
    }
    Ok(())
}

/// Result of a discard.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Discarded {
    orphan: String,
    request_id: String,
    closed: u32,
    not_applicable: u32,
    pending: u32,
}

impl Discarded {
    fn human(&self) -> String {
        let Self { orphan, closed, not_applicable, pending, .. } = self;
        format!("{orphan}: closed in {closed} shards, {not_applicable} not applicable, {pending} pending")
    }
}

pub(super) async fn discard(args: DiscardArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let question = format!("discard {}? what it has pending is discarded", args.orphan);
    if !args.dry_run && !args.yes && prompt::is_attended() && !prompt::confirmed(&question)? {
        return Err(Failure::Failed("nothing was discarded".into()));
    }
    let request = v1::DiscardSubscriptionRequest {
        orphan: args.orphan.clone(),
        dry_run: args.dry_run,
        reason: args.reason.reason,
        request_id: request_id(),
    };
    let answer = admin.catalog().discard_subscription(admin.request(request)).await;
    let answer = answer.map_err(|status| admin.failure(&status))?.into_inner();
    if args.dry_run {
        let orphan = Orphan::dry(answer.orphan.unwrap_or_default());
        return output::one(format, &orphan, || orphan.human("discard"));
    }
    let v1::DiscardSubscriptionResponse { closed, not_applicable, pending, request_id, .. } = answer;
    let discarded = Discarded { orphan: args.orphan, request_id, closed, not_applicable, pending };
    output::one(format, &discarded, || discarded.human())?;
    match discarded.closed + discarded.pending {
        0 => Err(Failure::Failed(format!("{} is back in the catalog, or closed already", discarded.orphan))),
        _ => Ok(()),
    }
}

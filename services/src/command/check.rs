//! `weft check`: whether a configuration is sound, whether a destination may be called, without calling anything, and whether
//! a running mesh is well.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::timeout;
use url::Host;
use weft_catalog::delivery_url::DeliveryUrl;
use weft_worker::destination::{
    address::{AddressGuard, RefusedAddress},
    resolver::{GuardedResolver, ResolveError},
};

use super::output::{self, Format, Row};
use crate::{config::Config, failure::Failure};

mod health;

/// Timeout of resolving the name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// `weft check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Args)]
struct FileArgs {
    /// The configuration [default: ./weft.toml, where there is one]
    #[arg(short, long, env = "WEFT_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Say how a running mesh is, for monitoring: exit code 0 ok, 1 warning, 2 critical, 3 unknown
    Health(MonitorArgs),
    /// Say whether a destination's URL may be called from here, why not, and how to allow it
    Destination(DestinationArgs),
}

#[derive(Debug, clap::Args)]
struct MonitorArgs {
    #[command(flatten)]
    health: health::HealthArgs,
    /// The output format [default: one line for monitoring]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Debug, clap::Args)]
struct DestinationArgs {
    /// The URL
    url: String,
    /// By the rules of `weft up`, which allows the ports of the file's receivers on this machine
    #[arg(long)]
    up: bool,
    /// The output format [default: table on a terminal, jsonl in a pipe]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// An address of the destination and its verdict.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    address: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Row for Verdict {
    const HEADINGS: &'static [&'static str] = &["ADDRESS", "ALLOWED", "REASON"];

    fn cells(&self) -> Vec<String> {
        let allowed = if self.allowed { "yes" } else { "no" };
        vec![self.address.clone(), allowed.into(), self.reason.clone().unwrap_or_else(|| "-".into())]
    }
}

/// Checks the configuration, or a destination by the rules of its section `[worker]`.
///
/// # Errors
///
/// [`Failure::Failed`]: the configuration is wrong, or no address may be called. [`Failure::Usage`]: it is no URL of a
/// destination. [`Failure::Unavailable`]: its name has no address now. [`Failure::Check`]: the mesh is not well.
pub async fn run(args: CheckArgs) -> Result<(), Failure> {
    let load = || Config::load(args.file.config.as_deref(), None).map_err(|error| Failure::of(&error));
    let args = match args.what {
        Some(What::Health(args)) => return health::run(args.health, args.output).await,
        Some(What::Destination(args)) => Some(args),
        None => None,
    };
    let mut config = load()?;
    let Some(args) = args else {
        config.warn();
        let (sources, subscriptions) = (config.catalog.sources.len(), config.catalog.subscriptions.len());
        let valid = format!("the configuration is valid: {sources} sources, {subscriptions} subscriptions");
        return output::text(&valid);
    };
    if args.up {
        config.worker.loopback_ports = config.loopback_ports();
    }
    let url = DeliveryUrl::parse(&args.url).map_err(|invalid| Failure::Usage(invalid.to_string()))?;
    let guard = Arc::new(AddressGuard::new(config.worker.address_rules()));
    let verdicts = verdicts(&url, &guard).await?;
    let refused = verdicts.iter().find(|verdict| !verdict.allowed).and_then(|verdict| verdict.reason.clone());
    let is_allowed = verdicts.iter().any(|verdict| verdict.allowed);
    output::list(Format::or_default(args.output), &verdicts)?;
    match refused {
        Some(reason) if !is_allowed => Err(Failure::Failed(format!("{} may not be called: {reason}", url.authority()))),
        _ => Ok(()),
    }
}

/// The addresses of a URL, each with its verdict.
async fn verdicts(url: &DeliveryUrl, guard: &Arc<AddressGuard>) -> Result<Vec<Verdict>, Failure> {
    let port = url.port();
    let name = match url.host() {
        Some(Host::Ipv4(address)) => return Ok(vec![verdict(guard.check(address.into(), port), address.to_string())]),
        Some(Host::Ipv6(address)) => return Ok(vec![verdict(guard.check(address.into(), port), address.to_string())]),
        Some(Host::Domain(name)) => name,
        None => return Err(Failure::Usage("the URL has no host".into())),
    };
    let resolver = GuardedResolver::new(Arc::clone(guard));
    match timeout(LOOKUP_TIMEOUT, resolver.addresses(name, port)).await {
        Ok(Ok(addresses)) => Ok(addresses.iter().map(|address| verdict(Ok(()), address.ip().to_string())).collect()),
        Ok(Err(ResolveError::Refused(refused))) => {
            let address = refused.address.to_string();
            Ok(vec![verdict(Err(refused), address)])
        }
        Ok(Err(ResolveError::NoAddress(error))) => Err(Failure::Unavailable(error.to_string())),
        Err(_) => Err(Failure::Unavailable(format!("{name} was not resolved within {LOOKUP_TIMEOUT:?}"))),
    }
}

fn verdict(checked: Result<(), RefusedAddress>, address: String) -> Verdict {
    let reason = checked.err().map(|refused| refused.to_string());
    Verdict { address, allowed: reason.is_none(), reason }
}

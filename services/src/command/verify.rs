//! `weft verify`: whether a gateway would accept a request as signed by its sender. It asks the gateway's own verifier, about a
//! source that is read as `weft.toml` is.

use std::path::PathBuf;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use serde::Serialize;
use weft_gateway::http::error::Problem;
use weft_nats::options::Secret;
use weft_schemes::{Freshness, Verified, Verifier};

use super::{
    catalog::wanted::Flags,
    output::{self, Format},
    sign::read,
};
use crate::{
    failure::Failure,
    sender::{Encoding, HmacOptions, Scheme},
};

/// The name of the source that the flags stand for.
const SOURCE: &str = "verify";

/// `weft verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The signature scheme
    #[arg(long, value_enum, default_value_t = Scheme::Standard)]
    scheme: Scheme,
    /// The source's secret: env:NAME, file:PATH, or the secret itself; several while they are rotated, newest first
    #[arg(long = "secret", value_name = "SECRET", required = true)]
    secrets: Vec<Secret>,
    /// A header of the request, such as 'webhook-id: msg_1'; once for each
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The request's raw body: a file, or - for standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    body: PathBuf,
    /// How far the signed time may be off, either way [default: 5m]
    #[arg(long, value_name = "DURATION", conflicts_with = "any_age")]
    tolerance: Option<String>,
    /// However long ago it was signed, such as a request that was kept
    #[arg(long)]
    any_age: bool,
    /// The output format [default: table on a terminal, jsonl in a pipe]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    hmac: HmacOptions,
}

/// Properties of a verified request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Genuine {
    /// Scheme and secret, as `ce-verifiedby` has them: `standard/0`.
    verified_by: String,
    /// The id, where it is signed.
    signed_id: Option<String>,
    /// The time, where it is signed.
    signed_at: Option<Timestamp>,
}

/// Says who has signed the request, or why it would be refused.
///
/// # Errors
///
/// [`Failure::Failed`]: the gateway's code and words for it. [`Failure::Usage`]: the flags are those of no source.
pub async fn run(args: VerifyArgs) -> Result<(), Failure> {
    let secrets: Vec<_> = args.secrets.iter().map(|secret| secret.expose().to_owned()).collect();
    let verifier = verifier(args.scheme, &secrets, args.tolerance.as_deref(), &args.hmac)?;
    let body = read(&args.body)?;
    let mut headers = HeaderMap::new();
    for (name, value) in args.headers {
        // Not replaced: a header that is there twice is refused, and that is to be seen.
        headers.append(name, value);
    }
    let freshness = if args.any_age { Freshness::Waived } else { Freshness::Required };
    let verified = verifier.verify_with(freshness, &headers, &body, Timestamp::now()).map_err(|error| {
        let problem = Problem::from(error);
        Failure::Failed(format!("{}: {}", problem.code().as_str(), problem.detail()))
    })?;
    let genuine = Genuine::from(verified);
    output::one(Format::or_default(args.output), &genuine, || genuine.human())
}

/// The verifier of a source that has these keys in `weft.toml`; secrets are `env:NAME`, `file:PATH`, or themselves.
///
/// # Errors
///
/// [`Failure::Usage`]: what `weft.toml` would be refused for.
pub(crate) fn verifier(
    scheme: Scheme,
    secrets: &[String],
    tolerance: Option<&str>,
    hmac: &HmacOptions,
) -> Result<Verifier, Failure> {
    let mut flags = Flags::default();
    flags.put("name", Some(SOURCE));
    flags.put("verify.scheme", Some(scheme.name()));
    flags.put_list("verify.secrets", secrets);
    flags.put("verify.tolerance", tolerance);
    // The delivery id does not matter here.
    flags.put("delivery_id", Some("none"));
    if scheme == Scheme::Hmac {
        let signs = |placeholder| hmac.template().contains(placeholder);
        flags.put("verify.header", Some(hmac.signature_header()));
        flags.put("verify.prefix", Some(hmac.prefix()));
        flags.put("verify.encoding", hmac.encoding.map(Encoding::name));
        flags.put("verify.template", Some(hmac.template()));
        flags.put("verify.timestamp_header", hmac.timestamp_header());
        flags.put("verify.id_header", signs("{id}").then(|| hmac.id_header()));
    } else {
        hmac.check_absent(scheme).map_err(Failure::Usage)?;
    }
    let sources = flags.into_desired("source")?.sources;
    let source = sources.first().ok_or_else(|| Failure::Usage("the flags name no source".into()))?;
    Verifier::compile(source).map_err(|error| Failure::Usage(error.problem))
}

impl From<Verified> for Genuine {
    fn from(verified: Verified) -> Self {
        Self { verified_by: verified.by(), signed_id: verified.id, signed_at: verified.timestamp }
    }
}

impl Genuine {
    fn human(&self) -> String {
        let mut text = format!("ok: {}", self.verified_by);
        if let Some(id) = &self.signed_id {
            text.push_str(&format!(", id {id}"));
        }
        if let Some(time) = &self.signed_at {
            text.push_str(&format!(", signed at {time}"));
        }
        text
    }
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("a header is written 'Name: value'")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is not the name of a header"))?;
    let value = value.trim().parse().map_err(|_| format!("the value of {name} holds what no header may"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_curl_reads_them() {
        let (name, value) = parse_header("X-Slack-Signature:  v0=ab:cd ").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-slack-signature", "v0=ab:cd"));
        for broken in ["X-A", "a b: c", ": c", "X-A: b\nX-B: c"] {
            assert!(parse_header(broken).is_err(), "{broken:?}");
        }
    }

    /// Flags that the scheme does not read are refused as the same keys in `weft.toml` are, and no message holds a secret.
    #[test]
    fn flags_of_no_source_are_refused() {
        let refused = |scheme, secret: &str, tolerance, hmac: &HmacOptions| {
            let Err(Failure::Usage(problem)) = verifier(scheme, &[secret.to_owned()], tolerance, hmac) else {
                panic!("{scheme:?}");
            };
            assert!(!problem.contains(secret), "{problem}");
            problem
        };
        let none = HmacOptions::default();
        assert!(refused(Scheme::Stripe, "sk_live_hush", None, &none).contains("signing secret"));
        assert!(refused(Scheme::Github, "hush hush", Some("1m"), &none).contains("tolerance"));
        assert!(refused(Scheme::Slack, "hush hush", Some("soon"), &none).contains("tolerance"));
        let own = HmacOptions { template: Some("{timestamp}.{body}".into()), ..none.clone() };
        assert!(refused(Scheme::Github, "hush hush", None, &own).contains("hmac"));
        let bodiless = HmacOptions { template: Some("{timestamp}".into()), ..none };
        assert!(refused(Scheme::Hmac, "hush hush", None, &bodiless).contains("{body}"));
        assert!(verifier(Scheme::Hmac, &["hush hush".into()], Some("1m"), &own).is_ok());
    }
}

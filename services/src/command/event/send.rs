//! `weft event send`: an event, signed and posted as a sender would.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;
use weft_nats::{error_chain::in_one_line, options::Secret};

use super::provider::Provider;
use crate::{
    command::{
        output::{self, Format},
        read_data,
        sign::secret,
    },
    failure::Failure,
    sender::{Answer, Header, HmacOptions, Receipt, Scheme, Sender, Signing},
};

/// `weft event send`.
#[derive(Debug, clap::Args)]
pub struct SendArgs {
    /// The source's name
    #[arg(long, value_name = "NAME")]
    source: String,
    /// The workflow's id [default: what the source's rule finds in the data]
    #[arg(long, value_name = "ID")]
    workflow: Option<String>,
    /// The event's type [with --provider: that of the provider's sample]
    #[arg(long = "type", value_name = "TYPE", required_unless_present = "provider")]
    event_type: Option<String>,
    /// The event's data: JSON, @FILE, or - for standard input; with --provider the whole body [default: {}, or the
    /// provider's sample]
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// The delivery id: the same id is the same event [default: a new one]
    #[arg(long)]
    id: Option<String>,
    /// The signature scheme
    #[arg(long, value_enum, default_value_t = Scheme::Standard)]
    scheme: Scheme,
    /// Send as this provider does: a body of its form, its headers, its signature
    #[arg(long, value_enum, conflicts_with = "scheme")]
    provider: Option<Provider>,
    /// The source's secret: env:NAME, file:PATH, or the secret itself
    #[arg(long, env = "WEFT_SECRET", hide_env_values = true)]
    secret: Secret,
    /// The gateway's address
    #[arg(long, env = "WEFT_GATEWAY", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    gateway: String,
    /// The output format [default: table on a terminal, jsonl in a pipe]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    hmac: HmacOptions,
}

/// A request that is ready to be posted.
struct Prepared {
    headers: Vec<Header>,
    body: Bytes,
}

/// The body that is posted: what the default rules of a source read, where its scheme has them.
#[derive(Serialize)]
struct Body<'a> {
    /// Stripe's delivery id.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    /// Slack's delivery id.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<&'a str>,
    r#type: &'a str,
    /// Slack's event, which has the type.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Typed<'a>>,
    data: &'a RawValue,
}

#[derive(Serialize)]
struct Typed<'a> {
    r#type: &'a str,
}

impl<'a> Body<'a> {
    fn new(scheme: Scheme, id: &'a str, event_type: &'a str, data: &'a RawValue) -> Self {
        let body = Self { id: None, event_id: None, r#type: event_type, event: None, data };
        match scheme {
            Scheme::Stripe => Self { id: Some(id), ..body },
            Scheme::Slack => {
                Self { event_id: Some(id), r#type: "event_callback", event: Some(Typed { r#type: event_type }), ..body }
            }
            Scheme::Standard | Scheme::Github | Scheme::Shopify | Scheme::Hmac => body,
        }
    }
}

/// The receipt, as the gateway gave it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Accepted<'a> {
    event_id: &'a str,
    sequence_number: u64,
    workflow_id: &'a str,
    previous_event_id: Option<&'a str>,
    duplicate: bool,
}

pub(super) async fn run(args: SendArgs) -> Result<(), Failure> {
    check_gateway(&args.gateway)?;
    let workflow = args.workflow.clone();
    // The URL standard takes these two for steps in a path, however they are escaped.
    if let Some(dots @ ("." | "..")) = workflow.as_deref() {
        let problem =
            format!("--workflow {dots}: no URL can name it; let the source's workflow rule find it in the body");
        return Err(Failure::Usage(problem));
    }
    let (source, gateway, format) = (args.source.clone(), args.gateway.clone(), args.output);
    let Prepared { headers, body } = prepare(args)?;
    let sender = Sender::new(&gateway).map_err(Failure::Failed)?;
    let answer = sender.post(&source, workflow.as_deref(), &headers, body).await;
    let answer = answer.map_err(|error| {
        Failure::Unavailable(format!("no gateway answers at {gateway}: {}; is `weft up` running?", in_one_line(&error)))
    })?;
    match answer.receipt() {
        Some(receipt) => print(Format::or_default(format), &receipt),
        None => Err(refusal(&answer)),
    }
}

/// Checks that an address could be a gateway's.
pub(crate) fn check_gateway(gateway: &str) -> Result<(), Failure> {
    let url = reqwest::Url::parse(gateway).ok();
    if url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
        return Ok(());
    }
    Err(Failure::Usage(format!("--gateway {gateway:?} is not an address such as http://127.0.0.1:8080")))
}

/// Makes body, headers and signature.
fn prepare(args: SendArgs) -> Result<Prepared, Failure> {
    let now = jiff::Timestamp::now();
    let signing = Signing { hmac: args.hmac, ..Signing::new(args.scheme, secret(args.secret.expose())?) };
    let data = args.data.as_deref().map(|data| read_data("--data", data)).transpose()?;
    if let Some(data) = &data {
        serde_json::from_str::<&RawValue>(data)
            .map_err(|error| Failure::Usage(format!("--data is not JSON: {error}")))?;
    }
    let Some(provider) = args.provider else {
        if args.scheme != Scheme::Hmac {
            signing.hmac.check_absent(args.scheme).map_err(Failure::Usage)?;
        }
        let id = args.id.unwrap_or_else(|| format!("msg_{}", Uuid::now_v7().simple()));
        let event_type = args.event_type.unwrap_or_default();
        let data = data.unwrap_or_else(|| "{}".to_owned());
        let data = serde_json::from_str(&data).map_err(|error| Failure::of(&error))?;
        let body = serde_json::to_vec(&Body::new(args.scheme, &id, &event_type, data));
        let body = body.map_err(|error| Failure::of(&error))?;
        let headers = signing.headers(&id, now.as_second(), Some(&event_type), &body).map_err(Failure::Usage)?;
        return Ok(Prepared { headers, body: body.into() });
    };
    let signing = Signing { scheme: provider.scheme(), ..signing };
    signing.hmac.check_absent(signing.scheme).map_err(Failure::Usage)?;
    if data.is_some() && args.id.is_some() && !signing.scheme.id_in_header() {
        return Err(Failure::Usage("--id: this provider has the delivery id in the body; put it into --data".into()));
    }
    // A provider that repeats a delivery repeats its body, with the time that stands in it.
    let body_time = if args.id.is_some() { SAMPLE_TIME } else { now };
    let id = args.id.unwrap_or_else(|| provider.new_id());
    let event_type = args.event_type.unwrap_or_else(|| provider.type_default().to_owned());
    let body = data.unwrap_or_else(|| provider.sample(&id, &event_type, body_time));
    let signed = signing.headers(&id, now.as_second(), Some(&event_type), body.as_bytes()).map_err(Failure::Usage)?;
    Ok(Prepared { headers: provider.headers(signed, &id, now), body: body.into() })
}

/// The time in the sample body of a delivery whose id is given: 2026-01-01T00:00:00Z.
const SAMPLE_TIME: jiff::Timestamp = jiff::Timestamp::constant(1_767_225_600, 0);

fn print(format: Format, receipt: &Receipt) -> Result<(), Failure> {
    let accepted = Accepted {
        event_id: &receipt.event_id,
        sequence_number: receipt.sequence_number,
        workflow_id: &receipt.workflow_id,
        previous_event_id: receipt.previous_event_id.as_deref(),
        duplicate: receipt.duplicate,
    };
    output::one(format, &accepted, || {
        let how = if receipt.duplicate { "was accepted before" } else { "accepted" };
        format!("{how}: {} #{}, event {}", receipt.workflow_id, receipt.sequence_number, receipt.event_id)
    })
}

/// The failure, and so the exit code, for the gateway's problem.
fn refusal(answer: &Answer) -> Failure {
    let code = answer.code().unwrap_or_else(|| "no code".into());
    let detail = answer.detail().unwrap_or_else(|| "the answer is not of a gateway; see --gateway".into());
    let text = format!("{} {code}: {detail}", answer.status);
    match answer.status {
        404 => Failure::NotFound(text),
        429 | 503 => Failure::Unavailable(text),
        _ => Failure::Failed(text),
    }
}

//! `weft event send`: an event of one's own, signed and posted as a sender would.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;
use weft_nats::options::Secret;

use crate::{
    command::{
        output::{self, Format},
        read_data,
        sign::secret,
    },
    exit::{Failure, chain},
    sender::{Answer, HmacOptions, Receipt, Scheme, Sender, Signing},
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
    /// The event's type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: String,
    /// The event's data: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-", default_value = "{}")]
    data: String,
    /// The delivery id: the same id is the same event [default: a new one]
    #[arg(long)]
    id: Option<String>,
    /// By which rules the request is signed
    #[arg(long, value_enum, default_value_t = Scheme::Standard)]
    scheme: Scheme,
    /// The source's secret: env:NAME, file:PATH, or the secret itself
    #[arg(long, env = "WEFT_SECRET", hide_env_values = true)]
    secret: Secret,
    /// The gateway's address
    #[arg(long, env = "WEFT_GATEWAY", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    gateway: String,
    /// How to print [default: table on a terminal, jsonl in a pipe]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    hmac: HmacOptions,
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
    let data = read_data("--data", &args.data)?;
    let data: &RawValue =
        serde_json::from_str(&data).map_err(|error| Failure::Usage(format!("--data is not JSON: {error}")))?;
    let id = args.id.unwrap_or_else(|| format!("msg_{}", Uuid::now_v7().simple()));
    let body = Body::new(args.scheme, &id, &args.event_type, data);
    let body = serde_json::to_vec(&body).map_err(|error| Failure::of(&error))?;
    let signing = Signing { hmac: args.hmac, ..Signing::new(args.scheme, secret(args.secret.expose())?) };
    if args.scheme != Scheme::Hmac {
        signing.hmac.check_absent(args.scheme).map_err(Failure::Usage)?;
    }
    let now = jiff::Timestamp::now().as_second();
    let headers = signing.headers(&id, now, Some(&args.event_type), &body);
    let headers = headers.map_err(Failure::Usage)?;
    let sender = Sender::new(&args.gateway).map_err(Failure::Failed)?;
    let answer = sender.post(&args.source, args.workflow.as_deref(), &headers, Bytes::from(body)).await;
    let answer = answer.map_err(|error| {
        let gateway = &args.gateway;
        Failure::Unavailable(format!("no gateway answers at {gateway}: {}; is `weft up` running?", chain(&error)))
    })?;
    match answer.receipt() {
        Some(receipt) => print(Format::or_default(args.output), &receipt),
        None => Err(refusal(&answer)),
    }
}

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

/// What the gateway's problem means for the exit code.
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

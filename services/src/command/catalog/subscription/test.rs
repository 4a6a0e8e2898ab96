//! `weft subscription test`.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::value::RawValue;
use weft_proto::{v1, words::word};

use super::{CommonArgs, ReasonArgs, request_id};
use crate::{
    command::{output, read_data},
    failure::Failure,
};

/// `weft subscription test`.
#[derive(Debug, clap::Args)]
#[group(id = "tested", multiple = false, args = ["event", "file", "body"])]
pub struct TestArgs {
    /// The name
    name: String,
    /// A stored event [default: an example]
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// A file with an event as its envelope, JSON; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The example's data: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-")]
    body: Option<String>,
    /// Make the request
    #[arg(long)]
    send: bool,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// The fate of an event, and how its test delivery went.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tested {
    matched: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mismatch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transform_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Planned>,
    sent: bool,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    result: Option<Sent>,
}

/// The request that would be made.
#[derive(Debug, Serialize)]
struct Planned {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: String,
}

/// How a test delivery went.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sent {
    delivered: bool,
    outcome: &'static str,
    http_status: Option<u32>,
    message: String,
    duration_ms: u64,
}

pub(super) async fn run(args: TestArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let data = args.body.as_deref().map(|body| read_data("--body", body)).transpose()?.unwrap_or_default();
    let file = args.file.as_ref().map(|file| match file.to_str() {
        Some("-") => read_data("--file", "-"),
        _ => read_data("--file", &format!("@{}", file.display())),
    });
    let is_example = args.event.is_none() && args.file.is_none();
    let admin = args.common.admin.connect().await?;
    let request = v1::TestSubscriptionRequest {
        name: args.name.clone(),
        data: data.into_bytes(),
        reason: args.reason.reason,
        request_id: request_id(),
        event_id: args.event.unwrap_or_default(),
        event: file.transpose()?.unwrap_or_default().into_bytes(),
        send: args.send,
        draft: None,
    };
    let answer = admin.catalog().test_subscription(admin.request(request)).await;
    let tested = Tested::from(answer.map_err(|status| admin.failure(&status))?.into_inner());
    output::one(format, &tested, || tested.human())?;
    match tested.problem(is_example) {
        None => Ok(()),
        Some(problem) if tested.sent => {
            Err(Failure::Failed(format!("the test delivery to {} failed: {problem}", args.name)))
        }
        Some(problem) => Err(Failure::Failed(format!("{} would not be given the event: {problem}", args.name))),
    }
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<v1::TestSubscriptionResponse> for Tested {
    fn from(answer: v1::TestSubscriptionResponse) -> Self {
        let planned = answer.planned.unwrap_or_default();
        let data = String::from_utf8(planned.data).ok().and_then(|text| RawValue::from_string(text).ok());
        let request = planned.request.map(|request| Planned {
            method: request.method,
            target: request.target,
            headers: request.headers.into_iter().map(|header| (header.name, header.value)).collect(),
            body: String::from_utf8_lossy(&request.body).into_owned(),
        });
        let result = answer.sent.then_some(Sent {
            delivered: answer.delivered,
            outcome: word::<v1::AttemptClass>(answer.outcome),
            http_status: (answer.http_status != 0).then_some(answer.http_status),
            message: answer.message,
            duration_ms: answer.duration_ms,
        });
        Self {
            matched: answer.matched,
            mismatch: given(answer.mismatch),
            filter_error: given(answer.filter_error),
            transform_error: given(planned.transform_error),
            refused: given(planned.refused),
            data,
            request,
            sent: answer.sent,
            result,
        }
    }
}

impl Tested {
    /// Why the event was not delivered, or would not be. An example that does not match is not a problem.
    fn problem(&self, is_example: bool) -> Option<&str> {
        if let Some(result) = &self.result {
            return (!result.delivered).then_some(&result.message);
        }
        let mismatch = self.mismatch.as_ref().filter(|_| !is_example);
        let errors = [mismatch, self.filter_error.as_ref(), self.transform_error.as_ref(), self.refused.as_ref()];
        errors.into_iter().flatten().next().map(String::as_str)
    }

    fn human(&self) -> String {
        let mut lines = vec![match (&self.mismatch, &self.filter_error) {
            (Some(mismatch), _) => format!("not matched: {mismatch}"),
            (None, Some(error)) => format!("matched, and fails: filter: {error}"),
            (None, None) => "matched".to_owned(),
        }];
        lines.extend(self.transform_error.iter().cloned());
        lines.extend(self.refused.iter().map(|refused| format!("refused: {refused}")));
        if let Some(result) = &self.result {
            lines.push(format!("{} in {} ms: {}", result.outcome, result.duration_ms, result.message));
        } else if let Some(request) = &self.request {
            lines.push(String::new());
            lines.push(format!("{} {}", request.method, request.target));
            lines.extend(request.headers.iter().map(|(name, value)| format!("{name}: {value}")));
            lines.push(String::new());
            lines.push(request.body.clone());
            lines.push(String::new());
            lines.push("not sent; --send sends it".to_owned());
        }
        lines.join("\n")
    }
}

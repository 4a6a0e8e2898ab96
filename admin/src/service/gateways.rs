//! Requests to the gateways over NATS, one of which answers.

use std::time::Duration;

use prost::Message as _;
use weft_nats::{
    async_nats::{Request, client::RequestErrorKind},
    connect::Connection,
};
use weft_proto::v1::RetriedRejected;

/// Transient answers.
const TRANSIENT: [&str; 6] = ["log_unavailable", "log_full", "starting", "overloaded", "draining", "internal"];

/// Asks a gateway to take an event. The answer may be a refusal for good.
///
/// # Errors
///
/// A transient problem, as text.
pub(super) async fn ask(
    connection: &Connection,
    subject: &'static str,
    payload: Vec<u8>,
    timeout: Duration,
) -> Result<RetriedRejected, String> {
    // A disconnected client queues requests: this one would be answered after the caller has given up.
    if !connection.is_connected() {
        return Err("nats is not connected".into());
    }
    let request = Request::new().payload(payload.into()).timeout(Some(timeout));
    let answer = connection.client().send_request(subject, request).await.map_err(|error| match error.kind() {
        RequestErrorKind::NoResponders => "no gateway is available".to_owned(),
        _ => format!("no gateway answers: {error}"),
    })?;
    let answer = RetriedRejected::decode(answer.payload).map_err(|error| format!("a gateway answers {error}"))?;
    if TRANSIENT.contains(&answer.code.as_str()) {
        return Err(format!("{}: {}", answer.code, answer.detail));
    }
    Ok(answer)
}

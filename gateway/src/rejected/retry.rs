//! An entry of the inbox verified again, with today's secrets and rules, and taken if it passes now.
//!
//! The request comes over NATS from an admin and names an entry by its sequence; the entry is read from REJECTED, where
//! only gateways write. So a caller of the retry can submit only requests that a sender has sent. Everything is as for a
//! new request, except for its freshness: it was signed when it was sent.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use weft_nats::{
    connect::Connection,
    direct,
    subject::{REJECTED_STREAM, RETRY_SUBJECT},
};
use weft_proto::{
    ids::{EventId, StreamSeq},
    internal::RetryEntry,
    v1::Rejected,
};

use super::redact::REDACTED;
use weft_schemes::Freshness;

use crate::{
    http::error::{Code, Problem},
    http::state::Api,
    http::webhooks,
    requests,
    sequencer::{NewEvent, Receipt},
    sources::Source,
};

/// Prefix of webhook paths.
const WEBHOOKS: &str = "/api/v1/webhooks/";

/// Answers retries until `closing`.
pub async fn serve(api: Arc<Api>, connection: Connection, closing: CancellationToken) {
    let retry = |request: Bytes| {
        let sequence = RetryEntry::decode(request).map_or(0, |entry| entry.sequence);
        let (api, connection) = (Arc::clone(&api), connection.clone());
        async move { (sequence.to_string(), retry(&api, &connection, StreamSeq(sequence)).await) }
    };
    requests::serve(&connection, RETRY_SUBJECT, retry, closing).await;
}

/// Takes an entry now.
async fn retry(api: &Api, connection: &Connection, sequence: StreamSeq) -> Result<Receipt, Problem> {
    let unknown = || Problem::new(Code::NotFound, "no such refused request is kept");
    // To the server no sequence at all, and what a request that makes no sense names.
    if sequence == StreamSeq::default() {
        return Err(unknown());
    }
    let stored = direct::get(connection, REJECTED_STREAM, sequence).await.map_err(|error| {
        tracing::debug!(%error, "entry cannot be read");
        Problem::new(Code::LogUnavailable, "the inbox did not answer; retry again")
    })?;
    let stored = stored.ok_or_else(unknown)?;
    let entry = Rejected::decode(stored.payload).map_err(|_| unknown())?;
    let request = KeptRequest::of(&entry)?;
    let source = webhooks::source(api, &entry.source)?;
    let mut event = request.event(&source, api.bodies.depth_max()).await?;
    if event.delivery_id.is_none() {
        // The request has no id by which a repeat is recognised, so the entry is the id: retried twice, it is accepted once.
        let received = entry.received_at.unwrap_or_default();
        let entry = format!("rejected/{sequence}/{}.{:09}", received.seconds, received.nanos);
        event.id = EventId::of_delivery(&event.source, &entry);
    }
    let receipt = webhooks::submit(api, event).await?;
    webhooks::count(source.configured.name.clone(), &receipt);
    Ok(receipt)
}

/// The part of an entry that is verified and read again.
struct KeptRequest {
    workflow: Option<String>,
    headers: HeaderMap,
    body: Bytes,
    /// Whether a header's value is gone.
    header_redacted: bool,
}

impl KeptRequest {
    /// # Errors
    ///
    /// A [`Problem`] when it is not the whole request.
    fn of(entry: &Rejected) -> Result<Self, Problem> {
        let no_webhook = || Problem::new(Code::NotFound, "the request was not sent to a webhook; it cannot be retried");
        let workflow = workflow(&entry.path).ok_or_else(no_webhook)?;
        if entry.truncated {
            let detail = "only the beginning of the request was kept; its sender must send it again";
            return Err(Problem::new(Code::BodyTooLarge, detail));
        }
        if entry.redacted {
            let detail = "a secret stood in the request and was taken out; its sender must send it again";
            return Err(Problem::new(Code::MalformedBody, detail));
        }
        let headers = entry.headers.iter().filter_map(|header| {
            let name: HeaderName = header.name.parse().ok()?;
            Some((name, HeaderValue::from_bytes(header.value.as_bytes()).ok()?))
        });
        let mut kept = HeaderMap::new();
        headers.for_each(|(name, value)| {
            kept.append(name, value);
        });
        let header_redacted = entry.headers.iter().any(|header| header.value.contains(REDACTED));
        Ok(Self { workflow, headers: kept, body: Bytes::copy_from_slice(&entry.body), header_redacted })
    }

    /// The event that it stands for, by today's secrets and rules.
    ///
    /// # Errors
    ///
    /// A [`Problem`]: it is refused still.
    async fn event(&self, source: &Source, depth_max: usize) -> Result<NewEvent, Problem> {
        let (headers, body, now) = (&self.headers, &self.body, webhooks::now());
        let verified = source.verifier.verify_with(Freshness::Waived, headers, body, now);
        let verified = verified.map_err(|error| self.explain(error.into()))?;
        webhooks::event(source, self.workflow.as_deref(), headers, body, &verified, now, depth_max).await
    }

    /// Says so where a refusal may come from what was taken out.
    fn explain(&self, problem: Problem) -> Problem {
        if !self.header_redacted || problem.code().status() != http::StatusCode::UNAUTHORIZED {
            return problem;
        }
        let detail = format!("{}; values of some headers were not kept, see the entry", problem.detail());
        Problem::new(problem.code(), detail)
    }
}

/// The workflow that a webhook's path names; the outer `None` for any other path.
#[allow(clippy::option_option)]
fn workflow(path: &str) -> Option<Option<String>> {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let Some((_, workflow)) = path.strip_prefix(WEBHOOKS)?.split_once('/') else { return Some(None) };
    Some(Some(percent_decode_str(workflow).decode_utf8().ok()?.into_owned()))
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::RejectedHeader;

    use super::*;

    fn entry(path: &str) -> Rejected {
        Rejected { path: path.into(), ..Rejected::default() }
    }

    #[test]
    fn a_path_names_its_workflow_as_the_routes_read_it() {
        for (path, expected) in [
            ("/api/v1/webhooks/shop", Some(None)),
            ("/api/v1/webhooks/shop?a=/b", Some(None)),
            ("/api/v1/webhooks/shop/", Some(Some(""))),
            ("/api/v1/webhooks/shop/w%201%2F2?a", Some(Some("w 1/2"))),
            ("/api/v1/webhooks/shop/%FF", None),
            ("/api/v1/events", None),
        ] {
            assert_eq!(workflow(path).as_ref().map(Option::as_deref), expected, "{path}");
        }
    }

    /// An incomplete entry is not retried: it could only be refused for the wrong reason.
    #[test]
    fn an_entry_that_is_not_whole_is_refused() {
        let whole = entry("/api/v1/webhooks/shop");
        assert!(KeptRequest::of(&whole).is_ok());
        for (entry, code) in [
            (Rejected { truncated: true, ..whole.clone() }, Code::BodyTooLarge),
            (Rejected { redacted: true, ..whole.clone() }, Code::MalformedBody),
            (entry("/api/v1/events"), Code::NotFound),
        ] {
            assert_eq!(KeptRequest::of(&entry).err().map(|problem| problem.code()), Some(code));
        }
    }

    #[test]
    fn a_refusal_says_that_headers_are_gone() {
        let header = |name: &str, value: &str| RejectedHeader { name: name.into(), value: value.into() };
        let mut entry = entry("/api/v1/webhooks/shop");
        entry.headers = vec![header("a", "1"), header("a", "2"), header("authorization", REDACTED)];
        let request = KeptRequest::of(&entry).unwrap();
        assert_eq!(request.headers.get_all("a").iter().count(), 2);
        let explained = request.explain(Problem::new(Code::SignatureInvalid, "no"));
        assert!(explained.detail().contains("not kept"), "{}", explained.detail());
        assert_eq!(request.explain(Problem::new(Code::MissingType, "no")).detail(), "no");
    }
}

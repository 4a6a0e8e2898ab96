//! Export of traces: OTLP over HTTP with protobuf, to an OpenTelemetry collector.
//!
//! Spans are sent in batches. A collector that is away costs nothing but the spans: they are dropped and counted, and no
//! role waits.

use std::time::Duration;

use prost::Message as _;
use reqwest::{Client, header::CONTENT_TYPE};
use serde::Deserialize;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use weft_role::traces::{self, DROPPED, Span};

use crate::failure::Failure;

pub mod otlp;

/// Spans of one request.
const BATCH_SPANS: usize = 512;
/// Longest wait for a batch to fill.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// Longest time for a request.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that the end of the process waits for the last batches.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// `[traces]`: where spans are exported.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracesOptions {
    /// Base URL of an OTLP/HTTP collector; spans go to `<endpoint>/v1/traces`. None: nothing is traced.
    pub endpoint: Option<String>,
    /// The part of events without a sender's `traceparent` that is traced, from 0 to 1.
    pub sample: f64,
}

impl Default for TracesOptions {
    fn default() -> Self {
        Self { endpoint: None, sample: 1.0 }
    }
}

impl TracesOptions {
    /// Checks the values.
    ///
    /// # Errors
    ///
    /// The key and the problem.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if let Some(endpoint) = &self.endpoint {
            let url: Result<url::Url, _> = endpoint.parse();
            let is_http = url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            if !is_http {
                return Err(("endpoint", "is not a URL such as http://127.0.0.1:4318".into()));
            }
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(("sample", format!("{} is not a part from 0 to 1", self.sample)));
        }
        Ok(())
    }
}

/// An exporter that runs.
#[derive(Debug)]
pub struct Exporter {
    task: JoinHandle<()>,
    end: tokio_util::sync::CancellationToken,
}

impl Exporter {
    /// Exports the spans of this process from now on; `None`: it is not configured.
    ///
    /// # Errors
    ///
    /// One line: there is no HTTP client.
    pub fn start(options: &TracesOptions) -> Result<Option<Self>, Failure> {
        metrics::describe_counter!(DROPPED, "spans that were not exported");
        metrics::counter!(DROPPED).absolute(0);
        let Some(endpoint) = &options.endpoint else { return Ok(None) };
        let client = Client::builder().timeout(SEND_TIMEOUT).build().map_err(|error| Failure::of(&error))?;
        let Some(spans) = traces::export(options.sample) else { return Ok(None) };
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let end = tokio_util::sync::CancellationToken::new();
        let task = tokio::spawn(export(client, url, spans, end.clone()));
        Ok(Some(Self { task, end }))
    }

    /// Sends what is left.
    pub async fn stop(self) {
        self.end.cancel();
        // A collector that does not answer gets no more of them.
        let _ = timeout(END_TIMEOUT, self.task).await;
    }
}

async fn export(
    client: Client,
    url: String,
    mut spans: mpsc::Receiver<Span>,
    end: tokio_util::sync::CancellationToken,
) {
    let mut is_away = false;
    let shown = shown(&url);
    loop {
        let mut batch = Vec::new();
        let first = tokio::select! {
            first = spans.recv() => first,
            () = end.cancelled() => spans.try_recv().ok(),
        };
        let Some(first) = first else { return };
        batch.push(first);
        let fill = async {
            while batch.len() < BATCH_SPANS {
                let Some(span) = spans.recv().await else { break };
                batch.push(span);
            }
        };
        tokio::select! {
            // A full batch is not waited with.
            _ = timeout(BATCH_WAIT, fill) => {}
            () = end.cancelled() => {}
        }
        while batch.len() < BATCH_SPANS
            && let Ok(span) = spans.try_recv()
        {
            batch.push(span);
        }
        let count = batch.len() as u64;
        let sent = send(&client, &url, batch).await;
        if let Err(problem) = &sent {
            metrics::counter!(DROPPED).increment(count);
            if !is_away {
                tracing::warn!(
                    url = shown,
                    problem,
                    "spans cannot be exported; they are dropped until the collector is back"
                );
            }
        } else if is_away {
            tracing::info!(url = shown, "spans are exported again");
        }
        is_away = sent.is_err();
    }
}

/// A URL without what may be secret in it: user, password, query and fragment.
fn shown(url: &str) -> String {
    let Ok(mut url) = url.parse::<url::Url>() else { return String::new() };
    // Both fail only for URLs without a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

async fn send(client: &Client, url: &str, batch: Vec<Span>) -> Result<(), String> {
    let body = otlp::request(batch).encode_to_vec();
    let request = client.post(url).header(CONTENT_TYPE, "application/x-protobuf").body(body);
    // The error names the URL, which may hold a password.
    let response = request.send().await.map_err(|error| weft_nats::error_chain::in_one_line(&error.without_url()))?;
    if response.status().is_success() { Ok(()) } else { Err(format!("the collector answers {}", response.status())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A collector's URL may hold a password or a token: neither the log nor the problem shows them.
    #[tokio::test]
    async fn a_collectors_password_is_not_shown() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = "http://jane:hunter2@127.0.0.1:1/v1/traces?token=hunter3#hunter4";
        assert_eq!(shown(url), "http://127.0.0.1:1/v1/traces");
        let problem = send(&Client::new(), url, Vec::new()).await.unwrap_err();
        assert!(!problem.contains("hunter") && !problem.contains("jane"), "{problem}");
    }
}

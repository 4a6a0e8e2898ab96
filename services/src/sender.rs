//! A sender of webhooks: signs a body by one of the schemes and posts it.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

pub use sample::signed_sample;
pub use signing::{Encoding, Header, HmacOptions, Scheme, Signing};

mod sample;
mod signing;

/// How long a post may take: the gateway answers within its own deadline, 503 where the log does not.
const POST_TIMEOUT: Duration = Duration::from_secs(15);

/// An accepted event, as the gateway answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The event's id.
    pub event_id: String,
    /// Its number in its workflow.
    pub sequence_number: u64,
    /// Workflow of the event.
    pub workflow_id: String,
    /// The event before it.
    pub previous_event_id: Option<String>,
    /// Whether it had been accepted before.
    pub duplicate: bool,
}

/// The gateway's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Whether it says that it is the first answer again.
    pub replayed: bool,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The receipt, where the event was accepted.
    pub fn receipt(&self) -> Option<Receipt> {
        if !(200..300).contains(&self.status) {
            return None;
        }
        serde_json::from_slice(&self.body).ok()
    }

    /// The problem's code, where it was refused.
    pub fn code(&self) -> Option<String> {
        self.problem_field("code")
    }

    /// The problem in words, where it was refused.
    pub fn detail(&self) -> Option<String> {
        self.problem_field("detail")
    }

    fn problem_field(&self, name: &str) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        body.get(name)?.as_str().map(str::to_owned)
    }
}

/// Posts to one gateway. Cheap to clone; connections are reused.
#[derive(Debug, Clone)]
pub struct Sender {
    client: reqwest::Client,
    gateway: String,
}

impl Sender {
    /// Posts to the gateway at `gateway`, such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    ///
    /// No HTTP client can be created, for example without a TLS provider.
    pub fn new(gateway: &str) -> Result<Self, String> {
        let mut tls = weft_tls::client::client_config().map_err(|error| format!("no HTTP client: {error}"))?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            // A signed request is for the one that it was signed for.
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .timeout(POST_TIMEOUT)
            .build()
            .map_err(|error| format!("no HTTP client: {error}"))?;
        Ok(Self { client, gateway: gateway.trim_end_matches('/').to_owned() })
    }

    /// Posts a body to a source, and to a workflow where one is given.
    ///
    /// # Errors
    ///
    /// No answer came.
    pub async fn post(
        &self,
        source: &str,
        workflow: Option<&str>,
        headers: &[Header],
        body: Bytes,
    ) -> Result<Answer, reqwest::Error> {
        let mut url = format!("{}/api/v1/webhooks/{source}", self.gateway);
        if let Some(workflow) = workflow {
            url.push('/');
            url.extend(workflow.bytes().map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            }));
        }
        let mut request = self.client.post(url).header("content-type", "application/json").body(body);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let replayed = response.headers().get("idempotent-replayed").is_some_and(|value| value == "true");
        Ok(Answer { status, replayed, body: response.bytes().await? })
    }

    /// Signs a body as of now and posts it.
    ///
    /// # Errors
    ///
    /// The secret is not of the scheme's form, or no answer came.
    pub async fn send(
        &self,
        source: &str,
        workflow: Option<&str>,
        signing: &Signing,
        id: &str,
        event_type: Option<&str>,
        body: Bytes,
    ) -> Result<Answer, String> {
        let now = jiff::Timestamp::now().as_second();
        self.send_at(source, workflow, signing, id, event_type, body, now).await
    }

    /// As [`send`](Self::send), signed at `at`, in unix seconds.
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send).
    #[allow(clippy::too_many_arguments, reason = "what is signed, and where it goes")]
    pub async fn send_at(
        &self,
        source: &str,
        workflow: Option<&str>,
        signing: &Signing,
        id: &str,
        event_type: Option<&str>,
        body: Bytes,
        at: i64,
    ) -> Result<Answer, String> {
        let headers = signing.headers(id, at, event_type, &body)?;
        self.post(source, workflow, &headers, body)
            .await
            .map_err(|error| format!("no answer from the gateway: {error}"))
    }
}

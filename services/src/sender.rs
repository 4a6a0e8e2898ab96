//! A sender of webhooks: signs a body by one of the schemes and posts it.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::Sha256;

/// How long a post may take: the gateway answers within its own deadline, 503 where the log does not.
const POST_TIMEOUT: Duration = Duration::from_secs(15);

/// How a sender signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheme {
    /// Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`
    Standard,
    /// GitHub: `X-Hub-Signature-256`, with `X-GitHub-Delivery` and `X-GitHub-Event`
    Github,
    /// HMAC-SHA256 of the body as `sha256=<hex>` in `X-Signature`, the id in `X-Delivery-Id`
    Hmac,
}

/// What a request is signed with.
#[derive(Clone)]
pub struct Signing {
    /// By which rules.
    pub scheme: Scheme,
    /// With which secret: `whsec_…` for Standard Webhooks, the text itself for the others.
    pub secret: String,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.scheme)
    }
}

impl Signing {
    /// The headers of a request: `id` is the delivery id, `timestamp` unix seconds, `event_type` for the schemes that name
    /// it in a header.
    ///
    /// # Errors
    ///
    /// That the secret is not of the scheme's form.
    pub fn headers(
        &self,
        id: &str,
        timestamp: i64,
        event_type: Option<&str>,
        body: &[u8],
    ) -> Result<Vec<(&'static str, String)>, String> {
        let secret = self.secret.as_str();
        Ok(match self.scheme {
            Scheme::Standard => {
                let key = BASE64_STANDARD
                    .decode(secret.strip_prefix("whsec_").unwrap_or(secret))
                    .map_err(|_| "the secret is not whsec_ and base64".to_owned())?;
                let timestamp = timestamp.to_string();
                let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
                let signature = format!("v1,{}", BASE64_STANDARD.encode(hmac_sha256(&key, &parts)?));
                vec![("webhook-id", id.to_owned()), ("webhook-timestamp", timestamp), ("webhook-signature", signature)]
            }
            Scheme::Github => {
                let signature = format!("sha256={}", hex::encode(hmac_sha256(secret.as_bytes(), &[body])?));
                let mut headers = vec![("X-Hub-Signature-256", signature), ("X-GitHub-Delivery", id.to_owned())];
                headers.extend(event_type.map(|event_type| ("X-GitHub-Event", event_type.to_owned())));
                headers
            }
            Scheme::Hmac => {
                let signature = format!("sha256={}", hex::encode(hmac_sha256(secret.as_bytes(), &[body])?));
                vec![("X-Signature", signature), ("X-Delivery-Id", id.to_owned())]
            }
        })
    }
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Result<Vec<u8>, String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| "the secret is no key".to_owned())?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().to_vec())
}

/// An accepted event, as the gateway answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The event's id.
    pub event_id: String,
    /// Its number in its workflow.
    pub sequence_number: u64,
    /// Its workflow.
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
    /// That there can be no HTTP client, such as for want of a TLS provider.
    pub fn new(gateway: &str) -> Result<Self, String> {
        let client = reqwest::Client::builder()
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
    /// That no answer came.
    pub async fn post(
        &self,
        source: &str,
        workflow: Option<&str>,
        headers: &[(&'static str, String)],
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
            request = request.header(*name, value);
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
    /// That the secret is not of the scheme's form, or that no answer came.
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
        let headers = signing.headers(id, now, event_type, &body)?;
        self.post(source, workflow, &headers, body)
            .await
            .map_err(|error| format!("no answer from the gateway: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(signing: &Signing, id: &str, timestamp: i64, body: &[u8], name: &str) -> String {
        let headers = signing.headers(id, timestamp, Some("push"), body).unwrap();
        headers.into_iter().find(|(header, _)| *header == name).unwrap().1
    }

    #[test]
    fn signatures_are_the_schemes_vectors() {
        let standard = Signing { scheme: Scheme::Standard, secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into() };
        let body = br#"{"test": 2432232314}"#;
        assert_eq!(
            header(&standard, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body, "webhook-signature"),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        let github = Signing { scheme: Scheme::Github, secret: "It's a Secret to Everybody".into() };
        assert_eq!(
            header(&github, "guid", 0, b"Hello, World!", "X-Hub-Signature-256"),
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
        assert_eq!(header(&github, "guid", 0, b"", "X-GitHub-Delivery"), "guid");
        assert_eq!(header(&github, "guid", 0, b"", "X-GitHub-Event"), "push");
        // RFC 4231, case 2.
        let hmac = Signing { scheme: Scheme::Hmac, secret: "Jefe".into() };
        let body = b"what do ya want for nothing?";
        assert_eq!(
            header(&hmac, "evt-1", 0, body, "X-Signature"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(header(&hmac, "evt-1", 0, body, "X-Delivery-Id"), "evt-1");
    }

    #[test]
    fn a_secret_is_never_shown() {
        let signing = Signing { scheme: Scheme::Standard, secret: "whsec_not base64".into() };
        assert!(!format!("{signing:?}").contains("base64"));
        assert!(!signing.headers("a", 1, None, b"").unwrap_err().contains("not base64\""));
    }
}

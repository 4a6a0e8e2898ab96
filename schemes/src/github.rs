//! GitHub: `X-Hub-Signature-256: sha256=` and hex of HMAC-SHA256 over the body.
//!
//! Nothing but the body is signed: there is no timestamp, and the delivery id in `X-GitHub-Delivery` is GitHub's word
//! only: a captured request can be sent again under another id. The replay guard of the source recognises its
//! body for as long as ids are known. The older `X-Hub-Signature` with SHA-1 is
//! not looked at.

use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use weft_proto::v1::{GithubScheme, verification::Scheme};

use crate::{
    Form, IdLocation, Location, Verified, Verify, VerifyError, WebhookScheme,
    keys::{Keys, lower_hex},
    secrets::{Lookalike, check_literal},
    verify::required,
};

const SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");
static DELIVERY: [HeaderName; 1] = [HeaderName::from_static("x-github-delivery")];
static EVENT: [HeaderName; 1] = [HeaderName::from_static("x-github-event")];

pub(crate) const FORM: Form = Form {
    name: "github",
    keys: &["secrets"],
    build: |settings| Scheme::Github(GithubScheme { secrets: settings.secrets }),
};

/// A credential that is often taken for the secret.
const LOOKALIKE: Lookalike = Lookalike {
    prefixes: &["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"],
    is: "a token for GitHub's API",
    wanted: "the text of Secret in the webhook's settings",
};

impl WebhookScheme for GithubScheme {
    fn name(&self) -> &'static str {
        FORM.name
    }

    fn secrets(&self) -> Option<&Vec<String>> {
        Some(&self.secrets)
    }

    fn secrets_mut(&mut self) -> Option<&mut Vec<String>> {
        Some(&mut self.secrets)
    }

    fn check_secret(&self, text: &str) -> Result<(), String> {
        check_literal(text, |secret| LOOKALIKE.check(secret))
    }

    fn delivery_id(&self) -> Option<IdLocation> {
        Some(IdLocation::At(Location::Header(&DELIVERY)))
    }

    fn event_type(&self) -> Location {
        Location::Header(&EVENT)
    }

    fn replay_guard(&self) -> bool {
        true
    }

    fn receipt_on_id_reuse(&self) -> bool {
        true
    }

    fn compile(&self) -> Result<Box<dyn Verify>, String> {
        Ok(Box::new(Github { keys: Keys::new(&self.secrets)? }))
    }
}

#[derive(Debug)]
struct Github {
    keys: Keys,
}

impl Verify for Github {
    fn verify(&self, headers: &HeaderMap, body: &[u8], _: Timestamp) -> Result<Verified, VerifyError> {
        let signature = required(headers, &SIGNATURE)?;
        let tag = signature.strip_prefix("sha256=").and_then(lower_hex).ok_or(VerifyError::Invalid)?;
        let secret = self.keys.signer([body].into_iter(), &[tag]).ok_or(VerifyError::Invalid)?;
        Ok(Verified::signed(FORM.name, secret, None, None))
    }
}

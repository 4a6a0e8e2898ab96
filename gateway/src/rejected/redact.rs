//! Redaction of a refused request before it is kept. Pure.
//!
//! - Values of headers that carry credentials: those in [`CREDENTIAL_HEADERS`], and any whose name contains one of
//!   [`SECRET_WORDS`], except the headers that the source's scheme signs with: they prove a secret without revealing it.
//! - Values of query parameters whose name holds one of [`SECRET_WORDS`] or [`QUERY_WORDS`]. Neither a scheme nor a rule of
//!   a source reads the query, so nothing that a retry needs is lost.
//! - Anywhere in the request, including the body: a secret of any source, as it is configured, percent-encoded, or in JSON
//!   with escaped slashes; and any text that looks like an API key of the mesh.

use std::{borrow::Cow, ops::Range};

use aho_corasick::{AhoCorasick, BuildError, Input, MatchKind, PatternID};
use http::{HeaderName, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use weft_proto::v1::{Source, verification::Scheme};
use weft_schemes::spelling;

use super::RequestOrigin;

/// Replacement of removed text.
pub const REDACTED: &str = "[redacted]";

/// Headers whose value is a credential.
const CREDENTIAL_HEADERS: [&str; 5] = ["authorization", "cookie", "set-cookie", "x-api-key", "proxy-authorization"];
/// Parts of names that carry a secret, in headers and queries.
const SECRET_WORDS: [&str; 9] =
    ["token", "secret", "password", "passwd", "credential", "api-key", "apikey", "api_key", "access-key"];
/// Parts of names that carry a secret in queries, where there is no scheme that would sign by them.
const QUERY_WORDS: [&str; 4] = ["key", "sig", "auth", "code"];
/// The shortest secret that is looked for, in bytes: shorter ones are refused where sources are configured.
const SECRET_BYTES_MIN: usize = 8;
/// Prefix of API keys of the mesh.
const KEY_PREFIX: &str = "weft_";
/// The fewest characters of an API key behind its prefix: less is an ordinary word.
const KEY_CHARS_MIN: usize = 16;

/// The secrets of all sources, compiled so that a text is searched once, for any number of secrets. A request to one
/// source may contain the secret of another.
pub(super) struct Secrets(AhoCorasick);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} forms of secrets", self.0.patterns_len())
    }
}

impl Secrets {
    /// # Errors
    ///
    /// [`BuildError`]: there are more than can be searched for, some gigabytes.
    pub fn of<'s>(sources: impl IntoIterator<Item = &'s Source>) -> Result<Self, BuildError> {
        let secrets = sources.into_iter().flat_map(|source| secrets(scheme(source)));
        let spelled = secrets.flat_map(|secret| spelling::standard(secret).chain(spelling::literal(secret)));
        let forms = std::iter::once(KEY_PREFIX.as_bytes().to_vec()).chain(spelled.flat_map(forms));
        AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(forms).map(Self)
    }

    /// Where the first secret at or behind `from` stands.
    fn find(&self, bytes: &[u8], mut from: usize) -> Option<Range<usize>> {
        loop {
            let found = self.0.find(Input::new(bytes).range(from..))?;
            let key = key_length(&bytes[found.start()..]);
            if found.pattern() != PatternID::ZERO || key > 0 {
                return Some(found.start()..found.end().max(found.start() + key));
            }
            // Only the prefix of a key, in an ordinary word.
            from = found.start() + 1;
        }
    }
}

/// Takes out what a request must not show.
#[derive(Debug)]
pub(super) struct Redactor<'s> {
    secrets: &'s Secrets,
    /// Names of the headers that the source's scheme signs with, as they are configured.
    signed: Vec<&'s str>,
}

impl<'s> Redactor<'s> {
    pub fn new(to: RequestOrigin<'s>, secrets: &'s Secrets) -> Self {
        let scheme = match to {
            RequestOrigin::Source(source) => scheme(source),
            RequestOrigin::Events => None,
        };
        let signed = scheme.map_or_else(Vec::new, |scheme| weft_schemes::of(scheme).signing_headers());
        Self { secrets, signed }
    }

    /// A header's value as it is kept.
    pub fn header(&self, name: &HeaderName, value: &HeaderValue) -> String {
        let name = name.as_str();
        let signs = || self.signed.iter().any(|signed| signed.eq_ignore_ascii_case(name));
        if CREDENTIAL_HEADERS.contains(&name) || (holds_any(name, &SECRET_WORDS) && !signs()) {
            return REDACTED.to_owned();
        }
        self.text(&String::from_utf8_lossy(value.as_bytes()))
    }

    /// Path and query as they are kept, and whether something is gone from the path, which a retry would need.
    pub fn path(&self, target: &str) -> (String, bool) {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let segments: Vec<_> = path.split('/').map(|segment| self.encoded(segment)).collect();
        let redacted = segments.iter().any(|segment| matches!(segment, Cow::Owned(_)));
        let mut kept = segments.join("/");
        if let Some(query) = query {
            kept.push('?');
            kept.push_str(&query.split('&').map(|parameter| self.parameter(parameter)).collect::<Vec<_>>().join("&"));
        }
        (kept, redacted)
    }

    fn parameter(&self, parameter: &str) -> String {
        let Some((name, value)) = parameter.split_once('=') else { return self.encoded(parameter).into_owned() };
        let plain = percent_decode_str(name).decode_utf8_lossy().to_ascii_lowercase();
        let secret = holds_any(&plain, &SECRET_WORDS) || holds_any(&plain, &QUERY_WORDS);
        let value = if secret { Cow::Borrowed(REDACTED) } else { self.encoded(value) };
        format!("{}={value}", self.encoded(name))
    }

    /// A part of a URL: gone as a whole when it holds a secret, encoded or not.
    fn encoded<'t>(&self, part: &'t str) -> Cow<'t, str> {
        let plain: Cow<'_, [u8]> = percent_decode_str(part).into();
        if self.scrub(&plain).or_else(|| self.scrub(part.as_bytes())).is_some() {
            Cow::Owned(REDACTED.to_owned())
        } else {
            Cow::Borrowed(part)
        }
    }

    /// A text without the secrets in it.
    pub fn text(&self, text: &str) -> String {
        match self.scrub(text.as_bytes()) {
            // Secrets are texts: what is left is one, too, unless a secret stood within a character's bytes.
            Some(scrubbed) => String::from_utf8_lossy(&scrubbed).into_owned(),
            None => text.to_owned(),
        }
    }

    /// Bytes without the secrets in them; `None` when there are none.
    pub fn scrub(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut scrubbed = Vec::new();
        let mut copied = 0;
        while let Some(found) = self.secrets.find(bytes, copied) {
            scrubbed.extend_from_slice(&bytes[copied..found.start]);
            scrubbed.extend_from_slice(REDACTED.as_bytes());
            copied = found.end;
        }
        (copied > 0).then(|| {
            scrubbed.extend_from_slice(&bytes[copied..]);
            scrubbed
        })
    }
}

fn secrets(scheme: Option<&Scheme>) -> &[String] {
    scheme.and_then(|scheme| weft_schemes::of(scheme).secrets()).map_or(&[], Vec::as_slice)
}

fn scheme(source: &Source) -> Option<&Scheme> {
    source.verification.as_ref()?.scheme.as_ref()
}

/// A secret as it may stand in a request: without what goes around it, as it is and encoded.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let core = secret.strip_prefix("whsec_").unwrap_or(secret).trim_end_matches('=');
    let mut forms =
        vec![core.to_owned(), utf8_percent_encode(core, NON_ALPHANUMERIC).to_string(), core.replace('/', "\\/")];
    // A shorter form is an ordinary word of other requests, and its removal would reveal it.
    forms.retain(|form| form.len() >= SECRET_BYTES_MIN);
    forms.dedup();
    forms.into_iter().map(String::into_bytes).collect()
}

/// The length of the API key that these bytes begin with; 0 for none.
fn key_length(bytes: &[u8]) -> usize {
    let Some(rest) = bytes.strip_prefix(KEY_PREFIX.as_bytes()) else { return 0 };
    let chars = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')).count();
    if chars < KEY_CHARS_MIN { 0 } else { KEY_PREFIX.len() + chars }
}

fn holds_any(name: &str, words: &[&str]) -> bool {
    words.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_proto::v1::{GithubScheme, HmacScheme, StandardScheme, Verification};

    use super::*;

    const SECRET: &str = "whsec_c2VjcmV0L3NlY3JldCtzZWNyZXQ=";
    const CORE: &str = "c2VjcmV0L3NlY3JldCtzZWNyZXQ";
    const KEY: &str = "weft_ab12cd34_0123456789abcdef0123456789abcdef";

    fn source(scheme: Scheme) -> Source {
        Source { verification: Some(Verification { scheme: Some(scheme) }), ..Source::default() }
    }

    fn standard() -> Source {
        source(Scheme::Standard(StandardScheme { secrets: vec![SECRET.into()], tolerance_ms: None }))
    }

    fn secrets(source: &Source) -> Secrets {
        Secrets::of([source]).unwrap()
    }

    fn header(redactor: &Redactor<'_>, name: &'static str, value: &str) -> String {
        redactor.header(&HeaderName::from_static(name), &HeaderValue::from_str(value).unwrap())
    }

    #[test]
    fn credentials_in_headers_are_gone_and_signatures_stay() {
        let source = standard();
        let secrets = secrets(&source);
        let redactor = Redactor::new(RequestOrigin::Source(&source), &secrets);
        for name in ["authorization", "cookie", "x-api-key", "proxy-authorization", "x-gitlab-token", "x-app-secret"] {
            assert_eq!(header(&redactor, name, "anything"), REDACTED, "{name}");
        }
        for (name, value) in [("webhook-signature", "v1,abc="), ("x-hub-signature-256", "sha256=00"), ("accept", "*/*")]
        {
            assert_eq!(header(&redactor, name, value), value);
        }
        assert_eq!(header(&redactor, "webhook-signature", &format!("v1,{SECRET}")), "v1,whsec_[redacted]=");
        assert_eq!(header(&redactor, "x-anything", &format!("k={KEY};")), "k=[redacted];");
    }

    /// A scheme may sign by a header whose name sounds like a secret's; a credential's header stays one.
    #[test]
    fn the_headers_of_a_scheme_are_kept() {
        let hmac = |header: &str| {
            let secrets = vec!["hush, hush".into()];
            source(Scheme::Hmac(HmacScheme { secrets, header: header.into(), ..HmacScheme::default() }))
        };
        let signs = hmac("X-Shop-Token");
        let secrets = secrets(&signs);
        let redactor = Redactor::new(RequestOrigin::Source(&signs), &secrets);
        assert_eq!(header(&redactor, "x-shop-token", "00ff"), "00ff");
        assert_eq!(header(&redactor, "x-shop-token", "hush, hush"), REDACTED);
        let signs = hmac("Authorization");
        assert_eq!(header(&Redactor::new(RequestOrigin::Source(&signs), &secrets), "authorization", "00ff"), REDACTED);
    }

    /// A secret that is an ordinary word of all requests is not removed from them: the removal would reveal it.
    #[test]
    fn short_secrets_are_not_told_by_what_is_missing() {
        let short = source(Scheme::Github(GithubScheme { secrets: vec!["on".into(), "a".into()] }));
        let secrets = secrets(&short);
        let redactor = Redactor::new(RequestOrigin::Events, &secrets);
        assert_eq!(redactor.text("the signature of application/json"), "the signature of application/json");
    }

    #[test]
    fn queries_lose_what_is_named_like_a_secret_and_paths_what_is_one() {
        let source = standard();
        let secrets = secrets(&source);
        let redactor = Redactor::new(RequestOrigin::Source(&source), &secrets);
        let encoded = utf8_percent_encode(CORE, NON_ALPHANUMERIC).to_string();
        for (target, kept, redacted) in [
            ("/shop/w?try=2&a", "/shop/w?try=2&a", false),
            ("/shop/w?access_token=a&Api%4Bey=b", "/shop/w?access_token=[redacted]&Api%4Bey=[redacted]", false),
            ("/shop/w?sig=a&x=b%20c", "/shop/w?sig=[redacted]&x=b%20c", false),
            (&format!("/shop/w?x={encoded}"), "/shop/w?x=[redacted]", false),
            (&format!("/shop/w?{KEY}"), "/shop/w?[redacted]", false),
            (&format!("/shop/{encoded}"), "/shop/[redacted]", true),
            (&format!("/shop/{KEY}?"), "/shop/[redacted]?", true),
        ] {
            assert_eq!(redactor.path(target), (kept.to_owned(), redacted));
        }
    }

    #[test]
    fn bodies_lose_secrets_however_they_are_written() {
        let source = standard();
        let secrets = secrets(&source);
        let redactor = Redactor::new(RequestOrigin::Source(&source), &secrets);
        for written in [
            SECRET.to_owned(),
            CORE.to_owned(),
            CORE.replace('/', "\\/"),
            utf8_percent_encode(CORE, NON_ALPHANUMERIC).to_string(),
            KEY.to_owned(),
        ] {
            let body = format!("{{\"a\":\"{written}\",\"b\":\"{written}\"}}");
            let scrubbed = String::from_utf8(redactor.scrub(body.as_bytes()).unwrap()).unwrap();
            assert!(!scrubbed.contains(&written) && scrubbed.matches(REDACTED).count() == 2, "{scrubbed}");
        }
        assert_eq!(redactor.scrub(b"weft_ is a word, weft_gateway_0 a name"), None);
        assert!(!format!("{redactor:?}").contains("c2Vj"));
    }

    proptest! {
        /// Wherever a secret stands, it does not come through, and what is around it does.
        #[test]
        fn no_secret_survives(before in "[ -~]{0,40}", after in "[ -~]{0,40}") {
            let secrets = secrets(&standard());
            let redactor = Redactor::new(RequestOrigin::Events, &secrets);
            let scrubbed = redactor.text(&format!("{before}{CORE}{after}"));
            prop_assert!(!scrubbed.contains(CORE));
            prop_assert!(scrubbed.contains(REDACTED));
        }
    }
}

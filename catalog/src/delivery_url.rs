//! The URL of an HTTP destination. Saving, testing and delivering use this type, so a URL that is saved can be called.
//!
//! The WHATWG parser of the `url` crate decides, as in browsers and most HTTP clients, so a host that hides an IP address
//! (`0x7f.1`, `%31%30.0.0.1`) is that address here too. Spellings that this parser would repair silently are refused.

use std::fmt;

use http::Uri;
use url::{Host, ParseError, Position, Url};

/// Stands for a value that is hidden.
const REDACTED: &str = "[redacted]";
/// The longest host name (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 253;
/// The longest label of a host name.
const LABEL_BYTES_MAX: usize = 63;

/// An absolute `http` or `https` URL with a host, without credentials. `Debug` hides the values of the query.
#[derive(Clone, PartialEq, Eq)]
pub struct DeliveryUrl {
    url: Url,
    uri: Uri,
}

/// A URL that cannot be a destination. No text repeats the query or credentials, which may be secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// Another scheme, or none.
    #[error("url begins with neither https:// nor http://")]
    Scheme,
    /// User or password.
    #[error("url holds a user or password; deliveries are signed instead")]
    Credentials,
    /// No host.
    #[error("url {url:?} has no host")]
    NoHost {
        /// Without its query.
        url: String,
    },
    /// Spaces, control characters, backslashes, or non-ASCII characters after the host.
    #[error(
        "url {url:?} holds a space, a control character, a backslash or a character that is not ASCII; percent-encode it"
    )]
    Characters {
        /// Without its query.
        url: String,
    },
    /// A host that is not ASCII.
    #[error("url {url:?} has a host that is not ASCII; write it as {ascii}")]
    NotAscii {
        /// Without its query.
        url: String,
        /// The host in Punycode.
        ascii: String,
    },
    /// A zone id, which names an interface of one machine.
    #[error("url {url:?} has an IPv6 address with a zone id; use a host name or an address without it")]
    ZoneId {
        /// Without its query.
        url: String,
    },
    /// A host name that no resolver or TLS library takes.
    #[error("url {url:?} has a host that is not a valid DNS name")]
    Name {
        /// Without its query.
        url: String,
    },
    /// Port 0 cannot be connected to.
    #[error("url {url:?} has port 0")]
    PortZero {
        /// Without its query.
        url: String,
    },
    /// The parser's own reason.
    #[error("url {url:?}: {reason}")]
    Parse {
        /// Without its query.
        url: String,
        /// From the parser.
        reason: String,
    },
}

impl DeliveryUrl {
    /// Parses a URL.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`].
    pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidUrl::Scheme)?;
        if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err(InvalidUrl::Scheme);
        }
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(InvalidUrl::Credentials);
        }
        let shown = || without_query(text);
        if authority.is_empty() {
            return Err(InvalidUrl::NoHost { url: shown() });
        }
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        if !plain(path) || authority.bytes().any(|byte| byte.is_ascii() && !byte.is_ascii_graphic()) {
            return Err(InvalidUrl::Characters { url: shown() });
        }
        if authority.starts_with('[') && authority.contains('%') {
            return Err(InvalidUrl::ZoneId { url: shown() });
        }
        if !authority.starts_with('[') && authority.matches(':').count() > 1 {
            let reason = "an IPv6 address must be written in brackets".into();
            return Err(InvalidUrl::Parse { url: shown(), reason });
        }
        let url = Url::parse(text).map_err(|error| InvalidUrl::parse_error(error, shown()))?;
        if !authority.is_ascii() {
            let ascii = url.host_str().unwrap_or_default().to_owned();
            return Err(InvalidUrl::NotAscii { url: shown(), ascii });
        }
        if url.port() == Some(0) {
            return Err(InvalidUrl::PortZero { url: shown() });
        }
        match url.host() {
            None => return Err(InvalidUrl::NoHost { url: shown() }),
            Some(Host::Domain(name)) if !is_dns_name(name) => return Err(InvalidUrl::Name { url: shown() }),
            Some(_) => {}
        }
        // The form in which the client sends it, without the fragment.
        match url[..Position::AfterQuery].parse() {
            Ok(uri) => Ok(Self { url, uri }),
            Err(error) => Err(InvalidUrl::Parse { url: shown(), reason: error.to_string() }),
        }
    }

    /// The URI to request, without a fragment.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Its host; a name is in lower case and Punycode.
    pub fn host(&self) -> Option<Host<&str>> {
        self.url.host()
    }

    /// Its port, also the default one of its scheme.
    pub fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or_default()
    }

    /// Host and port, for messages: path and query may be secret.
    pub fn authority(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

impl fmt::Debug for DeliveryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeliveryUrl").field(&without_query(self.url.as_str())).finish()
    }
}

impl InvalidUrl {
    fn parse_error(error: ParseError, url: String) -> Self {
        match error {
            ParseError::EmptyHost => Self::NoHost { url },
            ParseError::IdnaError => Self::Name { url },
            error => Self::Parse { url, reason: error.to_string() },
        }
    }
}

/// A URL as it may be shown to callers who may not see secrets: the values of its query are hidden, and its fragment.
pub fn redact_query(url: &str) -> String {
    let (rest, fragment) = url.split_once('#').map_or((url, None), |(rest, fragment)| (rest, Some(fragment)));
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let mut shown = path.to_owned();
    if let Some(query) = query {
        let parameter = |parameter: &str| match parameter.split_once('=') {
            _ if parameter.is_empty() => String::new(),
            Some((name, _)) => format!("{name}={REDACTED}"),
            None => REDACTED.into(),
        };
        shown.push('?');
        shown.push_str(&query.split('&').map(parameter).collect::<Vec<_>>().join("&"));
    }
    if fragment.is_some_and(|fragment| !fragment.is_empty()) {
        shown.push('#');
        shown.push_str(REDACTED);
    }
    shown
}

/// The URL up to its query or fragment.
fn without_query(text: &str) -> String {
    match text.find(['?', '#']) {
        Some(end) => format!("{}…", &text[..=end]),
        None => text.to_owned(),
    }
}

/// Whether resolvers and TLS take a name: letters, digits, hyphens and underscores in labels of the allowed length.
fn is_dns_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_that_can_be_delivered_to_are_parsed() {
        for (text, uri, authority) in [
            ("https://a.example/hook?b=c&d", "https://a.example/hook?b=c&d", "a.example:443"),
            ("HTTP://LOCALHOST:9/H", "http://localhost:9/H", "localhost:9"),
            ("http://a", "http://a/", "a:80"),
            ("http://a?b", "http://a/?b", "a:80"),
            ("https://a.example./x#fragment", "https://a.example./x", "a.example.:443"),
            ("https://a_b.example/", "https://a_b.example/", "a_b.example:443"),
            ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/", "xn--bcher-kva.example:443"),
            ("https://[::1]:8443/a", "https://[::1]:8443/a", "[::1]:8443"),
            ("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "[::ffff:7f00:1]:80"),
            ("http://0x7f.1/", "http://127.0.0.1/", "127.0.0.1:80"),
            ("http://2130706433/", "http://127.0.0.1/", "127.0.0.1:80"),
            ("http://012.0.0.1/", "http://10.0.0.1/", "10.0.0.1:80"),
            ("http://%31%30.0.0.1/", "http://10.0.0.1/", "10.0.0.1:80"),
            ("http://169.254.169.254./", "http://169.254.169.254/", "169.254.169.254:80"),
            ("http://a.example/a/../b", "http://a.example/b", "a.example:80"),
            ("http://a.example/%zz?x={y}|'z'", "http://a.example/%zz?x={y}|%27z%27", "a.example:80"),
            ("https://a.example:443/", "https://a.example/", "a.example:443"),
        ] {
            let url = DeliveryUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((url.uri().to_string().as_str(), url.authority().as_str()), (uri, authority), "{text}");
        }
    }

    #[test]
    fn urls_that_cannot_be_delivered_to_are_refused_with_the_reason() {
        let long = format!("http://{}/", "a".repeat(64));
        let longer = format!("http://{}example/", "a.".repeat(130));
        let longest = format!("http://a/{}", "a".repeat(70_000));
        for (text, reason) in [
            ("ftp://a/", "neither https:// nor http://"),
            ("a.example/hook", "neither"),
            (" http://a/", "neither"),
            ("http:a/", "neither"),
            ("", "neither"),
            ("https://", "no host"),
            ("https:///x", "no host"),
            ("https://?x", "no host"),
            ("https://:80/", "no host"),
            ("http://u:p@a/", "user or password"),
            ("http://@a/", "user or password"),
            ("http://a/ b", "percent-encode"),
            ("http://a b/", "percent-encode"),
            ("http://a/\tb", "percent-encode"),
            ("http://a\n/", "percent-encode"),
            ("http://a\\b/", "percent-encode"),
            ("http://a/b\\c", "percent-encode"),
            ("http://a/é", "percent-encode"),
            ("http://a/?é", "percent-encode"),
            ("https://bücher.example/x", "write it as xn--bcher-kva.example"),
            ("http://１２７.0.0.1/", "write it as 127.0.0.1"),
            ("http://[fe80::1%25eth0]/h", "zone id"),
            ("http://[fe80::1%eth0]/h", "zone id"),
            ("http://::1/h", "in brackets"),
            ("http://fe80::1:80/h", "in brackets"),
            ("http://[::1/h", "invalid IPv6 address"),
            ("http://[::g]/h", "invalid IPv6 address"),
            ("http://[v1.x]/h", "invalid IPv6 address"),
            ("http://999.1.1.1/", "invalid IPv4 address"),
            ("http://1.2.3.4.5/", "invalid IPv4 address"),
            ("http://4294967296/", "invalid IPv4 address"),
            ("http://a.example.09/", "invalid IPv4 address"),
            ("http://a:65536/", "invalid port number"),
            ("http://a:x/", "invalid port number"),
            ("http://a:-1/", "invalid port number"),
            ("http://a:0/", "port 0"),
            ("https://a:00/", "port 0"),
            ("http://a..b/", "not a valid DNS name"),
            ("http://-a/", "not a valid DNS name"),
            ("http://a-.b/", "not a valid DNS name"),
            ("http://a*b/", "not a valid DNS name"),
            ("http://a%20b/", "url "),
            ("http://a%00b/", "url "),
            ("http://a<b/", "url "),
            (&long, "not a valid DNS name"),
            (&longer, "not a valid DNS name"),
            (&longest, "long"),
        ] {
            let refused = DeliveryUrl::parse(text).map(|url| url.uri().clone());
            let error = refused.expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        /// The request goes to what was judged: the URI, parsed again, is the same.
        #[test]
        fn a_uri_is_parsed_as_its_url(text in "(https?|HTTP)://[ -~ü１]{0,20}(/[ -~é]{0,20})?") {
            prop_assert_eq!(redact_query(&redact_query(&text)), redact_query(&text));
            if let Ok(url) = DeliveryUrl::parse(&text) {
                let again = DeliveryUrl::parse(&url.uri().to_string()).unwrap();
                prop_assert_eq!((again.uri(), again.host(), again.port()), (url.uri(), url.host(), url.port()));
            }
        }
    }

    #[test]
    fn values_of_a_query_are_hidden_and_its_names_shown() {
        for (url, shown) in [
            ("https://a/b", "https://a/b"),
            ("https://a/b?", "https://a/b?"),
            ("https://a/b?token=s3&x=&y", "https://a/b?token=[redacted]&x=[redacted]&[redacted]"),
            ("https://a?a=b=c&&d=e?f#g?h", "https://a?a=[redacted]&&d=[redacted]#[redacted]"),
        ] {
            assert_eq!(redact_query(url), shown);
        }
    }

    #[test]
    fn messages_repeat_neither_query_nor_password() {
        for text in ["http://a:0/?token=hunter2", "http://u:hunter2@a/", "http://a/ ?hunter2", "http://a..b/#hunter2"] {
            let error = DeliveryUrl::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let url = DeliveryUrl::parse("http://a/?token=hunter2").unwrap();
        assert!(!format!("{url:?}").contains("hunter2"));
    }
}

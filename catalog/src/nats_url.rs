//! The URL of a NATS destination: `nats://host:port` or `tls://host:port`.

use url::{Host, Url};

/// The port that NATS servers listen on.
const PORT: u16 = 4222;

/// One server. Several would be the members of a cluster, which have a name in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsUrl {
    host: Host<String>,
    port: u16,
    tls: bool,
}

impl NatsUrl {
    /// Parses a URL.
    ///
    /// # Errors
    ///
    /// The problem, in one line, which repeats no user and no password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("url begins with neither nats:// nor tls://")?;
        let tls = match scheme {
            "nats" => false,
            "tls" => true,
            _ => return Err("url begins with neither nats:// nor tls://".into()),
        };
        if rest.contains('@') {
            return Err("url holds a user or password; put them into a credentials file, and that into creds".into());
        }
        if rest.contains(',') {
            return Err("url names several servers; use one name that resolves to all of them".into());
        }
        // As a scheme that is special, so that the host is parsed as in every other URL.
        let url = Url::parse(&format!("http://{rest}")).map_err(|error| format!("url {text:?}: {error}"))?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("url {text:?} has more than a host and a port"));
        }
        let host = url.host().ok_or_else(|| format!("url {text:?} has no host"))?.to_owned();
        // The parser leaves out port 80, the default of the scheme that it was given.
        let port = if rest.trim_end_matches('/').ends_with(":80") { 80 } else { url.port().unwrap_or(PORT) };
        if port == 0 {
            return Err(format!("url {text:?} has port 0"));
        }
        Ok(Self { host, port, tls })
    }

    /// Host of the server.
    pub fn host(&self) -> &Host<String> {
        &self.host
    }

    /// Port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the connection must be encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Host and port, for messages.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_one_server_are_parsed_and_others_refused() {
        for (text, authority, tls) in [
            ("nats://a.example", "a.example:4222", false),
            ("nats://a.example:80", "a.example:80", false),
            ("tls://A.example:4443/", "a.example:4443", true),
            ("nats://127.1:1", "127.0.0.1:1", false),
            ("nats://[::1]:1", "[::1]:1", false),
        ] {
            let url = NatsUrl::parse(text).unwrap_or_else(|problem| panic!("{text}: {problem}"));
            assert_eq!((url.authority().as_str(), url.is_tls()), (authority, tls), "{text}");
        }
        for text in ["", "a:4222", "http://a", "nats://", "nats://a/b", "nats://a?b", "nats://a:0", "nats://a,nats://b"]
        {
            assert!(NatsUrl::parse(text).is_err(), "{text}");
        }
        let problem = NatsUrl::parse("nats://u:hunter2@a").unwrap_err();
        assert!(problem.contains("creds") && !problem.contains("hunter2"));
    }
}

//! Connection strings of libpq, as a URI or as `key=value` pairs. Pure.
//!
//! `sslmode` and `sslrootcert` are read here, since the client library knows only some of their values; everything else is
//! left to it. What cannot be honoured is an error that names it.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr as _};

use percent_encoding::percent_decode_str;
use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};

/// Default port of PostgreSQL.
const PORT: u16 = 5432;

/// How the certificate of a server is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verification {
    /// Not at all: `sslmode` is `prefer`, or `require` without `sslrootcert`, as in libpq.
    Off,
    /// It is signed by a trusted authority: `verify-ca`, or `require` with `sslrootcert`.
    Authority,
    /// And it is that of the host: `verify-full`.
    Host,
}

/// A host of a connection string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Name or address, as configured: what a certificate is compared with.
    pub host: String,
    /// Address that is connected to, where the name is not to be resolved.
    pub ip: Option<IpAddr>,
    pub port: u16,
}

/// A database.
#[derive(Clone)]
pub(super) struct Dsn {
    pub config: Config,
    /// Tried in order.
    pub addresses: Vec<Address>,
    pub verification: Verification,
    /// File of the trusted authorities; `None`: those of the system.
    pub root_certificates: Option<PathBuf>,
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({})", self.name())
    }
}

impl Dsn {
    /// Parses a connection string.
    ///
    /// # Errors
    ///
    /// The problem, without any part of the string that may be a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (rest, options) = split_tls(text)?;
        let mut config = Config::from_str(&rest).map_err(|error| invalid(&error))?;
        let mode = options.mode.as_deref().unwrap_or("prefer");
        let has_roots = options.root_certificates.is_some();
        let (ssl, verification) = match mode {
            "disable" => (SslMode::Disable, Verification::Off),
            "prefer" => (SslMode::Prefer, Verification::Off),
            "require" if has_roots => (SslMode::Require, Verification::Authority),
            "require" => (SslMode::Require, Verification::Off),
            "verify-ca" => (SslMode::Require, Verification::Authority),
            "verify-full" => (SslMode::Require, Verification::Host),
            _ => return Err("sslmode is none of disable, prefer, require, verify-ca and verify-full".into()),
        };
        config.ssl_mode(ssl);
        if config.get_application_name().is_none() {
            config.application_name("weft");
        }
        if config.get_user().is_none() {
            return Err("it names no user; the name of the worker's system user is not used".into());
        }
        if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            return Err("target_session_attrs=read-only cannot be written to".into());
        }
        let addresses = addresses(&config)?;
        let root_certificates = options.root_certificates.filter(|file| file != "system").map(PathBuf::from);
        Ok(Self { config, addresses, verification, root_certificates })
    }

    /// The ports of its hosts.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.addresses.iter().map(|address| address.port)
    }

    /// Host, port and database: what may be shown.
    pub fn name(&self) -> String {
        let hosts = self.addresses.iter().map(|address| format!("{}:{}", address.host, address.port));
        let database = self.config.get_dbname().or_else(|| self.config.get_user()).unwrap_or_default();
        format!("{}/{database}", hosts.collect::<Vec<_>>().join(","))
    }
}

/// The library's message, which names options and never values.
fn invalid(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{cause}; write postgres://user:password@host/database"),
        None => "it is not of the form postgres://user:password@host/database".into(),
    }
}

fn addresses(config: &Config) -> Result<Vec<Address>, String> {
    let (hosts, ips, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(ips.len());
    if count == 0 {
        return Err("it names no host; Unix sockets are not used".into());
    }
    if !hosts.is_empty() && !ips.is_empty() && hosts.len() != ips.len() {
        return Err("host and hostaddr differ in number".into());
    }
    if ports.len() > 1 && ports.len() != count {
        return Err("host and port differ in number".into());
    }
    let address = |index: usize| {
        let ip = ips.get(index).copied();
        let host = match hosts.get(index) {
            Some(Host::Tcp(name)) if name.is_empty() => return Err("a host is empty".to_owned()),
            Some(Host::Tcp(name)) => name.clone(),
            #[cfg(unix)]
            Some(Host::Unix(_)) => return Err("Unix sockets are not supported; use a host name or an address".into()),
            None => ip.map(|ip| ip.to_string()).unwrap_or_default(),
        };
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(PORT);
        Ok(Address { ip: ip.or_else(|| host.parse().ok()), host, port })
    };
    (0..count).map(address).collect()
}

/// `sslmode` and `sslrootcert`.
#[derive(Default)]
struct TlsOptions {
    mode: Option<String>,
    root_certificates: Option<String>,
}

impl TlsOptions {
    /// Whether it is an option of TLS that is read here.
    fn take(&mut self, key: &str, value: String) -> Result<bool, String> {
        match key {
            "sslmode" => self.mode = Some(value),
            "sslrootcert" => self.root_certificates = Some(value),
            "sslcert" | "sslkey" | "sslpassword" | "sslcrl" | "passfile" | "service" => {
                return Err(format!("{key} is not supported"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Takes the options of TLS out of a connection string.
fn split_tls(text: &str) -> Result<(String, TlsOptions), String> {
    let text = text.trim();
    let mut options = TlsOptions::default();
    if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
        let mut rest = Vec::new();
        for (key, value, whole) in pairs(text)? {
            if !options.take(&key, value)? {
                rest.push(whole);
            }
        }
        return Ok((rest.join(" "), options));
    }
    // User and password end at the first `@`, as for the library: a question mark in them begins no options.
    let (credentials, rest) = text.split_at(text.find('@').map_or(0, |at| at + 1));
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    if place.contains('@') {
        // The rest of a password would be shown as the name of a host.
        return Err("it holds a second @; write one in user or password as %40".into());
    }
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
        if !options.take(key, value)? {
            rest.push(pair);
        }
    }
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    Ok((format!("{credentials}{place}{query}"), options))
}

/// The pairs of `key = 'value'`, each with its own text.
fn pairs(text: &str) -> Result<Vec<(String, String, String)>, String> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let begin = rest;
        let (key, after) =
            rest.split_once('=').ok_or("it is neither postgres://user:password@host/database nor key=value pairs")?;
        let after = after.trim_start();
        let (value, length) = value(after)?;
        rest = &after[length..];
        let whole = &begin[..begin.len() - rest.len()];
        found.push((key.trim().to_owned(), value, whole.trim().to_owned()));
        rest = rest.trim_start();
    }
    Ok(found)
}

/// A value, in quotes or up to the next space, and how many bytes it takes.
fn value(text: &str) -> Result<(String, usize), String> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = chars.next() {
        match character {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, at + 1)),
            _ if !quoted && character.is_whitespace() => return Ok((value, at)),
            _ => value.push(character),
        }
    }
    if quoted { Err("a quote is not closed".into()) } else { Ok((value, text.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_give_hosts_ports_and_tls() {
        for text in [
            "postgres://me:hush@a.test:6000,b.test:6001/orders?sslmode=verify-full&sslrootcert=%2Fetc%2Fca%20x.pem",
            r"user=me password='hu\'sh' host=a.test,b.test port=6000,6001 dbname = orders sslmode = verify-full sslrootcert='/etc/ca x.pem'",
        ] {
            let dsn = Dsn::parse(text).unwrap();
            assert_eq!(dsn.name(), "a.test:6000,b.test:6001/orders");
            assert_eq!(dsn.verification, Verification::Host);
            assert_eq!(dsn.config.get_ssl_mode(), SslMode::Require);
            assert_eq!(dsn.root_certificates, Some("/etc/ca x.pem".into()));
            assert!(!format!("{dsn:?}").contains("hu"), "{dsn:?}");
        }
        let dsn = Dsn::parse("postgresql://me@127.0.0.1/?connect_timeout=3").unwrap();
        assert_eq!(dsn.addresses[0], Address { host: "127.0.0.1".into(), ip: Some([127, 0, 0, 1].into()), port: 5432 });
        assert_eq!((dsn.verification, dsn.config.get_ssl_mode()), (Verification::Off, SslMode::Prefer));
        let dsn = Dsn::parse("host=a user=u sslmode=require sslrootcert=ca.pem").unwrap();
        assert_eq!(dsn.verification, Verification::Authority);
    }

    /// Guards: a password may hold what separates the parts of a URL. A question mark in it begins no options, so that none are
    /// lost after it, and the part of a password after an `@` is not shown as a host.
    #[test]
    fn passwords_with_separators_are_whole_or_refused() {
        for (text, password) in [
            ("postgres://me:hu?sh@a.test/b?sslmode=verify-full", "hu?sh"),
            ("postgres://me:?hush?@a.test/b?application_name=x&sslmode=verify-full", "?hush?"),
            ("postgres://me:hu?sslmode=disable&sh@a.test/b?sslmode=verify-full", "hu?sslmode=disable&sh"),
            ("postgres://me:hu%3Fsh%40@a.test/b?sslmode=verify-full", "hu?sh@"),
            ("postgres://me:hu/sh@a.test/b?sslmode=verify-full", "hu/sh"),
        ] {
            let dsn = Dsn::parse(text).unwrap();
            assert_eq!(dsn.config.get_password(), Some(password.as_bytes()), "{text}");
            assert_eq!((dsn.name().as_str(), dsn.verification), ("a.test:5432/b", Verification::Host), "{text}");
        }
        let without = Dsn::parse("postgres://a.test/b?user=me&sslmode=verify-full").unwrap();
        assert_eq!((without.name().as_str(), without.verification), ("a.test:5432/b", Verification::Host));
        for text in
            ["postgres://me:a@hush@a.test/b", "postgres://me:a@hush/hush@a.test/b", "postgres://me:a@hush?@a.test/b"]
        {
            let problem = Dsn::parse(text).unwrap_err();
            assert!(!problem.contains("hush"), "{text}: {problem}");
        }
    }

    /// Options that cannot be honoured are refused, and no password is in the message.
    #[test]
    fn what_is_not_supported_is_named() {
        for (text, named) in [
            ("postgres://me:hush@a/b?sslmode=allow", "sslmode"),
            ("postgres://me:hush@a/b?sslcert=x.pem", "sslcert"),
            ("postgres://me:hush@a/b?hush=1", "hush"),
            ("postgres://me:hush@%2Fvar%2Frun/b", "Unix sockets"),
            ("host=/var/run user=me password=hush", "Unix sockets"),
            ("user=me password=hush", "no host"),
            ("postgres://a/b", "no user"),
            ("postgres://me:hush@a/b?target_session_attrs=read-only", "read-only"),
            ("hush", "postgres://"),
            ("", "no user"),
            ("user='me", "quote"),
            ("host=a,b hostaddr=10.0.0.1 user=me", "differ"),
        ] {
            let problem = Dsn::parse(text).unwrap_err();
            assert!(problem.contains(named), "{text}: {problem}");
            assert!(named == "hush" || !problem.contains("hush"), "{problem}");
        }
    }
}

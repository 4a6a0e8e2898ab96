//! The client of a request: the peer address, or the one that a trusted proxy names.
//!
//! Any client can write `X-Forwarded-For` and `Forwarded`, so only the elements that trusted proxies have added count:
//! read from the right, the client is the first address that is not a trusted proxy. If an element cannot be parsed, or if
//! the two headers name different clients, no client is identified and the request counts as the proxy's.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr as _,
};

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `trusted_proxies`.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// The networks in which every address is a proxy's.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether no address is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is a proxy's.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client of a request from `peer`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.contain(peer) {
            return peer;
        }
        let forwarded = self.named(values(headers, &X_FORWARDED_FOR), address);
        let standard = self.named(values(headers, &header::FORWARDED), for_address);
        match (forwarded, standard) {
            (Named::Client(client), Named::Nobody) | (Named::Nobody, Named::Client(client)) => client,
            (Named::Client(one), Named::Client(other)) if one == other => one,
            _ => peer,
        }
    }

    /// The address that a header names: the right-most that is not a proxy, else the left-most.
    fn named<'h>(
        &self,
        elements: impl DoubleEndedIterator<Item = Option<&'h str>>,
        parse: fn(&str) -> Option<IpAddr>,
    ) -> Named {
        let mut named = Named::Nobody;
        for element in elements.rev() {
            let Some(address) = element.and_then(parse) else { return Named::Garbage };
            named = Named::Client(address);
            if !self.contain(address) {
                break;
            }
        }
        named
    }
}

/// Content of a client header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// Nothing: it is not there.
    Nobody,
    /// An element that is not an address.
    Garbage,
    /// This.
    Client(IpAddr),
}

/// The elements of a list header, of all its lines, in order. `None` for a line that is not text.
fn values<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl DoubleEndedIterator<Item = Option<&'h str>> {
    let lines: Vec<_> = headers.get_all(name).iter().map(|line| line.to_str().ok()).collect();
    let elements = lines.into_iter().flat_map(|line| {
        let elements: Vec<_> = line.map_or(vec![None], |line| line.split(',').map(|part| Some(part.trim())).collect());
        elements
    });
    elements.collect::<Vec<_>>().into_iter()
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = IpAddr::from_str(bare).ok().or_else(|| SocketAddr::from_str(text).ok().map(|socket| socket.ip()))?;
    Some(address.to_canonical())
}

/// The `for` of an element of `Forwarded`: `for="[2001:db8::1]:80";proto=https`.
fn for_address(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    address(value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxies() -> TrustedProxies {
        TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()])
    }

    fn client(peer: &str, headers: &[(&str, &str)]) -> String {
        let headers =
            headers.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect();
        proxies().client(peer.parse().unwrap(), &headers).to_string()
    }

    const XFF: &str = "x-forwarded-for";

    #[test]
    fn only_what_a_trusted_proxy_added_counts() {
        assert_eq!(client("192.0.2.9", &[(XFF, "203.0.113.1")]), "192.0.2.9", "the peer is no proxy");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("::ffff:10.0.0.1", &[(XFF, "203.0.113.1")]), "203.0.113.1");
        assert_eq!(client("10.0.0.1", &[(XFF, "1.1.1.1, 203.0.113.1, 10.9.9.9")]), "203.0.113.1");
        assert_eq!(client("10.0.0.1", &[(XFF, "1.1.1.1"), (XFF, "203.0.113.1")]), "203.0.113.1", "lines are one list");
        assert_eq!(client("10.0.0.1", &[(XFF, "10.0.0.3,10.0.0.2")]), "10.0.0.3", "a client inside the network");
        assert_eq!(client("fd00::1", &[(XFF, "[2001:db8::1]:443")]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &[(XFF, "203.0.113.1:4711")]), "203.0.113.1");
    }

    #[test]
    fn malformed_forwarded_headers_name_no_client() {
        for garbage in ["", "unknown", "203.0.113.1, ", "203.0.113.1, x", "300.0.0.1", "203.0.113.1 10.0.0.2"] {
            assert_eq!(client("10.0.0.1", &[(XFF, garbage)]), "10.0.0.1", "{garbage:?}");
        }
        assert_eq!(
            client("10.0.0.1", &[(XFF, "x, 203.0.113.1")]),
            "203.0.113.1",
            "elements left of the client are not read"
        );
    }

    #[test]
    fn the_standard_header_counts_too_and_must_not_contradict() {
        let forwarded = |value| client("10.0.0.1", &[("forwarded", value)]);
        assert_eq!(forwarded("for=203.0.113.1;proto=https, For=10.0.0.7"), "203.0.113.1");
        assert_eq!(forwarded("by=10.0.0.1; for=\"[2001:db8::1]:80\""), "2001:db8::1");
        assert_eq!(forwarded("for=_hidden"), "10.0.0.1");
        assert_eq!(forwarded("proto=https"), "10.0.0.1");
        let both = |one, other| client("10.0.0.1", &[(XFF, one), ("forwarded", other)]);
        assert_eq!(both("203.0.113.1", "for=203.0.113.1"), "203.0.113.1");
        assert_eq!(both("203.0.113.1", "for=198.51.100.1"), "10.0.0.1");
        assert_eq!(both("203.0.113.1", "for=unknown"), "10.0.0.1");
    }

    proptest! {
        /// No header text lets a client choose its address: the right-most element, written by the proxy, counts.
        #[test]
        fn a_client_cannot_choose_its_address(written in "[ -~]{0,40}") {
            let list = format!("{written}, 203.0.113.1");
            prop_assert_eq!(client("10.0.0.1", &[(XFF, list.as_str())]), "203.0.113.1");
        }
    }
}

//! Addresses that a destination must not lie at: a subscriber's URL must not make the worker call its own network.
//!
//! Refused are loopback, private, link-local (with the metadata services of clouds), shared (RFC 6598), multicast,
//! unspecified, reserved and documentation addresses, and IPv6 forms that carry an IPv4 address (mapped, 6to4, NAT64),
//! unless `[worker] allow_networks` holds them. The check is made on the addresses that are connected to, whether they
//! stand in the URL or come from DNS, so a name that changes its mind between check and use changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address that is not called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {rule} and not allowed; to allow it add its network to [worker] allow_networks")]
pub struct RefusedAddress {
    /// Which.
    pub address: IpAddr,
    /// Why.
    pub rule: &'static str,
}

/// Whether an address may be called.
///
/// # Errors
///
/// [`RefusedAddress`] says by which rule not.
pub fn check(address: IpAddr, allow_networks: &[IpNet]) -> Result<(), RefusedAddress> {
    let plain = plain(address);
    if allow_networks.iter().any(|network| network.contains(&address) || network.contains(&plain)) {
        return Ok(());
    }
    let rule = match plain {
        IpAddr::V4(v4) => refused_v4(v4),
        IpAddr::V6(v6) => refused_v6(v6),
    };
    rule.map_or(Ok(()), |rule| Err(RefusedAddress { address, rule }))
}

/// The IPv4 address that an IPv6 address stands for, where it does.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [a, b, c, d, .., g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b) {
        _ if v6.to_ipv4_mapped().is_some() => v4(g, h),
        // 6to4: 2002:V4::/16.
        (0x2002, _) => v4(b, c),
        // NAT64: 64:ff9b::/96, and the local-use 64:ff9b:1::/48.
        (0x64, 0xff9b) if c <= 1 => v4(g, h),
        // IPv4-compatible, but for :: and ::1.
        (0, 0) if c == 0 && d == 0 && v6.segments()[4..6] == [0, 0] && v6.to_bits() > 1 => v4(g, h),
        _ => address,
    }
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    Some(match (a, b, c) {
        (0, ..) => "unspecified",
        (127, ..) => "loopback",
        (10, ..) | (192, 168, _) => "private",
        (172, 16..=31, _) => "private",
        (169, 254, _) => "link-local (cloud metadata)",
        (100, 64..=127, _) => "shared address space",
        (192, 0, 0) => "reserved",
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => "for documentation",
        (198, 18..=19, _) => "for benchmarks",
        (224..=239, ..) => "multicast",
        (240..=255, ..) => "reserved",
        _ => return None,
    })
}

fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [a, b, ..] = address.segments();
    Some(match a {
        _ if address.is_unspecified() => "unspecified",
        _ if address.is_loopback() => "loopback",
        0xfe80..=0xfebf => "link-local",
        0xfec0..=0xfeff => "site-local",
        0xfc00..=0xfdff => "private",
        0xff00..=0xffff => "multicast",
        0x2001 if b == 0xdb8 => "for documentation",
        0x2001 if b == 0 => "a tunnel",
        0x100 => "reserved",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_refused_in_every_form() {
        for text in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "198.18.0.1",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "64:ff9b:1::a00:1",
            "::127.0.0.1",
        ] {
            assert!(check(text.parse().unwrap(), &[]).is_err(), "{text}");
        }
    }

    #[test]
    fn public_addresses_pass() {
        for text in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"] {
            assert_eq!(check(text.parse().unwrap(), &[]), Ok(()), "{text}");
        }
    }

    #[test]
    fn an_allowed_network_passes_in_its_mapped_form_too() {
        let allow = ["127.0.0.0/8".parse().unwrap()];
        assert_eq!(check("127.0.0.1".parse().unwrap(), &allow), Ok(()));
        assert_eq!(check("::ffff:127.0.0.1".parse().unwrap(), &allow), Ok(()));
        let refused = check("10.0.0.1".parse().unwrap(), &allow).unwrap_err();
        assert!(refused.to_string().contains("private") && refused.to_string().contains("allow_networks"));
    }
}

//! Addresses that must not be called: a subscription's URL must not make the worker call its internal network.
//!
//! Refused are loopback, private, link-local (with the metadata services of clouds), shared (RFC 6598), multicast,
//! unspecified, reserved and documentation addresses, unless `[worker] allow_networks` holds them, the ports of `[worker]
//! deny_ports`, and ports of this process. An IPv4-mapped IPv6
//! address is the IPv4 address. An IPv6 address that a gateway translates or tunnels to an IPv4 address (6to4, NAT64,
//! ISATAP) is refused if that IPv4 address is, also where the IPv4 address itself is allowed: the route is another one. The
//! addresses that are connected to are checked, from the URL or from DNS, so a DNS answer that changes after an earlier check
//! has no effect.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use parking_lot::RwLock;

/// An address that must not be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedAddress {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The rule that refuses it.
    pub rule: &'static str,
}

/// The rule that refuses ports of this process.
const OWN_PORT: &str = "where a port of Weft itself listens";
/// The rule that refuses ports on every address.
const DENIED_PORT: &str = "a denied port";

impl fmt::Display for RefusedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, rule } = self;
        let at = SocketAddr::new(*address, *port);
        match *rule {
            OWN_PORT => write!(f, "{at} is {rule} and not allowed"),
            DENIED_PORT => write!(f, "{at} is {rule}; to allow it remove {port} from [worker] deny_ports"),
            _ => {
                write!(f, "{address} is {rule} and not allowed; to allow it add its network to [worker] allow_networks")
            }
        }
    }
}

impl std::error::Error for RefusedAddress {}

/// Ports that are refused by default: services that speak other protocols than HTTP, and that text within a request could
/// command. From the "bad ports" of the WHATWG Fetch standard, with Redis and memcached.
pub const DENY_PORTS_DEFAULT: [u16; 22] =
    [22, 23, 25, 53, 110, 111, 119, 135, 139, 143, 389, 445, 465, 563, 587, 636, 993, 995, 2049, 6000, 6379, 11_211];

/// Configured exceptions from the rules for addresses.
#[derive(Debug, Clone, Default)]
pub struct AddressRules {
    /// Private networks that may be called.
    pub allow_networks: Vec<IpNet>,
    /// Ports that may be called on loopback addresses although these are not in `allow_networks`.
    pub loopback_ports: Vec<u16>,
    /// Ports that must not be called on any address.
    pub deny_ports: Vec<u16>,
}

/// Private networks that may be called, and the default ports that must not.
impl From<Vec<IpNet>> for AddressRules {
    fn from(allow_networks: Vec<IpNet>) -> Self {
        Self { allow_networks, loopback_ports: Vec::new(), deny_ports: DENY_PORTS_DEFAULT.to_vec() }
    }
}

/// Decides which addresses may be called.
#[derive(Debug, Default)]
pub struct AddressGuard {
    rules: AddressRules,
    /// Ports of this process that must not be called: those of the admin, the operator and NATS, which trust local callers.
    own_ports: RwLock<Vec<SocketAddr>>,
}

impl AddressGuard {
    /// A guard with these exceptions.
    pub fn new(rules: AddressRules) -> Self {
        Self { rules, own_ports: RwLock::default() }
    }

    /// Refuses ports of this process, also where their network is allowed.
    pub fn refuse_ports(&self, ports: impl IntoIterator<Item = SocketAddr>) {
        self.own_ports.write().extend(ports);
    }

    /// Checks whether a port of an address may be called.
    ///
    /// # Errors
    ///
    /// [`RefusedAddress`], with the rule that refuses it.
    pub fn check(&self, address: IpAddr, port: u16) -> Result<(), RefusedAddress> {
        let refused = |rule| Err(RefusedAddress { address, port, rule });
        let AddressRules { allow_networks, loopback_ports, deny_ports } = &self.rules;
        let canonical = address.to_canonical();
        let allowed = allow_networks.iter().any(|network| network.contains(&address) || network.contains(&canonical))
            || canonical.is_loopback() && loopback_ports.contains(&port);
        let rule = match canonical {
            _ if allowed => None,
            IpAddr::V4(v4) => refused_v4(v4),
            IpAddr::V6(v6) => tunnelled_to(v6).and_then(refused_v4).or_else(|| refused_v6(v6)),
        };
        match rule {
            // First: it has no remedy.
            _ if self.is_own(canonical, port) => refused(OWN_PORT),
            Some(rule) => refused(rule),
            None if deny_ports.contains(&port) => refused(DENIED_PORT),
            None => Ok(()),
        }
    }

    fn is_own(&self, canonical: IpAddr, port: u16) -> bool {
        let is_own = |own: &SocketAddr| {
            let ip = own.ip().to_canonical();
            own.port() == port
                && (ip == canonical || ip.is_unspecified() || ip.is_loopback() && canonical.is_loopback())
        };
        self.own_ports.read().iter().any(is_own)
    }
}

/// The IPv4 address that packets to an IPv6 address are translated or tunnelled to.
fn tunnelled_to(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match address.segments() {
        // 6to4: 2002::/16.
        [0x2002, high, low, ..] => (high, low),
        // NAT64: 64:ff9b::/96.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => (high, low),
        // ISATAP, in any network: an interface id of ::0:5efe:a.b.c.d or ::200:5efe:a.b.c.d (RFC 5214).
        [_, _, _, _, 0 | 0x0200, 0x5efe, high, low] => (high, low),
        _ => return None,
    };
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Some(Ipv4Addr::new(a, b, c, d))
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [0, ..] => "unspecified",
        [127, ..] => "loopback",
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] => "private",
        [169, 254, ..] => "link-local (cloud metadata)",
        // Azure's metadata, though the address is public.
        [168, 63, 129, 16] => "cloud metadata",
        [100, 64..=127, ..] => "shared address space",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "for documentation",
        [198, 18..=19, ..] => "for benchmarks",
        [224..=239, ..] => "multicast",
        [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => "reserved",
        _ => return None,
    })
}

/// Only global unicast, 2000::/3, can be public: everything else is refused, future forms included.
fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    Some(match address.segments() {
        [0x2001, 0, ..] => "a tunnel",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => "for documentation",
        [0x2001, 0..=0x01ff, ..] => "reserved",
        [0x2000..=0x3fff, ..] => return None,
        // NAT64 of a public address.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => return None,
        _ if address.is_unspecified() => "unspecified",
        _ if address.is_loopback() => "loopback",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfec0..=0xfeff, ..] => "site-local",
        [0xfc00..=0xfdff, ..] => "private",
        [0xff00..=0xffff, ..] => "multicast",
        _ => "reserved",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allow_networks: &[&str]) -> AddressGuard {
        let networks = allow_networks.iter().map(|network| network.parse().unwrap()).collect::<Vec<IpNet>>();
        AddressGuard::new(networks.into())
    }

    fn check(address: &str, guard: &AddressGuard) -> Result<(), RefusedAddress> {
        guard.check(address.parse().unwrap(), 443)
    }

    #[test]
    fn denied_ports_are_refused_on_allowed_addresses_too() {
        let guard = guard(&["10.0.0.0/8"]);
        for address in ["10.0.0.1", "1.1.1.1"].map(|address| address.parse().unwrap()) {
            let refused = guard.check(address, 6379).unwrap_err();
            assert_eq!(refused.rule, DENIED_PORT);
            assert!(refused.to_string().contains(":6379 is a denied port; to allow it remove 6379"), "{refused}");
            assert_eq!(guard.check(address, 5432), Ok(()));
        }
    }

    /// Ports that are allowed on loopback addresses are allowed in every form of these, and nowhere else.
    #[test]
    fn loopback_ports_allow_loopback_addresses_alone() {
        let rules = AddressRules { loopback_ports: vec![9999], ..AddressRules::from(Vec::new()) };
        let guard = AddressGuard::new(rules);
        for (address, port, allowed) in [
            ("127.0.0.1", 9999, true),
            ("::1", 9999, true),
            ("::ffff:127.0.0.1", 9999, true),
            ("127.0.0.1", 9998, false),
            ("10.0.0.1", 9999, false),
            ("2002:7f00:1::", 9999, false),
        ] {
            assert_eq!(guard.check(address.parse().unwrap(), port).is_ok(), allowed, "{address}:{port}");
        }
    }

    #[test]
    fn ports_of_this_process_are_refused_in_every_form_of_their_address() {
        let own = guard(&["127.0.0.0/8", "::1/128", "10.0.0.0/8", "192.168.0.0/16"]);
        own.refuse_ports(["127.0.0.1:9080", "10.0.0.7:4222", "0.0.0.0:9101"].map(|port| port.parse().unwrap()));
        for (address, port, refused) in [
            ("127.0.0.1", 9080, true),
            ("127.9.9.9", 9080, true),
            ("::1", 9080, true),
            ("::ffff:127.0.0.1", 9080, true),
            ("127.0.0.1", 8080, false),
            ("10.0.0.7", 4222, true),
            ("10.0.0.8", 4222, false),
            ("127.0.0.1", 4222, false),
            ("192.168.0.1", 9101, true),
        ] {
            assert_eq!(own.check(address.parse().unwrap(), port).is_err(), refused, "{address}:{port}");
        }
        let refused = own.check("127.0.0.1".parse().unwrap(), 9080).unwrap_err().to_string();
        assert!(!refused.contains("allow_networks"), "{refused}");
    }

    fn rule(text: &str) -> Option<&'static str> {
        check(text, &guard(&[])).err().map(|refused| refused.rule)
    }

    #[test]
    fn what_is_not_public_is_refused_in_every_form() {
        for (wanted, addresses) in [
            ("unspecified", "0.0.0.0 0.1.2.3 :: ::ffff:0.0.0.0"),
            (
                "loopback",
                "127.0.0.1 127.9.9.9 ::1 ::ffff:127.0.0.1 2002:7f00:1:: 64:ff9b::7f00:1 2001:4860::5efe:127.0.0.1",
            ),
            (
                "private",
                "10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 fd00::1 fd00:ec2::254 ::ffff:10.0.0.1 2606:4700::200:5efe:a00:1 2002:a00:1::1",
            ),
            ("link-local (cloud metadata)", "169.254.169.254 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe"),
            ("cloud metadata", "168.63.129.16"),
            ("link-local", "fe80::1 febf::1"),
            ("site-local", "fec0::1"),
            ("shared address space", "100.64.0.1 100.100.100.200 100.127.255.255"),
            ("multicast", "224.0.0.1 239.1.2.3 ff02::1"),
            ("for documentation", "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff:fff::1"),
            ("for benchmarks", "198.18.0.1 198.19.255.255"),
            ("a tunnel", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
            ("reserved", "192.0.0.192 192.88.99.1 240.0.0.1 255.255.255.255 100::1 2001:10::1 5f00::1"),
            // An IPv4 address within, in forms that nothing public uses: compatible, translated, private NAT64.
            ("reserved", "::127.0.0.1 ::ffff:0:7f00:1 64:ff9b:1::a00:1 64:ff9b:1:a00:0:100:101:101"),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(rule(address), Some(wanted), "{address}");
            }
        }
    }

    #[test]
    fn public_addresses_pass() {
        for address in "1.1.1.1 172.15.0.1 172.32.0.1 100.63.0.1 100.128.0.1 169.253.1.1 168.63.129.17 198.20.0.1 \
                        2606:4700::1111 2001:4860:4860::8888 3ffe::1 ::ffff:1.1.1.1 64:ff9b::101:101 2002:101:101::1 \
                        2606:4700::5efe:1.1.1.1"
            .split_whitespace()
        {
            assert_eq!(rule(address), None, "{address}");
        }
    }

    #[test]
    fn an_allowed_network_passes_in_its_mapped_form_too() {
        let allow = guard(&["127.0.0.0/8", "fd00::/8"]);
        for address in ["127.0.0.1", "::ffff:127.0.0.1", "fd00::7"] {
            assert_eq!(check(address, &allow), Ok(()), "{address}");
        }
        for other_way in ["2002:7f00:1::", "64:ff9b::127.0.0.1", "2606:4700::5efe:127.0.0.1"] {
            let refused = check(other_way, &allow).unwrap_err();
            assert_eq!(refused.rule, "loopback", "{other_way}");
        }
        let refused = check("10.0.0.1", &allow).unwrap_err();
        assert!(refused.to_string().contains("private") && refused.to_string().contains("allow_networks"));
    }
}

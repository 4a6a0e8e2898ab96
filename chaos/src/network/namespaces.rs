//! A network namespace for each process, joined by a bridge, and packet filters in those of the servers. Needs root.
//!
//! The bridge has a namespace, too: the machine's own packet filter, such as Docker's, which drops what it does not know, does
//! not see what passes there.
//!
//! Every pair that can be cut has a server at one end, so the servers' filters are enough.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;

use super::{Listeners, concerns};
use crate::plan::{Cut, Node};

/// Prefix of the names of our namespaces and interfaces; the driver's process id follows.
const PREFIX: &str = "wc";
/// The bridge in its namespace.
const BRIDGE: &str = "bridge";
/// Ports of every process.
const API_PORT: u16 = 4222;
const OTHER_PORT: u16 = 6222;

/// The namespaces of a run, removed when dropped.
#[derive(Debug)]
pub struct Namespaces {
    names: BTreeMap<Node, String>,
    addresses: BTreeMap<Node, Ipv4Addr>,
    /// The driver's own interface; the names of the namespaces begin with it.
    uplink: String,
    /// The namespace of the bridge.
    switch: String,
    gateway: Ipv4Addr,
    cuts: Mutex<Vec<Cut>>,
    can_delay: bool,
}

impl Namespaces {
    /// Makes the bridge and a namespace for each process.
    ///
    /// # Errors
    ///
    /// When it is not allowed, or `ip` or `nft` is missing.
    pub fn create(nodes: &[Node]) -> anyhow::Result<Self> {
        remove_leftovers();
        let pid = std::process::id();
        // Concurrent runs have separate networks.
        let third = u8::try_from(pid % 250).unwrap_or(0);
        let address = |last: usize| Ipv4Addr::new(10, 213, third, u8::try_from(last).unwrap_or(u8::MAX));
        let uplink = format!("{PREFIX}{pid}");
        let mut network = Self {
            names: BTreeMap::new(),
            addresses: BTreeMap::new(),
            switch: format!("{uplink}-switch"),
            uplink,
            gateway: address(1),
            cuts: Mutex::default(),
            can_delay: true,
        };
        ip(&["netns", "add", &network.switch])?;
        ip(&["-n", &network.switch, "link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["-n", &network.switch, "link", "set", BRIDGE, "up"])?;
        network.plug(&network.uplink, "uplink")?;
        ip(&["addr", "add", &format!("{}/24", network.gateway), "dev", &network.uplink])?;
        ip(&["link", "set", &network.uplink, "up"])?;
        for (number, node) in nodes.iter().enumerate() {
            network.add(*node, number, address(10 + number))?;
        }
        for server in network.servers() {
            network.filter(server)?;
        }
        let none = Duration::ZERO;
        network.can_delay = network.servers().into_iter().all(|server| network.netem(server, none).is_ok());
        Ok(network)
    }

    fn add(&mut self, node: Node, number: usize, address: Ipv4Addr) -> anyhow::Result<()> {
        let name = format!("{}-{node}", self.uplink);
        let inside = format!("{}n{number}", self.uplink);
        ip(&["netns", "add", &name])?;
        self.names.insert(node, name.clone());
        self.addresses.insert(node, address);
        self.plug(&inside, &format!("port{number}"))?;
        ip(&["link", "set", &inside, "netns", &name, "name", "eth0"])?;
        ip(&["-n", &name, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])
    }

    /// Makes an interface that is plugged into a port of the bridge.
    fn plug(&self, interface: &str, port: &str) -> anyhow::Result<()> {
        let (outside, switch) = (format!("{interface}p"), &self.switch);
        ip(&["link", "add", interface, "type", "veth", "peer", "name", &outside])?;
        ip(&["link", "set", &outside, "netns", switch, "name", port])?;
        ip(&["-n", switch, "link", "set", port, "master", BRIDGE, "up"])
    }

    fn servers(&self) -> Vec<Node> {
        self.names.keys().copied().filter(|node| matches!(node, Node::Server(_))).collect()
    }

    /// Where the processes listen.
    pub fn listeners(&self) -> BTreeMap<Node, Listeners> {
        let at = |address: &Ipv4Addr, port| SocketAddr::new(IpAddr::V4(*address), port);
        let both = |address| Listeners { api: at(address, API_PORT), other: at(address, OTHER_PORT) };
        self.addresses.iter().map(|(node, address)| (*node, both(address))).collect()
    }

    /// The driver's own address.
    pub fn driver(&self) -> IpAddr {
        self.gateway.into()
    }

    /// A command that runs in a process's namespace begins with this.
    pub fn prefix(&self, node: Node) -> Vec<String> {
        ["ip", "netns", "exec", &self.names[&node]].map(str::to_owned).to_vec()
    }

    /// Whether the kernel can delay packets.
    pub fn can_delay(&self) -> bool {
        self.can_delay
    }

    /// Makes a cut.
    pub fn cut(&self, cut: Cut) -> anyhow::Result<()> {
        self.cuts.lock().push(cut);
        self.servers().into_iter().try_for_each(|server| self.filter(server))
    }

    /// Heals a cut.
    pub fn heal(&self, cut: Cut) -> anyhow::Result<()> {
        let mut cuts = self.cuts.lock();
        if let Some(place) = cuts.iter().position(|one| *one == cut) {
            cuts.remove(place);
        }
        drop(cuts);
        self.servers().into_iter().try_for_each(|server| self.filter(server))
    }

    /// Delays what a server sends, and so every round trip; zero ends it.
    pub fn delay(&self, server: usize, delay: Duration) -> anyhow::Result<()> {
        if self.can_delay { self.netem(Node::Server(server), delay) } else { Ok(()) }
    }

    fn netem(&self, server: Node, delay: Duration) -> anyhow::Result<()> {
        let delay = format!("{}ms", delay.as_millis());
        let args = ["-n", &self.names[&server], "qdisc", "replace", "dev", "eth0", "root", "netem", "delay", &delay];
        run("tc", &args, None)
    }

    /// Writes a server's packet filter by the cuts that there are.
    fn filter(&self, server: Node) -> anyhow::Result<()> {
        let cuts = self.cuts.lock();
        let rules = rules(&cuts, server, &self.addresses);
        run("ip", &["netns", "exec", &self.names[&server], "nft", "-f", "-"], Some(&rules))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in self.names.values() {
            let _ = ip(&["netns", "del", name]);
        }
        let _ = ip(&["link", "del", &self.uplink]);
        let _ = ip(&["netns", "del", &self.switch]);
    }
}

/// The filter of a server: nothing from or to the processes that the cuts name.
fn rules(cuts: &[Cut], server: Node, addresses: &BTreeMap<Node, Ipv4Addr>) -> String {
    let (mut input, mut output) = (String::new(), String::new());
    for (other, address) in addresses.iter().filter(|(other, _)| **other != server) {
        // A string takes everything.
        if cuts.iter().any(|cut| concerns(*cut, *other, server)) {
            let _ = writeln!(input, "ip saddr {address} drop");
        }
        if cuts.iter().any(|cut| concerns(*cut, server, *other)) {
            let _ = writeln!(output, "ip daddr {address} drop");
        }
    }
    format!(
        "add table inet chaos\ndelete table inet chaos\ntable inet chaos {{\n\
         chain input {{ type filter hook input priority 0;\n{input}}}\n\
         chain output {{ type filter hook output priority 0;\n{output}}}\n}}\n"
    )
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    run("ip", args, None)
}

fn run(program: &str, args: &[&str], input: Option<&str>) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| program.to_owned())?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
    Ok(())
}

/// Removes what runs that were killed have left.
fn remove_leftovers() {
    let Ok(listed) = Command::new("ip").args(["netns", "list"]).output() else { return };
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let Some(name) = line.split_whitespace().next() else { continue };
        let Some((uplink, _)) = name.split_once('-') else { continue };
        let Some(pid) = uplink.strip_prefix(PREFIX).filter(|pid| pid.parse::<u32>().is_ok()) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = ip(&["netns", "del", name]);
            let _ = ip(&["link", "del", uplink]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deaf_server_drops_what_comes_from_the_other_only() {
        let addresses = BTreeMap::from([
            (Node::Server(0), Ipv4Addr::new(10, 0, 0, 10)),
            (Node::Server(1), Ipv4Addr::new(10, 0, 0, 11)),
            (Node::Admin, Ipv4Addr::new(10, 0, 0, 12)),
        ]);
        let cuts = [Cut::Deaf { server: 0, to: 1 }];
        let deaf = rules(&cuts, Node::Server(0), &addresses);
        assert!(deaf.contains("ip saddr 10.0.0.11 drop") && !deaf.contains("daddr"), "{deaf}");
        let other = rules(&cuts, Node::Server(1), &addresses);
        assert!(other.contains("ip daddr 10.0.0.10 drop") && !other.contains("saddr"), "{other}");
        let isolated = rules(&[Cut::Isolated(0)], Node::Server(0), &addresses);
        assert_eq!(isolated.matches("drop").count(), 4, "{isolated}");
    }
}

//! The network between the processes: addresses, cuts and delays.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use crate::plan::{Cut, Node};

mod link;
mod namespaces;
mod proxies;

use namespaces::Namespaces;
use proxies::Proxies;

/// How processes are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Namespaces where they are allowed, else proxies
    Auto,
    /// Network namespaces and packet filters
    Namespaces,
    /// TCP proxies on loopback
    Proxies,
}

/// Where a process listens.
#[derive(Debug, Clone, Copy)]
pub struct Listeners {
    /// Clients of a server; the API of a role.
    pub api: SocketAddr,
    /// Routes of a server; the operations port of a role.
    pub other: SocketAddr,
}

#[derive(Debug)]
enum Kind {
    Namespaces(Namespaces),
    Proxies(Proxies),
}

/// The network of a run.
#[derive(Debug)]
pub struct Network {
    listeners: BTreeMap<Node, Listeners>,
    kind: Kind,
}

impl Network {
    /// Joins the processes.
    pub async fn start(mode: Mode, nodes: &[Node]) -> anyhow::Result<Self> {
        if mode != Mode::Proxies {
            match Namespaces::create(nodes) {
                Ok(namespaces) => {
                    return Ok(Self { listeners: namespaces.listeners(), kind: Kind::Namespaces(namespaces) });
                }
                Err(problem) if mode == Mode::Namespaces => return Err(problem),
                Err(problem) => println!("no network namespaces, proxies instead: {problem:#}"),
            }
        }
        let listeners = Proxies::listeners(nodes)?;
        let proxies = Proxies::start(&listeners).await?;
        Ok(Self { listeners, kind: Kind::Proxies(proxies) })
    }

    /// Address of the driver, at which receivers listen.
    pub fn driver(&self) -> IpAddr {
        match &self.kind {
            Kind::Namespaces(namespaces) => namespaces.driver(),
            Kind::Proxies(_) => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// Where a process listens.
    pub fn listeners(&self, node: Node) -> Listeners {
        self.listeners[&node]
    }

    /// A command that starts a process begins with this.
    pub fn prefix(&self, node: Node) -> Vec<String> {
        match &self.kind {
            Kind::Namespaces(namespaces) => namespaces.prefix(node),
            Kind::Proxies(_) => Vec::new(),
        }
    }

    /// Addresses of all servers but itself as a process dials them.
    pub fn dialled(&self, from: Node) -> Vec<SocketAddr> {
        let servers = self.listeners.iter().filter(|(node, _)| **node != from);
        let dialled = servers.filter_map(|(node, listeners)| match (node, &self.kind) {
            (Node::Server(number), Kind::Proxies(proxies)) => proxies.dialled(from, *number),
            (Node::Server(_), Kind::Namespaces(_)) => {
                Some(if matches!(from, Node::Server(_)) { listeners.other } else { listeners.api })
            }
            _ => None,
        });
        dialled.collect()
    }

    /// Setting of the servers' `cluster` section, with a comma. Servers gossip each other's addresses; with
    /// proxies no process listens at the advertised address, so that only the configured routes are used.
    pub fn advertise(&self) -> &'static str {
        match &self.kind {
            Kind::Namespaces(_) => "",
            Kind::Proxies(_) => "advertise: \"127.0.0.1:9\",",
        }
    }

    /// Whether it can delay.
    pub fn can_delay(&self) -> bool {
        match &self.kind {
            Kind::Namespaces(namespaces) => namespaces.can_delay(),
            Kind::Proxies(_) => true,
        }
    }

    /// Makes a cut.
    pub fn cut(&self, cut: Cut) -> anyhow::Result<()> {
        match &self.kind {
            Kind::Namespaces(namespaces) => namespaces.cut(cut),
            Kind::Proxies(proxies) => {
                proxies.cut(cut);
                Ok(())
            }
        }
    }

    /// Heals a cut.
    pub fn heal(&self, cut: Cut) -> anyhow::Result<()> {
        match &self.kind {
            Kind::Namespaces(namespaces) => namespaces.heal(cut),
            Kind::Proxies(proxies) => {
                proxies.heal(cut);
                Ok(())
            }
        }
    }

    /// Delays everything to and from a server; zero ends it.
    pub fn delay(&self, server: usize, delay: Duration) -> anyhow::Result<()> {
        match &self.kind {
            Kind::Namespaces(namespaces) => namespaces.delay(server, delay),
            Kind::Proxies(proxies) => {
                proxies.delay(server, delay);
                Ok(())
            }
        }
    }
}

/// Whether a cut holds what one process sends to another.
fn concerns(cut: Cut, sender: Node, receiver: Node) -> bool {
    let either = |node: Node| sender == node || receiver == node;
    match cut {
        Cut::Isolated(server) => either(Node::Server(server)),
        Cut::Deaf { server, to } => sender == Node::Server(to) && receiver == Node::Server(server),
        Cut::Clients(server) => {
            let both_servers = matches!((sender, receiver), (Node::Server(_), Node::Server(_)));
            either(Node::Server(server)) && !both_servers
        }
        Cut::Role(role) => either(role),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_concern_the_directions_that_they_name() {
        let (a, b, role) = (Node::Server(0), Node::Server(1), Node::Gateway(0));
        assert!(concerns(Cut::Isolated(0), a, b) && concerns(Cut::Isolated(0), role, a));
        assert!(!concerns(Cut::Isolated(0), role, b));
        let deaf = Cut::Deaf { server: 0, to: 1 };
        assert!(concerns(deaf, b, a) && !concerns(deaf, a, b) && !concerns(deaf, role, a));
        assert!(concerns(Cut::Clients(0), role, a) && concerns(Cut::Clients(0), a, role));
        assert!(!concerns(Cut::Clients(0), a, b) && !concerns(Cut::Clients(0), role, b));
        assert!(concerns(Cut::Role(role), role, b) && !concerns(Cut::Role(role), a, b));
    }
}

//! The network between the processes: addresses, cuts and delays.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use crate::plan::{Cut, Node};

mod link;

use link::{Direction, Link};

/// All processes on loopback, with a proxy of its own for each pair that talks to a server.
#[derive(Debug)]
pub struct Network {
    /// Client and route port of each server.
    servers: Vec<(SocketAddr, SocketAddr)>,
    /// Listeners of each role: its API, where it has one, and its operations port.
    roles: BTreeMap<Node, (SocketAddr, SocketAddr)>,
    /// By the process that connects and the number of the server.
    links: BTreeMap<(Node, usize), Link>,
}

impl Network {
    /// Chooses ports and starts the proxies.
    pub async fn start(servers: usize, roles: &[Node]) -> anyhow::Result<Self> {
        let ports = free_ports(2 * (servers + roles.len()))?;
        let mut ports = ports.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        let servers: Vec<_> = ports.by_ref().take(servers).collect();
        let mut links = BTreeMap::new();
        for (number, (client, route)) in servers.iter().enumerate() {
            for role in roles {
                links.insert((*role, number), Link::start(*client).await?);
            }
            for other in (0..servers.len()).filter(|other| *other != number) {
                links.insert((Node::Server(other), number), Link::start(*route).await?);
            }
        }
        Ok(Self { servers, roles: roles.iter().copied().zip(ports).collect(), links })
    }

    /// Address at which receivers listen.
    pub fn receiver_ip(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    /// Addresses at which a server listens for clients and for routes.
    pub fn server_listeners(&self, number: usize) -> (SocketAddr, SocketAddr) {
        self.servers[number]
    }

    /// Addresses at which a role listens for its API and for operations.
    pub fn role_listeners(&self, role: Node) -> (SocketAddr, SocketAddr) {
        self.roles[&role]
    }

    /// Addresses of all servers as a process dials them.
    pub fn dialled(&self, from: Node) -> Vec<SocketAddr> {
        (0..self.servers.len()).filter_map(|server| Some(self.links.get(&(from, server))?.address)).collect()
    }

    /// Setting of the servers' `cluster` section, with a comma. Servers tell each other where the others are; nobody
    /// listens at the address that is told here, so that only the configured routes are used.
    pub fn advertise(&self) -> &'static str {
        "advertise: \"127.0.0.1:9\","
    }

    /// Makes a cut.
    pub fn cut(&self, cut: Cut) {
        self.each(cut, Link::hold);
    }

    /// Heals a cut.
    pub fn heal(&self, cut: Cut) {
        self.each(cut, Link::release);
    }

    /// Delays everything to and from a server; zero ends it.
    pub fn delay(&self, server: usize, delay: Duration) {
        for ((from, to), link) in &self.links {
            if *to == server || *from == Node::Server(server) {
                link.delay(delay);
            }
        }
    }

    /// Calls `act` for each direction of a link that a cut concerns.
    fn each(&self, cut: Cut, act: impl Fn(&Link, Direction)) {
        for ((from, to), link) in &self.links {
            for direction in [Direction::Forward, Direction::Backward] {
                let (sender, receiver) = match direction {
                    Direction::Forward => (*from, Node::Server(*to)),
                    Direction::Backward => (Node::Server(*to), *from),
                };
                if concerns(cut, sender, receiver) {
                    act(link, direction);
                }
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

/// Below the range that the system takes the ports of outgoing connections from, so that the port of a process that does
/// not run is not taken meanwhile.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Ports of loopback that are free now. All are held until the last is chosen, so that they differ.
fn free_ports(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let mut held = Vec::new();
    for _ in 0..100 * count {
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, rand::random_range(PORTS))) {
            held.push(listener);
        }
        if held.len() == count {
            break;
        }
    }
    anyhow::ensure!(held.len() == count, "no free ports in {PORTS:?}");
    Ok(held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
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

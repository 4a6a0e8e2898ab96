//! All processes on loopback, with a proxy for each pair of which one is a server. Needs no privileges, and can delay.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use super::{
    Listeners, concerns,
    link::{Direction, Link},
};
use crate::plan::{Cut, Node};

/// Below the range that the system takes the ports of outgoing connections from, so that the port of a process that does
/// not run is not taken meanwhile.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Proxies by the process that connects and the number of the server.
#[derive(Debug)]
pub struct Proxies {
    links: BTreeMap<(Node, usize), Link>,
}

impl Proxies {
    /// Starts the proxies of these processes.
    pub async fn start(listeners: &BTreeMap<Node, Listeners>) -> anyhow::Result<Self> {
        let mut links = BTreeMap::new();
        for (server, Listeners { api, other }) in listeners {
            let Node::Server(number) = server else { continue };
            for from in listeners.keys().filter(|from| *from != server) {
                let target = if matches!(from, Node::Server(_)) { other } else { api };
                links.insert((*from, *number), Link::start(*target).await?);
            }
        }
        Ok(Self { links })
    }

    /// Chooses ports of loopback.
    pub fn listeners(nodes: &[Node]) -> anyhow::Result<BTreeMap<Node, Listeners>> {
        let ports = free_ports(2 * nodes.len())?;
        let pairs = ports.chunks_exact(2).map(|pair| Listeners { api: pair[0], other: pair[1] });
        Ok(nodes.iter().copied().zip(pairs).collect())
    }

    /// The address of a server as a process dials it.
    pub fn dialled(&self, from: Node, server: usize) -> Option<SocketAddr> {
        Some(self.links.get(&(from, server))?.address)
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

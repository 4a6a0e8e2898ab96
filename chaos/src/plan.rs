//! The schedule of faults, drawn from the seed. Pure: the same seed and settings give the same schedule.

use std::{collections::BTreeMap, fmt};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::record::{FaultKind, Millis};

/// A process of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// A nats-server.
    Server(usize),
    /// A gateway.
    Gateway(usize),
    /// A worker.
    Worker(usize),
    /// The admin.
    Admin,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(number) => write!(f, "nats{number}"),
            Self::Gateway(number) => write!(f, "gateway{number}"),
            Self::Worker(number) => write!(f, "worker{number}"),
            Self::Admin => f.write_str("admin"),
        }
    }
}

/// A cut of the network. None sends a FIN or a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// A server neither hears nor reaches any other process.
    Isolated(usize),
    /// A server hears nothing of another, which hears it.
    Deaf {
        /// The server that hears nothing.
        server: usize,
        /// The server that it does not hear.
        to: usize,
    },
    /// A server is lost to all roles, and reaches the other servers.
    Clients(usize),
    /// A role neither hears nor reaches any server.
    Role(Node),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isolated(server) => write!(f, "nats{server} cut off from all"),
            Self::Deaf { server, to } => write!(f, "nats{server} deaf to nats{to}"),
            Self::Clients(server) => write!(f, "nats{server} lost to its clients"),
            Self::Role(node) => write!(f, "{node} cut off from all servers"),
        }
    }
}

/// A change of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogChange {
    /// Other type patterns for the subscription `orders`.
    Filter(Vec<&'static str>),
    /// A pause of the subscription `orders`, and its end.
    Pause,
    /// The subscription `temp` is deleted and created again.
    Recreate,
}

/// The effect of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL; started again afterwards.
    Kill(Node),
    /// SIGSTOP; SIGCONT afterwards.
    Stop(Node),
    /// SIGTERM; started again at once.
    Restart(Node),
    /// A cut; healed afterwards.
    Cut(Cut),
    /// Latency in milliseconds on all connections of a server; removed afterwards.
    Delay(usize, u64),
    /// A step of a role's wall clock in seconds; taken back afterwards, or left until the end of the run.
    Clock {
        /// The role.
        node: Node,
        /// Seconds from the true time.
        seconds: i64,
        /// Whether it is left.
        stays: bool,
    },
    /// A change of the catalog.
    Catalog(CatalogChange),
    /// The disk of a server is full; room is made afterwards.
    Disk(usize),
    /// A copy of EVENTS for the last phase: of the files of the only server in an orderly restart, of a cluster a snapshot.
    Copy {
        /// Whether it is a snapshot.
        snapshot: bool,
    },
}

impl Action {
    /// Kind of the fault, as named by `--faults`.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Kill(_) => FaultKind::Kill,
            Self::Stop(_) => FaultKind::Stop,
            Self::Restart(_) => FaultKind::Restart,
            Self::Cut(_) => FaultKind::Cut,
            Self::Delay(..) => FaultKind::Delay,
            Self::Clock { .. } => FaultKind::Clock,
            Self::Catalog(_) => FaultKind::Catalog,
            Self::Disk(_) => FaultKind::Disk,
            Self::Copy { .. } => FaultKind::Restore,
        }
    }

    /// The process that must not meet another fault meanwhile.
    fn target(&self) -> Option<Node> {
        match self {
            Self::Kill(node) | Self::Stop(node) | Self::Restart(node) | Self::Clock { node, .. } => Some(*node),
            Self::Cut(Cut::Isolated(server) | Cut::Deaf { server, .. } | Cut::Clients(server)) => {
                Some(Node::Server(*server))
            }
            Self::Cut(Cut::Role(node)) => Some(*node),
            Self::Delay(server, _) | Self::Disk(server) => Some(Node::Server(*server)),
            Self::Catalog(_) => Some(Node::Admin),
            Self::Copy { snapshot } => (!snapshot).then_some(Node::Server(0)),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(node) | Self::Stop(node) | Self::Restart(node) => write!(f, "{} {node}", self.kind()),
            Self::Cut(cut) => write!(f, "cut: {cut}"),
            Self::Delay(server, millis) => write!(f, "delay of {millis} ms to and from nats{server}"),
            Self::Clock { node, seconds, stays } => {
                let stays = if *stays { " and left so" } else { "" };
                write!(f, "clock of {node} stepped by {seconds:+} s{stays}")
            }
            Self::Catalog(CatalogChange::Filter(types)) => write!(f, "catalog: orders takes {types:?}"),
            Self::Catalog(CatalogChange::Pause) => f.write_str("catalog: orders paused"),
            Self::Catalog(CatalogChange::Recreate) => f.write_str("catalog: temp deleted and created again"),
            Self::Disk(server) => write!(f, "disk of nats{server} full"),
            Self::Copy { snapshot: false } => f.write_str("restart of nats0 with a copy of EVENTS"),
            Self::Copy { snapshot: true } => f.write_str("snapshot of EVENTS"),
        }
    }
}

/// A fault of the schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// When it begins.
    pub at: Millis,
    /// How long it lasts.
    pub lasts: Millis,
    /// Effect on the mesh.
    pub action: Action,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |millis: Millis| millis as f64 / 1000.0;
        write!(f, "{:7.1} s  {} for {:.1} s", seconds(self.at), self.action, seconds(self.lasts))
    }
}

/// Settings of a schedule.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Seed.
    pub seed: u64,
    /// Number of servers.
    pub servers: usize,
    /// Number of gateways.
    pub gateways: usize,
    /// Number of workers.
    pub workers: usize,
    /// Length of the run.
    pub length: Millis,
    /// Kinds of fault that are drawn.
    pub kinds: Vec<FaultKind>,
}

/// Before the first fault, so that there is something to disturb.
const QUIET_START: Millis = 3_000;
/// After the last fault's end.
const QUIET_END: Millis = 3_000;
/// Between the begins of two faults.
const BETWEEN: std::ops::Range<Millis> = 2_000..9_000;
/// A process is left alone for so long after a fault, so that it can come back.
const RECOVERY: Millis = 4_000;

/// Draws a schedule.
pub fn draw(settings: &Settings) -> Vec<Planned> {
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut busy: BTreeMap<Node, Millis> = BTreeMap::new();
    let mut plan = Vec::new();
    let kinds: Vec<FaultKind> = settings.kinds.iter().copied().filter(|kind| *kind != FaultKind::Restore).collect();
    if settings.kinds.contains(&FaultKind::Restore) {
        let (at, snapshot) = (settings.length / 2, settings.servers > 1);
        if !snapshot {
            busy.insert(Node::Server(0), Millis::MAX);
        }
        plan.push(Planned { at, lasts: 0, action: Action::Copy { snapshot } });
    }
    let mut at = QUIET_START;
    while !kinds.is_empty() && at + QUIET_END < settings.length {
        let Some(kind) = kinds.choose(&mut rng) else { break };
        let action = action(*kind, settings, &mut rng);
        let lasts = lasts(&action, &mut rng).min(settings.length.saturating_sub(at + QUIET_END));
        let free = action.target().is_none_or(|node| busy.get(&node).is_none_or(|until| *until <= at));
        if free {
            if let Some(node) = action.target() {
                busy.insert(node, at + lasts + RECOVERY);
            }
            plan.push(Planned { at, lasts, action });
            at += rng.random_range(BETWEEN);
        } else {
            at += 500;
        }
    }
    plan
}

fn action(kind: FaultKind, settings: &Settings, rng: &mut StdRng) -> Action {
    let server = rng.random_range(0..settings.servers);
    let role = role(settings, rng);
    // Roles and servers alike.
    let node = if rng.random_bool(0.4) { Node::Server(server) } else { role };
    match kind {
        FaultKind::Kill => Action::Kill(node),
        FaultKind::Stop => Action::Stop(node),
        FaultKind::Restart | FaultKind::Restore => Action::Restart(node),
        FaultKind::Cut => Action::Cut(cut(settings, server, role, rng)),
        FaultKind::Delay => Action::Delay(server, rng.random_range(5..150)),
        FaultKind::Clock => {
            let seconds = clock_step(rng);
            // A gateway whose clock is wrong refuses signatures, and rightly: with both wrong no sender would be heard.
            let stays = rng.random_bool(0.5) && !matches!(role, Node::Gateway(_));
            Action::Clock { node: role, seconds, stays }
        }
        FaultKind::Catalog => Action::Catalog(catalog_change(rng)),
        FaultKind::Disk => Action::Disk(server),
    }
}

fn role(settings: &Settings, rng: &mut StdRng) -> Node {
    match rng.random_range(0..5) {
        0 | 1 => Node::Gateway(rng.random_range(0..settings.gateways)),
        2 | 3 => Node::Worker(rng.random_range(0..settings.workers)),
        _ => Node::Admin,
    }
}

fn cut(settings: &Settings, server: usize, role: Node, rng: &mut StdRng) -> Cut {
    let choices = if settings.servers > 1 { 4 } else { 2 };
    match rng.random_range(0..choices) {
        0 => Cut::Role(role),
        1 => Cut::Clients(server),
        2 => Cut::Isolated(server),
        _ => Cut::Deaf { server, to: (server + rng.random_range(1..settings.servers)) % settings.servers },
    }
}

/// Small steps, an hour, and more than the log is kept, either way.
fn clock_step(rng: &mut StdRng) -> i64 {
    const STEPS: [i64; 4] = [2, 60, 3_600, 8 * 86_400];
    let step = STEPS.choose(rng).copied().unwrap_or(STEPS[0]);
    if rng.random_bool(0.5) { step } else { -step }
}

fn catalog_change(rng: &mut StdRng) -> CatalogChange {
    const FILTERS: [&[&str]; 4] = [&["order.*"], &["order.paid"], &["*"], &["order.created", "stock.*"]];
    match rng.random_range(0..3) {
        0 => CatalogChange::Filter(FILTERS.choose(rng).copied().unwrap_or(&["*"]).to_vec()),
        1 => CatalogChange::Pause,
        _ => CatalogChange::Recreate,
    }
}

fn lasts(action: &Action, rng: &mut StdRng) -> Millis {
    match action {
        Action::Kill(_) => rng.random_range(0..4_000),
        Action::Stop(_) => rng.random_range(300..12_000),
        Action::Restart(_) | Action::Copy { .. } => 0,
        Action::Cut(_) => rng.random_range(1_000..16_000),
        Action::Delay(..) | Action::Disk(_) => rng.random_range(2_000..8_000),
        Action::Clock { .. } => rng.random_range(2_000..15_000),
        Action::Catalog(_) => rng.random_range(500..6_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(seed: u64) -> Settings {
        let kinds = vec![FaultKind::Kill, FaultKind::Stop, FaultKind::Cut, FaultKind::Clock, FaultKind::Catalog];
        Settings { seed, servers: 3, gateways: 2, workers: 2, length: 240_000, kinds }
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule() {
        assert_eq!(draw(&settings(7)), draw(&settings(7)));
        assert_ne!(draw(&settings(7)), draw(&settings(8)));
    }

    #[test]
    fn faults_end_before_the_run_and_leave_their_target_time() {
        for seed in 0..50 {
            let plan = draw(&settings(seed));
            assert!(plan.len() > 20, "{plan:?}");
            for (number, fault) in plan.iter().enumerate() {
                assert!(fault.at + fault.lasts + QUIET_END <= 240_000, "{fault}");
                let target = fault.action.target();
                let meets = plan[..number]
                    .iter()
                    .any(|before| before.action.target() == target && before.at + before.lasts + RECOVERY > fault.at);
                assert!(!meets || target.is_none(), "{fault}");
            }
        }
    }
}

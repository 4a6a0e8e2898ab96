//! Free ports of loopback.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
};

/// Below the range that the system takes the ports of outgoing connections from, so that the port of a process that does
/// not run is not taken meanwhile: neither by another connection, nor by a client that tries to connect to it and is given
/// that very port.
const PORTS: Range<u16> = 15_000..32_000;
/// Ports that are tried before the system chooses one.
const TRIES: u16 = 1_000;

/// A free port of loopback. No call of this process returns the same one again soon.
///
/// # Errors
///
/// When there is none.
pub fn free_port() -> io::Result<u16> {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let count = PORTS.end - PORTS.start;
    let next = NEXT.get_or_init(|| AtomicU16::new(rand::random_range(0..count)));
    for _ in 0..TRIES {
        let port = PORTS.start + next.fetch_add(1, Ordering::Relaxed) % count;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

//! Bytes that processes write to disk, from `/proc`.

use std::fs;

use anyhow::Context as _;

/// Bytes that a process has caused to be written to disk so far.
///
/// # Errors
///
/// When there is no such process, or no `/proc`.
pub fn bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/io");
    let io = fs::read_to_string(&path).with_context(|| path.clone())?;
    parse(&io).with_context(|| format!("{path} is not of the known form"))
}

fn parse(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read() {
        assert_eq!(parse("wchar: 7\nread_bytes: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 9\n"), Some(4096));
    }
}

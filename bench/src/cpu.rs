//! CPU time of processes, from `/proc`.

use std::fs;

use anyhow::Context as _;

/// Unit of `/proc/<pid>/stat`: fixed in Linux' interface to programs, independent of the kernel's tick.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of a process so far, in seconds.
///
/// # Errors
///
/// When there is no such process, or no `/proc`.
pub fn seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    parse(&stat).with_context(|| format!("{path} is not of the known form"))
}

fn parse(stat: &str) -> Option<f64> {
    // The program's name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    // Fields 14 and 15 of the line, counted from 1, of which two stand before the parenthesis closes.
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added() {
        let stat = "12 (a (b) c) S 1 12 12 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 8 0 100 1 1";
        assert_eq!(parse(stat), Some(3.0));
    }

    #[test]
    fn our_own_time_is_known() {
        assert!(seconds(std::process::id()).unwrap() >= 0.0);
    }
}

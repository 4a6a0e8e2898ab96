//! Memory of processes, from `/proc`.

use std::fs;

use anyhow::Context as _;
use serde::Serialize;

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Resident now (VmRSS).
    pub resident_mib: f64,
    /// The most that was resident (VmHWM).
    pub peak_mib: f64,
}

impl Memory {
    /// Of a process, now.
    ///
    /// # Errors
    ///
    /// When there is no such process, or no `/proc`.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        parse(&status).with_context(|| format!("{path} is not of the known form"))
    }
}

fn parse(status: &str) -> Option<Memory> {
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: f64 = line.trim_start_matches(':').trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kib / 1024.0)
    };
    Some(Memory { resident_mib: mib("VmRSS")?, peak_mib: mib("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        let status = "Name:\tweft\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\n";
        assert_eq!(parse(status), Some(Memory { resident_mib: 100.0, peak_mib: 200.0 }));
    }
}

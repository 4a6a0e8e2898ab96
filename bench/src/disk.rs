//! The disk below a folder: what a figure of fsynced writes must be read against.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Serialize;

/// Syncs that the percentiles are taken of.
const SYNCS: usize = 500;
/// Bytes of each write: a page, as a small message costs the disk.
const WRITE_BYTES: usize = 4096;

/// Properties of a disk.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Such as `ext4`.
    pub file_system: String,
    /// Median time of a write of 4 KiB and its fdatasync, in milliseconds.
    pub fdatasync_ms: f64,
    /// The slowest of a hundred.
    pub fdatasync_p99_ms: f64,
}

impl Disk {
    /// Measures the disk of a folder.
    ///
    /// # Errors
    ///
    /// When it cannot be written to.
    pub fn measure(folder: &Path) -> anyhow::Result<Self> {
        let times = fdatasyncs(folder).with_context(|| folder.display().to_string())?;
        let ms = |percent: usize| times.get(SYNCS * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1000.0);
        let file_system = file_system(folder).unwrap_or_else(|| "unknown".into());
        Ok(Self { file_system, fdatasync_ms: ms(50), fdatasync_p99_ms: ms(99) })
    }

    /// Whether a sync reaches a disk at all.
    pub fn is_memory(&self) -> bool {
        matches!(self.file_system.as_str(), "tmpfs" | "ramfs" | "devtmpfs")
    }

    /// One line for people.
    pub fn line(&self, folder: &Path) -> String {
        let warning =
            if self.is_memory() { " (memory: syncs cost nothing here, choose a folder on a disk)" } else { "" };
        let Self { file_system, fdatasync_ms: median, fdatasync_p99_ms: p99 } = self;
        format!("{}: {file_system}, fdatasync {median:.3} ms (median), {p99:.2} ms (p99){warning}", folder.display())
    }
}

/// How long each took, the shortest first.
fn fdatasyncs(folder: &Path) -> std::io::Result<Vec<Duration>> {
    let mut file: File = tempfile::tempfile_in(folder)?;
    let page = [7; WRITE_BYTES];
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// The type of the file system that a folder lies on.
fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    file_system_in(&fs::read_to_string("/proc/self/mounts").ok()?, &folder)
}

/// The mount whose place is the longest beginning of the path; of several on one place the last.
fn file_system_in(mounts: &str, folder: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((Path::new(fields.next()?), fields.next()?))
    });
    let holding = mounts.filter(|(place, _)| folder.starts_with(place));
    holding.max_by_key(|(place, _)| place.components().count()).map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_counts() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmp/data xfs rw 0 0\n";
        let kind = |folder: &str| file_system_in(mounts, Path::new(folder));
        assert_eq!(kind("/tmp/data/x").as_deref(), Some("xfs"));
        assert_eq!(kind("/tmp/database").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/home").as_deref(), Some("ext4"));
    }
}

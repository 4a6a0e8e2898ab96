//! The disk below the store: how much of it is free, and the text that names the problem while it is full.
//!
//! A write that fails for want of room makes nats-server stop writing to that stream until it is restarted. So new events
//! are refused while a reserve is still free, and a server that has met the end of the disk is restarted once there is room.

use std::{io, path::Path};

/// Free bytes below which no event is accepted: room for what must still be written, such as commits and projections.
const RESERVE_BYTES: u64 = 16 << 20;
/// On a small disk the reserve is this part of it.
const RESERVE_PART: u64 = 16;

/// Free space of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    /// Bytes that this process may still write.
    pub free: u64,
    /// Bytes that must be free.
    pub reserve: u64,
    /// Files can be created; a disk may run out of inodes first.
    has_inodes: bool,
}

impl Space {
    /// Asks for the disk of a folder that exists.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let disk = rustix::fs::statvfs(folder)?;
        let total = disk.f_blocks.saturating_mul(disk.f_frsize);
        Ok(Self {
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
            reserve: RESERVE_BYTES.min(total / RESERVE_PART),
            // Some file systems count no inodes.
            has_inodes: disk.f_files == 0 || disk.f_favail > 0,
        })
    }

    /// True if there is too little room to accept events.
    pub(super) fn is_low(self) -> bool {
        self.free < self.reserve || !self.has_inodes
    }

    /// The condition in one line, for `/readyz` and the log.
    pub(super) fn problem(self, folder: &Path) -> String {
        let folder = folder.display();
        if !self.has_inodes {
            return format!(
                "disk full: no inodes are free at {folder}; delete files, the mesh then resumes automatically"
            );
        }
        format!(
            "disk full: {} free at {folder}, {} needed; delete other files or enlarge the disk, the mesh then resumes by \
             itself",
            mebibytes(self.free),
            mebibytes(self.reserve)
        )
    }
}

/// For people, to a tenth.
fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// True if a line of the server's log says that a stream, or JetStream as a whole, is no longer written to until the server
/// is restarted.
pub(super) fn is_write_failure(line: &str) -> bool {
    line.contains("ritical write error") || line.contains("will be DISABLED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_low_below_its_reserve_or_without_inodes() {
        let space = Space { free: 20 << 20, reserve: RESERVE_BYTES, has_inodes: true };
        assert!(!space.is_low());
        let full = Space { free: 100 << 10, ..space };
        assert!(full.is_low());
        let problem = full.problem(Path::new("/data/nats/store"));
        assert!(problem.starts_with("disk full: 0.0 MiB free at /data/nats/store, 16.0 MiB needed"), "{problem}");
        let bare = Space { has_inodes: false, ..space };
        assert!(bare.is_low() && bare.problem(Path::new("/")).contains("inodes"));
    }

    #[test]
    fn the_servers_words_are_known() {
        for line in [
            "Filestore [EVENTS] Critical write error: write /s/1.blk: no space left on device",
            "JetStream stream '$G > EVENTS' critical write error: write /s/1.blk: no space left on device",
            "JetStream out of space, will be DISABLED",
        ] {
            assert!(is_write_failure(line), "{line}");
        }
        assert!(!is_write_failure("JetStream failed to store a msg on stream '$G > EVENTS': no space left on device"));
    }
}

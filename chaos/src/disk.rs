//! Small disks for the servers' stores: a tmpfs each, which needs root, and a ballast that fills it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

/// Size of a disk.
const SIZE: &str = "size=1g";
const BALLAST: &str = "ballast";
static CHUNK: [u8; 1 << 20] = [0; 1 << 20];

/// Mounted disks, unmounted when dropped.
#[derive(Debug, Default)]
pub struct Disks {
    mounted: Vec<PathBuf>,
}

impl Disks {
    /// Mounts a disk at a folder.
    ///
    /// # Errors
    ///
    /// When it is not allowed.
    pub fn mount(&mut self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)?;
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "chaos"]).arg(folder).output();
        let output = output.context("mount")?;
        ensure!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr).trim());
        self.mounted.push(folder.to_owned());
        Ok(())
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for folder in &self.mounted {
            // A process that is being killed may still be there.
            let _ = Command::new("umount").arg("-l").arg(folder).status();
        }
    }
}

/// Fills the disk of a folder.
pub fn fill(folder: &Path) -> anyhow::Result<()> {
    let mut ballast = File::create(folder.join(BALLAST))?;
    for size in [CHUNK.len(), 4096, 1] {
        loop {
            match ballast.write_all(&CHUNK[..size]) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Removes the ballast.
pub fn make_room(folder: &Path) -> anyhow::Result<()> {
    Ok(fs::remove_file(folder.join(BALLAST))?)
}

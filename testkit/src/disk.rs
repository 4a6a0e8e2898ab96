//! Small disks for tests: a tmpfs each, which only root may mount, and a file that fills it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

/// The file that fills a disk.
const BALLAST: &str = "ballast";
static CHUNK: [u8; 1 << 20] = [0; 1 << 20];

/// A mounted disk, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of this size, in bytes, at a folder. `None` where that is not allowed, which is printed.
    pub fn mount(folder: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(folder).ok()?;
        let size = format!("size={bytes}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "weft-test"]).arg(folder).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self { folder: folder.to_owned() }),
            failed => {
                let problem = failed.map_or_else(
                    |error| error.to_string(),
                    |output| String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                );
                println!("skipped: this test mounts a tmpfs, which is not allowed here: {problem}");
                None
            }
        }
    }

    /// Fills it to the last byte, but for what else is removed meanwhile. Returns the bytes written.
    ///
    /// # Errors
    ///
    /// When writing fails otherwise than for want of room.
    pub fn fill(&self) -> io::Result<u64> {
        let mut ballast = File::options().append(true).create(true).open(self.folder.join(BALLAST))?;
        let mut written = 0;
        for size in [CHUNK.len(), 4096, 1] {
            loop {
                match ballast.write(&CHUNK[..size]) {
                    Ok(bytes) => written += bytes as u64,
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(written)
    }

    /// Takes this many bytes of it, in addition to what is taken.
    ///
    /// # Errors
    ///
    /// When fewer are free.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        let mut ballast = File::options().append(true).create(true).open(self.folder.join(BALLAST))?;
        let mut left = usize::try_from(bytes).map_err(io::Error::other)?;
        while left > 0 {
            let size = left.min(CHUNK.len());
            ballast.write_all(&CHUNK[..size])?;
            left -= size;
        }
        Ok(())
    }

    /// Changes its size, in bytes. False where that is not possible.
    pub fn resize(&self, bytes: u64) -> bool {
        let size = format!("remount,size={bytes}");
        Command::new("mount").args(["-o", &size]).arg(&self.folder).status().is_ok_and(|status| status.success())
    }

    /// Gives back what was filled or taken.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn make_room(&self) -> io::Result<()> {
        fs::remove_file(self.folder.join(BALLAST))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A process that is being killed may still be there.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

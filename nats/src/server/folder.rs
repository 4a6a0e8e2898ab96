//! The folder of the embedded server: one owner at a time, readable by nobody else.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::ServerError;
use crate::private_file;

/// The part of a disk that EVENTS may fill, all shards together, in percent. What is left is for OUTCOMES, DLQ, the
/// indexes, and whoever else writes to the disk.
const EVENTS_PERCENT: u64 = 70;
/// The part of a disk that JetStream may fill, in percent: above what EVENTS may, so that EVENTS meets its own limit
/// first, and below the end of the disk, which freezes every stream.
const STORE_PERCENT: u64 = 95;
/// What JetStream may fill at the least: what the store holds, a quarter more, and this. Streams keep the limits that they
/// have when somebody else fills the disk, and a store that may hold less than its streams reserve refuses their updates.
const STORE_BYTES_MIN: u64 = 1 << 30;

/// A folder that is locked for as long as this value lives. The system drops the lock when we die, however we die.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder when it is missing, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, ServerError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        // The absolute path is what a process left over is recognised by.
        let path = made.and_then(|()| path.canonicalize()).map_err(|source| failed(path, source))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|source| failed(&lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(ServerError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(failed(&lock_path, source)),
        }
    }

    /// The generated configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.path.join("nats.conf")
    }

    /// The process id, written by the server.
    pub(super) fn pid(&self) -> PathBuf {
        self.path.join("nats.pid")
    }

    /// JetStream's store.
    pub(super) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// The passwords of all users.
    pub(super) fn users(&self) -> PathBuf {
        self.path.join("users.json")
    }

    /// The URL for subscribers, with the tail user's password.
    pub(super) fn tail_url(&self) -> PathBuf {
        self.path.join("tail.url")
    }

    /// The same as a context of the `nats` command, named `tail` where `XDG_CONFIG_HOME` is the folder above this one.
    pub(super) fn tail_context(&self) -> PathBuf {
        self.path.join("context/tail.json")
    }

    /// How many bytes JetStream may store here in all.
    pub(super) fn store_bytes_max(&self) -> Result<u64, ServerError> {
        let room = room(&self.store()).map_err(|source| failed(&self.path, source))?;
        let held = size(&self.store());
        Ok(percent(room, STORE_PERCENT).max(held + held / 4 + STORE_BYTES_MIN))
    }
}

/// As [`private_file::write`], with this folder's failure.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), ServerError> {
    private_file::write(path, text).map_err(|source| failed(path, source))
}

/// A folder's failure.
pub(super) fn failed(path: &Path, source: io::Error) -> ServerError {
    ServerError::Folder { path: path.to_owned(), source }
}

/// `wanted` when nobody listens there, else a port that is free.
pub(super) fn free_port(wanted: u16) -> Result<u16, ServerError> {
    let bound =
        TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    bound
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| ServerError::Start(format!("no free port on 127.0.0.1: {error}")))
}

/// What `[log] max_bytes = "auto"` means for EVENTS of the embedded server, in bytes a shard: 70 % of the disk that is
/// free or already the store's. `folder` need not exist yet.
///
/// # Errors
///
/// When the disk cannot be asked.
pub fn auto_bytes_max(folder: &Path, shards: u32) -> io::Result<u64> {
    Ok(percent(room(&folder.join("store"))?, EVENTS_PERCENT) / u64::from(shards.max(1)))
}

/// What the store has and may still get: its own size and the free disk below it.
fn room(store: &Path) -> io::Result<u64> {
    let existing = store.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let disk = rustix::fs::statvfs(existing)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(size(store)))
}

/// The bytes of all files below a folder; what goes away meanwhile counts nothing.
fn size(folder: &Path) -> u64 {
    let mut folders = vec![folder.to_owned()];
    let mut total = 0u64;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => total = total.saturating_add(metadata.len()),
                Err(_) => {}
            }
        }
    }
    total
}

/// A part of something.
fn percent(whole: u64, percent: u64) -> u64 {
    whole / 100 * percent
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_has_one_owner() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data/nats");
        let first = Folder::open(&path).unwrap();
        assert!(matches!(Folder::open(&path), Err(ServerError::InUse { .. })));
        drop(first);
        Folder::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_folder_below_a_file_is_refused_and_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Folder::open(&file.path().join("nats")).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn what_is_private_stays_private_when_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.json");
        fs::write(path.with_extension("new"), "left over, readable by all").unwrap();
        for text in ["one", "two"] {
            write_private(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_taken_port_is_replaced_and_a_free_one_kept() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let free = free_port(port).unwrap();
        assert_ne!(free, port);
        drop(taken);
        assert_eq!(free_port(port).unwrap(), port);
    }

    #[test]
    fn what_the_store_holds_counts_as_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        fs::create_dir_all(store.join("a/b")).unwrap();
        fs::write(store.join("a/b/1.blk"), [0u8; 1000]).unwrap();
        fs::write(store.join("meta"), [0u8; 24]).unwrap();
        assert_eq!(size(&store), 1024);
        assert!(auto_bytes_max(&folder.path().join("not/there/yet"), 4).unwrap() > 0);
    }
}

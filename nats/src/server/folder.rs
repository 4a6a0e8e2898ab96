//! The folder of the embedded server: one owner at a time, readable by that owner only.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{ServerError, port};
use crate::private_file;

/// The part of a disk, without what REJECTED may hold, that EVENTS may fill, all shards together, in percent. What is left is
/// for OUTCOMES, DLQ, the indexes, and other programs that write to the disk.
const EVENTS_PERCENT: u64 = 70;
/// REJECTED may hold at most this part of a disk, in percent, however small the disk is.
const REJECTED_PERCENT: u64 = 25;
/// The part of a disk that JetStream may fill, in percent: above what EVENTS may, so that EVENTS meets its own limit
/// first, and below the end of the disk, which freezes every stream.
const STORE_PERCENT: u64 = 95;
/// Least size of the JetStream store: what the existing streams reserve, what the store holds, a quarter more, and this.
/// Streams keep the limits that they have when other programs fill the disk, and a server that may store less than its streams
/// reserve refuses every update and every new stream.
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

    /// Identity of the server's process: its id may be given to another process later.
    pub(super) fn identity(&self) -> PathBuf {
        self.path.join("nats.process")
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

    /// The URL for services whose streams subscriptions publish to.
    pub(super) fn app_url(&self) -> PathBuf {
        self.path.join("app.url")
    }

    /// The same as a context of the `nats` command, named `tail` where `XDG_CONFIG_HOME` is the folder above this one.
    pub(super) fn tail_context(&self) -> PathBuf {
        self.path.join("context/tail.json")
    }

    /// How many bytes JetStream may store here in all.
    pub(super) fn store_bytes_max(&self) -> Result<u64, ServerError> {
        let room = room(&self.store()).map_err(|source| failed(&self.path, source))?;
        let held = size(&self.store());
        let least = reserved(&self.store()).saturating_add(held).saturating_add(held / 4);
        Ok(percent(room, STORE_PERCENT).max(least.saturating_add(STORE_BYTES_MIN)))
    }
}

/// Bytes that the existing streams reserve: the sum of their `max_bytes`. A stream that cannot be read reserves nothing.
fn reserved(store: &Path) -> u64 {
    #[derive(serde::Deserialize)]
    struct Meta {
        max_bytes: i64,
    }

    let children = |folder: &Path| fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let accounts = children(&store.join("jetstream"));
    let streams = accounts.flat_map(|account| children(&account.path().join("streams")).collect::<Vec<_>>());
    let metas = streams.filter_map(|stream| fs::read(stream.path().join("meta.inf")).ok());
    let metas = metas.filter_map(|text| serde_json::from_slice::<Meta>(&text).ok());
    metas.filter_map(|meta| u64::try_from(meta.max_bytes).ok()).fold(0, u64::saturating_add)
}

/// As [`private_file::write`], with this folder's failure.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), ServerError> {
    private_file::write(path, text).map_err(|source| failed(path, source))
}

/// A folder's failure.
pub(super) fn failed(path: &Path, source: io::Error) -> ServerError {
    ServerError::Folder { path: path.to_owned(), source }
}

/// `wanted` when no process listens there, else a port that is free.
pub(super) fn free_port(wanted: u16) -> Result<u16, ServerError> {
    if wanted != 0 && TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).is_ok() {
        return Ok(wanted);
    }
    port::free_port().map_err(|error| ServerError::Start(format!("no free port on 127.0.0.1: {error}")))
}

/// Limits of streams that follow from the disk of an embedded server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoLimits {
    /// `[log] max_bytes = "auto"`: EVENTS, in bytes a shard.
    pub events: u64,
    /// REJECTED, in bytes: as configured, and less on a small disk.
    pub rejected: u64,
}

/// The limits on the disk of the embedded server: REJECTED gets what is configured, at most a quarter of the disk that is
/// free or already the store's, and EVENTS 70 % of the rest. `folder` need not exist yet.
///
/// # Errors
///
/// When the disk cannot be asked.
pub fn auto_limits(folder: &Path, shards: u32, rejected: u64) -> io::Result<AutoLimits> {
    Ok(share(room(&folder.join("store"))?, shards, rejected))
}

fn share(room: u64, shards: u32, rejected: u64) -> AutoLimits {
    let rejected = rejected.min(percent(room, REJECTED_PERCENT));
    let events = percent(room - rejected, EVENTS_PERCENT) / u64::from(shards.max(1));
    AutoLimits { events, rejected }
}

/// Bytes that the store has and may still get: its own size and the free disk below it.
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
        assert!(auto_limits(&folder.path().join("not/there/yet"), 4, 100 << 20).unwrap().events > 0);
    }

    #[test]
    fn rejected_requests_take_their_part_of_the_disk_first_and_little_of_a_small_one() {
        let mib = |bytes: u64| bytes >> 20;
        let large = share(1000 << 30, 2, 100 << 20);
        assert_eq!((large.rejected, mib(large.events)), (100 << 20, 358_365));
        let small = share(120 << 20, 1, 100 << 20);
        assert_eq!((mib(small.rejected), mib(small.events)), (29, 62));
        assert_eq!(share(0, 0, 100 << 20), AutoLimits { events: 0, rejected: 0 });
    }

    /// A server that may store less than its streams reserve refuses their updates.
    #[test]
    fn what_streams_reserve_may_be_stored() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::open(parent.path()).unwrap();
        for (account, stream, meta) in [
            ("$G", "EVENTS", r#"{"Created":"2026-11-30T02:55:56Z","name":"EVENTS","max_bytes":1099511627776}"#),
            ("$G", "OUTCOMES", r#"{"name":"OUTCOMES","max_bytes":-1}"#),
            ("OTHER", "X", r#"{"name":"X","max_bytes":1024}"#),
            ("OTHER", "Y", "not JSON"),
        ] {
            let stream = folder.store().join("jetstream").join(account).join("streams").join(stream);
            fs::create_dir_all(&stream).unwrap();
            fs::write(stream.join("meta.inf"), meta).unwrap();
        }
        assert_eq!(reserved(&folder.store()), (1 << 40) + 1024);
        assert!(folder.store_bytes_max().unwrap() >= (1 << 40) + 1024 + STORE_BYTES_MIN);
    }
}

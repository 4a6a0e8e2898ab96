//! The lock of a role's data folder: one process at a time.
//!
//! The lock is advisory and ends with its process, however that ends, so a file that is left over locks nothing.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

/// The file that is locked, inside the folder. It holds the process id of its holder, for people.
const LOCK_FILE: &str = "lock";
/// Bytes read of a lock file: more than a process id has.
const PID_BYTES_MAX: u64 = 32;

/// A folder that this process holds. Released when dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// Why a folder was not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("data folder {} is in use by process {pid}; stop that process, or name another folder with --data", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process id in the lock file.
        pid: String,
    },
    /// The folder or the file cannot be written.
    #[error("data folder {} cannot be locked: {source}; make it writable, or name another folder with --data", path.display())]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl FolderLock {
    /// Locks a folder, which is made where it is missing. Does not wait.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(folder.join(LOCK_FILE));
        let mut file = file.map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::InUse { path: folder.to_owned(), pid: pid_in(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        file.set_len(0).map_err(unusable)?;
        writeln!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

/// The process id in a lock file; `unknown` where its holder has not written it yet.
fn pid_in(file: &mut File) -> String {
    let mut text = String::new();
    // Only for the message: a file that cannot be read names no process.
    let _ = file.take(PID_BYTES_MAX).read_to_string(&mut text);
    let pid = text.trim();
    if pid.is_empty() { "unknown".into() } else { pid.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_is_locked_once_and_free_again_after_its_holder() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/worker");
        let lock = FolderLock::take(&folder).unwrap();
        let error = FolderLock::take(&folder).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        assert_eq!(error.lines().count(), 1);
        drop(lock);
        // What a longer process id has left is overwritten.
        fs::write(folder.join(LOCK_FILE), "99999999999\n").unwrap();
        let _lock = FolderLock::take(&folder).unwrap();
        let written = fs::read_to_string(folder.join(LOCK_FILE)).unwrap();
        assert_eq!(written.trim(), std::process::id().to_string());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = FolderLock::take(&file.path().join("worker")).unwrap_err();
        assert!(matches!(error, LockError::Unusable { .. }), "{error}");
    }
}

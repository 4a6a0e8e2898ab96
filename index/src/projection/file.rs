//! A projection's redb file: opened, created, or set aside and replaced.

use std::{
    fs, io, panic,
    path::{Path, PathBuf},
};

use redb::{Database, DatabaseError, ReadableDatabase as _, StorageError, TableDefinition, TableError};

/// Default page cache of one file, in bytes: small, since several files share a process and the
/// system caches their pages, too.
pub const CACHE_BYTES_DEFAULT: usize = 32 * 1024 * 1024;

/// Format of the file: one row, by which a file of another version or of another projection is recognised.
const FORMAT: TableDefinition<&str, &str> = TableDefinition::new("format");
/// The key of that row.
const FORMAT_KEY: &str = "format";

/// Error of opening a projection. A damaged file is not an error: it is set aside.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or the file cannot be read or written.
    #[error("{}: cannot be used; make the folder writable, or name another with --data", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// Error of the system.
        #[source]
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{}: in use by another process; stop that one, or name another folder with --data", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

/// Opens the projection at `path`, or creates it, with the folders above it. `format` names the projection and its
/// version. A file that is damaged or of another format is renamed to `<path>.old`, with a warning, and replaced. Blocks.
///
/// # Errors
///
/// [`OpenError`].
pub fn open(path: &Path, format: &str, cache_bytes: usize) -> Result<Database, OpenError> {
    let unusable = |source| OpenError::Unusable { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(unusable)?;
    }
    match open_caught(path, format, cache_bytes) {
        Ok(database) => return Ok(database),
        Err(Refusal::Open(error)) => return Err(error),
        Err(Refusal::Unsound(reason)) => {
            tracing::warn!(path = %path.display(), reason, "projection cannot be read and is rebuilt");
        }
    }
    fs::rename(path, path.with_added_extension("old")).map_err(unusable)?;
    open_caught(path, format, cache_bytes).map_err(|refusal| match refusal {
        Refusal::Open(error) => error,
        Refusal::Unsound(reason) => unusable(io::Error::other(reason)),
    })
}

/// Removes the projection at `path`, so that the next [`open`] creates it. Views of the old file stay valid. Blocks.
///
/// # Errors
///
/// [`OpenError::Unusable`].
pub fn remove(path: &Path) -> Result<(), OpenError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::Unusable { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Reason why a file was not opened.
enum Refusal {
    /// The system refuses access: another file would not help.
    Open(OpenError),
    /// Its content cannot be used.
    Unsound(String),
}

/// redb panics on damaged pages; a damaged cache must not end the process.
fn open_caught(path: &Path, format: &str, cache_bytes: usize) -> Result<Database, Refusal> {
    panic::catch_unwind(|| open_sound(path, format, cache_bytes))
        .unwrap_or_else(|_| Err(Refusal::Unsound("its pages are damaged".into())))
}

fn open_sound(path: &Path, format: &str, cache_bytes: usize) -> Result<Database, Refusal> {
    let open_error = |error: DatabaseError| match error {
        DatabaseError::DatabaseAlreadyOpen => Refusal::Open(OpenError::InUse { path: path.to_owned() }),
        DatabaseError::Storage(StorageError::Io(source)) => classify_io(path, source),
        other => Refusal::Unsound(other.to_string()),
    };
    let database = Database::builder().set_cache_size(cache_bytes).create(path).map_err(open_error)?;
    match stored_format(&database).map_err(|error| match error {
        redb::Error::Io(source) => classify_io(path, source),
        other => Refusal::Unsound(other.to_string()),
    })? {
        Some(stored) if stored == format => Ok(database),
        Some(stored) => Err(Refusal::Unsound(format!("its format is {stored:?}, not {format:?}"))),
        None => {
            write_format(&database, format).map_err(|error| match error {
                redb::Error::Io(source) => Refusal::Open(OpenError::Unusable { path: path.to_owned(), source }),
                other => Refusal::Unsound(other.to_string()),
            })?;
            Ok(database)
        }
    }
}

/// Whether an I/O error is about the file's content (then another file helps) or about the system.
fn classify_io(path: &Path, source: io::Error) -> Refusal {
    match source.kind() {
        // Not a redb file, or a truncated one.
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Refusal::Unsound(source.to_string()),
        _ => Refusal::Open(OpenError::Unusable { path: path.to_owned(), source }),
    }
}

fn stored_format(database: &Database) -> Result<Option<String>, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(FORMAT) {
        Ok(table) => Ok(table.get(FORMAT_KEY)?.map(|format| format.value().to_owned())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn write_format(database: &Database, format: &str) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(FORMAT)?.insert(FORMAT_KEY, format)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");

    fn fill(path: &Path, format: &str) {
        let database = open(path, format, CACHE_BYTES_DEFAULT).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut rows = transaction.open_table(ROWS).unwrap();
            for key in 0..200 {
                rows.insert(key, [7u8; 200].as_slice()).unwrap();
            }
        }
        transaction.commit().unwrap();
    }

    fn rows(database: &Database) -> usize {
        match database.begin_read().unwrap().open_table(ROWS) {
            Ok(table) => table.range::<u64>(..).unwrap().count(),
            Err(_) => 0,
        }
    }

    #[test]
    fn a_sound_file_is_kept_and_one_of_another_format_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/receipts.redb");
        fill(&path, "receipts 1");
        assert_eq!(rows(&open(&path, "receipts 1", CACHE_BYTES_DEFAULT).unwrap()), 200);
        assert_eq!(rows(&open(&path, "receipts 2", CACHE_BYTES_DEFAULT).unwrap()), 0);
        assert!(path.with_added_extension("old").exists());
        assert_eq!(rows(&open(&path, "receipts 2", CACHE_BYTES_DEFAULT).unwrap()), 0);
    }

    /// With any content: it opens, complete or replaced.
    #[test]
    fn a_damaged_file_never_stops_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts.redb");
        fill(&path, "receipts 1");
        let sound = fs::read(&path).unwrap();
        let mut damages: Vec<Vec<u8>> = vec![b"not a database, but long enough for a header".to_vec(), vec![0; 9000]];
        damages.extend([1, 100, 320, 4096, sound.len() / 2].map(|length| sound[..length].to_vec()));
        for at in (0..4096).step_by(61).chain((4096..sound.len()).step_by(9973)) {
            let mut flipped = sound.clone();
            flipped[at] ^= 0x55;
            damages.push(flipped);
        }
        for damage in damages {
            fs::write(&path, &damage).unwrap();
            assert!(open(&path, "receipts 1", CACHE_BYTES_DEFAULT).is_ok());
        }
    }

    #[test]
    fn an_unusable_folder_and_a_file_in_use_are_errors_that_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = open(&file.join("receipts.redb"), "receipts 1", CACHE_BYTES_DEFAULT).unwrap_err();
        assert!(matches!(error, OpenError::Unusable { .. }), "{error}");
        let path = folder.path().join("receipts.redb");
        let _held = open(&path, "receipts 1", CACHE_BYTES_DEFAULT).unwrap();
        let error = open(&path, "receipts 1", CACHE_BYTES_DEFAULT).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    }
}

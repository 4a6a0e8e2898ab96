//! The folder for a benchmark's files.

use std::path::Path;

use tempfile::TempDir;

use weft_services::failure::Failure;

/// A fresh folder on a chosen disk, gone at the end.
#[derive(Debug)]
pub struct TmpDir(TempDir);

impl TmpDir {
    /// Makes the folder inside `parent`.
    ///
    /// # Errors
    ///
    /// One line: `parent` cannot be used.
    pub fn new(parent: &Path) -> Result<Self, Failure> {
        let made = tempfile::Builder::new().prefix("weft-bench-").tempdir_in(parent);
        made.map(Self)
            .map_err(|error| Failure::Failed(format!("{}: {error}; choose another with --data", parent.display())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

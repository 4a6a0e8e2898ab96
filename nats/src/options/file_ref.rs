//! Files that are not read here but by a library.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

/// `file:PATH`, or the path alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRef(PathBuf);

impl FileRef {
    /// A file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes sure that it can be read.
    ///
    /// # Errors
    ///
    /// For a person: which file, and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        std::fs::read(&self.0).map(drop).map_err(|error| format!("file {}: {error}", self.0.display()))
    }
}

impl<'de> Deserialize<'de> for FileRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self(text.strip_prefix("file:").unwrap_or(&text).into()))
    }
}

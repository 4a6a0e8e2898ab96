//! Wall clocks of the roles, stepped by a preloaded library that reads the step from a file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::plan::Node;

/// Source of the library.
const SHIM: &str = include_str!("../shim/clock.c");

/// The compiled library and the files of the steps.
#[derive(Debug)]
pub struct WallClocks {
    folder: PathBuf,
}

impl WallClocks {
    /// Compiles the library into a folder.
    ///
    /// # Errors
    ///
    /// When there is no C compiler.
    pub fn compile(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.join("clocks");
        fs::create_dir_all(&folder)?;
        let source = folder.join("clock.c");
        fs::write(&source, SHIM)?;
        let compiled = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .arg(folder.join("clock.so"))
            .arg(&source)
            .arg("-ldl")
            .output()
            .context("cc")?;
        ensure!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
        Ok(Self { folder })
    }

    /// Environment of a role that is started with the library.
    pub fn environment(&self, role: Node) -> anyhow::Result<Vec<(String, String)>> {
        self.step(role, 0)?;
        let text = |path: PathBuf| path.display().to_string();
        Ok(vec![
            ("LD_PRELOAD".into(), text(self.folder.join("clock.so"))),
            ("CHAOS_CLOCK_FILE".into(), text(self.file(role))),
        ])
    }

    /// Steps the clock of a role, in seconds from the true time.
    pub fn step(&self, role: Node, seconds: i64) -> anyhow::Result<()> {
        use std::io::Write as _;
        // In place: the process has mapped the file.
        let mut file = fs::File::options().create(true).write(true).truncate(false).open(self.file(role))?;
        Ok(file.write_all(&seconds.to_ne_bytes())?)
    }

    fn file(&self, role: Node) -> PathBuf {
        self.folder.join(role.to_string())
    }
}

//! The way to a value of the configuration, for messages and for finding its line.

use std::fmt;

/// One step of the way to a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Into a table.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// The way to a value, such as `source[1].verify.scheme`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyPath(Vec<Step>);

impl KeyPath {
    /// One step further, into a table.
    pub fn key(&self, name: impl Into<String>) -> Self {
        let mut path = self.clone();
        path.0.push(Step::Key(name.into()));
        path
    }

    /// One step further, into a list.
    pub fn index(&self, index: usize) -> Self {
        let mut path = self.clone();
        path.0.push(Step::Index(index));
        path
    }

    /// The steps, from the file's top.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Whether the value is a secret, so that messages must not quote it.
    pub fn names_secret(&self) -> bool {
        const SECRETS: [&str; 10] = [
            "secret",
            "master_keys",
            "secrets",
            "token",
            "password",
            "nkey",
            "creds",
            "key",
            "bearer",
            "client_secret",
        ];
        self.0.iter().any(|step| matches!(step, Step::Key(name) if SECRETS.contains(&name.as_str())))
    }
}

impl KeyPath {
    /// Whether a value of another form than is expected may hold a secret, so that an error must not quote it: such as a text in
    /// the place of a list of connection strings.
    pub fn may_hold_secret(&self) -> bool {
        const TABLES: [&str; 4] = ["auth", "headers", "proxy", "shards"];
        self.names_secret()
            || self.0.iter().any(|step| matches!(step, Step::Key(name) if TABLES.contains(&name.as_str())))
    }
}

impl From<&serde_path_to_error::Path> for KeyPath {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment;
        let steps = path.iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        });
        Self(steps.collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(name) if place == 0 => f.write_str(name)?,
                Step::Key(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

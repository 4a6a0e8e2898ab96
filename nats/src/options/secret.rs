//! Secrets, and where they are found.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Deserializer};

/// A text that is never printed: `Debug` shows only that it is there.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// For the command line's arguments.
impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(weft_proto::SECRET_MASK)
    }
}

/// Where a secret is found: `env:NAME`, `file:PATH`, or the secret itself.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// An environment variable; a line end at its end is not part of the secret.
    Env(String),
    /// A file; neither a line end at its end nor a byte order mark in front is part of the secret.
    File(PathBuf),
    /// In clear.
    Clear(Secret),
}

impl SecretRef {
    /// Fetches the secret.
    ///
    /// # Errors
    ///
    /// One line for a person: which variable or file, and what is wrong with it.
    pub fn resolve(&self) -> Result<Secret, String> {
        match self {
            Self::Env(name) => match std::env::var(name) {
                Ok(text) => match trimmed(&text) {
                    "" => Err(format!("environment variable {name} is set, but empty")),
                    text => Ok(Secret(text.to_owned())),
                },
                Err(_) => {
                    Err(format!("environment variable {name} is not set; set it or write the secret as file:PATH"))
                }
            },
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Secret(trimmed(&text).to_owned())),
                Err(error) => Err(format!("secret file {}: {error}", path.display())),
            },
            Self::Clear(secret) => Ok(secret.clone()),
        }
    }
}

/// Without what shells and editors put around a text.
fn trimmed(text: &str) -> &str {
    text.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n'])
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Clear(secret) => fmt::Debug::fmt(secret, f),
        }
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(if let Some(name) = text.strip_prefix("env:") {
            Self::Env(name.to_owned())
        } else if let Some(path) = text.strip_prefix("file:") {
            Self::File(path.into())
        } else {
            Self::Clear(Secret(text))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SecretRef, serde_json::Error> {
        serde_json::from_value(serde_json::Value::String(text.into()))
    }

    #[test]
    fn secrets_are_found_where_they_are_said_to_be_and_never_printed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}hush\r\n").unwrap();
        let of_file = parse(&format!("file:{}", file.path().display())).unwrap();
        assert_eq!(of_file.resolve().unwrap().expose(), "hush");
        let clear = parse("hush").unwrap();
        assert_eq!(clear.resolve().unwrap(), of_file.resolve().unwrap());
        assert!(!format!("{clear:?} {:?}", clear.resolve()).contains("hush"));
        let missing = parse("env:WEFT_TEST_NOBODY_SETS_THIS").unwrap().resolve().unwrap_err();
        assert!(missing.contains("WEFT_TEST_NOBODY_SETS_THIS"), "{missing}");
    }
}

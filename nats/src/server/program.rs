//! Search for a nats-server that is new enough.
//!
//! A program on the PATH may be older than we need, so every candidate is asked for its version and an old one is
//! passed over; only the one that `WEFT_NATS_SERVER` names is taken or refused, never replaced.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::ServerError;

/// The oldest server that syncs an atomic batch once: before it, every message of a batch costs an fsync.
pub const VERSION_MIN: Version = Version { major: 2, minor: 15, patch: 1 };

/// The name of the program.
const PROGRAM: &str = "nats-server";

/// A released version of nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Changes when nothing fits any more.
    pub major: u32,
    /// Changes with new features.
    pub minor: u32,
    /// Changes with repairs.
    pub patch: u32,
}

impl Version {
    /// Reads `2.15.1`, `v2.15.1` or `nats-server: v2.15.1`. A version with a suffix (`2.15.1-RC.1`, `2.16.0-dev`) came
    /// before its release, so it is no released version: `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.trim().rsplit([' ', 'v']).next()?;
        let mut parts = number.splitn(3, '.').map(|part| part.parse().ok());
        Some(Self { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Finds a nats-server of at least [`VERSION_MIN`]: `WEFT_NATS_SERVER`, then the PATH, then the project's cache.
///
/// # Errors
///
/// [`ServerError::Program`] says where it looked and what to do.
pub fn find_program() -> Result<PathBuf, ServerError> {
    if let Some(named) = env::var_os("WEFT_NATS_SERVER").filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        return match fitness(&named) {
            Ok(()) => Ok(named),
            Err(problem) => Err(ServerError::Program(format!(
                "WEFT_NATS_SERVER is {}, which {problem}; name a nats-server of at least {VERSION_MIN}, or unset it",
                named.display()
            ))),
        };
    }
    let mut passed_over = Vec::new();
    for candidate in candidates() {
        match fitness(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(problem) => passed_over.push(format!("{} {problem}", candidate.display())),
        }
    }
    let seen = if passed_over.is_empty() { "none found".to_owned() } else { passed_over.join(", ") };
    Err(ServerError::Program(format!(
        "no nats-server of at least {VERSION_MIN} on the PATH or in the cache ({seen}); run nats/server.sh, which fetches \
         one, or install one and put it on the PATH, or name it in WEFT_NATS_SERVER"
    )))
}

/// Every file that may be the program, the likeliest first. They exist; their versions are not known yet.
fn candidates() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = env::split_paths(&path).map(|folder| folder.join(PROGRAM)).collect();
    for cache in caches() {
        found.extend(cached(&cache));
    }
    found.retain(|candidate| candidate.is_file());
    found
}

/// The caches that `nats/server.sh` fills.
fn caches() -> Vec<PathBuf> {
    if let Some(cache) = env::var_os("WEFT_CACHE").filter(|cache| !cache.is_empty()) {
        return vec![cache.into()];
    }
    let mut caches = Vec::new();
    if let Ok(here) = env::current_dir() {
        // Only next to the script itself: a folder that merely lies above us must not choose what we run.
        let project = here.ancestors().find(|folder| folder.join("nats/server.sh").is_file());
        caches.extend(project.map(|folder| folder.join(".cache")));
    }
    caches.extend(env::home_dir().map(|home| home.join(".cache/weft")));
    caches
}

/// Programs in a cache as `nats-server/<version>/nats-server`, the newest first.
fn cached(cache: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cache.join(PROGRAM)) else { return Vec::new() };
    let mut versions: Vec<(Version, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((Version::parse(entry.file_name().to_str()?)?, entry.path().join(PROGRAM))))
        .collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    versions.into_iter().map(|(_, program)| program).collect()
}

/// Whether a program runs and is new enough; else what is wrong with it.
fn fitness(program: &Path) -> Result<(), String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("does not run ({error})"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match Version::parse(&text) {
        Some(version) if version >= VERSION_MIN => Ok(()),
        Some(version) => Err(format!("is {version}")),
        None => Err("does not report a released version".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_server_tells_them() {
        let version = |major, minor, patch| Some(Version { major, minor, patch });
        assert_eq!(Version::parse("nats-server: v2.15.1\n"), version(2, 15, 1));
        assert_eq!(Version::parse("2.9.10"), version(2, 9, 10));
        assert!(version(2, 15, 1) > version(2, 9, 10), "numbers, not texts, are compared");
        for text in ["", "nats-server", "2.15", "2.15.1-RC.1", "v2.16.0-dev", "2.15.x"] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_newest_in_the_cache_comes_first() {
        let cache = tempfile::tempdir().unwrap();
        for version in ["2.15.1", "2.15.10", "2.9.0", "part.123"] {
            fs::create_dir_all(cache.path().join(PROGRAM).join(version)).unwrap();
        }
        let found: Vec<_> = cached(cache.path())
            .iter()
            .map(|program| program.parent().unwrap().file_name().unwrap().to_owned())
            .collect();
        assert_eq!(found, ["2.15.10", "2.15.1", "2.9.0"]);
    }
}

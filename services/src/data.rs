//! The data folder: a folder for each role, and the files that the operator's commands find.

use std::{
    env::VarError,
    fmt,
    fs::{self, DirBuilder},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use weft_admin::AdminOptions;
use weft_catalog::MasterKey;
use weft_nats::{
    folder_lock::FolderLock,
    options::{Secret, SecretRef},
    private_file,
};

use crate::{config::CatalogOptions, failure::Failure};

/// Server and token for the operator's commands, inside the data folder.
pub const CLIENT_FILE: &str = "client.toml";
/// The admin's token where the configuration names none, inside the data folder.
const TOKEN_FILE: &str = "admin/token";
/// The catalog's key in the environment: base64, or `file:` and the path of a file that holds it.
pub const MASTER_KEY_VARIABLE: &str = "WEFT_MASTER_KEY";
/// The path of the file that holds the catalog's key, in the environment.
pub const MASTER_KEY_FILE_VARIABLE: &str = "WEFT_MASTER_KEY_FILE";
/// The catalog's key where the environment has none, inside the data folder.
const MASTER_KEY_FILE: &str = "master.key";
/// Random bytes of a token that is made.
const TOKEN_BYTES: usize = 32;
/// Characters of a configured token where other machines can reach a port that takes it: with fewer it can be guessed.
const TOKEN_CHARS_MIN: usize = 24;
/// The permissions of a data folder that are for others than its owner.
const OTHERS: u32 = 0o077;

/// Content of `client.toml`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The admin's address, such as `http://127.0.0.1:9080`.
    pub server: String,
    /// Its bearer token.
    pub token: String,
    /// The certificates (PEM) that its own is trusted by, instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The gateway's address, where the process that wrote the file runs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

/// Without the token.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.server).finish_non_exhaustive()
    }
}

/// A data folder that can be used.
#[derive(Debug, Clone)]
pub struct DataFolder {
    path: PathBuf,
}

impl DataFolder {
    /// Makes the folder where it is missing and makes sure that it can be written to. Only the owner may look into it:
    /// events and passwords lie there.
    ///
    /// # Errors
    ///
    /// One line: the folder, what is wrong with it, how to choose another.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let unusable = |error: io::Error| {
            let path = path.display();
            Failure::Failed(format!(
                "data folder {path} cannot be used: {error}; choose another with --data or WEFT_DATA"
            ))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        let path = path.canonicalize().map_err(unusable)?;
        tempfile::tempfile_in(&path).map_err(unusable)?;
        let mode = fs::metadata(&path).map_err(unusable)?.permissions().mode();
        if mode & OTHERS != 0 {
            tracing::warn!(
                folder = %path.display(),
                mode = format!("{:o}", mode & 0o777),
                "other users of this machine may look into the data folder, which holds secrets; run: chmod 700"
            );
        }
        Ok(Self { path })
    }

    /// The folder of one role; each makes its own.
    pub fn role(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Locks the folders of these roles for as long as the locks are held, so that no other process uses them.
    ///
    /// # Errors
    ///
    /// One line: the folder, and the process that uses it.
    pub fn lock(&self, names: &[&str]) -> Result<Vec<FolderLock>, Failure> {
        names.iter().map(|name| FolderLock::take(&self.role(name)).map_err(|error| Failure::of(&error))).collect()
    }

    /// The admin's token: the configured one, else the one that is kept here, else a new one, kept from now on.
    ///
    /// # Errors
    ///
    /// One line: the secret cannot be read, or the file cannot be written.
    pub fn admin_token(&self, options: &AdminOptions) -> Result<Secret, Failure> {
        if let Some(token) = configured_token(options, &[("admin", options.listen)])? {
            return Ok(token);
        }
        let path = self.path.join(TOKEN_FILE);
        match fs::read_to_string(&path) {
            Ok(token) if !token.trim().is_empty() => return Ok(Secret::new(token.trim())),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path, &error)),
            _ => {}
        }
        let token = format!("weft_{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; TOKEN_BYTES]>()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.role("admin"))
            .map_err(|error| failed(&path, &error))?;
        write_private(&path, &format!("{token}\n"))?;
        Ok(Secret::new(token))
    }

    /// The keys that the catalog is sealed with: the configuration's, else the environment's, else the one that is kept
    /// here, else a new one, kept from now on.
    ///
    /// # Errors
    ///
    /// One line: a key is none, the file cannot be read or written, or two places name keys.
    pub fn master_key(&self, options: &CatalogOptions) -> Result<MasterKey, Failure> {
        let (text, file) = (variable(MASTER_KEY_VARIABLE)?, variable(MASTER_KEY_FILE_VARIABLE)?);
        let named = named_master_key(text.as_deref(), file.as_deref());
        match (configured_master_keys(options), named) {
            (Some(_), Some(_)) => Err(Failure::Failed(format!(
                "[catalog] master_keys is set, and {MASTER_KEY_VARIABLE} or {MASTER_KEY_FILE_VARIABLE} too; unset one"
            ))),
            (Some(key), None) | (None, Some(key)) => key.map_err(Failure::Failed),
            (None, None) => self.kept_master_key(),
        }
    }

    fn kept_master_key(&self) -> Result<MasterKey, Failure> {
        let path = self.path.join(MASTER_KEY_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = MasterKey::generate();
                write_private(&path, &format!("{text}\n"))?;
                text
            }
            Err(error) => return Err(failed(&path, &error)),
        };
        // A damaged file is not replaced: what was sealed with the key in it is lost without it.
        MasterKey::parse(&text).map_err(|problem| Failure::Failed(format!("{}: {problem}", path.display())))
    }

    /// Writes `client.toml` for an admin at `server`, and the gateway of the same process; returns its path. Where its certificate is a file the commands trust what
    /// stands there: on the machine of the admin a certificate that no authority has signed works, too.
    ///
    /// # Errors
    ///
    /// One line: the file cannot be written.
    pub fn write_client(
        &self,
        server: String,
        gateway: Option<String>,
        token: &Secret,
        cert: Option<&SecretRef>,
    ) -> Result<PathBuf, Failure> {
        let ca = match cert {
            // The commands are started anywhere.
            Some(SecretRef::File(path)) => Some(std::path::absolute(path).map_err(|error| failed(path, &error))?),
            _ => None,
        };
        let client = Client { server, token: token.expose().to_owned(), ca, gateway };
        let path = self.path.join(CLIENT_FILE);
        let text = toml::to_string(&client).map_err(|error| Failure::of(&error))?;
        write_private(&path, &text)?;
        Ok(path)
    }
}

/// A variable of the environment, where it is set.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text)),
        Err(VarError::NotUnicode(_)) => Err(Failure::Failed(format!("{name} is not UTF-8"))),
        Err(VarError::NotPresent) => Ok(None),
    }
}

/// The master keys of `[catalog] master_keys`; `None`: it names none.
fn configured_master_keys(options: &CatalogOptions) -> Option<Result<MasterKey, String>> {
    let key = |(index, text): (usize, &SecretRef)| {
        let place = format!("[catalog] master_keys[{index}]");
        let text = text.resolve().map_err(|problem| format!("{place}: {problem}"))?;
        MasterKey::parse(text.expose()).map_err(|problem| format!("{place}: {problem}"))
    };
    let keys: Result<Vec<_>, String> = options.master_keys.iter().enumerate().map(key).collect();
    let mut keys = match keys {
        Ok(keys) => keys.into_iter(),
        Err(problem) => return Some(Err(problem)),
    };
    let first = keys.next()?;
    Some(first.with_others(keys).map_err(|problem| format!("[catalog] master_keys: {problem}")))
}

/// The master key that the variables name: the key itself, `file:` and a path, or a path; `None`: neither is set.
fn named_master_key(text: Option<&str>, file: Option<&str>) -> Option<Result<MasterKey, String>> {
    let (name, path) = match (text, file) {
        (None, None) => return None,
        (Some(_), Some(_)) => {
            return Some(Err(format!("{MASTER_KEY_VARIABLE} and {MASTER_KEY_FILE_VARIABLE} are both set; unset one")));
        }
        (None, Some(path)) => (MASTER_KEY_FILE_VARIABLE, path),
        (Some(text), None) => match text.trim().strip_prefix("file:") {
            Some(path) => (MASTER_KEY_VARIABLE, path),
            None => {
                return Some(MasterKey::parse(text).map_err(|problem| format!("{MASTER_KEY_VARIABLE}: {problem}")));
            }
        },
    };
    let read = fs::read_to_string(path).map_err(|error| format!("{name}: {path}: {error}"));
    Some(read.and_then(|text| MasterKey::parse(&text).map_err(|problem| format!("{name}: {path}: {problem}"))))
}

/// The configured token of the admin, which ports under these names take; `None`: none is configured.
///
/// # Errors
///
/// One line: the secret cannot be read, or it is too short for a port that other machines reach.
pub fn configured_token(options: &AdminOptions, ports: &[(&str, SocketAddr)]) -> Result<Option<Secret>, Failure> {
    let Some(token) = &options.token else { return Ok(None) };
    let token = token.resolve().map_err(|problem| Failure::Failed(format!("[admin] token: {problem}")))?;
    let characters = token.expose().chars().count();
    let reachable = ports.iter().find(|(_, listen)| !listen.ip().to_canonical().is_loopback());
    match reachable {
        Some((name, listen)) if characters < TOKEN_CHARS_MIN => Err(Failure::Failed(format!(
            "[admin] token has {characters} characters, and [{name}] listen = {listen} can be reached from other machines; \
             use at least {TOKEN_CHARS_MIN}, such as from: openssl rand -hex 32"
        ))),
        _ => Ok(Some(token)),
    }
}

/// The address of a listener for clients on this machine.
pub fn url(scheme: &str, listener: SocketAddr) -> String {
    format!("{scheme}://{}", reachable(listener))
}

/// Where a client on this machine reaches a listener: an unspecified address listens on all of them.
pub fn reachable(listener: SocketAddr) -> SocketAddr {
    let mut address = listener;
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// As [`private_file::write`], with what to do about it.
fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    private_file::write(path, text).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}; choose another data folder with --data", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_made_once_kept_and_private() {
        let parent = tempfile::tempdir().unwrap();
        let data = DataFolder::open(&parent.path().join("a/b")).unwrap();
        let token = data.admin_token(&AdminOptions::default()).unwrap();
        assert!(token.expose().len() > 40);
        assert_eq!(data.admin_token(&AdminOptions::default()).unwrap(), token);
        let client = data.write_client(url("http", "0.0.0.0:9080".parse().unwrap()), None, &token, None).unwrap();
        let read: Client = toml::from_str(&fs::read_to_string(&client).unwrap()).unwrap();
        assert_eq!((read.server.as_str(), read.token.as_str()), ("http://127.0.0.1:9080", token.expose()));
        for path in [client, data.role("admin/token")] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_master_key_is_made_once_kept_private_and_never_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let data = DataFolder::open(parent.path()).unwrap();
        let key = data.kept_master_key().unwrap();
        assert_eq!(data.kept_master_key().unwrap().id(), key.id());
        let path = parent.path().canonicalize().unwrap().join(MASTER_KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "damaged").unwrap();
        let error = data.kept_master_key().unwrap_err().to_string();
        assert!(error.contains("master.key") && error.contains("openssl"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "damaged");
    }

    #[test]
    fn a_master_key_is_named_by_text_or_by_file() {
        let folder = tempfile::tempdir().unwrap();
        let (text, path) = (MasterKey::generate(), folder.path().join("key"));
        fs::write(&path, format!("{text}\n")).unwrap();
        let path = path.display().to_string();
        let id = MasterKey::parse(&text).unwrap().id();
        let named =
            |text: Option<&str>, file: Option<&str>| named_master_key(text, file).map(|key| key.map(|key| key.id()));
        assert_eq!(named(None, None), None);
        assert_eq!(named(Some(&text), None), Some(Ok(id.clone())));
        assert_eq!(named(Some(&format!("file:{path}")), None), Some(Ok(id.clone())));
        assert_eq!(named(None, Some(&path)), Some(Ok(id)));
        for (text, file, says) in [
            (Some(text.as_str()), Some(path.as_str()), "both set"),
            (Some("file:/nonexistent/key"), None, "/nonexistent/key"),
            (None, Some("/nonexistent/key"), "WEFT_MASTER_KEY_FILE"),
            (Some(""), None, "openssl"),
        ] {
            let problem = named(text, file).unwrap().unwrap_err();
            assert!(problem.contains(says) && problem.lines().count() == 1, "{problem}");
        }
    }

    /// The first configured key seals, the others open; a fault names its place in the list and no key.
    #[test]
    fn several_master_keys_are_configured_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let [new, old] = [MasterKey::generate(), MasterKey::generate()];
        let path = folder.path().join("new");
        fs::write(&path, format!("{new}\n")).unwrap();
        let configured = |keys: &[SecretRef]| configured_master_keys(&CatalogOptions { master_keys: keys.to_vec() });
        let clear = |text: &str| SecretRef::Clear(Secret::new(text));
        let both = configured(&[SecretRef::File(path), clear(&old)]).unwrap().unwrap();
        let id = |text: &str| MasterKey::parse(text).unwrap().id();
        assert_eq!((both.id(), both.other_ids()), (id(&new), vec![id(&old)]));
        assert!(configured(&[]).is_none());
        for (keys, says) in [
            (vec![clear(&old), clear("short")], "master_keys[1]"),
            (vec![clear(&old), clear(&old)], "named twice"),
            (vec![SecretRef::File("/nonexistent/key".into())], "/nonexistent/key"),
        ] {
            let problem = configured(&keys).unwrap().unwrap_err();
            assert!(problem.contains(says) && problem.lines().count() == 1 && !problem.contains(&old), "{problem}");
        }
    }

    #[test]
    fn a_short_token_is_refused_where_other_machines_reach_it() {
        let options = |token: &str, listen: &str| AdminOptions {
            token: Some(SecretRef::Clear(Secret::new(token))),
            listen: listen.parse().unwrap(),
            ..AdminOptions::default()
        };
        let check = |token: &str, listen: &str| {
            let options = options(token, listen);
            configured_token(&options, &[("admin", options.listen)])
        };
        for listen in ["127.0.0.1:9080", "[::1]:9080", "[::ffff:127.0.0.1]:9080"] {
            assert!(check("a", listen).unwrap().is_some(), "{listen}");
        }
        for listen in ["0.0.0.0:9080", "[::]:9080", "192.0.2.1:9080"] {
            let problem = check(&"a".repeat(23), listen).unwrap_err().to_string();
            assert!(problem.contains("[admin] listen") && problem.contains("openssl"), "{problem}");
            assert!(check(&"a".repeat(24), listen).unwrap().is_some(), "{listen}");
        }
    }

    #[test]
    fn a_folder_below_a_file_is_refused_in_one_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataFolder::open(&file.path().join("data")).unwrap_err().to_string();
        assert!(error.contains("cannot be used") && error.contains("--data"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}

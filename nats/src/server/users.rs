//! The users of the embedded server, one a role, and their passwords.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
};

use serde_json::{Value, json};

use super::{
    ServerError,
    accounts::{self, API_PREFIX, APP_USER, AppAccount, Role},
    folder::{Folder, failed, write_private},
};
use crate::{
    options::{NatsOptions, Secret, SecretRef},
    subject::Layout,
};

/// Random bytes in a password.
const PASSWORD_BYTES: usize = 24;

/// The users of the embedded server. Passwords are made at first start and kept in the folder, 0600.
#[derive(Debug, Clone)]
pub struct Users {
    /// For gateways.
    pub gateway: NatsOptions,
    /// For workers.
    pub worker: NatsOptions,
    /// For admins, and for making streams.
    pub admin: NatsOptions,
    /// Read-only, for subscribers.
    pub tail: NatsOptions,
    /// For services, whose streams are in a separate account; `None`: there is none.
    pub app: Option<NatsOptions>,
}

impl Users {
    /// The users of a folder, made where they are missing, on a server at `url`. Writes what subscribers connect with.
    pub(super) fn load(folder: &Folder, url: &str, publish: &[String]) -> Result<Self, ServerError> {
        let mut passwords = read(folder)?;
        let known = passwords.len();
        for role in Role::ALL {
            passwords.entry(role.name().to_owned()).or_insert_with(new_password);
        }
        if !publish.is_empty() {
            passwords.entry(APP_USER.to_owned()).or_insert_with(new_password);
        }
        if passwords.len() > known {
            let text = serde_json::to_string_pretty(&passwords).expect("a map of texts is JSON");
            write_private(&folder.users(), &text)?;
        }
        let user = |role: Role| NatsOptions {
            url: Some(url.to_owned()),
            user: Some(role.name().to_owned()),
            password: Some(SecretRef::Clear(Secret::new(passwords[role.name()].clone()))),
            inbox_prefix: Some(role.inbox_prefix().to_owned()),
            // Subscribers use the prefix that every client has.
            api_prefix: (role != Role::Tail).then(|| API_PREFIX.to_owned()),
            publish: publish.to_vec(),
            ..NatsOptions::default()
        };
        let address = url.strip_prefix("nats://").unwrap_or(url);
        let tail = &passwords[Role::Tail.name()];
        write_private(&folder.tail_url(), &format!("nats://tail:{tail}@{address}\n"))?;
        let context = folder.tail_context();
        let parent = context.parent().unwrap_or(&context);
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(|source| failed(parent, source))?;
        write_private(&context, &context_of(url, tail))?;
        let app = match passwords.get(APP_USER).filter(|_| !publish.is_empty()) {
            Some(password) => {
                write_private(&folder.app_url(), &format!("nats://{APP_USER}:{password}@{address}\n"))?;
                Some(NatsOptions {
                    url: Some(url.to_owned()),
                    user: Some(APP_USER.to_owned()),
                    password: Some(SecretRef::Clear(Secret::new(password.clone()))),
                    ..NatsOptions::default()
                })
            }
            None => None,
        };
        Ok(Self {
            app,
            gateway: user(Role::Gateway),
            worker: user(Role::Worker),
            admin: user(Role::Admin),
            tail: user(Role::Tail),
        })
    }

    /// The accounts as the server's configuration names them.
    pub(super) fn config(&self, layout: Layout, publish: &[String]) -> Value {
        let password_of = |user: &NatsOptions| match &user.password {
            Some(SecretRef::Clear(password)) => password.expose().to_owned(),
            _ => String::new(),
        };
        let app = self.app.as_ref().map(|user| AppAccount { publish, password: password_of(user) });
        accounts::config(layout, app.as_ref(), |role| {
            let user = match role {
                Role::Gateway => &self.gateway,
                Role::Worker => &self.worker,
                Role::Admin => &self.admin,
                Role::Tail => &self.tail,
            };
            password_of(user)
        })
    }
}

/// The tail user as a context of the `nats` command, whose fields other clients can read as well.
fn context_of(url: &str, password: &str) -> String {
    let context = json!({
        "description": "Weft: read events",
        "url": url,
        "user": Role::Tail.name(),
        "password": password,
    });
    format!("{context:#}\n")
}

/// The passwords in the folder; none before the first start.
fn read(folder: &Folder) -> Result<BTreeMap<String, String>, ServerError> {
    let path = folder.users();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(&path, error)),
    };
    serde_json::from_str(&text).map_err(|error| {
        // Its text could quote a password.
        let problem = format!("is not JSON at line {}; remove it to get new passwords", error.line());
        failed(&path, io::Error::new(io::ErrorKind::InvalidData, problem))
    })
}

/// A new password, safe within a URL.
pub fn new_password() -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    URL_SAFE_NO_PAD.encode(rand::random::<[u8; PASSWORD_BYTES]>())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn passwords_are_kept_and_private_and_never_printed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::open(parent.path()).unwrap();
        let first = Users::load(&folder, "nats://127.0.0.1:1", &[]).unwrap();
        let url = fs::read_to_string(folder.tail_url()).unwrap();
        let Some(SecretRef::Clear(tail)) = &first.tail.password else { panic!("a password") };
        assert_eq!(url.trim_end(), format!("nats://tail:{}@127.0.0.1:1", tail.expose()));
        assert!(!format!("{first:?}").contains(tail.expose()));

        let again = Users::load(&folder, "nats://127.0.0.1:2", &[]).unwrap();
        assert_eq!(first.gateway.password, again.gateway.password);
        assert_ne!(again.gateway.password, again.worker.password);
        assert!(fs::read_to_string(folder.tail_url()).unwrap().contains("@127.0.0.1:2"));
        for path in [folder.users(), folder.tail_url(), folder.tail_context()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    /// Guards: the account of users' streams is there where its subjects are named, and workers reach only these.
    #[test]
    fn services_have_a_user_where_subjects_are_published() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::open(parent.path()).unwrap();
        let without = Users::load(&folder, "nats://127.0.0.1:1", &[]).unwrap();
        assert!(without.app.is_none() && !folder.app_url().exists());
        assert!(without.config(Layout::new(1), &[]).get("WEFT_APP").is_none());

        let publish = ["orders.>".to_owned()];
        let users = Users::load(&folder, "nats://127.0.0.1:1", &publish).unwrap();
        let url = fs::read_to_string(folder.app_url()).unwrap();
        assert!(url.starts_with("nats://app:") && url.ends_with("@127.0.0.1:1\n"));
        assert_eq!(fs::metadata(folder.app_url()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(users.worker.publish, publish);
        let config = users.config(Layout::new(1), &publish);
        let exported = config["WEFT_APP"]["exports"].as_array().unwrap();
        let subjects: Vec<_> = exported.iter().map(|export| export["service"].as_str().unwrap()).collect();
        assert_eq!(subjects, ["$JS.API.STREAM.MSG.GET.*", "orders.>"]);
        assert!(exported.iter().all(|export| export["accounts"] == json!(["WEFT_WORKER"])));
    }
}

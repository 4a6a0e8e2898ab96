//! The users of the embedded server and what each may do.
//!
//! A subject may be published to by the role that writes the stream behind it, and by nobody else; only the operator's
//! role may remove anything. Each role has an inbox of its own, because whoever may subscribe to an inbox sees the
//! answers that go there: the catalog, which holds secrets, is read through answers.

use std::{collections::BTreeMap, fs, io};

use serde_json::{Value, json};
use weft_proto::ids::ShardId;

use super::{
    ServerError,
    folder::{Folder, failed, write_private},
};
use crate::{
    options::{NatsOptions, Secret, SecretRef},
    subject::{APPENDER_KEYS, CATALOG_BUCKET, FORWARD_SUBJECTS, LEASES_BUCKET, Layout, RETRY_SUBJECT},
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
}

impl Users {
    /// The users of a folder, made where they are missing, on a server at `url`. Writes the tail user's URL.
    pub(super) fn load(folder: &Folder, url: &str) -> Result<Self, ServerError> {
        let mut passwords = read(folder)?;
        let known = passwords.len();
        let mut user = |name: &str, inbox_prefix: Option<&str>| {
            let password = passwords.entry(name.to_owned()).or_insert_with(password);
            NatsOptions {
                url: Some(url.to_owned()),
                user: Some(name.to_owned()),
                password: Some(SecretRef::Clear(Secret::new(password.clone()))),
                inbox_prefix: inbox_prefix.map(str::to_owned),
                ..NatsOptions::default()
            }
        };
        let users = Self {
            gateway: user("gateway", Some("_INBOX_gateway")),
            worker: user("worker", Some("_INBOX_worker")),
            admin: user("admin", Some("_INBOX_admin")),
            // What every client uses that is told nothing.
            tail: user("tail", None),
        };
        if passwords.len() > known {
            let text = serde_json::to_string_pretty(&passwords).expect("a map of texts is JSON");
            write_private(&folder.users(), &text)?;
        }
        let address = url.strip_prefix("nats://").unwrap_or(url);
        let password = &passwords["tail"];
        write_private(&folder.tail_url(), &format!("nats://tail:{password}@{address}\n"))?;
        Ok(users)
    }

    /// The users as the server's configuration names them.
    pub(super) fn config(&self, layout: Layout) -> Value {
        let roles = [
            // Gateways hand each other events; nobody else hears or says anything there.
            (&self.gateway, gateway_subjects(), [FORWARD_SUBJECTS].as_slice(), Some(RETRY_SUBJECT)),
            (&self.worker, worker_subjects(layout), &[], None),
            (&self.admin, admin_subjects(), &[], None),
            (&self.tail, tail_subjects(layout), &[], None),
        ];
        let entries = roles.into_iter().map(|(user, publish, hears, answers)| entry(user, &publish, hears, answers));
        entries.collect()
    }
}

/// One user: may publish to `publish` and subscribe to its own inbox and to `hears`; and answer, once each, the requests
/// on `answers`.
fn entry(user: &NatsOptions, publish: &[String], hears: &[&str], answers: Option<&str>) -> Value {
    let password = match &user.password {
        Some(SecretRef::Clear(password)) => password.expose(),
        _ => "",
    };
    let inbox = user.inbox_prefix.as_deref().unwrap_or("_INBOX");
    let inbox = format!("{inbox}.>");
    let subscribe: Vec<_> = [inbox.as_str()].into_iter().chain(hears.iter().copied()).chain(answers).collect();
    let mut permissions = json!({ "publish": { "allow": publish }, "subscribe": { "allow": subscribe } });
    if answers.is_some() {
        permissions["allow_responses"] = true.into();
    }
    json!({ "user": user.user, "password": password, "permissions": permissions })
}

/// What every role does with JetStream: make and check streams, read through consumers and directly. Nothing that
/// removes a stream or a message.
const ROLE_API: [&str; 12] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.CREATE.*",
    "$JS.API.STREAM.UPDATE.*",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.DIRECT.GET.>",
    "$JS.API.CONSUMER.CREATE.>",
    "$JS.API.CONSUMER.INFO.>",
    "$JS.API.CONSUMER.MSG.NEXT.>",
    "$JS.API.CONSUMER.DELETE.>",
    // Flow control of push consumers, which KV watches are.
    "$JS.FC.>",
];

fn role_subjects(own: &[String]) -> Vec<String> {
    own.iter().cloned().chain(ROLE_API.map(str::to_owned)).collect()
}

fn gateway_subjects() -> Vec<String> {
    // Of the catalog only when keys were used last.
    let key_uses = format!("$KV.{CATALOG_BUCKET}.key-used.*");
    let mut own = ["events.>", "heads.>", "rejected.>", FORWARD_SUBJECTS, APPENDER_KEYS].map(str::to_owned).to_vec();
    own.push(key_uses);
    role_subjects(&own)
}

fn worker_subjects(layout: Layout) -> Vec<String> {
    // It drops what is settled when EVENTS is nearly full, and carries forward the heads that would go with it; and it
    // purges the checkpoints before the newest complete one.
    let mut own: Vec<_> = layout.all().flat_map(|shard| worker_purges(layout, shard)).collect();
    own.extend([
        "heads.>".to_owned(),
        "outcomes.>".to_owned(),
        "checkpoints.>".to_owned(),
        "dlq.>".to_owned(),
        format!("$KV.{LEASES_BUCKET}.>"),
        // A worker pauses a subscription whose receiver is gone, and writes nothing else there.
        format!("$KV.{CATALOG_BUCKET}.subscription.>"),
    ]);
    role_subjects(&own)
}

/// The purges of a shard that a worker may request.
fn worker_purges(layout: Layout, shard: ShardId) -> [String; 2] {
    [layout.events_stream(shard), layout.checkpoints_stream(shard)]
        .map(|stream| format!("$JS.API.STREAM.PURGE.{stream}"))
}

fn admin_subjects() -> Vec<String> {
    ["commands.>", RETRY_SUBJECT, "$KV.>", "$JS.API.>", "$JS.FC.>", "$JS.ACK.>"].map(str::to_owned).to_vec()
}

/// Reading EVENTS through a consumer or directly. No subscription to `events.>` itself, which would also show what was
/// never stored.
///
/// This alone guards against mistakes, not against malice: NATS lets whoever may create a consumer choose the subject that it
/// delivers to, so a stored event can be made to appear on another subject. What appears so in the catalog, or as a word among
/// gateways, is not heeded, for it is not sealed or tagged with the master key. It can still fill streams with noise, and
/// write over entries of the catalog until nobody can read them. Its URL is the operator's to hand out.
fn tail_subjects(layout: Layout) -> Vec<String> {
    let mut subjects = ["$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST"].map(str::to_owned).to_vec();
    for shard in layout.all() {
        let stream = layout.events_stream(shard);
        subjects.extend(
            [
                "$JS.API.STREAM.INFO.{stream}",
                "$JS.API.STREAM.MSG.GET.{stream}",
                "$JS.API.DIRECT.GET.{stream}",
                "$JS.API.DIRECT.GET.{stream}.>",
                "$JS.API.CONSUMER.CREATE.{stream}",
                "$JS.API.CONSUMER.CREATE.{stream}.>",
                "$JS.API.CONSUMER.INFO.{stream}.*",
                "$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
                "$JS.API.CONSUMER.DELETE.{stream}.*",
                "$JS.FC.{stream}.>",
            ]
            .map(|subject| subject.replace("{stream}", &stream)),
        );
    }
    subjects
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
fn password() -> String {
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
        let first = Users::load(&folder, "nats://127.0.0.1:1").unwrap();
        let url = fs::read_to_string(folder.tail_url()).unwrap();
        let Some(SecretRef::Clear(tail)) = &first.tail.password else { panic!("a password") };
        assert_eq!(url.trim_end(), format!("nats://tail:{}@127.0.0.1:1", tail.expose()));
        assert!(!format!("{first:?}").contains(tail.expose()));

        let again = Users::load(&folder, "nats://127.0.0.1:2").unwrap();
        assert_eq!(first.gateway.password, again.gateway.password);
        assert_ne!(again.gateway.password, again.worker.password);
        assert!(fs::read_to_string(folder.tail_url()).unwrap().contains("@127.0.0.1:2"));
        for path in [folder.users(), folder.tail_url()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn only_the_operators_role_may_remove_anything() {
        let removing = ["$JS.API.STREAM.DELETE", "$JS.API.STREAM.PURGE", "$JS.API.STREAM.MSG.DELETE", "$JS.API.>"];
        let layout = Layout::new(2);
        let purges = |subject: &String| layout.all().any(|shard| worker_purges(layout, shard).contains(subject));
        // Workers drop settled events and old checkpoints, and must not purge commits.
        assert!(!layout.all().any(|shard| purges(&format!("$JS.API.STREAM.PURGE.{}", layout.outcomes_stream(shard)))));
        let worker = worker_subjects(layout).into_iter().filter(|subject| !purges(subject)).collect();
        for subjects in [gateway_subjects(), worker, tail_subjects(layout)] {
            for prefix in removing {
                assert!(!subjects.iter().any(|subject| subject.starts_with(prefix)), "{prefix} in {subjects:?}");
            }
        }
    }
}

//! The accounts of a NATS server or cluster that holds a log, and what each of them exports and imports. Pure.
//!
//! NATS does not check the reply subject of a publish against the sender's permissions: the answer to a request, a
//! publish ack among them, becomes a message of the account in which it is sent, and a JetStream request of that
//! account when its subject is one. Likewise a push consumer delivers to any subject of the stream's account. So no
//! role's user lives in an account that holds streams. Each role has a separate account, without JetStream, and imports
//! as services the API requests that it needs and the subjects that it publishes to; an answer comes back to the
//! importing account, where a subject of the API reaches only what that account imports.
//!
//! Streams of which a role may create consumers are in separate accounts, so that a push consumer reaches nothing but
//! the stream that it reads (the server refuses such a cycle) and its siblings of other shards.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use weft_proto::ids::ShardId;

use crate::subject::{
    CATALOG_BUCKET, COPY_REQUESTS, DLQ_STREAM, FORWARD_SUBJECTS, LEASES_BUCKET, Layout, OWN_EVENTS_SUBJECT,
    PAUSE_REQUESTS, REJECTED_STREAM, RETRY_SUBJECT, ROOM_REQUESTS, SAMPLE_SUBJECT, TAIL_REQUESTS, TRIM_REQUESTS,
    bucket_stream,
};

use self::imports::{Answers, At, Import, Imports};

mod imports;

/// Prefix of the JetStream API in the roles' accounts. `$JS.API` itself is answered there by "JetStream not enabled", but for
/// subscribers, whose requests are mapped to this prefix, so that every client works as it is.
pub const API_PREFIX: &str = "weft.API";

/// Prefix of the JetStream API of the account of users' streams, in the worker's account.
pub const APP_API_PREFIX: &str = "weft.APP";
/// The user of that account.
pub const APP_USER: &str = "app";
/// The account of streams that subscriptions publish to. Its user may do anything there, and reaches nothing else.
const APP_ACCOUNT: &str = "WEFT_APP";

/// The server's own prefix, in the accounts that hold streams.
const SERVER_API: &str = "$JS.API";
/// Acks of messages of a consumer.
const ACKS: &str = "$JS.ACK.>";
/// How long the answers to one direct get may take; the server then forgets where they go.
const GET_THRESHOLD: &str = "10s";
/// The same for one pull request: longer than clients wait, 30 s.
const PULL_THRESHOLD: &str = "1m";

/// A role that connects to NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Gateways.
    Gateway,
    /// Workers.
    Worker,
    /// Admins; they create and change streams.
    Admin,
    /// Subscribers, read-only.
    Tail,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Worker, Self::Admin, Self::Tail];

    /// The role's name, which is its user's name, too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::Admin => "admin",
            Self::Tail => "tail",
        }
    }

    /// The prefix of the subjects of answers to this role's requests.
    pub const fn inbox_prefix(self) -> &'static str {
        match self {
            Self::Gateway => "_INBOX_gateway",
            Self::Worker => "_INBOX_worker",
            Self::Admin => "_INBOX_admin",
            // The default of every client library.
            Self::Tail => "_INBOX",
        }
    }

    const fn account(self) -> &'static str {
        match self {
            Self::Gateway => "WEFT_GATEWAY",
            Self::Worker => "WEFT_WORKER",
            Self::Admin => "WEFT_ADMIN",
            Self::Tail => "WEFT_TAIL",
        }
    }
}

/// An account that holds streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Home {
    /// Streams of which only admins create consumers.
    Base,
    Events,
    Outcomes,
    Commands,
    Catalog,
}

impl Home {
    const ALL: [Self; 5] = [Self::Base, Self::Events, Self::Outcomes, Self::Commands, Self::Catalog];

    /// The account's name, which is that of its folder below JetStream's store, too.
    pub(super) const fn account(self) -> &'static str {
        match self {
            Self::Base => "WEFT",
            Self::Events => "WEFT_EVENTS",
            Self::Outcomes => "WEFT_OUTCOMES",
            Self::Commands => "WEFT_COMMANDS",
            Self::Catalog => "WEFT_CATALOG",
        }
    }

    /// The account of a stream of the log, for any number of shards; `None` for any other stream.
    pub(super) fn of(stream: &str) -> Option<Self> {
        let (kind, shard) = stream.rsplit_once('_').unwrap_or((stream, "0"));
        let kind = if !shard.is_empty() && shard.bytes().all(|byte| byte.is_ascii_digit()) { kind } else { stream };
        Some(match kind {
            "EVENTS" => Self::Events,
            "OUTCOMES" => Self::Outcomes,
            "COMMANDS" => Self::Commands,
            "CHECKPOINTS" | DLQ_STREAM | REJECTED_STREAM => Self::Base,
            _ if kind == bucket_stream(CATALOG_BUCKET) => Self::Catalog,
            _ if kind == bucket_stream(LEASES_BUCKET) => Self::Base,
            _ => return None,
        })
    }
}

/// The account of users' streams.
#[derive(Debug)]
pub struct AppAccount<'a> {
    /// The subjects that workers may publish to.
    pub publish: &'a [String],
    /// The password of its user.
    pub password: String,
}

/// The accounts, with the users' passwords by role, as `accounts` of the server's
/// configuration.
pub fn config(layout: Layout, app: Option<&AppAccount<'_>>, password: impl Fn(Role) -> String) -> Value {
    let imports: BTreeMap<Role, Imports> =
        Role::ALL.into_iter().map(|role| (role, Imports::of(role, layout, app))).collect();
    let mut accounts = serde_json::Map::new();
    for home in Home::ALL {
        let mut exports = exports(At::Streams(home), &imports);
        if home == Home::Events {
            // Push consumers of subscribers deliver here; nothing else is published below it in this account.
            exports.push(json!({ "stream": inbox(Role::Tail), "accounts": [Role::Tail.account()] }));
        }
        accounts.insert(home.account().into(), json!({ "jetstream": "enabled", "exports": exports }));
    }
    if let Some(app) = app {
        let user = json!({ "user": APP_USER, "password": app.password });
        let exports = exports(At::App, &imports);
        accounts.insert(APP_ACCOUNT.into(), json!({ "jetstream": "enabled", "users": [user], "exports": exports }));
    }
    for role in Role::ALL {
        let mut imported: Vec<Value> = imports[&role].0.iter().map(|(place, service)| import(place, service)).collect();
        if role == Role::Tail {
            let stream = json!({ "account": Home::Events.account(), "subject": inbox(role) });
            imported.push(json!({ "stream": stream }));
        }
        let limits = match role {
            // What a subscriber asks for is short, and what it is sent counts for nothing here.
            Role::Tail => json!({ "max_payload": 65536, "max_connections": 1000, "max_subscriptions": 10_000 }),
            _ => json!({}),
        };
        let user = json!({ "user": role.name(), "password": password(role), "permissions": permissions(role, &imports[&role]) });
        let exports = exports(At::Role(role), &imports);
        let mut account = json!({ "users": [user], "exports": exports, "imports": imported, "limits": limits });
        if role == Role::Tail {
            account["mappings"] = mapped(&format!("{SERVER_API}.>"), &format!("{API_PREFIX}.>"));
        }
        accounts.insert(role.account().into(), account);
    }
    accounts.into()
}

fn exports(at: At, imports: &BTreeMap<Role, Imports>) -> Vec<Value> {
    let mut exports: BTreeMap<&str, (Answers, BTreeSet<&str>)> = BTreeMap::new();
    for (role, imports) in imports {
        for ((_, subject), import) in imports.0.iter().filter(|((place, _), _)| *place == at) {
            exports.entry(subject).or_insert((import.answers, BTreeSet::new())).1.insert(role.account());
        }
    }
    let export = |(subject, (answers, accounts)): (&str, (Answers, BTreeSet<&str>))| match answers {
        Answers::One => json!({ "service": subject, "accounts": accounts }),
        Answers::Many(threshold) => {
            json!({ "service": subject, "accounts": accounts, "response_type": "stream", "threshold": threshold })
        }
    };
    exports.into_iter().map(export).collect()
}

fn import((at, subject): &(At, String), import: &Import) -> Value {
    let service = json!({ "account": at.account(), "subject": subject });
    if import.local == *subject {
        json!({ "service": service })
    } else {
        json!({ "service": service, "to": import.local })
    }
}

fn mapped(from: &str, to: &str) -> Value {
    Value::Object([(from.to_owned(), to.into())].into_iter().collect())
}

/// Subjects that the user of a role may publish and subscribe to within its account.
fn permissions(role: Role, imports: &Imports) -> Value {
    let (api, server_api) = (format!("{API_PREFIX}.>"), format!("{SERVER_API}.>"));
    let prefix = format!("{API_PREFIX}.");
    // A request of the API that is not imported has no responders, which a client learns at once.
    let mut publish = BTreeSet::from([api.as_str()]);
    publish.extend(imports.0.values().map(|import| import.local.as_str()).filter(|local| !local.starts_with(&prefix)));
    let inbox = inbox(role);
    let tail_requests = format!("{TAIL_REQUESTS}.>");
    let mut subscribe = vec![inbox.as_str()];
    if answers_requests(role) {
        // The reply subject of each message that a consumer delivers. Without this the server would keep a permission to respond
        // for each of them, and search through thousands at every message. In this account nothing receives the subject.
        publish.insert(ACKS);
    }
    match role {
        Role::Gateway => {
            // Gateways hand each other events; all of them are in this account, and nothing else is.
            publish.insert(FORWARD_SUBJECTS);
            subscribe.extend([FORWARD_SUBJECTS, RETRY_SUBJECT, OWN_EVENTS_SUBJECT, SAMPLE_SUBJECT]);
        }
        Role::Admin => {
            subscribe.extend([ROOM_REQUESTS, TRIM_REQUESTS, PAUSE_REQUESTS, COPY_REQUESTS, tail_requests.as_str()])
        }
        // Mapped to the other prefix.
        Role::Tail => {
            publish.insert(server_api.as_str());
        }
        Role::Worker => {}
    }
    let mut permissions = json!({ "publish": { "allow": publish }, "subscribe": { "allow": subscribe } });
    if answers_requests(role) {
        permissions["allow_responses"] = true.into();
    }
    permissions
}

/// Whether a role answers requests of others.
fn answers_requests(role: Role) -> bool {
    matches!(role, Role::Gateway | Role::Admin)
}

fn inbox(role: Role) -> String {
    format!("{}.>", role.inbox_prefix())
}

/// Every stream of a log.
fn streams(layout: Layout) -> impl Iterator<Item = String> {
    let sharded = layout.all().flat_map(move |shard| {
        [
            layout.events_stream(shard),
            layout.outcomes_stream(shard),
            layout.checkpoints_stream(shard),
            layout.commands_stream(shard),
        ]
    });
    sharded.chain([
        DLQ_STREAM.into(),
        REJECTED_STREAM.into(),
        bucket_stream(CATALOG_BUCKET),
        bucket_stream(LEASES_BUCKET),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The subjects in the exporting accounts that a role reaches.
    fn reached(role: Role, layout: Layout) -> Vec<String> {
        Imports::of(role, layout, None).0.into_keys().map(|(_, subject)| subject).collect()
    }

    #[test]
    fn only_admins_remove_or_change_streams() {
        let layout = Layout::new(2);
        let changes = ["STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", ">"];
        for role in [Role::Gateway, Role::Worker, Role::Tail] {
            let changing =
                |subject: &&String| changes.iter().any(|verb| subject.starts_with(&format!("{SERVER_API}.{verb}")));
            let subjects = reached(role, layout);
            let found: Vec<_> = subjects.iter().filter(changing).map(String::as_str).collect();
            assert!(found.is_empty(), "{role:?}: {found:?}");
        }
    }

    #[test]
    fn every_stream_has_an_account_and_consumers_of_roles_share_theirs_with_nothing_else() {
        for layout in [Layout::new(1), Layout::new(3)] {
            for stream in streams(layout) {
                assert!(Home::of(&stream).is_some(), "{stream}");
            }
            let base: Vec<_> = streams(layout).filter(|stream| Home::of(stream) == Some(Home::Base)).collect();
            for role in [Role::Gateway, Role::Worker, Role::Tail] {
                for stream in &base {
                    let create = format!("{SERVER_API}.CONSUMER.CREATE.{stream}");
                    assert!(
                        !reached(role, layout).iter().any(|subject| subject.starts_with(&create)),
                        "{role:?} {stream}"
                    );
                }
            }
        }
        for other in ["EVENTS_x", "EVENTS_", "KV_other", "ORDERS"] {
            assert_eq!(Home::of(other), None, "{other}");
        }
    }

    #[test]
    fn each_role_user_is_in_its_own_account_only() {
        let config = config(Layout::new(1), None, |role| format!("secret-of-{}", role.name()));
        for home in Home::ALL {
            assert!(config[home.account()].get("users").is_none(), "{home:?}");
        }
        for role in Role::ALL {
            let account = &config[role.account()];
            assert!(account.get("jetstream").is_none(), "{role:?} stores nothing in its account");
            assert_eq!(account["users"].as_array().map(Vec::len), Some(1));
        }
    }
}

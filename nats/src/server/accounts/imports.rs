//! The imports of each role: the services of other accounts that it may use.

use std::collections::BTreeMap;

use super::*;
use crate::subject::APPENDER_KEYS;

/// How a service answers, and for how long the server keeps the way of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    One,
    Many(&'static str),
}

/// Where a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    Streams(Home),
    Role(Role),
    App,
}

impl At {
    pub const fn account(self) -> &'static str {
        match self {
            Self::Streams(home) => home.account(),
            Self::Role(role) => role.account(),
            Self::App => APP_ACCOUNT,
        }
    }
}

/// One service that a role imports.
#[derive(Debug, Clone)]
pub(super) struct Import {
    /// The subject in the role's account.
    pub local: String,
    pub answers: Answers,
}

/// Use of a stream by a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Its state and single messages.
    Read,
    /// The same, through consumers that the role creates.
    Consume,
    /// All that there is.
    Manage,
}

/// The imports of one role, by where the service is and its subject there.
#[derive(Debug, Default)]
pub(super) struct Imports(pub BTreeMap<(At, String), Import>);

impl Imports {
    pub fn of(role: Role, layout: Layout, app: Option<&AppAccount<'_>>) -> Self {
        let mut imports = Self::default();
        imports.api(At::Streams(Home::Events), "INFO", Answers::One);
        match role {
            Role::Gateway => imports.gateway(layout),
            Role::Worker => {
                imports.worker(layout);
                imports.app(app);
            }
            Role::Admin => imports.admin(layout),
            Role::Tail => imports.tail(layout),
        }
        imports
    }

    fn gateway(&mut self, layout: Layout) {
        for shard in layout.all() {
            self.uses(&layout.events_stream(shard), &[Use::Read, Use::Consume]);
        }
        self.uses(&bucket_stream(CATALOG_BUCKET), &[Use::Read, Use::Consume]);
        self.all_streams(layout);
        self.publishes(Home::Events, "events.>");
        self.publishes(Home::Events, "heads.>");
        self.publishes(Home::Base, "rejected.>");
        self.publishes(Home::Base, APPENDER_KEYS);
        // Of the catalog only when keys were used last.
        self.publishes(Home::Catalog, &format!("$KV.{CATALOG_BUCKET}.key-used.*"));
    }

    fn worker(&mut self, layout: Layout) {
        for shard in layout.all() {
            self.uses(&layout.checkpoints_stream(shard), &[Use::Read]);
            for stream in [layout.events_stream(shard), layout.outcomes_stream(shard), layout.commands_stream(shard)] {
                self.uses(&stream, &[Use::Read, Use::Consume]);
            }
        }
        self.uses(&bucket_stream(CATALOG_BUCKET), &[Use::Read, Use::Consume]);
        self.all_streams(layout);
        // Heads of idle workflows, before they are dropped.
        self.publishes(Home::Events, "heads.>");
        self.publishes(Home::Outcomes, "outcomes.>");
        for subject in ["checkpoints.>", "dlq.>", &format!("$KV.{LEASES_BUCKET}.>")] {
            self.publishes(Home::Base, subject);
        }
        for subject in [ROOM_REQUESTS, TRIM_REQUESTS, PAUSE_REQUESTS, COPY_REQUESTS] {
            self.asks(At::Role(Role::Admin), subject);
        }
    }

    /// Streams of users: publishing to the allowed subjects, and reading single messages to see what was stored.
    fn app(&mut self, app: Option<&AppAccount<'_>>) {
        let Some(app) = app else { return };
        for subject in app.publish {
            self.service(At::App, subject.clone(), None, Answers::One);
        }
        let local = format!("{APP_API_PREFIX}.STREAM.MSG.GET.*");
        self.service(At::App, format!("{SERVER_API}.STREAM.MSG.GET.*"), Some(local), Answers::One);
    }

    fn admin(&mut self, layout: Layout) {
        for stream in streams(layout) {
            self.uses(&stream, &[Use::Read, Use::Consume, Use::Manage]);
        }
        self.other_layout(layout);
        self.publishes(Home::Commands, "commands.>");
        // Records of erased events.
        self.publishes(Home::Events, "events.>");
        self.publishes(Home::Catalog, &format!("$KV.{CATALOG_BUCKET}.>"));
        self.publishes(Home::Base, &format!("$KV.{LEASES_BUCKET}.>"));
        self.asks(At::Role(Role::Gateway), RETRY_SUBJECT);
        self.asks(At::Role(Role::Gateway), OWN_EVENTS_SUBJECT);
        self.asks(At::Role(Role::Gateway), SAMPLE_SUBJECT);
    }

    /// Reading EVENTS. Creating a consumer is asked of an admin, which refuses what could do harm and counts them.
    fn tail(&mut self, layout: Layout) {
        for verb in ["STREAM.NAMES", "STREAM.LIST"] {
            self.api(At::Streams(Home::Events), verb, Answers::One);
        }
        for shard in layout.all() {
            let stream = layout.events_stream(shard);
            self.uses(&stream, &[Use::Read]);
            let at = At::Streams(Home::Events);
            self.api(at, &format!("DIRECT.GET.{stream}.>"), Answers::Many(GET_THRESHOLD));
            self.consumers(at, &stream);
            self.service(at, format!("$JS.FC.{stream}.>"), None, Answers::One);
            for verb in [format!("CONSUMER.CREATE.{stream}"), format!("CONSUMER.CREATE.{stream}.>")] {
                let local = format!("{API_PREFIX}.{verb}");
                self.service(At::Role(Role::Admin), format!("{TAIL_REQUESTS}.{verb}"), Some(local), Answers::One);
            }
        }
    }

    /// The state of every stream: a role that finds one missing waits for an admin.
    fn all_streams(&mut self, layout: Layout) {
        for stream in streams(layout) {
            self.uses(&stream, &[Use::Read]);
        }
        self.other_layout(layout);
    }

    /// The first stream of a log with another number of shards, which is looked for.
    fn other_layout(&mut self, layout: Layout) {
        let other = if layout.shards() == 1 { Layout::new(2) } else { Layout::new(1) };
        self.api(At::Streams(Home::Events), &format!("STREAM.INFO.{}", other.events_stream(ShardId(0))), Answers::One);
    }

    fn uses(&mut self, stream: &str, uses: &[Use]) {
        let Some(home) = Home::of(stream) else { return };
        let at = At::Streams(home);
        for usage in uses {
            match usage {
                Use::Read => {
                    self.api(at, &format!("STREAM.INFO.{stream}"), Answers::One);
                    self.api(at, &format!("STREAM.MSG.GET.{stream}"), Answers::One);
                    self.api(at, &format!("DIRECT.GET.{stream}"), Answers::Many(GET_THRESHOLD));
                }
                Use::Consume => {
                    self.api(at, &format!("CONSUMER.CREATE.{stream}.>"), Answers::One);
                    self.consumers(at, stream);
                }
                Use::Manage => {
                    for verb in ["STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE"]
                    {
                        self.api(at, &format!("{verb}.{stream}"), Answers::One);
                    }
                    for verb in ["CONSUMER.CREATE", "CONSUMER.NAMES", "CONSUMER.LIST"] {
                        self.api(at, &format!("{verb}.{stream}"), Answers::One);
                    }
                    self.api(at, &format!("DIRECT.GET.{stream}.>"), Answers::Many(GET_THRESHOLD));
                }
            }
        }
    }

    /// Consumers that exist. Their names are random, and only an admin may list them.
    fn consumers(&mut self, at: At, stream: &str) {
        self.api(at, &format!("CONSUMER.INFO.{stream}.*"), Answers::One);
        self.api(at, &format!("CONSUMER.DELETE.{stream}.*"), Answers::One);
        self.api(at, &format!("CONSUMER.MSG.NEXT.{stream}.*"), Answers::Many(PULL_THRESHOLD));
    }

    fn publishes(&mut self, home: Home, subject: &str) {
        self.service(At::Streams(home), subject.to_owned(), None, Answers::One);
    }

    fn asks(&mut self, at: At, subject: &str) {
        self.service(at, subject.to_owned(), None, Answers::One);
    }

    fn api(&mut self, at: At, verb: &str, answers: Answers) {
        self.service(at, format!("{SERVER_API}.{verb}"), Some(format!("{API_PREFIX}.{verb}")), answers);
    }

    fn service(&mut self, at: At, subject: String, local: Option<String>, answers: Answers) {
        let local = local.unwrap_or_else(|| subject.clone());
        self.0.insert((at, subject), Import { local, answers });
    }
}

//! Entries of the catalog under one interface: sources, subscriptions and API keys. Pure.

use std::{collections::BTreeMap, sync::Arc};

use weft_proto::{
    ids::SubscriptionUid,
    v1::{ApiKey, PostgresDestination, Source, Subscription, auth, destination, verification::Scheme},
};

use super::{
    bucket,
    defaults::is_ordered,
    fields::{self, Field},
    snapshot::{Revised, Snapshot},
    validate::{check_shards, validate_key, validate_source, validate_subscription},
};

/// Stands for the uid that a subscription gets when it is written.
const UID_TO_COME: [u8; 16] = [1; 16];

/// The kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A sender.
    Source,
    /// A receiver.
    Subscription,
    /// An API key.
    Key,
}

impl Kind {
    /// Name of the kind, and first token of its entries' keys in the bucket.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => bucket::SOURCE,
            Self::Subscription => bucket::SUBSCRIPTION,
            Self::Key => bucket::KEY,
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Source, Self::Subscription, Self::Key].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// An entry's value, of any kind.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// A source.
    Source(Box<Source>),
    /// A subscription; without a uid it is one that is to be made.
    Subscription(Box<Subscription>),
    /// An API key.
    Key(Box<ApiKey>),
}

/// Something that the catalog holds.
pub trait Entry: Clone + PartialEq {
    /// Kind of the entry.
    const KIND: Kind;

    /// The entry's id: a name, or a key's id.
    fn id(&self) -> &str;

    /// All of its kind.
    fn all(snapshot: &Snapshot) -> &BTreeMap<String, Revised<Arc<Self>>>;

    /// Checks the value; fields that are filled in when it is written may be missing.
    ///
    /// # Errors
    ///
    /// The problem and the fix, in one line.
    fn check(&self) -> Result<(), String>;

    /// Checks that `stored` may be replaced by this value.
    ///
    /// # Errors
    ///
    /// The field that may not change and what to do instead, in one line.
    fn check_change(&self, _stored: &Self) -> Result<(), String> {
        Ok(())
    }

    /// Its fields, under their names in `weft.toml`, without secrets.
    fn fields(&self) -> Vec<Field>;

    /// Its secrets, for what is secret by the same means in both; `None` where it has none.
    fn secrets(&self) -> Option<&Vec<String>>;

    /// As [`secrets`](Self::secrets).
    fn secrets_mut(&mut self) -> Option<&mut Vec<String>>;

    /// Its further secrets, each under the name of its field in `weft.toml`.
    fn single_secrets_mut(&mut self) -> Vec<(String, &mut String)> {
        Vec::new()
    }

    /// As [`single_secrets_mut`](Self::single_secrets_mut), to compare.
    fn single_secrets(&self) -> BTreeMap<String, String> {
        self.clone().single_secrets_mut().into_iter().map(|(key, secret)| (key, std::mem::take(secret))).collect()
    }

    /// Whether `other` has the secrets that this entry lacks.
    fn shares_secrets(&self, other: &Self) -> bool;

    /// Identity of a subscription in lanes; `None` for other kinds.
    fn uid(&self) -> Option<SubscriptionUid> {
        None
    }

    /// Takes over what only the catalog knows of the stored one.
    fn keep(&mut self, stored: &Self);

    /// As a value of any kind.
    fn into_value(self) -> Value;
}

impl Entry for Source {
    const KIND: Kind = Kind::Source;

    fn id(&self) -> &str {
        &self.name
    }

    fn all(snapshot: &Snapshot) -> &BTreeMap<String, Revised<Arc<Self>>> {
        &snapshot.sources
    }

    fn check(&self) -> Result<(), String> {
        validate_source(self)
    }

    fn fields(&self) -> Vec<Field> {
        fields::of_source(self)
    }

    fn secrets(&self) -> Option<&Vec<String>> {
        weft_schemes::of(self.verification.as_ref()?.scheme.as_ref()?).secrets()
    }

    fn secrets_mut(&mut self) -> Option<&mut Vec<String>> {
        weft_schemes::of_mut(self.verification.as_mut()?.scheme.as_mut()?).secrets_mut()
    }

    fn shares_secrets(&self, other: &Self) -> bool {
        let scheme =
            |source: &Self| source.verification.as_ref()?.scheme.as_ref().map(std::mem::discriminant::<Scheme>);
        scheme(self) == scheme(other)
    }

    fn keep(&mut self, _stored: &Self) {}

    fn into_value(self) -> Value {
        Value::Source(Box::new(self))
    }
}

impl Entry for Subscription {
    const KIND: Kind = Kind::Subscription;

    fn id(&self) -> &str {
        &self.name
    }

    fn all(snapshot: &Snapshot) -> &BTreeMap<String, Revised<Arc<Self>>> {
        &snapshot.subscriptions
    }

    fn check(&self) -> Result<(), String> {
        if self.uid.is_empty() {
            return validate_subscription(&Self { uid: UID_TO_COME.to_vec(), ..self.clone() });
        }
        validate_subscription(self)
    }

    fn check_change(&self, stored: &Self) -> Result<(), String> {
        if is_ordered(self) != is_ordered(stored) {
            // What is unsettled waits in line or not, as it was taken.
            return Err(
                "ordered cannot be changed; create another subscription that starts now, then delete this one".into()
            );
        }
        match (postgres(self), postgres(stored)) {
            (Some(new), Some(stored)) => check_shards(new, stored),
            _ => Ok(()),
        }
    }

    fn fields(&self) -> Vec<Field> {
        fields::of_subscription(self)
    }

    fn secrets(&self) -> Option<&Vec<String>> {
        match self.destination.as_ref()?.kind.as_ref()? {
            destination::Kind::Http(http) => Some(&http.secrets),
            _ => None,
        }
    }

    fn secrets_mut(&mut self) -> Option<&mut Vec<String>> {
        match self.destination.as_mut()?.kind.as_mut()? {
            destination::Kind::Http(http) => Some(&mut http.secrets),
            _ => None,
        }
    }

    fn single_secrets_mut(&mut self) -> Vec<(String, &mut String)> {
        let destination = self.destination.as_mut().and_then(|destination| destination.kind.as_mut());
        destination.map(destination_secrets).unwrap_or_default()
    }

    fn uid(&self) -> Option<SubscriptionUid> {
        SubscriptionUid::from_slice(&self.uid)
    }

    fn shares_secrets(&self, other: &Self) -> bool {
        let kind = |subscription: &Self| {
            subscription.destination.as_ref()?.kind.as_ref().map(std::mem::discriminant::<destination::Kind>)
        };
        kind(self) == kind(other)
    }

    fn keep(&mut self, stored: &Self) {
        self.uid.clone_from(&stored.uid);
        self.starts.clone_from(&stored.starts);
        self.paused = stored.paused;
        self.pause_reason.clone_from(&stored.pause_reason);
        self.created_at_ms = stored.created_at_ms;
        if is_ordered(self) == is_ordered(stored) {
            self.ordered = stored.ordered;
        }
    }

    fn into_value(self) -> Value {
        Value::Subscription(Box::new(self))
    }
}

fn postgres(subscription: &Subscription) -> Option<&PostgresDestination> {
    match subscription.destination.as_ref()?.kind.as_ref()? {
        destination::Kind::Postgres(postgres) => Some(postgres),
        _ => None,
    }
}

/// The secrets of a destination other than signing secrets.
fn destination_secrets(kind: &mut destination::Kind) -> Vec<(String, &mut String)> {
    use destination::Kind;
    let mut secrets = Vec::new();
    let (tls, auth) = match kind {
        Kind::Http(http) => {
            let headers = http.headers.iter_mut();
            secrets.extend(headers.map(|header| (format!("headers.{}", header.name), &mut header.secret)));
            let proxy = http.proxy.as_mut().filter(|proxy| !proxy.user.is_empty());
            secrets.extend(proxy.map(|proxy| ("proxy.password".to_owned(), &mut proxy.password)));
            (http.tls.as_mut(), http.auth.as_mut())
        }
        Kind::Grpc(grpc) => (grpc.tls.as_mut(), grpc.auth.as_mut()),
        Kind::Nats(nats) => {
            secrets.push(("creds".to_owned(), &mut nats.creds));
            (nats.tls.as_mut(), None)
        }
        Kind::Postgres(postgres) => {
            let dsns = postgres.dsns.iter_mut().enumerate();
            secrets.extend(dsns.map(|(shard, dsn)| (format!("shards.{shard}"), dsn)));
            (None, None)
        }
        Kind::Custom(_) => (None, None),
    };
    // Without its certificate a key is not kept either.
    let tls = tls.filter(|tls| !tls.cert.is_empty() || !tls.key.is_empty());
    secrets.extend(tls.map(|tls| ("key".to_owned(), &mut tls.key)));
    secrets.extend(auth.and_then(|auth| auth.kind.as_mut()).map(|kind| match kind {
        auth::Kind::Bearer(bearer) => ("auth.bearer".to_owned(), &mut bearer.token),
        auth::Kind::Basic(basic) => ("auth.basic.password".to_owned(), &mut basic.password),
        auth::Kind::Oauth2(oauth2) => ("auth.oauth2.client_secret".to_owned(), &mut oauth2.client_secret),
    }));
    secrets.into_iter().map(|(key, secret)| (format!("destination.{key}"), secret)).collect()
}

impl Entry for ApiKey {
    const KIND: Kind = Kind::Key;

    fn id(&self) -> &str {
        &self.id
    }

    fn all(snapshot: &Snapshot) -> &BTreeMap<String, Revised<Arc<Self>>> {
        &snapshot.keys
    }

    fn check(&self) -> Result<(), String> {
        validate_key(self)
    }

    fn fields(&self) -> Vec<Field> {
        fields::of_key(self)
    }

    fn secrets(&self) -> Option<&Vec<String>> {
        None
    }

    fn secrets_mut(&mut self) -> Option<&mut Vec<String>> {
        None
    }

    fn shares_secrets(&self, _other: &Self) -> bool {
        false
    }

    fn keep(&mut self, stored: &Self) {
        self.digest.clone_from(&stored.digest);
        self.created_at_ms = stored.created_at_ms;
    }

    fn into_value(self) -> Value {
        Value::Key(Box::new(self))
    }
}

/// An entry as it may be shown: of its secrets only how many there are.
pub fn without_secrets<T: Entry>(entry: &T) -> T {
    let mut shown = entry.clone();
    if let Some(secrets) = shown.secrets_mut() {
        secrets.iter_mut().for_each(String::clear);
    }
    shown.single_secrets_mut().into_iter().for_each(|(_, secret)| secret.clear());
    shown
}

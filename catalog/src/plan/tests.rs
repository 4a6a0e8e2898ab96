use std::sync::Arc;

use weft_proto::v1::{
    ApiKey, Auth, BearerAuth, ClientTls, Destination, HttpDestination, HttpHeader, HttpProxy, StandardScheme,
    Verification, auth, destination, verification::Scheme,
};

use super::*;
use crate::{
    Revised,
    change::{Action, pause, update, with_changed_secrets},
    entry::{Kind, Value, without_secrets},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW_SECRET: &str = "whsec_TmV3U2VjcmV0T2ZUaGVTaG9wRm9yVGVzdHM=";
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

fn source(name: &str) -> Source {
    let scheme = Scheme::Standard(StandardScheme { secrets: vec![SECRET.into()], tolerance_ms: Some(1000) });
    Source { name: name.into(), verification: Some(Verification { scheme: Some(scheme) }), ..Source::default() }
}

fn subscription(name: &str) -> Subscription {
    let http = HttpDestination {
        url: "https://a.example/".into(),
        secrets: vec![SECRET.into()],
        format: 1,
        ..Default::default()
    };
    Subscription {
        name: name.into(),
        types: vec!["order.*".into()],
        timeout_ms: 1000,
        concurrency: 1,
        destination: Some(Destination { kind: Some(destination::Kind::Http(http)) }),
        ..Subscription::default()
    }
}

fn desired() -> Desired {
    let subscriptions = vec![DesiredSubscription { value: subscription("billing"), start: Start::Beginning }];
    Desired { sources: vec![source("shop")], subscriptions }
}

fn stored() -> Snapshot {
    let mut snapshot = Snapshot { complete: true, ..Snapshot::default() };
    let billing = Subscription {
        uid: vec![7; 16],
        starts: vec![42],
        paused: true,
        pause_reason: "by hand".into(),
        created_at_ms: 5,
        ..subscription("billing")
    };
    snapshot.sources.insert("shop".into(), Revised { revision: 3, value: Arc::new(source("shop")) });
    snapshot.subscriptions.insert("billing".into(), Revised { revision: 4, value: Arc::new(billing) });
    snapshot
}

fn told(changes: &[Change]) -> Vec<(Action, &str, u64)> {
    changes.iter().map(|change| (change.action, change.name.as_str(), change.expected)).collect()
}

#[test]
fn subscriptions_are_made_before_sources_and_go_after_them() {
    let changes = plan(&Snapshot::default(), &desired(), false).unwrap();
    assert_eq!(told(&changes), [(Action::Created, "billing", 0), (Action::Created, "shop", 0)]);
    assert_eq!(changes[0].start, Start::Beginning);
    let changes = plan(&stored(), &Desired::default(), true).unwrap();
    assert_eq!(told(&changes), [(Action::Deleted, "shop", 3), (Action::Deleted, "billing", 4)]);
}

#[test]
fn the_same_again_changes_nothing_and_nothing_goes_without_prune() {
    assert_eq!(plan(&stored(), &desired(), true).unwrap(), []);
    assert_eq!(plan(&stored(), &Desired::default(), false).unwrap(), []);
}

/// A subscription continues at its position: uid, starts, creation and pause are the catalog's.
#[test]
fn a_change_keeps_what_only_the_catalog_knows() {
    let mut desired = desired();
    desired.subscriptions[0].value.types = vec!["*".into()];
    let changes = plan(&stored(), &desired, false).unwrap();
    assert_eq!(told(&changes), [(Action::Updated, "billing", 4)]);
    let Some(Value::Subscription(value)) = &changes[0].value else { panic!("a subscription") };
    assert_eq!(value.types, ["*"]);
    assert_eq!((value.uid.len(), value.starts.as_slice(), value.paused), (16, &[42][..], true));
    assert_eq!((value.pause_reason.as_str(), value.created_at_ms), ("by hand", 5));
}

#[test]
fn nothing_is_planned_with_a_broken_or_doubled_entry() {
    let mut doubled = desired();
    doubled.sources.push(source("shop"));
    let refusal = plan(&stored(), &doubled, false).unwrap_err();
    assert!(matches!(refusal, Refusal::Invalid { kind: Kind::Source, .. }), "{refusal}");
    let mut broken = desired();
    broken.subscriptions[0].value.timeout_ms = 0;
    assert!(matches!(plan(&stored(), &broken, false), Err(Refusal::Invalid { kind: Kind::Subscription, .. })));
}

/// A client that reads an entry gets no secrets, changes other fields, and sends it back: the secrets stay.
#[test]
fn an_update_without_secrets_keeps_them() {
    for secrets in [vec![], vec![String::new()]] {
        let mut shown = Source { data_pointer: "/data".into(), ..source("shop") };
        *shown.secrets_mut().unwrap() = secrets;
        let change = update(&stored(), shown, 3).unwrap().unwrap();
        let Some(Value::Source(value)) = change.value else { panic!("a source") };
        assert_eq!(
            (value.secrets().unwrap().as_slice(), value.data_pointer.as_str()),
            (&[SECRET.to_owned()][..], "/data")
        );
    }
    // The secret of one scheme is none of another's.
    let github = Scheme::Github(Default::default());
    let other = Source { verification: Some(Verification { scheme: Some(github) }), ..source("shop") };
    assert!(matches!(update(&stored(), other, 0), Err(Refusal::Invalid { .. })));
}

/// A secret is rotated by a caller that does not know the stored ones: first the new one is added, later an old one is removed.
#[test]
fn secrets_are_rotated_by_who_does_not_know_them() {
    let mut snapshot = stored();
    let mut rotate = |revision, added: &[&str], removed: &[u32]| {
        let added: Vec<_> = added.iter().map(|secret| (*secret).to_owned()).collect();
        let shown = without_secrets(&source("shop"));
        let changed = with_changed_secrets(&snapshot, shown, revision, &added, removed)?;
        let Some(Value::Source(value)) = update(&snapshot, changed, revision)?.unwrap().value else {
            panic!("a source")
        };
        let secrets = value.secrets().unwrap().clone();
        snapshot.sources.get_mut("shop").unwrap().value = Arc::new(*value);
        Ok::<_, Refusal>(secrets)
    };
    assert_eq!(rotate(3, &[NEW_SECRET], &[]).unwrap(), [NEW_SECRET, SECRET]);
    assert_eq!(rotate(3, &[], &[1]).unwrap(), [NEW_SECRET]);
    for (revision, removed) in [(3, 0), (3, 1), (0, 0)] {
        let refused = rotate(revision, &[], &[removed]);
        assert!(matches!(refused, Err(Refusal::Invalid { .. })), "{revision} {removed}");
    }
    assert!(matches!(rotate(2, &[SECRET], &[]), Err(Refusal::Conflict { .. })));
    assert!(matches!(rotate(3, &[""], &[]), Err(Refusal::Invalid { .. })), "an empty text is no secret");
    assert_eq!(rotate(3, &[SECRET], &[0]).unwrap(), [SECRET]);
}

/// The same of a destination's tokens, passwords, header values and keys; what the change removes is not kept.
#[test]
fn an_update_without_credentials_of_a_destination_keeps_them() {
    let full = || HttpDestination {
        url: "https://billing.example/".into(),
        secrets: vec![SECRET.into()],
        headers: vec![HttpHeader { name: "x-tenant".into(), secret: "hush-header".into() }],
        tls: Some(ClientTls { ca: String::new(), cert: CERTIFICATE.into(), key: KEY.into() }),
        proxy: Some(HttpProxy { url: "http://p:1".into(), user: "me".into(), password: "hush-proxy".into() }),
        auth: Some(Auth { kind: Some(auth::Kind::Bearer(BearerAuth { token: "hush-token".into() })) }),
        ..Default::default()
    };
    let with = |http: HttpDestination| {
        let destination = Some(Destination { kind: Some(destination::Kind::Http(http)) });
        Subscription { destination, ..subscription("billing") }
    };
    let mut snapshot = stored();
    let billing = snapshot.subscriptions.get_mut("billing").unwrap();
    billing.value = Arc::new(Subscription { destination: with(full()).destination, ..(*billing.value).clone() });
    let updated = |change: &dyn Fn(&mut HttpDestination)| {
        let mut shown = without_secrets(&with(full()));
        let Some(destination::Kind::Http(http)) = shown.destination.as_mut().unwrap().kind.as_mut() else { panic!() };
        change(http);
        let change = update(&snapshot, shown, 0).unwrap().unwrap();
        let Some(Value::Subscription(value)) = change.value else { panic!("a subscription") };
        let Some(destination::Kind::Http(http)) = value.destination.unwrap().kind else { panic!("of type http") };
        http
    };
    let success = vec!["2xx".to_owned(), "409".to_owned()];
    let changed = updated(&|http| http.success.clone_from(&success));
    assert!(changed == HttpDestination { success, ..full() });
    let removed = updated(&|http| {
        http.auth = None;
        http.headers.clear();
        *http.proxy.as_mut().unwrap() = HttpProxy { url: "http://p:1".into(), ..Default::default() };
        *http.tls.as_mut().unwrap() = ClientTls { ca: CERTIFICATE.into(), ..Default::default() };
    });
    assert_eq!((&removed.auth, removed.headers.len()), (&None, 0));
    assert_eq!((&*removed.proxy.unwrap().password, &*removed.tls.unwrap().key), ("", ""));
    let rotated = updated(&|http| http.headers[0].secret = "hush-2".into());
    assert_eq!(rotated.headers[0].secret, "hush-2");
}

#[test]
fn a_change_needs_the_revision_that_was_read() {
    let changed = Source { data_pointer: "/data".into(), ..source("shop") };
    let refusal = update(&stored(), changed.clone(), 2).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "source \"shop\" has revision 3 and not 2: someone has changed it; read it again, then decide again"
    );
    assert_eq!(update(&stored(), changed, 0).unwrap().unwrap().expected, 3);
    assert_eq!(update(&stored(), source("shop"), 3).unwrap(), None, "it says that already");
    assert!(matches!(change::delete::<ApiKey>(&stored(), "a", 0), Err(Refusal::NotFound { kind: Kind::Key, .. })));
}

/// Unsettled events were taken as ordered or unordered, so this cannot change. An update that does not set it keeps it.
#[test]
fn a_subscription_stays_ordered_or_not() {
    let with = |ordered| Subscription { ordered, timeout_ms: 2000, ..subscription("billing") };
    let refused = update(&stored(), with(Some(false)), 0).unwrap_err();
    assert!(refused.to_string().contains("ordered cannot be changed; create another"), "{refused}");
    let change = update(&stored(), with(Some(true)), 0).unwrap().unwrap();
    let Some(Value::Subscription(value)) = change.value else { panic!("a subscription") };
    assert_eq!(value.ordered, None, "as it was written");
    let same = Subscription { ordered: Some(true), ..subscription("billing") };
    assert_eq!(update(&stored(), same, 0), Ok(None));
}

#[test]
fn pausing_what_is_paused_changes_nothing() {
    assert_eq!(pause(&stored(), "billing", Some("again")).unwrap(), None);
    let resumed = pause(&stored(), "billing", None).unwrap().unwrap();
    let Some(Value::Subscription(value)) = resumed.value else { panic!("a subscription") };
    assert_eq!((resumed.action, value.paused, value.pause_reason.as_str()), (Action::Resumed, false, ""));
}

/// A change travels with its secrets: nothing of it may reach a log.
#[test]
fn no_secret_is_printed() {
    let changes = plan(&Snapshot::default(), &desired(), false).unwrap();
    let text = format!("{changes:?} {:?}", desired());
    assert!(text.contains("billing") && !text.contains(SECRET), "{text}");
}

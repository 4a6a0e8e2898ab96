use super::*;
use crate::Revised;

const KEY: &str = "weft_abcd1234_0123456789abcdef0123456789abcdef";

fn catalog(complete: bool, keys: Vec<ApiKey>) -> watch::Receiver<Arc<Snapshot>> {
    let keys = keys.into_iter().map(|key| (key.id.clone(), Revised { revision: 1, value: Arc::new(key) })).collect();
    watch::channel(Arc::new(Snapshot { complete, keys, ..Snapshot::default() })).1
}

fn key(scopes: &[Scope]) -> ApiKey {
    ApiKey {
        id: "abcd1234".into(),
        digest: Sha256::digest(KEY).to_vec(),
        scopes: scopes.iter().map(|scope| i32::from(*scope)).collect(),
        ..ApiKey::default()
    }
}

fn check(keys: &Keys, given: Option<&str>, scope: Scope) -> Result<Option<String>, KeyError> {
    let grant = keys.authorize(given.map(str::as_bytes), scope)?;
    Ok(grant.key_id().map(str::to_owned))
}

#[test]
fn the_bootstrap_key_opens_everything() {
    let keys = Keys::new(Some(&Secret::new("s3cret")), catalog(true, Vec::new()));
    for scope in [Scope::Ingest, Scope::Read, Scope::Operate, Scope::Admin] {
        assert_eq!(check(&keys, Some("s3cret"), scope), Ok(None));
    }
    for wrong in ["", "s3cre", "s3cret1", "S3CRET"] {
        assert_eq!(check(&keys, Some(wrong), Scope::Read), Err(KeyError::Unknown), "{wrong}");
    }
    assert_eq!(check(&keys, None, Scope::Read), Err(KeyError::Missing));
}

/// A mesh without a bootstrap key is closed, not open.
#[test]
fn requests_without_a_key_are_refused() {
    for bootstrap in [None, Some(Secret::new(""))] {
        let keys = Keys::new(bootstrap.as_ref(), catalog(true, Vec::new()));
        assert_eq!(check(&keys, Some(""), Scope::Read), Err(KeyError::Unknown));
        assert_eq!(check(&keys, None, Scope::Read), Err(KeyError::Missing));
    }
}

#[test]
fn a_key_opens_what_its_scopes_say_until_it_expires() {
    let keys = Keys::new(None, catalog(true, vec![key(&[Scope::Ingest])]));
    assert_eq!(check(&keys, Some(KEY), Scope::Ingest), Ok(Some("abcd1234".into())));
    assert_eq!(check(&keys, Some(KEY), Scope::Read), Err(KeyError::ScopeMissing(Scope::Read)));
    let admin = Keys::new(None, catalog(true, vec![key(&[Scope::Admin])]));
    assert_eq!(check(&admin, Some(KEY), Scope::Read), Ok(Some("abcd1234".into())));
    let other = KEY.replace("0123", "1123");
    assert_eq!(check(&keys, Some(&other), Scope::Ingest), Err(KeyError::Unknown));
    let now = Timestamp::now().as_millisecond();
    for (expires_at_ms, answer) in [(now - 1, Err(KeyError::Expired)), (now + 60_000, Ok(Some("abcd1234".into())))] {
        let keys = Keys::new(None, catalog(true, vec![ApiKey { expires_at_ms, ..key(&[Scope::Read]) }]));
        assert_eq!(check(&keys, Some(KEY), Scope::Read), answer);
    }
}

/// A key that is missing from a catalog that has not been read to its end is not unknown.
#[test]
fn a_key_is_invalid_only_when_the_catalog_is_complete() {
    let keys = Keys::new(None, catalog(false, Vec::new()));
    assert_eq!(check(&keys, Some(KEY), Scope::Read), Err(KeyError::Starting));
}

#[test]
fn a_limited_key_touches_its_sources_and_workflows_only() {
    let limited = ApiKey {
        sources: vec!["shop".into()],
        workflow_prefixes: vec!["order-".into(), "cart-".into()],
        ..key(&[Scope::Ingest])
    };
    let keys = Keys::new(None, catalog(true, vec![limited]));
    let grant = keys.authorize(Some(KEY.as_bytes()), Scope::Ingest).unwrap();
    let workflow = |id: &str| WorkflowId::new(id).unwrap();
    assert!(grant.check("shop", &workflow("order-1")).is_ok());
    assert_eq!(grant.check("shop", &workflow("user-1")), Err(KeyError::Workflow));
    for source in ["other", "sho"] {
        assert_eq!(grant.check(source, &workflow("order-1")), Err(KeyError::Source), "{source}");
    }
    assert_eq!(grant.check_unlimited(), Err(KeyError::Limited));
}

#[test]
fn a_bearer_is_read_however_its_scheme_is_written() {
    for (value, key) in [("Bearer s3cret", Some("s3cret")), ("bearer  s3cret", Some("s3cret")), ("Bearer ", Some(""))] {
        assert_eq!(bearer(value.as_bytes()), key.map(str::as_bytes));
    }
    for wrong in ["Basic s3cret", "s3cret", "Bearer", ""] {
        assert_eq!(bearer(wrong.as_bytes()), None, "{wrong:?}");
    }
}

/// Streams and other work that outlive their request end with its key: when it is revoked, changed or expires, and not
/// before.
#[tokio::test]
async fn a_grant_ends_with_its_key() {
    let snapshot = |keys: Vec<ApiKey>| catalog(true, keys).borrow().clone();
    let soon = Timestamp::now().as_millisecond() + 200;
    let ends: [(ApiKey, Option<Vec<ApiKey>>); 3] = [
        (key(&[Scope::Read]), Some(Vec::new())),
        (key(&[Scope::Read]), Some(vec![ApiKey { sources: vec!["shop".into()], ..key(&[Scope::Read]) }])),
        (ApiKey { expires_at_ms: soon, ..key(&[Scope::Read]) }, None),
    ];
    for (stored, then) in ends {
        let (sender, watched) = watch::channel(snapshot(vec![stored.clone()]));
        let grant = Keys::new(None, watched).authorize(Some(KEY.as_bytes()), Scope::Read).unwrap();
        let ended = tokio::spawn(grant.ended());
        sender.send_replace(snapshot(vec![stored, ApiKey { id: "other123".into(), ..ApiKey::default() }]));
        tokio::task::yield_now().await;
        assert!(!ended.is_finished());
        if let Some(then) = then {
            sender.send_replace(snapshot(then));
        }
        tokio::time::timeout(Duration::from_secs(10), ended).await.expect("it ends").unwrap();
    }
}

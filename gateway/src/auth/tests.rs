use weft_nats::catalog::Revised;

use super::*;

const KEY: &str = "weft_abcd1234_0123456789abcdef0123456789abcdef";

fn header(header: Option<(&'static str, &str)>) -> HeaderMap {
    header.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

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

fn check(keys: &Keys, given: Option<(&'static str, &str)>, scope: Scope) -> Result<Option<String>, Code> {
    let grant = keys.authorize(&header(given), scope).map_err(|problem| problem.code())?;
    Ok(grant.key_id().map(str::to_owned))
}

#[test]
fn the_bootstrap_key_opens_everything_either_way() {
    let keys = Keys::new(Some(&Secret::new("s3cret")), catalog(true, Vec::new()));
    for scope in [Scope::Ingest, Scope::Read, Scope::Operate, Scope::Admin] {
        assert_eq!(check(&keys, Some(("x-api-key", "s3cret")), scope), Ok(None));
        assert_eq!(check(&keys, Some(("authorization", "Bearer s3cret")), scope), Ok(None));
        assert_eq!(check(&keys, Some(("authorization", "bearer  s3cret")), scope), Ok(None));
    }
    for wrong in ["", "s3cre", "s3cret1", "S3CRET"] {
        assert_eq!(check(&keys, Some(("x-api-key", wrong)), Scope::Read), Err(Code::KeyInvalid), "{wrong}");
    }
    for missing in [None, Some(("authorization", "Basic s3cret")), Some(("authorization", "s3cret"))] {
        assert_eq!(check(&keys, missing, Scope::Read), Err(Code::KeyMissing), "{missing:?}");
    }
}

/// A mesh without a bootstrap key is closed, not open.
#[test]
fn without_a_key_nobody_enters() {
    for bootstrap in [None, Some(Secret::new(""))] {
        let keys = Keys::new(bootstrap.as_ref(), catalog(true, Vec::new()));
        assert_eq!(check(&keys, Some(("x-api-key", "")), Scope::Read), Err(Code::KeyInvalid));
        assert_eq!(check(&keys, None, Scope::Read), Err(Code::KeyMissing));
    }
}

#[test]
fn a_key_opens_what_its_scopes_say_until_it_expires() {
    let keys = Keys::new(None, catalog(true, vec![key(&[Scope::Ingest])]));
    assert_eq!(check(&keys, Some(("x-api-key", KEY)), Scope::Ingest), Ok(Some("abcd1234".into())));
    assert_eq!(check(&keys, Some(("x-api-key", KEY)), Scope::Read), Err(Code::ScopeMissing));
    let admin = Keys::new(None, catalog(true, vec![key(&[Scope::Admin])]));
    assert_eq!(check(&admin, Some(("x-api-key", KEY)), Scope::Read), Ok(Some("abcd1234".into())));
    let other = KEY.replace("0123", "1123");
    assert_eq!(check(&keys, Some(("x-api-key", &other)), Scope::Ingest), Err(Code::KeyInvalid));
    let now = Timestamp::now().as_millisecond();
    for (expires_at_ms, answer) in [(now - 1, Err(Code::KeyInvalid)), (now + 60_000, Ok(Some("abcd1234".into())))] {
        let keys = Keys::new(None, catalog(true, vec![ApiKey { expires_at_ms, ..key(&[Scope::Read]) }]));
        assert_eq!(check(&keys, Some(("x-api-key", KEY)), Scope::Read), answer);
    }
}

/// A key that is missing from a catalog that has not been read to its end is not unknown.
#[test]
fn a_key_is_invalid_only_when_the_catalog_is_complete() {
    let keys = Keys::new(None, catalog(false, Vec::new()));
    assert_eq!(check(&keys, Some(("x-api-key", KEY)), Scope::Read), Err(Code::Starting));
}

#[test]
fn a_limited_key_touches_its_sources_and_workflows_only() {
    let limited = ApiKey {
        sources: vec!["shop".into()],
        workflow_prefixes: vec!["order-".into(), "cart-".into()],
        ..key(&[Scope::Ingest])
    };
    let keys = Keys::new(None, catalog(true, vec![limited]));
    let grant = keys.authorize(&header(Some(("x-api-key", KEY))), Scope::Ingest).unwrap();
    let workflow = |id: &str| WorkflowId::new(id).unwrap();
    assert!(grant.check("shop", &workflow("order-1")).is_ok());
    for (source, id) in [("shop", "user-1"), ("other", "order-1"), ("sho", "order-1")] {
        assert_eq!(grant.check(source, &workflow(id)).unwrap_err().code(), Code::OutOfScope, "{source} {id}");
    }
}

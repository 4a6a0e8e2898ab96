//! Each rule by one value that keeps it and one that breaks it, and that the message names what is wrong.

use weft_proto::v1::{
    ApiKeyScheme, DeliveryIdRule, Destination, GithubScheme, HmacScheme, HttpDestination, NoneScheme, ProtobufSchema,
    Retry, Rule, SchemaMode, SchemaRule, ShopifyScheme, SlackScheme, StandardScheme, StripeScheme, Verification,
    schema_rule::Schema,
};

use super::*;

/// The base64 of 24 bytes.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Svix's published pair.
const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const PRIVATE: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";

fn source(scheme: Scheme) -> Source {
    Source { name: "shop".into(), verification: Some(Verification { scheme: Some(scheme) }), ..Source::default() }
}

fn standard() -> Source {
    source(Scheme::Standard(StandardScheme { secrets: vec![SECRET.into()], tolerance_ms: Some(300_000) }))
}

fn hmac(change: impl FnOnce(&mut HmacScheme)) -> Source {
    let mut scheme =
        HmacScheme { secrets: vec!["0123456789abcdef".into()], header: "X-Signature".into(), ..HmacScheme::default() };
    change(&mut scheme);
    Source {
        delivery_id: Some(DeliveryIdRule { from: Some(delivery_id_rule::From::Digest(true)) }),
        ..source(Scheme::Hmac(scheme))
    }
}

fn subscription() -> Subscription {
    let http = HttpDestination {
        url: "https://billing.example/hooks".into(),
        secrets: vec![SECRET.into()],
        format: 1,
        ..Default::default()
    };
    Subscription {
        uid: vec![7; 16],
        name: "billing".into(),
        types: vec!["order.*".into()],
        timeout_ms: 15_000,
        concurrency: 64,
        retry: Some(Retry {
            max_retries: 3,
            base_ms: 1000,
            factor: 2.0,
            max_ms: 3_600_000,
            jitter: 0.2,
            schedule_ms: vec![],
        }),
        destination: Some(Destination { kind: Some(destination::Kind::Http(http)) }),
        ..Subscription::default()
    }
}

#[track_caller]
fn refuses_source(change: impl FnOnce(&mut Source), names: &str) {
    let mut source = standard();
    change(&mut source);
    let problem = validate_source(&source).expect_err("a broken rule");
    assert!(problem.contains(names), "{problem}");
}

#[track_caller]
fn refuses_subscription(change: impl FnOnce(&mut Subscription), names: &str) {
    let mut subscription = subscription();
    change(&mut subscription);
    let problem = validate_subscription(&subscription).expect_err("a broken rule");
    assert!(problem.contains(names), "{problem}");
}

fn url(url: &str) -> impl FnOnce(&mut Subscription) {
    let http = HttpDestination { url: url.into(), secrets: vec![SECRET.into()], format: 1, ..Default::default() };
    move |subscription| subscription.destination = Some(Destination { kind: Some(destination::Kind::Http(http)) })
}

#[test]
fn sound_values_pass() {
    validate_source(&standard()).unwrap();
    validate_source(&source(Scheme::Github(GithubScheme { secrets: vec!["12345678".into()] }))).unwrap();
    validate_source(&hmac(|_| {})).unwrap();
    validate_source(&hmac(|hmac| {
        hmac.template = "{id}.{timestamp}.{body}".into();
        hmac.id_header = "X-Id".into();
        hmac.timestamp_header = "X-Time".into();
    }))
    .unwrap();
    validate_subscription(&subscription()).unwrap();
    for sound in ["http://127.0.0.1:8080", "https://[::1]:8443/a?b=c", "https://[::1]/", "http://a"] {
        let mut subscription = subscription();
        url(sound)(&mut subscription);
        validate_subscription(&subscription).unwrap();
    }
}

#[test]
fn names_are_what_a_subject_and_a_path_may_hold() {
    for name in ["", "Shop", "shop.eu", "shop*", "shöp", &"x".repeat(41)] {
        refuses_source(|source| source.name = name.into(), "name");
        refuses_subscription(|subscription| subscription.name = name.into(), "name");
    }
    refuses_subscription(|subscription| subscription.sources = vec!["a b".into()], "sources");
}

#[test]
fn a_source_without_a_usable_secret_is_refused() {
    refuses_source(|source| source.verification = None, "verify");
    for (secret, names) in [
        ("whsec_c2hvcnQ=", "has 5 bytes"),
        ("whsec_?", "as the sender shows it"),
        ("whsec_", "has 0 bytes"),
        ("", "empty"),
        (" \n", "empty"),
        ("v1,", "empty"),
    ] {
        let scheme = StandardScheme { secrets: vec![secret.into()], tolerance_ms: None };
        refuses_source(
            |source| source.verification = Some(Verification { scheme: Some(Scheme::Standard(scheme)) }),
            names,
        );
    }
    let problem = validate_source(&source(Scheme::Github(GithubScheme { secrets: vec![] }))).unwrap_err();
    assert!(problem.contains("secrets"), "{problem}");
}

/// A source of a scheme that has secrets, with one.
fn with_secret(scheme: &str, secret: &str) -> Source {
    let secrets = vec![secret.to_owned()];
    match scheme {
        "standard" => source(Scheme::Standard(StandardScheme { secrets, tolerance_ms: None })),
        "github" => source(Scheme::Github(GithubScheme { secrets })),
        "stripe" => source(Scheme::Stripe(StripeScheme { secrets, tolerance_ms: None })),
        "slack" => source(Scheme::Slack(SlackScheme { secrets, tolerance_ms: None })),
        "shopify" => source(Scheme::Shopify(ShopifyScheme { secrets })),
        "hmac" => hmac(|hmac| hmac.secrets = secrets),
        other => panic!("{other}"),
    }
}

/// Each scheme takes the secret that its sender shows.
#[test]
fn secrets_have_their_schemes_form() {
    for (scheme, secret) in [
        ("standard", SECRET),
        ("standard", PUBLIC),
        // 25 bytes, without the padding.
        ("standard", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGA"),
        ("github", "It's a Secret to Everybody"),
        ("stripe", "whsec_test_secret"),
        ("slack", "8f742231b10e8888abcd99yyyzzz85a5"),
        ("shopify", "shpss_0123456789abcdef0123456789abcdef"),
        ("hmac", "12345678"),
        // As some senders show it, and with what a shell or an editor puts around it; of 8, 72 and 75 bytes.
        ("standard", "v1,whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("standard", " \"v1,whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw|v1,whsec_MDEyMzQ1Njc=\"\r\n"),
        ("standard", &format!("whsec_{}", "QUFB".repeat(24))),
        ("standard", &format!("whsec_{}", "QUFB".repeat(25))),
        ("github", "\u{feff}It's a Secret to Everybody\n"),
    ] {
        validate_source(&with_secret(scheme, secret)).unwrap_or_else(|problem| panic!("{scheme}: {problem}"));
    }
}

/// No error about a secret asks to make another one: the sender owns it.
#[test]
fn blank_and_short_secrets_are_refused() {
    for scheme in ["standard", "github", "stripe", "slack", "shopify", "hmac"] {
        for secret in ["", " ", "\n", " \n", "''", "a", "on", "1234567", " 1234567\n"] {
            let problem = validate_source(&with_secret(scheme, secret)).expect_err(scheme);
            assert!(problem.starts_with("verify: secret 0 ") && !problem.contains("make one"), "{scheme}: {problem}");
        }
        let weak = if scheme == "standard" { "whsec_MDEyMzQ1Njc4" } else { "123456789" };
        validate_source(&with_secret(scheme, weak)).unwrap();
        assert_eq!(source_warnings(&with_secret(scheme, weak)).len(), 1, "{scheme}");
    }
}

/// A time of 0 is 0; one that outlasts all that is known of earlier requests is refused.
#[test]
fn tolerances_are_bounded() {
    let standard =
        |tolerance_ms| source(Scheme::Standard(StandardScheme { secrets: vec![SECRET.into()], tolerance_ms }));
    for tolerance in [None, Some(0), Some(1), Some(86_400_000)] {
        validate_source(&standard(tolerance)).unwrap();
    }
    assert!(validate_source(&standard(Some(86_400_001))).unwrap_err().contains("tolerance"));
}

/// An id that is not signed lets a captured request be sent again.
#[test]
fn unsigned_ids_are_warned_of() {
    let strong = |hmac: &mut HmacScheme| hmac.secrets = vec!["0123456789abcdef".into()];
    let by_header = |header: &str, mut source: Source| {
        source.delivery_id = Some(DeliveryIdRule { from: Some(delivery_id_rule::From::Header(header.into())) });
        source
    };
    let unsigned = by_header("X-Id", hmac(strong));
    assert_eq!(source_warnings(&unsigned).len(), 1);
    let guarded = Source { replay_guard: v1::ReplayGuard::Body.into(), ..unsigned };
    assert!(source_warnings(&guarded).is_empty());
    let signed = hmac(|hmac| {
        strong(hmac);
        hmac.template = "{id}.{body}".into();
        hmac.id_header = "x-id".into();
    });
    assert!(source_warnings(&by_header("X-Id", signed)).is_empty());
}

/// A credential that signs nothing, or by another scheme, is recognised and not repeated in the error.
#[test]
fn a_secret_of_something_else_is_refused() {
    for (scheme, secret, names) in [
        ("standard", PRIVATE, "private key"),
        ("standard", "whpk_AAAA", "Ed25519 public key"),
        // No point of the curve; the identity, under which anything is signed.
        ("standard", "whpk_AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "Ed25519 public key"),
        ("standard", "whpk_AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "Ed25519 public key"),
        ("standard", "whsec_test_secret", "scheme = \"stripe\""),
        ("github", "ghp_0123456789", "GitHub's API"),
        ("github", "github_pat_0123456789", "GitHub's API"),
        ("github", PUBLIC, "scheme = \"standard\""),
        ("stripe", "sk_live_0123456789", "signing secret"),
        ("stripe", PRIVATE, "scheme = \"standard\""),
        ("slack", "xoxb-0123456789", "signing secret"),
        ("slack", "xapp-0123456789", "signing secret"),
        ("shopify", "shpat_0123456789", "client secret"),
        ("hmac", PUBLIC, "scheme = \"standard\""),
    ] {
        let problem = validate_source(&with_secret(scheme, secret)).expect_err(secret);
        assert!(problem.starts_with("verify: secret 0 ") && problem.contains(names), "{scheme}: {problem}");
        assert!(!problem.contains(secret), "{problem}");
    }
    // Deliveries are signed with a shared secret; what verifies a pair's signatures signs nothing.
    for secret in [PUBLIC, PRIVATE] {
        let http = HttpDestination {
            url: "https://billing.example/hooks".into(),
            secrets: vec![secret.into()],
            format: 1,
            ..Default::default()
        };
        refuses_subscription(
            |subscription| subscription.destination = Some(Destination { kind: Some(destination::Kind::Http(http)) }),
            "destination: secret ",
        );
    }
}

#[test]
fn schemes_without_a_delivery_id_must_say_where_it_is() {
    for mut silent in [hmac(|_| {}), source(Scheme::ApiKey(ApiKeyScheme {})), source(Scheme::None(NoneScheme {}))] {
        silent.delivery_id = None;
        assert!(validate_source(&silent).unwrap_err().contains("delivery_id"));
    }
}

#[test]
fn a_template_signs_the_body_and_has_its_headers() {
    let refused = |change: fn(&mut HmacScheme)| validate_source(&hmac(change)).unwrap_err();
    assert!(refused(|hmac| hmac.header = "X Signature".into()).contains("header"));
    assert!(refused(|hmac| hmac.template = "{id}".into()).contains("{body}"));
    assert!(refused(|hmac| hmac.template = "{timestamp}.{body}".into()).contains("timestamp_header"));
    assert!(refused(|hmac| hmac.template = "{id}.{body}".into()).contains("id_header"));
    assert!(refused(|hmac| hmac.timestamp_header = "X-Time".into()).contains("{timestamp}"));
}

#[test]
fn rules_point_at_something() {
    let pointer = |pointer: &str| Some(Rule { from: Some(rule::From::Pointer(pointer.into())) });
    refuses_source(|source| source.workflow = pointer("data"), "workflow");
    refuses_source(|source| source.r#type = pointer("/a~2"), "type");
    refuses_source(|source| source.workflow = Some(Rule { from: None }), "workflow");
    refuses_source(
        |source| source.workflow = Some(Rule { from: Some(rule::From::Fixed("x".repeat(129))) }),
        "longer than 128",
    );
    refuses_source(
        |source| {
            source.body = BodyKind::Any.into();
            source.workflow = pointer("/a");
        },
        "body",
    );
    refuses_source(|source| source.data_pointer = "x".into(), "data");
    refuses_source(|source| source.keep_headers = vec!["a b".into()], "keep_headers");
}

/// Schemas are few, small enough for one message of the catalog, and compile: who saves a source hears it at once, and no
/// gateway has to refuse its events for it.
#[test]
fn schemas_are_within_their_bounds_and_compile() {
    let rule = |text: &str| SchemaRule {
        r#type: "order.*".into(),
        schema: Some(Schema::JsonSchema(text.into())),
        mode: SchemaMode::Reject.into(),
    };
    let large = |bytes: usize| rule(&format!("{{\"title\":\"{}\"}}", "x".repeat(bytes)));
    let mut sound = standard();
    sound.schemas = vec![rule(r#"{"type":"object"}"#); 64];
    validate_source(&sound).unwrap();
    refuses_source(|source| source.schemas = vec![rule("true"); 65], "64 are the most");
    refuses_source(|source| source.schemas = vec![large(256 * 1024)], "schema[0]: is ");
    refuses_source(|source| source.schemas = vec![large(200 * 1024); 3], "bytes in all");
    refuses_source(|source| source.schemas = vec![rule("true"), rule("{")], "schema[1]: is not JSON");
    refuses_source(|source| source.schemas = vec![SchemaRule { mode: 0, ..rule("true") }], "schema[0]: mode");
    refuses_source(|source| source.schemas = vec![SchemaRule { schema: None, ..rule("true") }], "json_schema");
    refuses_source(|source| source.schemas = vec![SchemaRule { r#type: String::new(), ..rule("true") }], "type");
    let protobuf = Schema::Protobuf(ProtobufSchema { descriptor_set: vec![], message: "shop.v1.Order".into() });
    refuses_source(
        |source| source.schemas = vec![SchemaRule { schema: Some(protobuf), ..rule("") }],
        "not in the descriptor set",
    );
}

#[test]
fn a_subscription_can_be_delivered() {
    refuses_subscription(|subscription| subscription.uid = vec![1], "uid");
    refuses_subscription(|subscription| subscription.types.clear(), "types");
    refuses_subscription(|subscription| subscription.types = vec![String::new()], "types");
    refuses_subscription(|subscription| subscription.timeout_ms = 0, "timeout");
    refuses_subscription(|subscription| subscription.concurrency = 0, "concurrency");
    for (max_events, ordered) in [(0, true), (1001, true), (2, false)] {
        refuses_subscription(
            |subscription| {
                subscription.batch = Some(v1::Batch { max_events });
                subscription.ordered = Some(ordered);
            },
            "batch: ",
        );
    }
    for (count, period_ms) in [(0, 1000), (1, 0), (1, 86_400_001)] {
        refuses_subscription(|subscription| subscription.rate = Some(v1::Rate { count, period_ms }), "rate");
    }
    let endless = Retry { schedule_ms: vec![1000, u64::MAX], ..Retry::default() };
    refuses_subscription(|subscription| subscription.retry = Some(endless), "366 days");
    refuses_subscription(|subscription| subscription.destination = None, "destination");
    for broken in [
        "ftp://a",
        "https://",
        "https:///x",
        "http://a:99999",
        "http://a b",
        "http://u:secret@a",
        "http://é",
        "http://a:0",
    ] {
        refuses_subscription(url(broken), "url");
    }
    // A password in a URL is not repeated in the message.
    let mut with_password = subscription();
    url("http://u:hunter2@a")(&mut with_password);
    assert!(!validate_subscription(&with_password).unwrap_err().contains("hunter2"));
}

#[test]
fn waits_grow_and_stay_within_their_bounds() {
    let retry = |change: fn(&mut Retry)| {
        move |subscription: &mut Subscription| change(subscription.retry.as_mut().expect("the sound one has it"))
    };
    for jitter in [retry(|retry| retry.jitter = 1.5), retry(|retry| retry.jitter = f64::NAN)] {
        refuses_subscription(jitter, "jitter");
    }
    for factor in [retry(|retry| retry.factor = 0.5), retry(|retry| retry.factor = f64::INFINITY)] {
        refuses_subscription(factor, "factor");
    }
    refuses_subscription(retry(|retry| retry.max_ms = 1), "base");
    refuses_subscription(retry(|retry| retry.schedule_ms = vec![1; 101]), "schedule");
}

#[test]
fn a_key_is_of_its_form() {
    let sound = ApiKey {
        id: "ab12cd34".into(),
        name: "ci".into(),
        digest: vec![0; 32],
        scopes: vec![Scope::Ingest.into(), Scope::Read.into()],
        sources: vec!["shop".into()],
        workflow_prefixes: vec!["order-".into(), "é".into()],
        ..ApiKey::default()
    };
    assert_eq!(validate_key(&sound), Ok(()));
    let refuses = |change: fn(&mut ApiKey), word: &str| {
        let mut key = sound.clone();
        change(&mut key);
        let problem = validate_key(&key).unwrap_err();
        assert!(problem.contains(word), "{problem:?} does not name {word}");
    };
    refuses(|key| key.id = "ab12cd3".into(), "id");
    refuses(|key| key.id = "AB12CD34".into(), "id");
    refuses(|key| key.id = "ab.2cd34".into(), "id");
    refuses(|key| key.name = "x".repeat(129), "name");
    refuses(|key| key.name = "a\nb".into(), "name");
    refuses(|key| key.digest = vec![0; 31], "digest");
    refuses(|key| key.scopes.clear(), "scopes");
    refuses(|key| key.scopes.push(0), "scopes");
    refuses(|key| key.scopes.push(99), "scopes");
    refuses(|key| key.sources = vec!["Shop".into()], "sources");
    refuses(|key| key.sources = vec!["shop".into(); 257], "entries");
    refuses(|key| key.workflow_prefixes = vec![String::new()], "workflow_prefixes");
    refuses(|key| key.workflow_prefixes = vec!["x".repeat(129)], "workflow_prefixes");
}

/// Expressions are compiled before they are stored; the refusal says where they are wrong.
#[test]
fn a_wrong_expression_is_refused_with_its_place() {
    let with = |filter: &str, transform: &str| {
        let subscription = Subscription { filter: filter.into(), transform: transform.into(), ..subscription() };
        validate_subscription(&subscription)
    };
    assert_eq!(with("data.total > 100 && event.source == 'shop'", "{'id': data.orderId}"), Ok(()));
    assert_eq!(with("total > 100", ""), Err("filter: 1:1: unknown name total; there are event and data".into()));
    let refused = with("", "{'id': data.orderId").unwrap_err();
    assert!(refused.starts_with("transform: 1:20: "), "{refused}");
}

use weft_nats::options::Span;
use weft_proto::v1::{self, OnIdReuse, SchemaMode, delivery_id_rule, destination, rule, schema_rule, verification};

use super::*;

mod documented;

const SECRET: &str = "whsec_cXVpY2tzdGFydC1zaG9wLXNlY3JldC0wMDAx";
/// Svix's published private key.
const PRIVATE: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("weft.toml"), text.to_owned(), [], None).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    let error = parse(text).expect_err("a refused configuration");
    assert_eq!(error.lines().count(), 1, "one line: {error}");
    error
}

fn source(rest: &str) -> String {
    format!("[[source]]\nname = \"shop\"\n{rest}\n")
}

fn subscription(rest: &str) -> String {
    format!(
        "[[subscription]]\nname = \"billing\"\n\
         destination = {{ type = \"http\", url = \"https://billing.example/hooks\", secret = \"{SECRET}\" }}\n{rest}\n"
    )
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.data, Path::new("./weft-data"));
    assert_eq!(config.gateway.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9080");
    assert_eq!(config.spec.body_bytes_max, 1024 * 1024);
    assert_eq!(
        (config.spec.log.retention, config.spec.log.dedup_horizon),
        (weft_nats::options::Span::days(8), weft_nats::options::Span::days(7))
    );
}

/// Every section and key of this version, as the contract writes it.
#[test]
fn a_full_file_is_understood() {
    let text = format!(
        r#"data = "/tmp/x"
[ops]
listen = "127.0.0.1:9101"
[log]
shards = 2
replicas = 1
fsync = "2m"
retention = "9d"
max_bytes = "10GiB"
on_full = "refuse"
dedup_horizon = "7d"
remember_workflows = "400d"
[dead_letters]
retention = "30d"
[rejected]
max_bytes = "100MiB"
[gateway]
listen = "127.0.0.1:8081"
max_body = "8MiB"
max_depth = 64
drain_delay = "5s"
rate_limit = {{ per_ip = "10/s", per_source = "5000/h" }}
trusted_proxies = ["10.0.0.0/8"]
tls = {{ cert = "file:cert.pem", key = "file:key.pem" }}
[worker]
concurrency = 8
lease = "3s"
allow_networks = ["10.0.0.0/8"]
[admin]
listen = "127.0.0.1:9081"
tls = {{}}
token = "{SECRET}"
[[source]]
name = "shop"
verify = {{ scheme = "standard", secrets = ["{SECRET}"], tolerance = "1m" }}
workflow = {{ pointer = "/data/orderId" }}
type = {{ fixed = "x" }}
data = {{ pointer = "/data" }}
keep_headers = ["x-a"]
max_body = "5MiB"
[[source]]
name = "own"
verify = {{ scheme = "hmac", secrets = ["0123456789abcdef"], header = "X-Signature", prefix = "sha256=", encoding = "base64" }}
delivery_id = "digest"
replay_guard = "body"
[[subscription]]
name = "billing"
types = ["order.*"]
sources = ["shop"]
destination = {{ type = "http", url = "https://billing.example/hooks", secret = "{SECRET}", format = "envelope" }}
batch = {{ max_events = 1 }}
timeout = "5s"
concurrency = 3
retry = {{ max_retries = 1, base = "10ms", factor = 3, max = "1m", jitter = 0 }}
on_exhausted = "block"
rate = "600/min"
ordered = true
start = "2026-11-21T02:00:00Z"
"#
    );
    let config = parse(&text).unwrap();
    assert_eq!((config.spec.log.shards, config.gateway.max_body.as_u64()), (2, 8 * 1024 * 1024));
    let limits = config.gateway.rate_limit;
    let limits = [limits.per_ip, limits.per_source, limits.per_key].map(|rate| rate.to_string());
    assert_eq!(limits, ["10/s", "5000/h", "60000/min"]);
    assert_eq!(config.gateway.trusted_proxies.len(), 1);
    assert_eq!((config.gateway.max_depth, config.gateway.drain_delay), (64, Span::secs(5)));
    assert!(config.gateway.tls.cert.is_some() && config.admin.tls.cert.is_none());
    let shop = &config.catalog.sources[0];
    assert_eq!(shop.max_body_bytes, 5 * 1024 * 1024);
    let Some(verification::Scheme::Standard(scheme)) = shop.verification.clone().unwrap().scheme else {
        panic!("standard")
    };
    assert_eq!((scheme.secrets, scheme.tolerance_ms), (vec![SECRET.to_owned()], Some(60_000)));
    assert_eq!(shop.workflow.clone().unwrap().from, Some(rule::From::Pointer("/data/orderId".into())));
    let guards = [0, 1].map(|index: usize| config.catalog.sources[index].replay_guard());
    assert_eq!(guards, [v1::ReplayGuard::Unspecified, v1::ReplayGuard::Body]);
    let own = config.catalog.sources[1].delivery_id.clone().unwrap();
    assert_eq!(own.from, Some(delivery_id_rule::From::Digest(true)));
    let billing = &config.catalog.subscriptions[0];
    assert!(matches!(billing.start, Start::At(_)));
    let Some(destination::Kind::Http(http)) = billing.value.destination.clone().unwrap().kind else { panic!("http") };
    assert_eq!(http.secrets, [SECRET]);
    assert_eq!(billing.value.retry.as_ref().map(|retry| (retry.base_ms, retry.factor)), Some((10, 3.0)));
    assert_eq!(billing.value.rate, Some(v1::Rate { count: 600, period_ms: 60_000 }));
    assert_eq!(config.clear_secrets.len(), 4);
}

/// Guards: every key of an HTTP destination in the contract reaches the catalog.
#[test]
fn an_http_destination_with_every_key() {
    let pem = |label: &str| format!("-----BEGIN {label}-----\\nAAAA\\n-----END {label}-----\\n");
    let (certificate, key) = (pem("CERTIFICATE"), pem("PRIVATE KEY"));
    let http = |auth: &str| {
        let text = format!(
            r#"
[[subscription]]
name = "billing"
[subscription.destination]
type = "http"
url = "https://billing.example/hooks"
secrets = ["{PRIVATE}"]
signature = "v1a"
format = "cloudevents"
headers = {{ "X-Tenant" = "acme", "x-token" = "hush" }}
ca = "{certificate}"
cert = "{certificate}"
key = "{key}"
proxy = "http://me:h%75sh@proxy:3128"
auth = {auth}
success = ["2xx", 409]
permanent = ["4xx"]
retry_after_max = "1h"
"#
        );
        let config = parse(&text).unwrap();
        let destination = config.catalog.subscriptions[0].value.destination.clone().unwrap();
        let Some(destination::Kind::Http(http)) = destination.kind else { panic!("http") };
        (http, config.clear_secrets)
    };
    let (bearer, clear) = http("{ bearer = \"hush\" }");
    let header = |name: &str, secret: &str| v1::HttpHeader { name: name.into(), secret: secret.into() };
    let (certificate, key) = (certificate.replace("\\n", "\n"), key.replace("\\n", "\n"));
    let expected = v1::HttpDestination {
        url: "https://billing.example/hooks".into(),
        secrets: vec![PRIVATE.into()],
        format: v1::HttpFormat::Cloudevents.into(),
        signature: v1::HttpSignature::V1a.into(),
        headers: vec![header("X-Tenant", "acme"), header("x-token", "hush")],
        tls: Some(v1::ClientTls { ca: certificate.clone(), cert: certificate, key }),
        proxy: Some(v1::HttpProxy { url: "http://proxy:3128/".into(), user: "me".into(), password: "hush".into() }),
        auth: Some(v1::Auth { kind: Some(v1::auth::Kind::Bearer(v1::BearerAuth { token: "hush".into() })) }),
        success: vec!["2xx".into(), "409".into()],
        permanent: vec!["4xx".into()],
        retry_after_max_ms: 3_600_000,
    };
    assert!(bearer == expected, "{bearer:?}");
    let clear_keys = ["secrets[0]", "key", "proxy", "auth.bearer"];
    assert_eq!(clear, clear_keys.map(|key| format!("subscription[0].destination.{key}")));

    let (basic, _) = http("{ basic = { user = \"me\", password = \"hush\" } }");
    let kind = v1::auth::Kind::Basic(v1::BasicAuth { user: "me".into(), password: "hush".into() });
    assert!(basic.auth.unwrap().kind == Some(kind));
    let (oauth2, _) = http(
        "{ oauth2 = { token_url = \"https://id.example/token\", client_id = \"weft\", client_secret = \"hush\", scopes = [\"a\"] } }",
    );
    let kind = v1::auth::Kind::Oauth2(v1::OAuth2ClientCredentials {
        token_url: "https://id.example/token".into(),
        client_id: "weft".into(),
        client_secret: "hush".into(),
        scopes: vec!["a".into()],
    });
    assert!(oauth2.auth.unwrap().kind == Some(kind));
}

/// Guards: a secret that stands where another form is expected is in no message.
#[test]
fn secrets_of_the_wrong_form_are_not_quoted() {
    for destination in [
        "{ type = \"http\", url = \"https://a.example\", auth = \"hush\" }",
        "{ type = \"http\", url = \"https://a.example\", auth = { bearer = [\"hush\"] } }",
        "{ type = \"http\", url = \"https://a.example\", auth = { oauth2 = \"hush\" } }",
        "{ type = \"http\", url = \"https://a.example\", headers = \"hush\" }",
        "{ type = \"http\", url = \"https://a.example\", headers = { x-token = [\"hush\"] } }",
        "{ type = \"http\", url = \"https://a.example\", proxy = [\"http://me:hush@proxy\"] }",
        "{ type = \"http\", url = \"https://a.example\", secrets = \"hush\" }",
        "{ type = \"nats\", subject = \"a\", stream = \"A\", url = \"nats://a\", creds = [\"hush\"] }",
        "{ type = \"postgres\", shards = \"postgres://me:hush@a/b\" }",
        "{ type = \"postgres\", shards = { a = \"postgres://me:hush@a/b\" } }",
    ] {
        let problem = refused(&format!("[[subscription]]\nname = \"a\"\ndestination = {destination}\n"));
        assert!(problem.contains("destination") && !problem.contains("hush"), "{destination}: {problem}");
    }
}

/// Guards: every key of gRPC and NATS destinations reaches the catalog, and what belongs to no version is refused.
#[test]
fn grpc_and_nats_destinations_with_every_key() {
    let certificate = "-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n";
    let of = |destination: &str| {
        let config = parse(&format!("[[subscription]]\nname = \"a\"\ndestination = {destination}\n"))?;
        Ok::<_, String>(config.catalog.subscriptions[0].value.destination.clone().unwrap().kind.unwrap())
    };
    let ca = certificate.replace("\\n", "\n");
    let tls = Some(v1::ClientTls { ca, ..Default::default() });
    let auth = Some(v1::Auth { kind: Some(v1::auth::Kind::Bearer(v1::BearerAuth { token: "hush".into() })) });
    let grpc = of(&format!(
        "{{ type = \"grpc\", url = \"https://svc:443\", ca = \"{certificate}\", auth = {{ bearer = \"hush\" }} }}"
    ));
    let expected = v1::GrpcDestination { url: "https://svc:443".into(), tls: tls.clone(), auth };
    assert!(grpc.unwrap() == destination::Kind::Grpc(expected));
    let nats = of(&format!(
        "{{ type = \"nats\", subject = \"orders.{{workflow}}\", stream = \"ORDERS\", url = \"nats://a:1\", creds = \"hush\", \
         ca = \"{certificate}\" }}"
    ));
    let expected = v1::NatsDestination {
        subject: "orders.{workflow}".into(),
        stream: "ORDERS".into(),
        url: "nats://a:1".into(),
        creds: "hush".into(),
        tls,
    };
    assert!(nats.unwrap() == destination::Kind::Nats(expected));
    let refused = of("{ type = \"nats\", subject = \"events.{workflow}\", stream = \"EVENTS\" }");
    assert!(refused.unwrap_err().contains("Weft itself uses"));
    let config = parse("[nats]\npublish = [\"orders.>\"]\n").unwrap();
    assert_eq!(config.nats.publish, ["orders.>"]);
    assert!(parse("[nats]\npublish = [\"events.>\"]\n").unwrap_err().contains("weft.toml:2: nats.publish"));
}

/// Zero is a value and never means the default.
#[test]
fn zero_is_refused_where_nothing_could_work_with_it() {
    for text in [
        source("verify = { scheme = \"none\", allow_unsigned = true }\ndelivery_id = \"none\"\nmax_body = \"0B\""),
        "[dead_letters]\nretention = \"0s\"\n".to_owned(),
        "[rejected]\nmax_bytes = \"0B\"\n".to_owned(),
        "[log]\nmax_bytes = \"0B\"\n".to_owned(),
        "[log]\ndedup_horizon = \"0s\"\n".to_owned(),
        "[log]\nfsync = \"0s\"\n".to_owned(),
        "[gateway]\nmax_body = \"0B\"\n".to_owned(),
        "[gateway]\nrate_limit = { per_ip = \"0/min\" }\n".to_owned(),
        "[worker]\nlease = \"0s\"\n".to_owned(),
        "[worker]\nconcurrency = 0\n".to_owned(),
        subscription("timeout = \"0s\""),
        subscription("concurrency = 0"),
    ] {
        let error = refused(&text.replace("SECRET", SECRET));
        assert!(error.starts_with("weft.toml:"), "{text}: {error}");
    }
    let config = parse(&subscription("retry = { max_retries = 0, base = \"0s\", max = \"0s\" }")).unwrap();
    let retry = config.catalog.subscriptions[0].value.retry.clone().unwrap();
    assert_eq!((retry.max_retries, retry.base_ms, retry.max_ms), (0, 0, 0));
}

#[test]
fn a_drain_delay_is_bounded() {
    assert_eq!(parse("[gateway]\ndrain_delay = \"0s\"\n").unwrap().gateway.drain_delay, Span::secs(0));
    let error = refused("[gateway]\ndrain_delay = \"1h\"\n");
    assert!(error.starts_with("weft.toml:2: gateway.drain_delay: ") && error.contains("5m"), "{error}");
}

#[test]
fn values_of_the_wrong_kind_are_placed() {
    let error = refused("[log]\nshards = \"two\"\n");
    assert!(error.starts_with("weft.toml:2: log.shards: "), "{error}");
    let error = refused("[gateway]\n\nlisten = \"localhost\"\n");
    assert!(error.starts_with("weft.toml:3: gateway.listen: "), "{error}");
    let error = refused(&subscription("timeout = \"5 parsecs\""));
    assert!(error.starts_with("weft.toml:4: subscription[0].timeout: "), "{error}");
    let error = refused("[gateway]\nrate_limit = { per_ip = \"10/day\" }\n");
    assert!(error.starts_with("weft.toml:2: gateway.rate_limit.per_ip: ") && error.contains("600/min"), "{error}");
}

#[test]
fn pairs_that_contradict_each_other_are_refused() {
    assert!(refused("[log]\nretention = \"2d\"\n").starts_with("weft.toml:1: log.dedup_horizon: "));
    assert!(refused("[log]\nreplicas = 3\n").contains("[nats] url"));
    assert!(refused("[gateway]\nmax_body = \"9MiB\"\n").starts_with("weft.toml:2: gateway.max_body: "));
    assert!(refused("[nats]\nuser = \"a\"\n").contains("belong together"));
    assert!(refused("[nats]\npasswords = \"p\"\n").contains("[nats] url"));
    assert!(refused("[nats]\nurl = \"nats://a\"\npasswords = \"p\"\ncreds = \"file:c\"\n").contains("leave out"));
    let large = format!(
        "[gateway]\nmax_body = \"2MiB\"\n{}",
        source("verify = { scheme = \"none\", allow_unsigned = true }\nmax_body = \"3MiB\"")
    );
    assert!(refused(&large).starts_with("weft.toml:6: source[0].max_body: "), "{}", refused(&large));
    assert!(refused("[admin]\ntls = { cert = \"file:a\" }\n").starts_with("weft.toml:2: admin.tls: "));
    let twice = source("verify = { scheme = \"none\", allow_unsigned = true }\ndelivery_id = \"none\"");
    assert!(refused(&twice.repeat(2)).contains("source \"shop\" is defined twice"));
}

#[test]
fn mistakes_in_a_source_are_told_with_their_key() {
    let unknown = refused(&source("verify = { scheme = \"hmca\" }"));
    assert!(unknown.contains("weft.toml:3: source[0].verify.scheme: unknown scheme \"hmca\"; known: "), "{unknown}");
    assert!(refused(&source("verify = { scheme = \"none\" }")).contains("allow_unsigned = true"));
    for (verify, key) in [
        (r#"scheme = "github", secrets = ["0123456789abcdef"], header = "X-A""#, "header"),
        (r#"scheme = "shopify", secrets = ["0123456789abcdef"], tolerance = "1m""#, "tolerance"),
        (r#"scheme = "stripe", secrets = ["0123456789abcdef"], template = "{body}""#, "template"),
        (r#"scheme = "api_key", secrets = ["0123456789abcdef"]"#, "secrets"),
        (r#"scheme = "slack", secrets = ["0123456789abcdef"], allow_unsigned = true"#, "allow_unsigned"),
    ] {
        let needless = refused(&source(&format!("verify = {{ {verify} }}")));
        let (_, told) = needless.split_once("source[0].verify.").unwrap_or_else(|| panic!("{needless}"));
        assert!(told.starts_with(key) && told.contains("does not read it"), "{needless}");
    }
    let rules = "verify = { scheme = \"github\", secrets = [\"0123456789abcdef\"] }\nworkflow = { pointer = \"/a\", header = \"b\" }";
    assert!(refused(&source(rules)).contains("exactly one of pointer, header and fixed"));
    assert!(
        refused(&source("verify = { scheme = \"hmac\", secrets = [\"env:WEFT_NO_SUCH\"], header = \"X-A\" }"))
            .contains("environment variable WEFT_NO_SUCH is not set")
    );
}

/// A time of nothing is nothing; one that outlasts what is known of earlier requests is refused, and so are secrets that
/// could be guessed.
#[test]
fn tolerances_and_secrets_have_bounds() {
    let standard =
        |rest: &str| source(&format!("verify = {{ scheme = \"standard\", secrets = [\"{SECRET}\"], {rest} }}"));
    let config = parse(&standard("tolerance = \"0s\"")).unwrap();
    let scheme = config.catalog.sources[0].verification.clone().unwrap().scheme.unwrap();
    assert!(matches!(scheme, verification::Scheme::Standard(v1::StandardScheme { tolerance_ms: Some(0), .. })));
    assert!(refused(&standard("tolerance = \"25h\"")).contains("longer than a day"));
    let short = format!("[log]\ndedup_horizon = \"1m\"\n{}", standard("tolerance = \"2m\""));
    assert!(refused(&short).contains("dedup_horizon"), "{}", refused(&short));
    for secret in [" ", "on", "1234567"] {
        let problem = refused(&source(&format!("verify = {{ scheme = \"github\", secrets = [\"{secret}\"] }}")));
        assert!(problem.contains("secret 0") && !problem.contains("make one"), "{problem}");
    }
}

/// Every scheme of the contract, with what else it reads; a delivery that comes twice with another body is the big
/// providers' way.
#[test]
fn every_scheme_can_be_written() {
    use verification::Scheme;
    let verified = |rest: &str| {
        let config = parse(&source(rest)).unwrap_or_else(|error| panic!("{rest}: {error}"));
        let source = config.catalog.sources[0].clone();
        (source.verification.clone().unwrap().scheme.unwrap(), source.on_id_reuse())
    };
    let (scheme, reuse) = verified(r#"verify = { scheme = "stripe", secrets = ["whsec_test_secret"] }"#);
    let Scheme::Stripe(stripe) = scheme else { panic!("{scheme:?}") };
    assert_eq!((stripe.secrets, stripe.tolerance_ms), (vec!["whsec_test_secret".to_owned()], Some(300_000)));
    assert_eq!(reuse, OnIdReuse::Receipt);
    let (scheme, reuse) = verified(
        r#"verify = { scheme = "slack", secrets = ["0123456789abcdef", "fedcba9876543210"], tolerance = "1m" }"#,
    );
    let Scheme::Slack(slack) = scheme else { panic!("{scheme:?}") };
    assert_eq!((slack.secrets.len(), slack.tolerance_ms, reuse), (2, Some(60_000), OnIdReuse::Receipt));
    let (scheme, reuse) = verified(r#"verify = { scheme = "shopify", secrets = ["0123456789abcdef"] }"#);
    assert!(matches!(scheme, Scheme::Shopify(_)) && reuse == OnIdReuse::Receipt, "{scheme:?}");
    let (scheme, reuse) = verified(r#"verify = { scheme = "github", secrets = ["0123456789abcdef"] }"#);
    assert!(matches!(scheme, Scheme::Github(_)) && reuse == OnIdReuse::Receipt, "{scheme:?}");
    let (scheme, reuse) = verified("verify = { scheme = \"api_key\" }\ndelivery_id = { pointer = \"/id\" }");
    assert!(matches!(scheme, Scheme::ApiKey(_)) && reuse == OnIdReuse::Conflict, "{scheme:?}");
    let strict = "verify = { scheme = \"stripe\", secrets = [\"0123456789abcdef\"] }\non_id_reuse = \"conflict\"";
    assert_eq!(verified(strict).1, OnIdReuse::Conflict);
    assert!(refused(&source("verify = { scheme = \"api_key\" }")).contains("delivery_id"));
    let wrong = refused(&source(r#"verify = { scheme = "stripe", secrets = ["sk_live_hush"] }"#));
    assert!(wrong.contains("signing secret") && !wrong.contains("hush"), "{wrong}");
}

/// A schema is in the file or in a separate one, and an unusable schema is refused with its line.
#[test]
fn schemas_are_inline_or_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("order.json");
    std::fs::write(&file, r#"{"type":"object"}"#).unwrap();
    let with = |schema: &str| {
        source(&format!("verify = {{ scheme = \"github\", secrets = [\"0123456789abcdef\"] }}\nschema = [{schema}]"))
    };
    let two = format!(
        r#"{{ type = "order.*", json_schema = "file:{}", mode = "reject" }},
        {{ type = "*", json_schema = "{{}}", mode = "quarantine" }}"#,
        file.display()
    );
    let config = parse(&with(&two)).unwrap();
    let rules = &config.catalog.sources[0].schemas;
    assert_eq!(rules[0].schema, Some(schema_rule::Schema::JsonSchema(r#"{"type":"object"}"#.into())));
    assert_eq!((rules[0].r#type.as_str(), rules[0].mode()), ("order.*", SchemaMode::Reject));
    assert_eq!((rules[1].r#type.as_str(), rules[1].mode()), ("*", SchemaMode::Quarantine));
    for (schema, says) in [
        (r#"{ type = "*", json_schema = "file:/no/such.json", mode = "warn" }"#, "source[0].schema[0].json_schema: "),
        (r#"{ type = "*", json_schema = "{", mode = "warn" }"#, "schema[0]: is not JSON"),
        (r#"{ type = "*", json_schema = "{}", mode = "drop" }"#, "source[0].schema[0].mode: "),
        (r#"{ type = "*", mode = "warn" }"#, "either json_schema, or protobuf and message"),
        (r#"{ type = "*", protobuf = "CgV4", message = "a.B", mode = "warn" }"#, "protoc --include_imports"),
        (r#"{ type = "*", jsonschema = "{}", mode = "warn" }"#, "did you mean json_schema?"),
    ] {
        let error = refused(&with(schema));
        assert!(error.contains(says), "{schema}: {error}");
    }
}

#[test]
fn subscriptions_of_later_versions_and_mistakes_are_told_apart() {
    for (rest, text) in [
        ("batch = { max_events = 0 }", "max_events must be 1 to 1000"),
        ("batch = { max_events = 5 }\nordered = false", "ordered = false are delivered one by one"),
        ("filter = \"total > 1\"", "filter: 1:1: unknown name total"),
        ("transform = \"data.a +\"", "transform: 1:9: "),
        ("start = \"yesterday\"", "neither now, beginning"),
        ("retires = 3", "did you mean retry?"),
        (
            "sources = [\"shpo\"]\n[[source]]\nname = \"shop\"\nverify = { scheme = \"github\", secrets = [\"0123456789abcdef\"] }",
            "not a [[source]]",
        ),
    ] {
        let error = refused(&subscription(rest));
        assert!(error.contains(text), "{rest}: {error}");
    }
}

#[test]
fn a_postgres_destination_names_databases_and_columns() {
    let text = "[[subscription]]\nname = \"ledger\"\ndestination = { type = \"postgres\", shards = [\"host=a user=u\", \
                \"host=b user=u\"], table = \"app.events\", create = true, columns = { event_id = \"id\", data = \"\" } }\n";
    let config = parse(text).unwrap();
    let shards = [0, 1].map(|index| format!("subscription[0].destination.shards[{index}]"));
    assert_eq!(config.clear_secrets, shards);
    let destination = config.catalog.subscriptions[0].value.destination.clone().unwrap().kind.unwrap();
    let destination::Kind::Postgres(postgres) = destination else { panic!("{destination:?}") };
    assert_eq!((postgres.dsns.len(), postgres.table.as_str(), postgres.create), (2, "app.events", true));
    let columns: Vec<_> = postgres.columns.iter().map(|column| (&column.field[..], &column.column[..])).collect();
    assert_eq!(columns, [("data", ""), ("event_id", "id")]);
    let error = refused(&text.replace("event_id = ", "event = "));
    assert!(error.contains("did you mean event_id?"), "{error}");
}

/// The crates' options and the table of keys agree, so that neither refuses a key of the other.
#[test]
fn the_table_of_keys_is_that_of_the_options() {
    for section in schema::ROOT {
        let schema::Shape::Table(keys) = section.shape else { continue };
        let text = format!("[{}]\nno_such_key = 1\n", section.name);
        let error = toml::from_str::<File>(&text).expect_err("an unknown key").message().to_owned();
        let (_, taken) = error.split_once("expected").expect("what is expected");
        let mut taken: Vec<_> = taken.split('`').skip(1).step_by(2).collect();
        let mut supported: Vec<_> = keys.iter().map(|key| key.name).collect();
        taken.sort_unstable();
        supported.sort_unstable();
        assert_eq!(supported, taken, "[{}]", section.name);
    }
}

/// A secret may be in the file, but never in a message.
#[test]
fn secrets_are_not_printed() {
    let config = parse(&subscription("")).unwrap();
    assert_eq!(config.clear_secrets, ["subscription[0].destination.secret"]);
    let error = refused(&subscription("start = \"yesterday\""));
    assert!(!error.contains(SECRET));
    let error = refused(&source(&format!("verify = {{ scheme = \"standard\", secrets = \"{SECRET}\" }}")));
    assert!(error.contains("several are a list of texts") && !error.contains(SECRET), "{error}");
}

//! Checks of an HTTP destination, and of what it has in common with others: TLS and authentication.

use weft_proto::v1::{Auth, ClientTls, HttpDestination, HttpFormat, HttpProxy, HttpSignature, auth};

use super::check_url;
use crate::{delivery_headers, delivery_url::DeliveryUrl, statuses::Statuses};

/// Maximum length of a token, user or password.
const CREDENTIAL_BYTES_MAX: usize = 8 * 1024;
/// Maximum number of scopes of a token.
const SCOPES_MAX: usize = 64;
/// Maximum length of a PEM text: some hundred certificates.
const PEM_BYTES_MAX: usize = 256 * 1024;
/// Maximum wait that a receiver may be allowed to ask for: 31 days, longer than most logs keep events.
const RETRY_AFTER_MS_MAX: u64 = 31 * 24 * 60 * 60 * 1000;

/// Checks a destination; `batched`: several of its events are delivered in one request.
pub(super) fn check(http: &HttpDestination, batched: bool) -> Result<(), String> {
    check_url(&http.url)?;
    let named = |problem: String| format!("destination: {problem}");
    check_signature(http).map_err(named)?;
    match HttpFormat::try_from(http.format) {
        Ok(HttpFormat::Raw) if batched => {
            return Err(named("format raw is one event per request; use envelope or cloudevents with a batch".into()));
        }
        Ok(_) => {}
        Err(_) => return Err(named("format is neither envelope, cloudevents nor raw".into())),
    }
    let headers = delivery_headers::parse(&http.headers).map_err(named)?;
    if http.auth.is_some() && headers.iter().any(|(name, _)| name == http::header::AUTHORIZATION) {
        return Err(named("headers and auth both set authorization".into()));
    }
    http.tls.as_ref().map_or(Ok(()), check_tls).map_err(named)?;
    http.proxy.as_ref().map_or(Ok(()), check_proxy).map_err(named)?;
    http.auth.as_ref().map_or(Ok(()), check_auth).map_err(named)?;
    Statuses::of(http).map_err(named)?;
    if http.retry_after_max_ms > RETRY_AFTER_MS_MAX {
        return Err(named("retry_after_max is longer than 31 days".into()));
    }
    Ok(())
}

fn check_signature(http: &HttpDestination) -> Result<(), String> {
    let check = match HttpSignature::try_from(http.signature) {
        Ok(HttpSignature::Unspecified | HttpSignature::V1) => weft_schemes::check_signing,
        Ok(HttpSignature::V1a) => weft_schemes::check_private,
        Ok(HttpSignature::None) => return Ok(()),
        Err(_) => return Err("signature is neither v1, v1a nor none".into()),
    };
    if http.secrets.is_empty() {
        return Err("secret is missing: receivers verify deliveries by it (signature = \"none\" sends none)".into());
    }
    http.secrets.iter().try_for_each(|secret| check(secret)).map_err(|problem| format!("secret {problem}"))
}

/// Checks the form of TLS settings; whether they can be used is checked where they are.
pub(super) fn check_tls(tls: &ClientTls) -> Result<(), String> {
    for (name, pem, label) in
        [("ca", &tls.ca, "CERTIFICATE"), ("cert", &tls.cert, "CERTIFICATE"), ("key", &tls.key, "PRIVATE KEY")]
    {
        let is_pem = pem.contains("-----BEGIN ") && pem.contains(&format!("{label}-----"));
        if !pem.is_empty() && (!is_pem || pem.len() > PEM_BYTES_MAX) {
            return Err(format!("{name} is not a {label} in PEM of at most 256 KiB"));
        }
    }
    if tls.cert.is_empty() == tls.key.is_empty() {
        return Ok(());
    }
    Err("cert and key belong together: give both or neither".into())
}

fn check_proxy(proxy: &HttpProxy) -> Result<(), String> {
    let url = DeliveryUrl::parse(&proxy.url).map_err(|problem| format!("proxy: {problem}"))?;
    if url.uri().scheme_str() != Some("http") || url.uri().path_and_query().is_some_and(|path| path != "/") {
        return Err("proxy is not of the form http://host:port".into());
    }
    if proxy.user.is_empty() {
        return if proxy.password.is_empty() { Ok(()) } else { Err("proxy has a password and no user".into()) };
    }
    check_basic("proxy", &proxy.user, &proxy.password)
}

/// Checks how a destination authenticates itself.
pub(super) fn check_auth(auth: &Auth) -> Result<(), String> {
    match &auth.kind {
        Some(auth::Kind::Bearer(bearer)) => {
            let fits = bearer.token.bytes().all(|byte| byte.is_ascii_graphic());
            if fits && (1..=CREDENTIAL_BYTES_MAX).contains(&bearer.token.len()) {
                return Ok(());
            }
            Err("auth: the bearer token is empty, longer than 8 KiB, or holds more than visible ASCII".into())
        }
        Some(auth::Kind::Basic(basic)) if basic.user.is_empty() => Err("auth: basic has no user".into()),
        Some(auth::Kind::Basic(basic)) => check_basic("auth", &basic.user, &basic.password),
        Some(auth::Kind::Oauth2(oauth2)) => {
            DeliveryUrl::parse(&oauth2.token_url).map_err(|problem| format!("auth: token_url: {problem}"))?;
            if oauth2.client_id.is_empty() || oauth2.client_secret.is_empty() {
                return Err("auth: oauth2 needs client_id and client_secret".into());
            }
            if oauth2.client_id.len() + oauth2.client_secret.len() > CREDENTIAL_BYTES_MAX {
                return Err("auth: client_id and client_secret are longer than 8 KiB".into());
            }
            // RFC 6749, section 3.3.
            let is_scope = |scope: &String| {
                !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte))
            };
            if oauth2.scopes.len() > SCOPES_MAX || !oauth2.scopes.iter().all(is_scope) {
                return Err(format!("auth: scopes are at most {SCOPES_MAX} words of visible ASCII without \" and \\"));
            }
            Ok(())
        }
        None => Err("auth is neither bearer, basic nor oauth2".into()),
    }
}

/// Checks user and password of basic authentication (RFC 7617).
fn check_basic(what: &str, user: &str, password: &str) -> Result<(), String> {
    if user.contains(':') {
        return Err(format!("{what}: the user holds a colon"));
    }
    if [user, password].iter().any(|text| text.chars().any(char::is_control)) {
        return Err(format!("{what}: user or password holds a control character"));
    }
    if user.len() + password.len() > CREDENTIAL_BYTES_MAX {
        return Err(format!("{what}: user and password are longer than 8 KiB"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::{BasicAuth, BearerAuth, HttpHeader, OAuth2ClientCredentials};

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const PRIVATE: &str =
        "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

    fn http() -> HttpDestination {
        HttpDestination { url: "https://a.example/".into(), secrets: vec![SECRET.into()], ..Default::default() }
    }

    fn oauth2() -> OAuth2ClientCredentials {
        OAuth2ClientCredentials {
            token_url: "https://id.example/token".into(),
            client_id: "weft".into(),
            client_secret: "hush".into(),
            scopes: vec!["events.write".into()],
        }
    }

    fn auth(kind: auth::Kind) -> Option<Auth> {
        Some(Auth { kind: Some(kind) })
    }

    #[track_caller]
    fn refuses(change: impl FnOnce(&mut HttpDestination), names: &str) {
        let mut changed = http();
        change(&mut changed);
        let problem = check(&changed, false).expect_err("a broken rule");
        assert!(problem.starts_with("destination: ") && problem.contains(names), "{problem}");
        assert!(!problem.contains("hush"), "{problem}");
    }

    #[test]
    fn sound_destinations_pass() {
        let everything = HttpDestination {
            secrets: vec![PRIVATE.into()],
            signature: HttpSignature::V1a.into(),
            format: HttpFormat::Cloudevents.into(),
            headers: vec![HttpHeader { name: "X-Tenant".into(), secret: "acme".into() }],
            tls: Some(ClientTls { ca: CERTIFICATE.into(), cert: CERTIFICATE.into(), key: KEY.into() }),
            proxy: Some(HttpProxy { url: "http://proxy:3128".into(), user: "me".into(), password: "hush".into() }),
            auth: auth(auth::Kind::Oauth2(oauth2())),
            success: vec!["2xx".into(), "409".into()],
            permanent: vec!["4xx".into()],
            retry_after_max_ms: 1000,
            ..http()
        };
        for batched in [false, true] {
            check(&http(), batched).unwrap();
            check(&everything, batched).unwrap();
        }
        let unsigned = HttpDestination { signature: HttpSignature::None.into(), secrets: vec![], ..http() };
        check(&unsigned, false).unwrap();
        let raw = HttpDestination { format: HttpFormat::Raw.into(), ..http() };
        check(&raw, false).unwrap();
        assert!(check(&raw, true).unwrap_err().contains("raw is one event per request"));
        for kind in [
            auth::Kind::Bearer(BearerAuth { token: "abc".into() }),
            auth::Kind::Basic(BasicAuth { user: "me".into(), password: String::new() }),
        ] {
            check(&HttpDestination { auth: auth(kind), ..http() }, false).unwrap();
        }
    }

    #[test]
    fn broken_rules_are_named() {
        refuses(|http| http.url = "ftp://a".into(), "url");
        refuses(|http| http.secrets.clear(), "secret is missing");
        refuses(|http| http.secrets = vec![PRIVATE.into()], "secret ");
        refuses(|http| http.signature = HttpSignature::V1a.into(), "whsk_");
        refuses(|http| http.signature = 9, "signature");
        refuses(|http| http.format = 9, "format");
        refuses(|http| http.headers = vec![HttpHeader { name: "Host".into(), secret: "hush".into() }], "Host");
        refuses(|http| http.success = vec!["ok".into()], "success");
        refuses(|http| http.permanent = vec!["200x".into()], "permanent");
        refuses(|http| http.retry_after_max_ms = u64::MAX, "retry_after_max");
        let tls =
            |ca: &str, cert: &str, key: &str| Some(ClientTls { ca: ca.into(), cert: cert.into(), key: key.into() });
        refuses(|http| http.tls = tls("hush", "", ""), "ca is not");
        refuses(|http| http.tls = tls("", CERTIFICATE, ""), "belong together");
        refuses(|http| http.tls = tls("", "", KEY), "belong together");
        refuses(|http| http.tls = tls("", KEY, KEY), "cert is not");
        for url in ["https://proxy:3128", "http://me:hush@proxy:3128", "http://proxy:3128/path", "proxy:3128", ""] {
            let proxy = HttpProxy { url: url.into(), ..Default::default() };
            refuses(|http| http.proxy = Some(proxy), "proxy");
        }
        let proxy = HttpProxy { url: "http://proxy".into(), password: "hush".into(), ..Default::default() };
        refuses(|http| http.proxy = Some(proxy), "no user");
    }

    #[test]
    fn wrong_credentials_are_named_and_not_shown() {
        refuses(|http| http.auth = Some(Auth::default()), "auth is neither");
        for token in ["", "hush hush", "hush\n", "hüsh"] {
            refuses(|http| http.auth = auth(auth::Kind::Bearer(BearerAuth { token: token.into() })), "bearer");
        }
        for user in ["", "a:b", "a\nb"] {
            let basic = BasicAuth { user: user.into(), password: "hush".into() };
            refuses(|http| http.auth = auth(auth::Kind::Basic(basic)), "auth: ");
        }
        type Change = fn(&mut OAuth2ClientCredentials);
        let broken: [(Change, &str); 4] = [
            (|oauth2| oauth2.token_url = "id.example".into(), "token_url"),
            (|oauth2| oauth2.client_id.clear(), "client_id"),
            (|oauth2| oauth2.client_secret.clear(), "client_secret"),
            (|oauth2| oauth2.scopes = vec!["a b".into()], "scopes"),
        ];
        for (change, names) in broken {
            let mut oauth2 = oauth2();
            change(&mut oauth2);
            refuses(|http| http.auth = auth(auth::Kind::Oauth2(oauth2)), names);
        }
        refuses(
            |http| {
                http.auth = auth(auth::Kind::Bearer(BearerAuth { token: "abc".into() }));
                http.headers = vec![HttpHeader { name: "Authorization".into(), secret: "hush".into() }];
            },
            "both set authorization",
        );
    }
}

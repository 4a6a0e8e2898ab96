//! A sample of a source: a request that its rules can read, signed by its scheme.

use serde_json::{Map, Value};
use weft_admin::deliveries::Sample;
use weft_proto::{
    internal,
    v1::{self, SignatureEncoding, delivery_id_rule, rule, verification},
};
use weft_schemes::{IdLocation, Location, spelling};

use super::signing::{Encoding, Header, HmacOptions, Scheme, Signing};

/// The data of a sample says so to people who find it.
const MESSAGE: &str = "a sample, sent by an operator";
/// A public key, which verifies and cannot sign.
const PUBLIC: &str = "whpk_";

/// A sample as a sender of the source signs it at `now`, in unix seconds.
///
/// # Errors
///
/// In one line: the source's requests are not signed with a secret, or its rules contradict each other.
pub fn signed_sample(source: &v1::Source, sample: &Sample<'_>, now: i64) -> Result<internal::SignedSample, String> {
    let scheme = source.verification.as_ref().and_then(|verification| verification.scheme.as_ref());
    let scheme = scheme.ok_or("the source has no scheme")?;
    let mut request = Request::default();
    request.put_rule(source.workflow.as_ref(), sample.workflow)?;
    match &source.r#type {
        Some(rule) => request.put_rule(Some(rule), sample.event_type)?,
        None => request.put_at(weft_schemes::of(scheme).event_type(), sample.event_type)?,
    }
    match source.delivery_id.as_ref().and_then(|rule| rule.from.as_ref()) {
        Some(delivery_id_rule::From::Header(name)) => request.put_header(name, sample.id),
        Some(delivery_id_rule::From::Pointer(pointer)) => request.put(pointer, sample.id)?,
        Some(delivery_id_rule::From::Digest(_) | delivery_id_rule::From::None(_)) => {}
        None => match weft_schemes::of(scheme).delivery_id() {
            Some(IdLocation::At(place)) => request.put_at(place, sample.id)?,
            // The signature's headers name it.
            Some(IdLocation::Signed) | None => {}
        },
    }
    request.put(&format!("{}/message", source.data_pointer), MESSAGE)?;
    // No two samples have the same body: a source may take a repeated one for a replay.
    request.put(&format!("{}/sample", source.data_pointer), sample.id)?;
    let body = serde_json::to_vec(&request.body).map_err(|error| error.to_string())?;
    if let Some(signing) = signing(scheme)? {
        let signed = signing.headers(sample.id, now, Some(sample.event_type), &body)?;
        // These are what the signature covers, so they win over what the rules have put there.
        request.headers.retain(|(name, _)| signed.iter().all(|(other, _)| !name.eq_ignore_ascii_case(other)));
        request.headers.extend(signed);
    }
    request.put_header("content-type", "application/json");
    let headers = request.headers.into_iter().map(|(name, value)| internal::SampleHeader { name, value }).collect();
    let path_workflow_id = if source.workflow.is_none() { sample.workflow.to_owned() } else { String::new() };
    Ok(internal::SignedSample {
        source: source.name.clone(),
        path_workflow_id,
        headers,
        body,
        id: sample.id.to_owned(),
    })
}

/// How a scheme's sender signs; `None`: not at all.
fn signing(scheme: &verification::Scheme) -> Result<Option<Signing>, String> {
    use verification::Scheme as Of;
    let by = match scheme {
        Of::Standard(_) => Scheme::Standard,
        Of::Github(_) => Scheme::Github,
        Of::Stripe(_) => Scheme::Stripe,
        Of::Slack(_) => Scheme::Slack,
        Of::Shopify(_) => Scheme::Shopify,
        Of::Hmac(_) => Scheme::Hmac,
        Of::ApiKey(_) => return Err("its requests carry an API key, which only their sender has".into()),
        Of::None(_) => return Ok(None),
    };
    let secrets = weft_schemes::of(scheme).secrets().into_iter().flatten();
    let secret = if by == Scheme::Standard {
        secrets.flat_map(|secret| spelling::standard(secret)).find(|secret| !secret.starts_with(PUBLIC))
    } else {
        secrets.flat_map(|secret| spelling::literal(secret)).next()
    };
    let secret = secret.ok_or("it is verified with a public key, so only its sender can sign")?;
    let hmac = match scheme {
        Of::Hmac(hmac) => hmac_options(hmac),
        _ => HmacOptions::default(),
    };
    Ok(Some(Signing { hmac, ..Signing::new(by, secret) }))
}

fn hmac_options(hmac: &v1::HmacScheme) -> HmacOptions {
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    HmacOptions {
        signature_header: given(&hmac.header),
        prefix: Some(hmac.prefix.clone()),
        encoding: (hmac.encoding() == SignatureEncoding::Base64).then_some(Encoding::Base64),
        template: given(&hmac.template),
        timestamp_header: given(&hmac.timestamp_header),
        id_header: given(&hmac.id_header),
    }
}

/// A request that is being made.
#[derive(Default)]
struct Request {
    headers: Vec<Header>,
    body: Map<String, Value>,
}

impl Request {
    fn put_rule(&mut self, rule: Option<&v1::Rule>, text: &str) -> Result<(), String> {
        match rule.and_then(|rule| rule.from.as_ref()) {
            Some(rule::From::Pointer(pointer)) => self.put(pointer, text),
            Some(rule::From::Header(name)) => {
                self.put_header(name, text);
                Ok(())
            }
            Some(rule::From::Fixed(_)) | None => Ok(()),
        }
    }

    fn put_at(&mut self, place: Location, text: &str) -> Result<(), String> {
        match place {
            Location::Pointer(pointer) => self.put(pointer, text)?,
            Location::Header(names) => names.iter().take(1).for_each(|name| self.put_header(name.as_str(), text)),
        }
        Ok(())
    }

    fn put_header(&mut self, name: &str, value: &str) {
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Puts a text at an RFC 6901 pointer; what is on the way there becomes an object.
    fn put(&mut self, pointer: &str, text: &str) -> Result<(), String> {
        let contradiction = || format!("no body has a text at {pointer:?} besides what the other rules read");
        let mut tokens: Vec<_> =
            pointer.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~")).collect();
        let last = tokens.pop().ok_or_else(contradiction)?;
        let mut at = &mut self.body;
        for token in tokens {
            let inner = at.entry(token).or_insert_with(|| Value::Object(Map::new()));
            at = inner.as_object_mut().ok_or_else(contradiction)?;
        }
        match at.insert(last, Value::from(text)) {
            Some(other) if other != text => Err(contradiction()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use jiff::Timestamp;
    use weft_proto::v1::{
        ApiKeyScheme, DeliveryIdRule, GithubScheme, HmacScheme, NoneScheme, Rule, ShopifyScheme, SlackScheme, Source,
        StandardScheme, StripeScheme, Verification, verification::Scheme as Of,
    };
    use weft_schemes::Verifier;

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    /// That of the first test of RFC 8032, section 7.1.
    const PUBLIC_KEY: &str = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    const NOW: i64 = 1_790_000_000;
    const SAMPLE: Sample<'_> = Sample { id: "evt_1", event_type: "order.paid", workflow: "order-1" };

    fn source(scheme: Of) -> Source {
        Source {
            name: "shop".into(),
            verification: Some(Verification { scheme: Some(scheme) }),
            workflow: Some(Rule { from: Some(rule::From::Pointer("/data/orderId".into())) }),
            data_pointer: "/data".into(),
            ..Source::default()
        }
    }

    /// The body, once the verifier of a gateway has accepted the signature.
    fn verified(source: &Source) -> Value {
        let signed = signed_sample(source, &SAMPLE, NOW).unwrap();
        let mut headers = HeaderMap::new();
        for header in &signed.headers {
            headers.append(header.name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(&header.value).unwrap());
        }
        let verifier = Verifier::compile(source).unwrap();
        verifier.verify(&headers, &signed.body, Timestamp::from_second(NOW).unwrap()).unwrap();
        serde_json::from_slice(&signed.body).unwrap()
    }

    /// A sample of each scheme holds, by the verifier of a gateway, and has what the rules read.
    #[test]
    fn a_sample_is_signed_as_its_source_verifies() {
        let secrets = || vec![SECRET.to_owned()];
        let tolerance_ms = None;
        let hmac = HmacScheme {
            secrets: secrets(),
            header: "X-Sig".into(),
            encoding: SignatureEncoding::Base64.into(),
            template: "{id}.{timestamp}.{body}".into(),
            timestamp_header: "X-Time".into(),
            id_header: "X-Id".into(),
            ..HmacScheme::default()
        };
        for (scheme, type_in_body) in [
            (
                Of::Standard(StandardScheme { secrets: vec![PUBLIC_KEY.into(), SECRET.into()], tolerance_ms }),
                Some("/type"),
            ),
            (Of::Github(GithubScheme { secrets: secrets() }), None),
            (Of::Stripe(StripeScheme { secrets: secrets(), tolerance_ms }), Some("/type")),
            (Of::Slack(SlackScheme { secrets: secrets(), tolerance_ms }), Some("/event/type")),
            (Of::Shopify(ShopifyScheme { secrets: secrets() }), None),
            (Of::Hmac(hmac), Some("/type")),
            (Of::None(NoneScheme {}), Some("/type")),
        ] {
            let body = verified(&Source {
                delivery_id: matches!(scheme, Of::Hmac(_) | Of::None(_))
                    .then(|| DeliveryIdRule { from: Some(delivery_id_rule::From::Pointer("/event".into())) }),
                ..source(scheme)
            });
            assert_eq!(body.pointer("/data/orderId"), Some(&Value::from("order-1")), "{body}");
            assert_eq!(body.pointer("/data/sample"), Some(&Value::from("evt_1")), "{body}");
            if let Some(pointer) = type_in_body {
                assert_eq!(body.pointer(pointer), Some(&Value::from("order.paid")), "{body}");
            }
        }
    }

    #[test]
    fn what_only_the_sender_can_sign_is_refused() {
        let public = Of::Standard(StandardScheme { secrets: vec![PUBLIC_KEY.into()], tolerance_ms: None });
        for scheme in [public, Of::ApiKey(ApiKeyScheme {})] {
            let refused = signed_sample(&source(scheme), &SAMPLE, NOW).unwrap_err();
            assert!(refused.contains("sender"), "{refused}");
        }
        let contradicting = Source { data_pointer: "/type".into(), ..source(Of::None(NoneScheme {})) };
        assert!(signed_sample(&contradicting, &SAMPLE, NOW).unwrap_err().contains("/type/message"));
    }

    #[test]
    fn without_a_rule_the_path_names_the_workflow() {
        let source = Source { workflow: None, ..source(Of::None(NoneScheme {})) };
        assert_eq!(signed_sample(&source, &SAMPLE, NOW).unwrap().path_workflow_id, "order-1");
    }
}

//! Requests made to be read in two ways, or to cost much.

use super::{senders::Provider, *};

const TIME: i64 = 1_700_000_000;

/// For each scheme a good request, with one of its headers as the trap makes it.
fn each_header(trap: impl Fn(&mut HeaderMap, &HeaderName, &HeaderValue), check: impl Fn(VerifyError, &HeaderName)) {
    for provider in Provider::ALL {
        let secret = provider.secret(1);
        let good = provider.sign(&secret, "m1", TIME, b"{}");
        let verifier = provider.verifier(&[secret]);
        for (name, value) in &good {
            let mut request = good.clone();
            trap(&mut request, name, value);
            match verifier.verify(&request, b"{}", at(TIME)) {
                Ok(verified) => panic!("{provider:?} {name}: {verified:?}"),
                Err(error) => check(error, name),
            }
        }
    }
}

/// Of two values the next reader, such as a delivery id's, might take the other.
#[test]
fn a_header_that_is_there_twice_is_refused() {
    let twice = |request: &mut HeaderMap, name: &HeaderName, value: &HeaderValue| {
        request.append(name.clone(), value.clone());
    };
    each_header(twice, |error, name| {
        assert_eq!(error, VerifyError::Malformed { header: name.clone(), rule: "must be there once" });
    });
}

#[test]
fn a_header_that_is_absent_is_named() {
    let absent = |request: &mut HeaderMap, name: &HeaderName, _: &HeaderValue| {
        request.remove(name);
    };
    each_header(absent, |error, name| {
        // Without its signature, a request under the newer names looks like one under the usual ones.
        let VerifyError::Missing { header } = error else { panic!("{error}") };
        let usual = ["webhook-signature", "x-shopify-hmac-sha256"].map(HeaderName::from_static);
        assert!(header == *name || usual.contains(&header), "{header}");
    });
}

#[test]
fn empty_blank_huge_and_foreign_values_are_refused() {
    let huge = "v1,AAAA t=1,v1=00 ".repeat(20_000);
    for value in ["", " ", ",", "=", huge.as_str()] {
        let other = |request: &mut HeaderMap, name: &HeaderName, _: &HeaderValue| {
            request.insert(name, HeaderValue::from_str(value).unwrap());
        };
        each_header(other, |error, _| {
            let told = matches!(error, VerifyError::Malformed { .. } | VerifyError::Invalid);
            assert!(told, "{error}");
            assert!(error.to_string().len() < 200, "what a stranger sent is not repeated");
        });
    }
    let foreign = |request: &mut HeaderMap, name: &HeaderName, value: &HeaderValue| {
        let bytes = [value.as_bytes(), "é".as_bytes()].concat();
        request.insert(name, HeaderValue::from_bytes(&bytes).unwrap());
    };
    each_header(foreign, |error, name| {
        assert_eq!(error, VerifyError::Malformed { header: name.clone(), rule: "must be printable ASCII" });
    });
}

/// Each signature costs something, so a request may not bring any number of them.
#[test]
fn only_as_many_signatures_as_a_rotation_makes() {
    for (provider, name, one, between) in [
        (Provider::Standard, "webhook-signature", "v1,AAAA", " "),
        (Provider::StandardPublic, "webhook-signature", "v1,AAAA", " "),
        (Provider::Stripe, "stripe-signature", "v1=00", ","),
    ] {
        let secret = provider.secret(1);
        let good = provider.sign(&secret, "m1", TIME, b"{}");
        let verifier = provider.verifier(&[secret]);
        let with = |others: usize| {
            let mut list = vec![one; others];
            list.push(good[name].to_str().unwrap());
            let mut request = good.clone();
            request.insert(name, list.join(between).parse().unwrap());
            verifier.verify(&request, b"{}", at(TIME))
        };
        assert!(with(SIGNATURES_MAX - 1).is_ok(), "{provider:?}");
        assert!(matches!(with(SIGNATURES_MAX), Err(VerifyError::Malformed { .. })), "{provider:?}");
    }
}

/// The two families of Standard Webhooks are not put together from parts.
#[test]
fn families_are_never_mixed() {
    let secret = Provider::Standard.secret(1);
    let verifier = Provider::Standard.verifier(std::slice::from_ref(&secret));
    let webhook = Provider::Standard.sign(&secret, "m1", TIME, b"{}");
    let svix = Provider::Svix.sign(&secret, "m1", TIME, b"{}");
    let mix = |id: &HeaderMap, time: &HeaderMap, signature: &HeaderMap| {
        let pick = |from: &HeaderMap, suffix: &str| {
            from.iter()
                .find(|(name, _)| name.as_str().ends_with(suffix))
                .map(|(name, value)| (name.clone(), value.clone()))
        };
        [pick(id, "-id"), pick(time, "-timestamp"), pick(signature, "-signature")].into_iter().flatten().collect()
    };
    let verify = |request: HeaderMap| verifier.verify(&request, b"{}", at(TIME));
    assert!(verify(mix(&webhook, &webhook, &webhook)).is_ok());
    assert!(verify(mix(&svix, &svix, &svix)).is_ok());
    for mixed in [mix(&svix, &webhook, &webhook), mix(&webhook, &svix, &svix), mix(&webhook, &svix, &webhook)] {
        assert!(matches!(verify(mixed), Err(VerifyError::Missing { .. })));
    }
    // Only the signed id counts, also next to another one.
    let mut second = svix.clone();
    second.insert("webhook-id", "forged".parse().unwrap());
    assert_eq!(verify(second).unwrap().id.as_deref(), Some("m1"));
}

/// A text signed under a template is no other request either: an id must not contain what sets it apart.
#[test]
fn a_template_is_cut_in_one_way_only() {
    let verifier = |template: &str| {
        self::template(HmacScheme {
            secrets: vec!["s".into()],
            header: "x-s".into(),
            template: template.into(),
            id_header: "x-id".into(),
            ..HmacScheme::default()
        })
        .unwrap()
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(b"s").unwrap();
    mac.update(b"a.b.c");
    let tag = hex::encode(mac.finalize().into_bytes());
    let verify = |template: &str, id: &str, body: &str| {
        verifier(template).verify(&headers(&[("x-s", &tag), ("x-id", id)]), body.as_bytes(), at(0))
    };
    assert_eq!(verify("{id}.{body}", "a", "b.c").unwrap().id.as_deref(), Some("a"));
    assert_eq!(verify("{body}.{id}", "c", "a.b").unwrap().id.as_deref(), Some("c"));
    for (template, id, body) in [("{id}.{body}", "a.b", "c"), ("{body}.{id}", "b.c", "a")] {
        assert!(matches!(verify(template, id, body), Err(VerifyError::Malformed { .. })), "{template}");
    }
}

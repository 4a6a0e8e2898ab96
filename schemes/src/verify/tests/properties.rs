//! Properties of every scheme and any request.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::{senders::Provider, *};

fn providers() -> impl Strategy<Value = Provider> {
    prop::sample::select(Provider::ALL.to_vec())
}

proptest! {
    /// A signed request is accepted. With one changed byte of the body or of any signed header it is not: neither of
    /// a signature, nor of an id, nor of a time.
    #[test]
    fn one_changed_byte_anywhere_fails(
        provider in providers(), body in proptest::collection::vec(any::<u8>(), 0..40), id in "[a-zA-Z0-9_]{1,20}",
        time in 1_000_000_000i64..2_000_000_000, place in any::<prop::sample::Index>(),
        index in any::<prop::sample::Index>(), change in 1u8..,
    ) {
        let secret = provider.secret(1);
        let verifier = provider.verifier(std::slice::from_ref(&secret));
        let mut request = provider.sign(&secret, &id, time, &body);
        prop_assert!(verifier.verify(&request, &body, at(time)).is_ok());

        let mut body = body;
        let names: Vec<_> = request.keys().cloned().collect();
        match names.get(place.index(names.len() + 1)) {
            Some(name) => {
                let mut value = request[name].as_bytes().to_vec();
                let index = index.index(value.len());
                value[index] ^= change;
                let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
                request.insert(name, value);
            }
            None => {
                prop_assume!(!body.is_empty());
                let index = index.index(body.len());
                body[index] ^= change;
            }
        }
        prop_assert!(verifier.verify(&request, &body, at(time)).is_err());
    }

    /// During a rotation each of the secrets verifies, and the result has its index. Another one does not.
    #[test]
    fn every_secret_of_a_rotation_verifies_with_its_index(
        provider in providers(), count in 1u8..5, chosen in 0u8..5, body in "[ -~]{0,40}",
    ) {
        let secrets: Vec<_> = (0..count).map(|number| provider.secret(number)).collect();
        let verifier = provider.verifier(&secrets);
        let request = provider.sign(&provider.secret(chosen), "m1", 1_700_000_000, body.as_bytes());
        let verified = verifier.verify(&request, body.as_bytes(), at(1_700_000_000));
        if chosen < count {
            prop_assert_eq!(verified.unwrap().by(), format!("{}/{chosen}", provider.name()));
        } else {
            prop_assert_eq!(verified, Err(VerifyError::Invalid));
        }
    }

    /// A signed time is checked, in both directions; an unsigned time is not.
    #[test]
    fn freshness_is_what_was_signed(provider in providers(), offset in -100_000i64..100_000) {
        let secret = provider.secret(1);
        let signed = 1_700_000_000;
        let request = provider.sign(&secret, "m1", signed, b"{}");
        let verified = provider.verifier(&[secret]).verify(&request, b"{}", at(signed + offset));
        if provider.signs_time() && offset.abs() > 300 {
            let stale = matches!(verified, Err(VerifyError::OutOfWindow { .. }));
            prop_assert!(stale, "{verified:?}");
        } else {
            prop_assert_eq!(verified.unwrap().timestamp, provider.signs_time().then(|| at(signed)));
        }
    }

    /// Nothing that a stranger may send makes it panic, or is taken.
    #[test]
    fn any_request_is_answered(
        provider in providers(), values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 3),
        body in proptest::collection::vec(any::<u8>(), 0..30), hours in -100_000i64..100_000,
    ) {
        let secret = provider.secret(1);
        let mut request = provider.sign(&secret, "m1", 1_700_000_000, &body);
        let names: Vec<_> = request.keys().cloned().collect();
        for (name, value) in names.into_iter().zip(values) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                request.insert(name, value);
            }
        }
        let untouched = provider.sign(&secret, "m1", 1_700_000_000, &body);
        prop_assume!(request != untouched);
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
        prop_assert!(provider.verifier(&[secret]).verify(&request, &body, now).is_err());
    }
}

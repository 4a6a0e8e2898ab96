//! Verification of arbitrary headers and bodies, by every scheme: it answers. What a sender signs over the same body
//! verifies, and one changed byte does not.

#![no_main]

use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use weft_fuzz::{
    request,
    sign::{self, Signer},
};
use weft_schemes::{Signer as SignedBy, Verifier};

/// When every request of this target arrives, in unix seconds.
const NOW: i64 = 1_800_000_000;

/// The schemes that sign.
static SCHEMES: LazyLock<Vec<(Verifier, Signer)>> = LazyLock::new(|| {
    let compiled = |(source, signer)| (Verifier::compile(&source).expect("a source"), signer);
    sign::schemes().into_iter().map(compiled).collect()
});

fuzz_target!(|input: &[u8]| {
    let (headers, body) = request(input);
    let now = Timestamp::from_second(NOW).expect("a time");
    let id: String =
        input.iter().filter(|byte| byte.is_ascii_alphanumeric()).take(16).map(|byte| char::from(*byte)).collect();
    let id = if id.is_empty() { "id".to_owned() } else { id };
    for (verifier, signer) in SCHEMES.iter() {
        let _ = verifier.verify(&headers, &body, now);
        let signed = sign::headers(signer(&id, NOW, &body));
        let verified = verifier.verify(&signed, &body, now).expect("a sender's own signature verifies");
        assert!(matches!(verified.signer, SignedBy::Secret { index: 0, .. }));
        let mut other = body.to_vec();
        match other.first_mut() {
            Some(byte) => *byte ^= 1,
            None => other.push(b'x'),
        }
        assert!(verifier.verify(&signed, &other, now).is_err(), "a signature is over the whole body");
    }
});

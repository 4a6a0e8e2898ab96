//! Standard Webhooks with Ed25519: who verifies cannot sign.

use super::*;

/// Svix's published vector: the private key as 64 bytes, of which the last 32 are the public one.
const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const PRIVATE: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const SIGNATURE: &str = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const TIME: i64 = 1_614_265_330;

fn request(signature: &str) -> HeaderMap {
    headers(&[
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("webhook-timestamp", "1614265330"),
        ("webhook-signature", signature),
    ])
}

#[test]
fn the_vector_of_v1a_holds() {
    let verified = standard(&[PUBLIC]).verify(&request(SIGNATURE), BODY, at(TIME)).unwrap();
    assert_eq!((verified.by().as_str(), verified.timestamp), ("standard/0", Some(at(TIME))));
    let mut changed = BODY.to_vec();
    changed[3] ^= 1;
    assert_eq!(standard(&[PUBLIC]).verify(&request(SIGNATURE), &changed, at(TIME)), Err(VerifyError::Invalid));
}

/// A sender on its way from the one kind to the other signs with both.
#[test]
fn both_kinds_stand_side_by_side() {
    let shared = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    let both = format!("{shared} {SIGNATURE}");
    for (secrets, signature, by) in [
        (&[PUBLIC, STANDARD_SECRET][..], shared, "standard/1"),
        (&[PUBLIC, STANDARD_SECRET], SIGNATURE, "standard/0"),
        (&[OTHER_SECRET, STANDARD_SECRET, PUBLIC], SIGNATURE, "standard/2"),
        (&[STANDARD_SECRET], &both, "standard/0"),
        (&[PUBLIC], &both, "standard/0"),
    ] {
        assert_eq!(standard(secrets).verify(&request(signature), BODY, at(TIME)).unwrap().by(), by);
    }
    // A signature of one kind is none of the other, nor is one of another length.
    let (tag, long) = (shared.replace("v1,", "v1a,"), SIGNATURE.replace("v1a,", "v1,"));
    for signature in [&tag, &long, "v1a,", "v1a,AAAA", "v1a"] {
        let verified = standard(&[PUBLIC, STANDARD_SECRET]).verify(&request(signature), BODY, at(TIME));
        assert_eq!(verified, Err(VerifyError::Invalid), "{signature}");
    }
}

/// An invalid public key is refused when the source is compiled, and not shown.
#[test]
fn an_invalid_public_key_is_refused() {
    let compile = |secret: &str| {
        verifier(Configured::Standard(StandardScheme { secrets: vec![secret.into()], tolerance_ms: None }))
            .map(|_| ())
            .map_err(|error| error.problem)
    };
    assert_eq!(compile(PUBLIC), Ok(()));
    let private = compile(PRIVATE).unwrap_err();
    assert!(private.contains("private key") && !private.contains("6Xb"), "{private}");
    // Not base64; too short; no point of the curve; the identity, under which anything is signed.
    let identity = "whpk_AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let off_curve = "whpk_AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for broken in ["whpk_!", "whpk_AAAA", off_curve, identity] {
        assert!(compile(broken).unwrap_err().contains("Ed25519 public key"), "{broken}");
    }
}

//! Standard Webhooks 1.0 signatures over `{id}.{timestamp}.{body}`: `v1,` and the base64 of HMAC-SHA256, or `v1a,` and the
//! base64 of an Ed25519 signature.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use weft_proto::v1::HttpSignature;

/// A secret that is not of the form that its signature needs. The message does not contain it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("secret {0}")]
pub struct InvalidSecret(String);

/// Signs deliveries with each secret of a subscription; there are several during a rotation.
#[derive(Clone)]
pub struct Signer {
    keys: Vec<Key>,
}

#[derive(Clone)]
enum Key {
    Shared(Hmac<Sha256>),
    Private(Box<SigningKey>),
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({} secrets)", self.keys.len())
    }
}

impl Signer {
    /// `secrets` as configured: `whsec_` and base64, for `v1a` `whsk_` and base64. Without a signature they are not used.
    ///
    /// # Errors
    ///
    /// [`InvalidSecret`]: a secret does not have that form.
    pub fn new(secrets: &[String], signature: HttpSignature) -> Result<Self, InvalidSecret> {
        let key: fn(&str) -> Result<Key, InvalidSecret> = match signature {
            HttpSignature::V1 | HttpSignature::Unspecified => shared,
            HttpSignature::V1a => private,
            HttpSignature::None => return Ok(Self { keys: Vec::new() }),
        };
        Ok(Self { keys: secrets.iter().map(|secret| key(secret)).collect::<Result<_, _>>()? })
    }

    /// The value of `webhook-signature`: one signature a secret, separated by spaces. `None`: deliveries are not signed.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
        if self.keys.is_empty() {
            return None;
        }
        let timestamp = timestamp.to_string();
        let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        let signatures = self.keys.iter().map(|key| match key {
            Key::Shared(key) => {
                let mut mac = key.clone();
                parts.iter().for_each(|part| mac.update(part));
                format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
            }
            Key::Private(key) => format!("v1a,{}", BASE64_STANDARD.encode(key.sign(&parts.concat()).to_bytes())),
        });
        Some(signatures.collect::<Vec<_>>().join(" "))
    }
}

fn shared(secret: &str) -> Result<Key, InvalidSecret> {
    const FORM: &str = "is not whsec_ and base64; make one with: echo whsec_$(openssl rand -base64 32)";
    let text = secret.strip_prefix("whsec_").unwrap_or(secret);
    let key = BASE64_STANDARD.decode(text).map_err(|_| InvalidSecret(FORM.into()))?;
    Hmac::new_from_slice(&key).map(Key::Shared).map_err(|_| InvalidSecret(FORM.into()))
}

fn private(secret: &str) -> Result<Key, InvalidSecret> {
    weft_schemes::private_key(secret).map(|key| Key::Private(Box::new(key))).map_err(InvalidSecret)
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    /// Svix's published pair.
    const PRIVATE: &str =
        "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
    const PUBLIC: &str = "1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";

    fn signer(secrets: &[&str], signature: HttpSignature) -> Result<Signer, InvalidSecret> {
        Signer::new(&secrets.iter().map(|secret| (*secret).to_owned()).collect::<Vec<_>>(), signature)
    }

    #[test]
    fn the_vector_of_the_standard() {
        let signer = signer(&[SECRET], HttpSignature::V1).unwrap();
        let signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    /// Guards: a v1a signature holds by another implementation of Ed25519, with the key in either of its forms.
    #[test]
    fn an_asymmetric_signature_holds_by_another_implementation() {
        let seed = format!("whsk_{}", BASE64_STANDARD.encode(&BASE64_STANDARD.decode(&PRIVATE[5..]).unwrap()[..32]));
        for secret in [PRIVATE, &seed] {
            let signature = signer(&[secret], HttpSignature::V1a).unwrap().sign("id", 7, b"body").unwrap();
            let signature = BASE64_STANDARD.decode(signature.strip_prefix("v1a,").unwrap()).unwrap();
            let public = UnparsedPublicKey::new(&ED25519, BASE64_STANDARD.decode(PUBLIC).unwrap());
            public.verify(b"id.7.body", &signature).unwrap();
            assert!(public.verify(b"id.7.bodY", &signature).is_err());
        }
    }

    #[test]
    fn a_rotation_signs_with_both() {
        for (secrets, signature, version) in [
            ([SECRET, "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"], HttpSignature::Unspecified, "v1,"),
            ([PRIVATE, PRIVATE], HttpSignature::V1a, "v1a,"),
        ] {
            let signatures = signer(&secrets, signature).unwrap().sign("a", 1, b"x").unwrap();
            assert_eq!(signatures.split(' ').count(), 2);
            assert!(signatures.split(' ').all(|signature| signature.starts_with(version)));
        }
        assert_eq!(signer(&[SECRET], HttpSignature::None).unwrap().sign("a", 1, b"x"), None);
    }

    #[test]
    fn a_secret_is_never_shown() {
        for signature in [HttpSignature::V1, HttpSignature::V1a] {
            let problem = signer(&["whsec_!!secret!!"], signature).unwrap_err();
            assert!(!format!("{problem} {problem:?}").contains("!!secret!!"));
        }
        assert_eq!(format!("{:?}", signer(&[SECRET], HttpSignature::V1).unwrap()), "Signer(1 secrets)");
    }
}

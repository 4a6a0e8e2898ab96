//! Standard Webhooks 1.0 signatures, symmetric: `v1,` and the base64 of HMAC-SHA256 over `{id}.{timestamp}.{body}`.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// A secret that is not `whsec_` and base64. The message does not contain it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret is not whsec_ and base64; make one with: echo whsec_$(openssl rand -base64 32)")]
pub struct InvalidSecret;

/// Signs deliveries with each secret of a subscription; there are several during a rotation.
#[derive(Clone)]
pub struct Signer {
    keys: Vec<Hmac<Sha256>>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({} secrets)", self.keys.len())
    }
}

impl Signer {
    /// `secrets` as configured: `whsec_` and base64.
    ///
    /// # Errors
    ///
    /// [`InvalidSecret`]: a secret does not have that form.
    pub fn new(secrets: &[String]) -> Result<Self, InvalidSecret> {
        let keys = secrets.iter().map(|secret| {
            let text = secret.strip_prefix("whsec_").unwrap_or(secret);
            let key = BASE64_STANDARD.decode(text).map_err(|_| InvalidSecret)?;
            Hmac::new_from_slice(&key).map_err(|_| InvalidSecret)
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>()? })
    }

    /// The value of `webhook-signature`: one signature a secret, separated by spaces.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let timestamp = timestamp.to_string();
        let signatures = self.keys.iter().map(|key| {
            let mut mac = key.clone();
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                mac.update(part);
            }
            format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_vector_of_the_standard() {
        let signer = Signer::new(&[SECRET.into()]).unwrap();
        let signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_rotation_signs_with_both() {
        let signer = Signer::new(&[SECRET.into(), "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX".into()]).unwrap();
        let signatures = signer.sign("a", 1, b"x");
        assert_eq!(signatures.split(' ').count(), 2);
        assert!(signatures.split(' ').all(|signature| signature.starts_with("v1,")));
    }

    #[test]
    fn a_secret_is_never_shown() {
        let problem = Signer::new(&["whsec_!!secret!!".into()]).unwrap_err();
        assert!(!format!("{problem} {problem:?}").contains("!!secret!!"));
        assert_eq!(format!("{:?}", Signer::new(&[SECRET.into()]).unwrap()), "Signer(1 secrets)");
    }
}

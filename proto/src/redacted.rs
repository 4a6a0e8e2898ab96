//! `Debug` of the messages that hold secrets: a message ends up in a log line sooner or later, a secret must not.
//!
//! The build derives no `Debug` for a message with a secret field, so one that is not listed here cannot be printed at
//! all, and one whose new field is not sorted into hidden or shown does not compile.

use std::fmt;

use crate::{
    internal::ErasedEvent,
    v1::{
        ApiKey, BasicAuth, BearerAuth, ClientTls, CreateApiKeyResponse, GithubScheme, HmacScheme, HttpDestination,
        HttpHeader, HttpProxy, NatsDestination, OAuth2ClientCredentials, PostgresDestination, SecretsChange,
        ShopifyScheme, SlackScheme, StandardScheme, StripeScheme,
    },
};

/// Shown in place of a secret.
pub const SECRET_MASK: &str = "[secret]";

/// The number of secrets, without their values.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("[]"),
            1 => f.write_str(SECRET_MASK),
            count => write!(f, "[{count} secrets]"),
        }
    }
}

/// A field that holds secrets.
trait Hide {
    fn hide(&self) -> Hidden;
}

impl Hide for Vec<String> {
    fn hide(&self) -> Hidden {
        Hidden(self.len())
    }
}

impl Hide for String {
    fn hide(&self) -> Hidden {
        Hidden(usize::from(!self.is_empty()))
    }
}

impl Hide for Vec<u8> {
    fn hide(&self) -> Hidden {
        Hidden(usize::from(!self.is_empty()))
    }
}

macro_rules! redacted {
    ($($message:ident { hidden: $hidden:ident, shown: [$($shown:ident),*] })*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Every field is named: a new one has to be sorted in.
                let Self { $hidden, $($shown),* } = self;
                f.debug_struct(stringify!($message))
                    .field(stringify!($hidden), &$hidden.hide())
                    $(.field(stringify!($shown), $shown))*
                    .finish()
            }
        }
    )*};
}

redacted! {
    StandardScheme { hidden: secrets, shown: [tolerance_ms] }
    GithubScheme { hidden: secrets, shown: [] }
    HmacScheme {
        hidden: secrets,
        shown: [header, prefix, encoding, template, timestamp_header, id_header, tolerance_ms]
    }
    StripeScheme { hidden: secrets, shown: [tolerance_ms] }
    SlackScheme { hidden: secrets, shown: [tolerance_ms] }
    ShopifyScheme { hidden: secrets, shown: [] }
    SecretsChange { hidden: secrets, shown: [remove] }
    HttpDestination {
        hidden: secrets,
        shown: [url, format, signature, headers, tls, proxy, auth, success, permanent, retry_after_max_ms]
    }
    HttpHeader { hidden: secret, shown: [name] }
    HttpProxy { hidden: password, shown: [url, user] }
    ClientTls { hidden: key, shown: [ca, cert] }
    BearerAuth { hidden: token, shown: [] }
    BasicAuth { hidden: password, shown: [user] }
    OAuth2ClientCredentials { hidden: client_secret, shown: [token_url, client_id, scopes] }
    NatsDestination { hidden: creds, shown: [subject, stream, url, tls] }
    PostgresDestination { hidden: dsns, shown: [table, create, sql, columns] }
    ApiKey {
        hidden: digest,
        shown: [id, name, scopes, sources, workflow_prefixes, created_at_ms, expires_at_ms]
    }
    CreateApiKeyResponse { hidden: key, shown: [view] }
    // What was erased could be guessed from it.
    ErasedEvent {
        hidden: digest,
        shown: [
            sequence, event_id, workflow_id, sequence_number, previous_id, r#type, source, time_ns, received_at_ns,
            stored_at_ns, delivery_id, content_type, verified_by, replay_key, operator, reason, request_id, at_ms
        ]
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

    use super::*;

    /// Of both packages.
    const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft_all_descriptor.bin"));

    include!("secret_fields.rs");

    const SECRET: &[u8] = b"hush-hush";

    /// `Debug` of a message in which the field of that number holds the secret.
    fn debug<M: Message + Default + fmt::Debug>(field: u32) -> String {
        let mut bytes = Vec::new();
        prost::encoding::bytes::encode(field, &SECRET.to_vec(), &mut bytes);
        let message = M::decode(&bytes[..]).unwrap();
        assert_eq!(message.encode_to_vec(), bytes, "the secret is in it");
        format!("{message:?} {message:#?}")
    }

    /// The messages of our packages with a secret field, and that field's number.
    fn secret_fields() -> Vec<(String, u32)> {
        fn walk(prefix: &str, message: &DescriptorProto, found: &mut Vec<(String, u32)>) {
            let name = format!("{prefix}{}", message.name());
            let secret = message.field.iter().filter(|field| {
                SECRET_FIELDS.contains(&field.name()) && matches!(field.r#type(), Type::String | Type::Bytes)
            });
            found.extend(secret.map(|field| (name.clone(), u32::try_from(field.number()).unwrap())));
            message.nested_type.iter().for_each(|nested| walk(&format!("{name}."), nested, found));
        }
        let mut found = Vec::new();
        for file in FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap().file {
            if file.package().starts_with("weft.") {
                file.message_type.iter().for_each(|message| walk("", message, &mut found));
            }
        }
        found
    }

    /// No message prints a field that the contracts call a secret.
    #[test]
    fn no_message_prints_its_secrets() {
        let fields = secret_fields();
        assert!(fields.len() >= 9, "{fields:?}");
        for (message, field) in fields {
            let text = match message.as_str() {
                "StandardScheme" => debug::<StandardScheme>(field),
                "GithubScheme" => debug::<GithubScheme>(field),
                "HmacScheme" => debug::<HmacScheme>(field),
                "StripeScheme" => debug::<StripeScheme>(field),
                "SlackScheme" => debug::<SlackScheme>(field),
                "ShopifyScheme" => debug::<ShopifyScheme>(field),
                "SecretsChange" => debug::<SecretsChange>(field),
                "HttpDestination" => debug::<HttpDestination>(field),
                "HttpHeader" => debug::<HttpHeader>(field),
                "HttpProxy" => debug::<HttpProxy>(field),
                "ClientTls" => debug::<ClientTls>(field),
                "BearerAuth" => debug::<BearerAuth>(field),
                "BasicAuth" => debug::<BasicAuth>(field),
                "OAuth2ClientCredentials" => debug::<OAuth2ClientCredentials>(field),
                "NatsDestination" => debug::<NatsDestination>(field),
                "PostgresDestination" => debug::<PostgresDestination>(field),
                "ApiKey" => debug::<ApiKey>(field),
                "CreateApiKeyResponse" => debug::<CreateApiKeyResponse>(field),
                "ErasedEvent" => debug::<ErasedEvent>(field),
                other => panic!("{other} has a secret field; add it here"),
            };
            assert!(!text.contains("hush") && text.contains("[secret]"), "{text}");
            // Nor as the bytes of a list.
            assert!(!text.contains("104, 117"), "{text}");
        }
    }

    #[test]
    fn other_fields_are_shown() {
        let scheme = StandardScheme { secrets: vec!["a".into(), "b".into()], tolerance_ms: Some(300) };
        assert_eq!(format!("{scheme:?}"), "StandardScheme { secrets: [2 secrets], tolerance_ms: Some(300) }");
    }
}

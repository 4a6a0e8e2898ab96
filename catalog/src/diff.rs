//! Differences between two values of an entry, line by line, without secrets. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    delivery_url::redact_query,
    entry::Entry,
    fields::{Field, TOKEN_URL_KEY, URL_KEY},
};

/// The longest line, in characters: a JSON Schema may be long, and the lines stand in the audit log.
const LINE_CHARS_MAX: usize = 400;

/// The lines: `- timeout = "15s"`, `+ timeout = "30s"`. Of what is made, everything is a `+`; of what is removed, a `-`.
pub fn diff<T: Entry>(before: Option<&T>, after: Option<&T>) -> Vec<String> {
    let fields = |entry: Option<&T>| entry.map(T::fields).unwrap_or_default();
    let (old, new) = (fields(before), fields(after));
    let changed = before.zip(after);
    let secrets_changed = changed.is_some_and(|(before, after)| before.secrets() != after.secrets());
    let mut lines = Vec::new();
    let mut told = BTreeSet::new();
    for field in old.iter().chain(&new) {
        if !told.insert(&field.key) {
            continue;
        }
        let find = |fields: &[Field]| fields.iter().find(|other| other.key == field.key).cloned();
        let (old, new) = (find(&old), find(&new));
        let rotated = field.is_secrets() && secrets_changed;
        if old == new && !rotated {
            continue;
        }
        lines.extend(old.map(|old| line('-', &old, false)));
        lines.extend(new.map(|new| line('+', &new, rotated)));
    }
    let (old, new) = (single_secrets(before), single_secrets(after));
    for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
        match (old.get(key), new.get(key)) {
            (Some(old), Some(new)) if old == new => {}
            (old, new) => {
                lines.extend(old.map(|_| format!("- {key} = (1 secret)")));
                lines.extend(
                    new.map(|_| format!("+ {key} = (1 secret{})", if old.is_some() { ", changed" } else { "" })),
                );
            }
        }
    }
    if lines.is_empty() && before != after {
        lines.push("~ something that has no name in weft.toml".into());
    }
    lines
}

/// Those that are not empty.
fn single_secrets<T: Entry>(entry: Option<&T>) -> BTreeMap<String, String> {
    let mut secrets = entry.map(T::single_secrets).unwrap_or_default();
    secrets.retain(|_, secret| !secret.is_empty());
    secrets
}

fn line(sign: char, field: &Field, rotated: bool) -> String {
    let value = if field.is_secrets() {
        let count = field.value.as_u64().unwrap_or_default();
        let noun = if count == 1 { "secret" } else { "secrets" };
        format!("({count} {noun}{})", if rotated { ", changed" } else { "" })
    } else if let Some(url) = field.value.as_str().filter(|_| [URL_KEY, TOKEN_URL_KEY].contains(&field.key.as_str())) {
        // The lines are kept in the audit log, for all who may read.
        Value::from(redact_query(url)).to_string()
    } else {
        field.value.to_string()
    };
    let line = format!("{sign} {} = {value}", field.key);
    if line.chars().count() <= LINE_CHARS_MAX {
        return line;
    }
    line.chars().take(LINE_CHARS_MAX).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use crate::entry::without_secrets;
    use weft_proto::v1::{
        ApiKey, Auth, BearerAuth, ClientTls, Destination, HttpDestination, HttpFormat, HttpHeader, HttpProxy,
        HttpSignature, Scope, Subscription, auth, destination,
    };

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn subscription() -> Subscription {
        let http = HttpDestination {
            url: "https://a.example/".into(),
            secrets: vec![SECRET.into()],
            format: 1,
            ..Default::default()
        };
        Subscription {
            name: "billing".into(),
            types: vec!["order.*".into()],
            timeout_ms: 15_000,
            concurrency: 64,
            destination: Some(Destination { kind: Some(destination::Kind::Http(http)) }),
            ..Subscription::default()
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        let before = subscription();
        let after = Subscription { timeout_ms: 30_000, sources: vec!["shop".into()], ..before.clone() };
        let lines = diff(Some(&before), Some(&after));
        assert_eq!(lines, ["- timeout = \"15s\"", "+ timeout = \"30s\"", "+ sources = [\"shop\"]"]);
        assert!(diff(Some(&before), Some(&before)).is_empty());
    }

    /// A rotation shows, and nothing of either secret does.
    #[test]
    fn a_changed_secret_shows_as_changed_and_nothing_more() {
        let before = subscription();
        let mut after = before.clone();
        after.secrets_mut().unwrap()[0] = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX".into();
        let lines = diff(Some(&before), Some(&after));
        assert_eq!(lines, ["- destination.secrets = (1 secret)", "+ destination.secrets = (1 secret, changed)"]);
        let key = ApiKey { digest: b"digest".to_vec(), scopes: vec![Scope::Read.into()], ..ApiKey::default() };
        for lines in [diff(None, Some(&before)), diff(Some(&before), None), diff(None, Some(&key))] {
            assert!(!lines.is_empty() && !lines.concat().contains("MfKQ") && !lines.concat().contains("digest"));
        }
    }

    #[test]
    fn a_difference_without_a_name_is_not_passed_over() {
        let (one, other) = (subscription(), Subscription { starts: vec![7], ..subscription() });
        assert_eq!(diff(Some(&one), Some(&other)).len(), 1);
    }

    #[test]
    fn a_long_value_is_cut() {
        let long = Subscription { pause_reason: "é".repeat(1000), ..subscription() };
        assert!(diff(None, Some(&long)).iter().all(|line| line.chars().count() <= LINE_CHARS_MAX + 1));
    }

    #[test]
    fn settings_of_a_destination_are_told() {
        let mut after = subscription();
        let Some(destination::Kind::Http(http)) = after.destination.as_mut().unwrap().kind.as_mut() else { panic!() };
        http.set_format(HttpFormat::Cloudevents);
        http.set_signature(HttpSignature::V1a);
        http.success = vec!["2xx".into(), "409".into()];
        http.retry_after_max_ms = 60_000;
        http.tls = Some(ClientTls { ca: "pem".into(), ..Default::default() });
        http.proxy = Some(HttpProxy { url: "http://p:1".into(), user: "me".into(), password: "hush".into() });
        let lines = diff(Some(&subscription()), Some(&after));
        let ca = "sha256:f0aeace912cf19dc";
        let expected = [
            "- destination.format = \"envelope\"",
            "+ destination.format = \"cloudevents\"",
            "+ destination.signature = \"v1a\"",
            &format!("+ destination.ca = \"{ca}"),
            "+ destination.proxy.url = \"http://p:1\"",
            "+ destination.proxy.user = \"me\"",
            "+ destination.success = [\"2xx\",\"409\"]",
            "+ destination.retry_after_max = \"1m\"",
            "+ destination.proxy.password = (1 secret)",
        ];
        assert_eq!(lines.len(), expected.len(), "{lines:?}");
        lines.iter().zip(expected).for_each(|(line, expected)| assert!(line.starts_with(expected), "{line}"));
    }

    /// A token of a destination is hidden, and that it changed is said.
    #[test]
    fn tokens_of_a_destination_are_hidden_and_compared() {
        let with = |token: &str| {
            let http = HttpDestination {
                headers: vec![HttpHeader { name: "x-tenant".into(), secret: token.into() }],
                auth: Some(Auth { kind: Some(auth::Kind::Bearer(BearerAuth { token: token.into() })) }),
                ..Default::default()
            };
            let destination = Destination { kind: Some(destination::Kind::Http(http)) };
            Subscription { destination: Some(destination), ..Subscription::default() }
        };
        let lines = diff(Some(&with("hush-1")), Some(&with("hush-2")));
        let expected = ["auth.bearer", "headers.x-tenant"].map(|key| {
            [format!("- destination.{key} = (1 secret)"), format!("+ destination.{key} = (1 secret, changed)")]
        });
        assert_eq!(lines, expected.concat());
        assert_eq!(without_secrets(&with("hush-1")), with(""));
    }
}

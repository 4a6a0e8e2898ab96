//! Entries from a file or flags, as messages. Both are read like `weft.toml`, with the same
//! defaults and the same error messages.

use std::path::Path;

use toml::{Table, Value};
use weft_catalog::Start;
use weft_proto::v1;

use crate::{
    command::{select::to_proto, sign::secret},
    config::{Config, ConfigError, DesiredCatalog, DesiredSubscription},
    failure::Failure,
};

/// The `[[source]]`s and `[[subscription]]`s of a file; `-` is standard input.
///
/// # Errors
///
/// [`Failure::Usage`]: it cannot be read, or is not such a file.
pub fn of_file(path: &Path) -> Result<DesiredCatalog, Failure> {
    let (path, text) = match path.to_str() {
        Some("-") => (Path::new("stdin"), std::io::read_to_string(std::io::stdin().lock())),
        _ => (path, std::fs::read_to_string(path)),
    };
    let text = text.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let config = Config::parse(path, text, [], None).map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(config.catalog)
}

/// Flags, gathered as the table that stands for them in a file.
#[derive(Default)]
pub struct Flags(Table);

impl Flags {
    /// Puts a value at a dotted key; `None` leaves the default.
    pub fn put(&mut self, key: &str, value: Option<impl Into<Value>>) {
        let Some(value) = value else { return };
        match key.split_once('.') {
            None => drop(self.0.insert(key.to_owned(), value.into())),
            Some((section, rest)) => {
                let section = self.0.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(section) = section {
                    section.insert(rest.to_owned(), value.into());
                }
            }
        }
    }

    /// As [`put`](Self::put); an empty list leaves the default.
    pub fn put_list(&mut self, key: &str, list: &[String]) {
        self.put(key, (!list.is_empty()).then(|| list.to_vec()));
    }

    /// The catalog with this one table under `kind`.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`]: what the flags say makes no sense.
    pub fn into_desired(self, kind: &str) -> Result<DesiredCatalog, Failure> {
        let file = Table::from_iter([(kind.to_owned(), Value::Array(vec![Value::Table(self.0)]))]);
        let text = toml::to_string(&file).map_err(|error| Failure::of(&error))?;
        let config = Config::parse(Path::new("flags"), text, [], None).map_err(|error| match error {
            // The flags have no lines.
            ConfigError::At { problem, .. } => Failure::Usage(problem.replacen(&format!("{kind}[0]"), kind, 1)),
            error @ ConfigError::Read { .. } => Failure::of(&error),
        })?;
        Ok(config.catalog)
    }
}

/// The things of a file that are meant: all, or the one of that name.
///
/// # Errors
///
/// [`Failure::Usage`]: there are none.
pub fn chosen<T>(
    things: Vec<T>,
    name: Option<&str>,
    name_of: impl Fn(&T) -> &str,
    kind: &str,
    file: &Path,
) -> Result<Vec<T>, Failure> {
    let chosen: Vec<_> = things.into_iter().filter(|thing| name.is_none_or(|name| name_of(thing) == name)).collect();
    if chosen.is_empty() {
        let which = name.map(|name| format!(" {name:?}")).unwrap_or_default();
        return Err(Failure::Usage(format!("{} has no [[{kind}]]{which}", file.display())));
    }
    Ok(chosen)
}

/// Secrets as flags name them.
///
/// # Errors
///
/// [`Failure`]: which variable or file is not there.
pub fn secrets(references: &[String]) -> Result<Vec<String>, Failure> {
    references.iter().map(|reference| secret(reference)).collect()
}

/// A subscription and where it begins.
pub fn subscription(wanted: DesiredSubscription) -> v1::WantedSubscription {
    use v1::start::From;
    let from = match wanted.start {
        Start::Now => From::Now(true),
        Start::Beginning => From::Beginning(true),
        Start::At(time) => From::Time(to_proto(time)),
        Start::Behind(id) => From::EventId(id.to_string()),
    };
    v1::WantedSubscription { subscription: Some(wanted.value), start: Some(v1::Start { from: Some(from) }) }
}

/// Failure if neither a file nor a name is given.
pub fn nothing_named(kind: &str) -> Failure {
    Failure::Usage(format!("give the name of the {kind} and its flags, or a file with -f"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_mean_what_the_file_means() {
        let mut flags = Flags::default();
        flags.put("name", Some("billing"));
        flags.put("destination.type", Some("http"));
        flags.put("destination.url", Some("https://a.example/"));
        flags.put_list("destination.secrets", &["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()]);
        flags.put("timeout", Some("30s"));
        flags.put("concurrency", None::<i64>);
        let desired = flags.into_desired("subscription").unwrap();
        let value = &desired.subscriptions[0].value;
        assert_eq!((value.timeout_ms, value.concurrency, value.types.as_slice()), (30_000, 64, &["*".to_owned()][..]));
    }

    #[test]
    fn what_is_wrong_with_flags_is_said_without_a_line() {
        let mut flags = Flags::default();
        flags.put("name", Some("billing"));
        flags.put("destination.type", Some("http"));
        flags.put("destination.url", Some("ftp://a.example/"));
        let failure = flags.into_desired("subscription").unwrap_err();
        let text = failure.to_string();
        assert!(matches!(failure, Failure::Usage(_)) && text.starts_with("subscription: destination: url"), "{text}");
    }
}

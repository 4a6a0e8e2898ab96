//! `weft sign`: the headers that a sender would make.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use weft_nats::options::{Secret, SecretRef};
use weft_proto::ids::DELIVERY_ID_BYTES_MAX;

use super::output;
use crate::{
    failure::Failure,
    sender::{Header, HmacOptions, Scheme, Signing},
};

/// `weft sign`.
#[derive(Debug, clap::Args)]
pub struct SignArgs {
    /// The signature scheme
    #[arg(long, value_enum, default_value_t = Scheme::Standard)]
    scheme: Scheme,
    /// The source's secret: env:NAME, file:PATH, or the secret itself; with standard, whsk_… signs for who has whpk_…
    #[arg(long)]
    secret: Secret,
    /// The delivery id, for schemes that have it in a header [default: a new one]
    #[arg(long)]
    id: Option<String>,
    /// Unix seconds, for schemes that sign the time [default: now]
    #[arg(long, allow_negative_numbers = true)]
    timestamp: Option<i64>,
    /// The event's type, for schemes that have it in a header
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The body: a file, or - for standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    body: PathBuf,
    /// The output format
    #[arg(short, long, value_enum, default_value_t = Output::Headers)]
    output: Output,
    #[command(flatten)]
    hmac: HmacOptions,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// `Name: value`, one a line
    Headers,
    /// `-H 'Name: value'`, for curl on a shell's command line
    Curl,
    /// One JSON object
    Json,
}

/// Prints the headers.
///
/// # Errors
///
/// [`Failure`]: the body cannot be read, the secret is not of the scheme's form, or a flag is not for the scheme.
pub async fn run(args: SignArgs) -> Result<(), Failure> {
    let signing = Signing { scheme: args.scheme, secret: secret(args.secret.expose())?, hmac: args.hmac };
    check_flags(&signing, args.id.is_some(), args.event_type.is_some(), args.timestamp.is_some())?;
    let body = read(&args.body)?;
    let id = args.id.unwrap_or_else(|| format!("msg_{}", uuid::Uuid::new_v4().simple()));
    check_id(signing.scheme, &id).map_err(Failure::Usage)?;
    let timestamp = args.timestamp.unwrap_or_else(|| jiff::Timestamp::now().as_second());
    let headers = signing.headers(&id, timestamp, args.event_type.as_deref(), &body).map_err(Failure::Usage)?;
    output::text(&render(&headers, args.output))
}

/// Refuses an id that no gateway takes.
fn check_id(scheme: Scheme, id: &str) -> Result<(), String> {
    if !(1..=DELIVERY_ID_BYTES_MAX).contains(&id.len()) || !id.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(format!("--id: {id:?} is not 1 to {DELIVERY_ID_BYTES_MAX} printable ASCII characters"));
    }
    if scheme == Scheme::Standard && id.contains('.') {
        return Err(format!("--id: {id:?} holds a full stop, which Standard Webhooks forbids in an id"));
    }
    Ok(())
}

/// Refuses flags without effect: an id next to a body with another id would not be that of a repeat.
fn check_flags(signing: &Signing, id: bool, event_type: bool, timestamp: bool) -> Result<(), Failure> {
    let scheme = signing.scheme;
    if scheme != Scheme::Hmac {
        signing.hmac.check_absent(scheme).map_err(Failure::Usage)?;
    }
    let needless = [
        (id && !scheme.id_in_header(), "--id: the delivery id of", "is in the body"),
        (event_type && !scheme.type_in_header(), "--type: the type of", "is in the body"),
        (timestamp && !signing.signs_time(), "--timestamp:", "signs no time"),
    ];
    match needless.iter().find(|(is_needless, ..)| *is_needless) {
        Some((_, flag, why)) => Err(Failure::Usage(format!("{flag} {} {why}; leave it out", scheme.name()))),
        None => Ok(()),
    }
}

fn render(headers: &[Header], output: Output) -> String {
    match output {
        Output::Headers => {
            headers.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\n")
        }
        // Within single quotes a shell leaves everything as it is, but for a single quote.
        Output::Curl => {
            let quoted = |(name, value): &Header| format!("-H '{name}: {}'", value.replace('\'', r"'\''"));
            headers.iter().map(quoted).collect::<Vec<_>>().join(" ")
        }
        Output::Json => {
            let object = headers.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
            serde_json::Value::Object(object.collect()).to_string()
        }
    }
}

/// A secret as the configuration would be given it.
///
/// # Errors
///
/// [`Failure`]: which variable or file is not there.
pub fn secret(text: &str) -> Result<String, Failure> {
    let reference: SecretRef =
        serde_json::from_value(text.into()).map_err(|error| Failure::Failed(format!("--secret: {error}")))?;
    let secret = reference.resolve().map_err(|problem| Failure::Failed(format!("--secret: {problem}")))?;
    Ok(secret.expose().to_owned())
}

/// A body: a file's, or standard input's for `-`.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = if path.as_os_str() == "-" {
        let mut body = Vec::new();
        std::io::stdin().lock().read_to_end(&mut body).map(|_| body)
    } else {
        std::fs::read(path)
    };
    read.map_err(|error| Failure::Failed(format!("--body {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_printed_for_people_for_shells_and_for_programs() {
        let headers = [("X-GitHub-Delivery", "it's"), ("X-GitHub-Event", "push")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(render(&headers, Output::Headers), "X-GitHub-Delivery: it's\nX-GitHub-Event: push");
        assert_eq!(render(&headers, Output::Curl), r"-H 'X-GitHub-Delivery: it'\''s' -H 'X-GitHub-Event: push'");
        let json: serde_json::Value = serde_json::from_str(&render(&headers, Output::Json)).unwrap();
        assert_eq!((&json["X-GitHub-Delivery"], &json["X-GitHub-Event"]), (&"it's".into(), &"push".into()));
    }

    /// A flag that a scheme has no place for would only seem to count.
    #[test]
    fn flags_that_the_scheme_does_not_read_are_refused() {
        let check = |scheme, flags: [bool; 3]| {
            check_flags(&Signing::new(scheme, "k"), flags[0], flags[1], flags[2]).map_err(|failure| failure.to_string())
        };
        for (scheme, read) in [
            (Scheme::Standard, [true, false, true]),
            (Scheme::Github, [true, true, false]),
            (Scheme::Stripe, [false, false, true]),
            (Scheme::Slack, [false, false, true]),
            (Scheme::Shopify, [true, true, false]),
            (Scheme::Hmac, [true, false, false]),
        ] {
            assert_eq!(check(scheme, read), Ok(()));
            for (index, flag) in
                ["--id", "--type", "--timestamp"].into_iter().enumerate().filter(|(index, _)| !read[*index])
            {
                let mut flags = [false; 3];
                flags[index] = true;
                assert!(check(scheme, flags).unwrap_err().starts_with(flag), "{scheme:?}");
            }
        }
        let timed = HmacOptions { template: Some("{timestamp}.{body}".into()), ..HmacOptions::default() };
        let timed = |scheme| Signing { hmac: timed.clone(), ..Signing::new(scheme, "k") };
        assert!(check_flags(&timed(Scheme::Hmac), true, false, true).is_ok());
        assert!(
            check_flags(&timed(Scheme::Github), false, false, false).unwrap_err().to_string().contains("--template")
        );
    }
}

//! `weft sign`: the headers that a sender would make.

use std::{io::Read as _, path::PathBuf};

use weft_nats::options::{Secret, SecretRef};

use crate::{
    exit::Failure,
    sender::{Scheme, Signing},
};

/// `weft sign`.
#[derive(Debug, clap::Args)]
pub struct SignArgs {
    /// By which rules
    #[arg(long, value_enum, default_value_t = Scheme::Standard)]
    scheme: Scheme,
    /// The source's secret: env:NAME, file:PATH, or the secret itself
    #[arg(long)]
    secret: Secret,
    /// The delivery id [default: a new one]
    #[arg(long)]
    id: Option<String>,
    /// Unix seconds [default: now]
    #[arg(long)]
    timestamp: Option<i64>,
    /// The event's type, for schemes that have it in a header
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The body: a file, or - for standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    body: PathBuf,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Headers)]
    output: Output,
}

/// What is printed.
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
/// [`Failure`]: the body cannot be read, or the secret is not of the scheme's form.
pub async fn run(args: SignArgs) -> Result<(), Failure> {
    let body = read(&args.body).map_err(|error| Failure::Failed(format!("{}: {error}", args.body.display())))?;
    let signing = Signing { scheme: args.scheme, secret: secret(args.secret.expose())? };
    let id = args.id.unwrap_or_else(|| format!("msg_{}", uuid::Uuid::new_v4().simple()));
    let timestamp = args.timestamp.unwrap_or_else(|| jiff::Timestamp::now().as_second());
    let headers = signing
        .headers(&id, timestamp, args.event_type.as_deref(), &body)
        .map_err(|problem| Failure::Failed(format!("--secret: {problem}")))?;
    println!("{}", render(&headers, args.output));
    Ok(())
}

fn render(headers: &[(&'static str, String)], output: Output) -> String {
    match output {
        Output::Headers => {
            headers.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\n")
        }
        // Within single quotes a shell leaves everything as it is, but for a single quote.
        Output::Curl => {
            let quoted = |(name, value): &(&str, String)| format!("-H '{name}: {}'", value.replace('\'', r"'\''"));
            headers.iter().map(quoted).collect::<Vec<_>>().join(" ")
        }
        Output::Json => {
            let object = headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into()));
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

fn read(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    if path.as_os_str() == "-" {
        let mut body = Vec::new();
        std::io::stdin().lock().read_to_end(&mut body)?;
        return Ok(body);
    }
    std::fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_printed_for_people_for_shells_and_for_programs() {
        let headers = [("X-GitHub-Delivery", "it's".to_owned()), ("X-GitHub-Event", "push".to_owned())];
        assert_eq!(render(&headers, Output::Headers), "X-GitHub-Delivery: it's\nX-GitHub-Event: push");
        assert_eq!(render(&headers, Output::Curl), r"-H 'X-GitHub-Delivery: it'\''s' -H 'X-GitHub-Event: push'");
        let json: serde_json::Value = serde_json::from_str(&render(&headers, Output::Json)).unwrap();
        assert_eq!((&json["X-GitHub-Delivery"], &json["X-GitHub-Event"]), (&"it's".into(), &"push".into()));
    }
}

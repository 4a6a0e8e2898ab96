//! `weft sign`: the headers that a sender would make.

use std::{io::Read as _, path::PathBuf};

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
    secret: String,
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
    let signing = Signing { scheme: args.scheme, secret: secret(&args.secret)? };
    let id = args.id.unwrap_or_else(|| format!("msg_{}", uuid::Uuid::new_v4().simple()));
    let timestamp = args.timestamp.unwrap_or_else(|| jiff::Timestamp::now().as_second());
    let headers = signing
        .headers(&id, timestamp, args.event_type.as_deref(), &body)
        .map_err(|problem| Failure::Failed(format!("--secret: {problem}")))?;
    match args.output {
        Output::Headers => headers.iter().for_each(|(name, value)| println!("{name}: {value}")),
        Output::Curl => {
            let arguments =
                headers.iter().map(|(name, value)| format!("-H '{name}: {}'", value.replace('\'', "'\\''")));
            println!("{}", arguments.collect::<Vec<_>>().join(" "));
        }
        Output::Json => {
            let object: serde_json::Map<_, _> =
                headers.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
            println!("{}", serde_json::Value::Object(object));
        }
    }
    Ok(())
}

/// A secret as the configuration would be given it.
///
/// # Errors
///
/// [`Failure`]: which variable or file is not there.
pub fn secret(text: &str) -> Result<String, Failure> {
    let reference: weft_nats::options::SecretRef =
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

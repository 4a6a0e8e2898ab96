//! `weft nats`: what a NATS server or cluster elsewhere must be configured with.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use weft_nats::{
    private_file,
    server::{APP_USER, AppAccount, Role, accounts, new_password},
    subject::Layout,
};

use super::output;
use crate::{config::Config, failure::Failure};

/// Default of a password: a variable that nats-server reads from its environment.
const VARIABLE: &str = "$WEFT_NATS_PASSWORD_";

/// `weft nats <verb>`.
#[derive(Debug, clap::Subcommand)]
pub enum NatsCommand {
    /// Print the accounts, users and permissions that a NATS server or cluster needs, to be included in its configuration
    Config(ConfigArgs),
}

/// `weft nats config`.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// The mesh's configuration: [log] shards and [gateway] max_body [default: ./weft.toml, where there is one]
    #[arg(short, long, env = "WEFT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder with one file per role that holds its password; missing ones are created [default: the passwords are
    /// variables, $WEFT_NATS_PASSWORD_GATEWAY and so on, in the environment of nats-server]
    #[arg(long, value_name = "DIR")]
    passwords: Option<PathBuf>,
    /// Write to this file, readable by its owner only, instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Carries out a command.
///
/// # Errors
///
/// [`Failure`]: the configuration is wrong, or a file cannot be read or written.
pub fn run(command: NatsCommand) -> Result<(), Failure> {
    let NatsCommand::Config(args) = command;
    let config = Config::load(args.config.as_deref(), None).map_err(|error| Failure::of(&error))?;
    let mut passwords = Vec::new();
    for role in Role::ALL {
        passwords.push(match &args.passwords {
            Some(folder) => password(folder, role.name())?,
            None => format!("{VARIABLE}{}", role.name().to_uppercase()),
        });
    }
    let app = match &config.nats.publish[..] {
        [] => None,
        publish => Some(AppAccount {
            publish,
            password: match &args.passwords {
                Some(folder) => password(folder, APP_USER)?,
                None => format!("{VARIABLE}{}", APP_USER.to_uppercase()),
            },
        }),
    };
    let password = |role: Role| passwords[role as usize].clone();
    let rendered = render(&json!({
        "max_payload": config.spec.message_bytes_max(),
        "accounts": accounts(Layout::new(config.spec.log.shards), app.as_ref(), password),
    }));
    match &args.output {
        None => output::text(&rendered)?,
        Some(path) => private_file::write(path, &rendered)
            .map_err(|error| Failure::Failed(format!("--output {}: {error}", path.display())))?,
    }
    Ok(())
}

/// The configuration as text. A variable is one only without quotes.
fn render(config: &Value) -> String {
    let text = format!("{config:#}\n");
    let lines = text.lines().map(|line| match line.split_once(&format!("\"{VARIABLE}")) {
        Some((before, rest)) => format!("{before}{VARIABLE}{}\n", rest.replacen('"', "", 1)),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// A user's password in a folder, made where it is missing.
fn password(folder: &Path, user: &str) -> Result<String, Failure> {
    let path = folder.join(user);
    let failed = |error: io::Error| Failure::Failed(format!("--passwords {}: {error}", path.display()));
    match fs::read_to_string(&path) {
        Ok(text) => {
            let text = text.trim_end_matches(['\r', '\n']);
            if text.is_empty() {
                return Err(failed(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "is empty; remove it to get a new password",
                )));
            }
            Ok(text.to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
            let password = new_password();
            private_file::write(&path, &password).map_err(failed)?;
            Ok(password)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_variables_or_kept_in_files() {
        let rendered =
            render(&json!({ "user": "gateway", "password": "$WEFT_NATS_PASSWORD_GATEWAY", "x": ["$KV.a.>"] }));
        assert!(rendered.contains("\"password\": $WEFT_NATS_PASSWORD_GATEWAY,"), "{rendered}");
        assert!(rendered.contains("\"$KV.a.>\""), "{rendered}");

        let folder = tempfile::tempdir().unwrap();
        let secrets = folder.path().join("secrets");
        let first = password(&secrets, "gateway").unwrap();
        assert_eq!(password(&secrets, "gateway").unwrap(), first);
        assert_ne!(password(&secrets, "worker").unwrap(), first);
        fs::write(secrets.join("worker"), "\n").unwrap();
        assert!(password(&secrets, "worker").is_err());
    }
}

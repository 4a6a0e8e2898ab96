//! `weft completion` and `weft man`: generated from the definition of the command line.

use std::{fs, io, path::PathBuf};

use clap::Command;
use clap_complete::Shell as Generator;
use weft_services::{command::output, failure::Failure};

/// `weft completion`.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// A shell that completes.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// `weft man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write a page for each command here: weft.1, weft-dlq.1, weft-dlq-list.1
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the script.
///
/// # Errors
///
/// When stdout cannot be written.
pub fn completion(args: &CompletionArgs, mut command: Command) -> Result<(), Failure> {
    let shell = match args.shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "weft", &mut script);
    output::text(&String::from_utf8_lossy(&script))
}

/// Prints the page of `weft`, or writes those of all commands.
///
/// # Errors
///
/// When stdout, or the folder, cannot be written.
pub fn man(args: &ManArgs, command: Command) -> Result<(), Failure> {
    if let Some(dir) = &args.dir {
        let written = fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir));
        return written.map_err(|error: io::Error| Failure::Failed(format!("{}: {error}", dir.display())));
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(|error| Failure::of(&error))?;
    output::text(&String::from_utf8_lossy(&page))
}

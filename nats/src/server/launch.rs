//! The launcher: a process that arranges to die with its parent and then becomes another program.

use std::{env, ffi::OsString, io, os::unix::process::CommandExt, process::Command};

/// The environment variable with the id of the process that the server must not outlive.
pub(super) const PARENT: &str = "WEFT_LAUNCH_PARENT";

/// The variables that the server is given: where programs are, the time zone of its log, and the settings of the Go runtime.
/// Ours hold secrets.
const KEPT: [&str; 9] =
    ["PATH", "HOME", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "GOMEMLIMIT", "GOMAXPROCS", "GOGC", "GODEBUG"];

/// The environment of the server.
pub(super) fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    KEPT.into_iter().filter_map(|name| Some((name, env::var_os(name)?)))
}

/// Becomes the program that `args` name, first the program and then its arguments, so that it is killed when the thread
/// that started us ends. Returns only when that fails. The body of the hidden sub-command `weft launch`.
///
/// Where the system cannot arrange it (anywhere but on Linux), the program outlives a parent that is killed; the next
/// start ends it.
pub fn launch(args: impl IntoIterator<Item = OsString>) -> io::Error {
    let mut args = args.into_iter();
    let Some(program) = args.next() else {
        return io::Error::new(
            io::ErrorKind::InvalidInput,
            "no program to launch; this command is for `weft up` itself",
        );
    };
    if let Err(error) = die_with_parent() {
        return error;
    }
    Command::new(program).args(args).env_remove(PARENT).exec()
}

#[cfg(target_os = "linux")]
fn die_with_parent() -> io::Result<()> {
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that died before the call sends nothing any more; the process that has adopted us has another id.
    let Ok(parent) = env::var(PARENT) else { return Ok(()) };
    if getppid().map(Pid::as_raw_pid) == parent.parse().ok() {
        return Ok(());
    }
    Err(io::Error::other("the process that wanted this one is gone"))
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent() -> io::Result<()> {
    Ok(())
}

//! A server left over by a run that was killed: found by the process id in the folder, recognised by its command line,
//! and ended before another starts on the same store.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::{ServerError, config, folder::Folder};

/// How long it may take to end in order.
const TERM_PATIENCE: Duration = Duration::from_secs(5);
/// How long the system may take to end it by force.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const POLL: Duration = Duration::from_millis(20);

/// Ends the server that the folder's process id names, if there is one. The caller holds the folder's lock, so whatever
/// server still runs has nobody who minds it.
pub(super) async fn end(folder: &Folder) -> Result<(), ServerError> {
    let Some(pid) = fs::read_to_string(folder.pid()).ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?))
    else {
        return Ok(());
    };
    for (signal, patience) in [(Signal::TERM, TERM_PATIENCE), (Signal::KILL, KILL_PATIENCE)] {
        if !is_ours(pid, folder) {
            return Ok(());
        }
        tracing::warn!(pid = pid.as_raw_pid(), ?signal, "a nats-server of an earlier run is ended");
        // An error means that it is gone or not ours to end; the look that follows tells which.
        let _ = kill_process(pid, signal);
        // One that is stopped would not take it before it goes on.
        let _ = kill_process(pid, Signal::CONT);
        let deadline = Instant::now() + patience;
        while is_running(pid) && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
    }
    if is_ours(pid, folder) {
        return Err(ServerError::Start(format!(
            "process {pid} of an earlier run still uses {} and cannot be ended; end it and start again",
            folder.store().display()
        )));
    }
    Ok(())
}

/// Whether a process is a server on this folder: process ids are given again to others.
fn is_ours(pid: Pid, folder: &Folder) -> bool {
    let [flag, file] = config::arguments(folder);
    let wanted = [flag.as_encoded_bytes(), file.as_encoded_bytes()];
    command_line(pid).is_some_and(|line| line.windows(2).any(|pair| pair == wanted))
}

/// Whether a process still holds its files and ports. One that ends has no command line any more before it lets go of
/// them, and its first thread may have ended before the others have: it is gone when no thread lives.
#[cfg(target_os = "linux")]
fn is_running(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok()).any(|stat| {
        // The state stands behind the name, which is in brackets and may hold any character.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    })
}

/// Whether a process still holds its files and ports.
#[cfg(not(target_os = "linux"))]
fn is_running(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid).is_ok()
}

/// The arguments of a process; `None` when it is gone.
#[cfg(target_os = "linux")]
fn command_line(pid: Pid) -> Option<Vec<Vec<u8>>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
}

/// The arguments of a process; `None` when it is gone.
#[cfg(not(target_os = "linux"))]
fn command_line(pid: Pid) -> Option<Vec<Vec<u8>>> {
    let output = std::process::Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output().ok()?;
    Some(output.stdout.trim_ascii().split(|byte| *byte == b' ').map(<[u8]>::to_vec).collect())
}

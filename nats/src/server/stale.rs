//! A server left over by a run that was killed: found by the process id in the folder, recognised, and ended before another
//! starts on the same store.
//!
//! A process id is given to other processes later, so it alone says nothing. The supervisor notes with it when the process
//! was started and in which boot of the machine: both together are never given again. A folder without that note was used by
//! an earlier version; there the process must be a nats-server by its executable, with this folder's configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use tokio::time::Instant;

use super::{ServerError, config, folder::Folder};
use crate::private_file;

/// How long it may take to end in order.
const TERM_PATIENCE: Duration = Duration::from_secs(5);
/// How long the system may take to end it by force.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const POLL: Duration = Duration::from_millis(20);
/// File name of the server's executable.
const PROGRAM: &str = "nats-server";

/// The file that identifies the process which the supervisor has started.
#[derive(Debug)]
pub(super) struct IdentityFile(PathBuf);

impl IdentityFile {
    pub(super) fn of(folder: &Folder) -> Self {
        Self(folder.identity())
    }

    /// Notes a process that was just started. Without the note it is recognised by its command line.
    pub(super) fn note(&self, pid: u32) {
        let noted = match i32::try_from(pid).ok().and_then(Pid::from_raw).and_then(identity) {
            Some(identity) => private_file::write(&self.0, &identity),
            None => fs::remove_file(&self.0),
        };
        if let Err(error) = noted {
            tracing::debug!(%error, path = %self.0.display(), "the server's process cannot be noted");
            // A note of another process would be worse than none.
            let _ = fs::remove_file(&self.0);
        }
    }

    fn read(&self) -> Option<String> {
        fs::read_to_string(&self.0).ok().filter(|text| !text.trim().is_empty())
    }
}

/// Ends the server that the folder's process id names, if there is one. The caller holds the folder's lock, so no other
/// process supervises it.
pub(super) async fn end(folder: &Folder) -> Result<(), ServerError> {
    let Some(process) = left_over(folder) else { return Ok(()) };
    let pid = process.pid();
    for (signal, patience) in [(Signal::TERM, TERM_PATIENCE), (Signal::KILL, KILL_PATIENCE)] {
        tracing::warn!(pid = pid.as_raw_pid(), ?signal, "stopped leftover nats-server");
        process.signal(signal);
        // A stopped process would not handle the signal before it is continued.
        process.signal(Signal::CONT);
        let deadline = Instant::now() + patience;
        while process.is_running() && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        if !process.is_running() {
            return Ok(());
        }
    }
    Err(ServerError::Start(format!(
        "process {pid} of an earlier run still uses {} and cannot be ended; end it and start again",
        folder.store().display()
    )))
}

/// The process that the folder's process ids name, if it is a server of this folder.
fn left_over(folder: &Folder) -> Option<Process> {
    let noted = IdentityFile::of(folder).read();
    let text = fs::read_to_string(folder.pid()).unwrap_or_default();
    // The server writes its own file a moment after it was started.
    let noted_pid = noted.as_deref().and_then(|identity| identity.split(' ').next());
    [Some(text.as_str()), noted_pid].into_iter().flatten().find_map(|text| {
        let process = Process::open(Pid::from_raw(text.trim().parse().ok()?)?)?;
        // Asked after it was opened: from then on its id is not another's for us.
        let ours = match &noted {
            Some(noted) if noted.split(' ').next() == Some(text.trim()) => {
                identity(process.pid()).is_some_and(|identity| identity == noted.trim())
            }
            _ => is_server_on(process.pid(), folder),
        };
        ours.then_some(process)
    })
}

/// True if a process is, by its executable and arguments, a server on this folder.
fn is_server_on(pid: Pid, folder: &Folder) -> bool {
    let [flag, file] = config::arguments(folder);
    let wanted = [flag.as_encoded_bytes(), file.as_encoded_bytes()];
    is_program(pid) && command_line(pid).is_some_and(|line| line.windows(2).any(|pair| pair == wanted))
}

#[cfg(target_os = "linux")]
use linux::{Process, command_line, identity, is_program};

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::OwnedFd;

    use rustix::{
        io::Errno,
        process::{PidfdFlags, kill_process, pidfd_open, pidfd_send_signal},
    };

    use super::{PROGRAM, Path, Pid, Signal, fs};

    /// A process that signals reach and no other that is given its id.
    pub struct Process {
        pid: Pid,
        /// `None` where the system has no such thing, or forbids it.
        fd: Option<OwnedFd>,
    }

    impl Process {
        /// `None`: there is none.
        pub fn open(pid: Pid) -> Option<Self> {
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(fd) => Some(Self { pid, fd: Some(fd) }),
                Err(Errno::SRCH) => None,
                Err(_) => Some(Self { pid, fd: None }),
            }
        }

        pub fn pid(&self) -> Pid {
            self.pid
        }

        pub fn signal(&self, signal: Signal) {
            // An error means that it is gone or not ours to end; the check that follows shows which.
            let _ = self.send(signal);
        }

        fn send(&self, signal: Signal) -> Result<(), Errno> {
            match &self.fd {
                Some(fd) => pidfd_send_signal(fd, signal),
                None => kill_process(self.pid, signal),
            }
        }

        /// True while it still holds its files and ports. One that ends has no command line any more before it lets go of
        /// them, and its first thread may have ended before the others have: it is gone when no thread lives.
        pub fn is_running(&self) -> bool {
            let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().filter_map(Result::ok);
            let lives = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok()).any(|stat| {
                let state = fields(&stat).and_then(|mut fields| fields.next());
                !matches!(state, None | Some("Z" | "X"))
            });
            // Else it may be another's threads that were seen.
            lives && self.send(Signal::CONT) != Err(Errno::SRCH)
        }
    }

    /// Fields after the name in a process's `stat`; the name is in brackets and may hold any character.
    fn fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
        stat.rsplit_once(") ").map(|(_, rest)| rest.split(' '))
    }

    /// `<pid> <start, in clock ticks since boot> <boot>`: never given again. `None`: there is no such process.
    pub fn identity(pid: Pid) -> Option<String> {
        /// Fields between the name and the time of the start.
        const BEFORE_START: usize = 19;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let started = fields(&stat)?.nth(BEFORE_START)?.to_owned();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(format!("{pid} {started} {}", boot.trim()))
    }

    /// True if its executable has the name of a server's.
    pub fn is_program(pid: Pid) -> bool {
        let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
        // One that was replaced since has a note behind its name.
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Path::new(name.trim_end_matches(" (deleted)")) == Path::new(PROGRAM)
    }

    /// The arguments of a process; `None` when it is gone.
    pub fn command_line(pid: Pid) -> Option<Vec<Vec<u8>>> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
    }
}

#[cfg(not(target_os = "linux"))]
use elsewhere::{Process, command_line, identity, is_program};

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use rustix::process::{kill_process, test_kill_process};

    use super::{PROGRAM, Path, Pid, Signal};

    /// A process, by its id.
    pub struct Process(Pid);

    impl Process {
        /// `None`: there is none.
        pub fn open(pid: Pid) -> Option<Self> {
            test_kill_process(pid).is_ok().then_some(Self(pid))
        }

        pub fn pid(&self) -> Pid {
            self.0
        }

        pub fn signal(&self, signal: Signal) {
            // An error means that it is gone or not ours to end; the check that follows shows which.
            let _ = kill_process(self.0, signal);
        }

        /// True while it still holds its files and ports.
        pub fn is_running(&self) -> bool {
            test_kill_process(self.0).is_ok()
        }
    }

    /// `<pid> <start>`. `None`: there is no such process.
    pub fn identity(pid: Pid) -> Option<String> {
        Some(format!("{pid} {}", ask(pid, "lstart=")?)).filter(|text| text.contains(':'))
    }

    /// True if its executable has the name of a server's.
    pub fn is_program(pid: Pid) -> bool {
        ask(pid, "comm=").is_some_and(|name| Path::new(&name).file_name() == Some(PROGRAM.as_ref()))
    }

    /// The arguments of a process; `None` when it is gone.
    pub fn command_line(pid: Pid) -> Option<Vec<Vec<u8>>> {
        Some(ask(pid, "command=")?.split(' ').map(|argument| argument.as_bytes().to_vec()).collect())
    }

    fn ask(pid: Pid, what: &str) -> Option<String> {
        let output = std::process::Command::new("ps").args(["-o", what, "-p", &pid.to_string()]).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

//! The server's log lines, carried into ours.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    sync::{Mutex, PoisonError},
};

/// The longest piece of a line that is read at once; a longer line becomes several.
const LINE_BYTES_MAX: u64 = 16 * 1024;
/// How many complaints are kept to explain a server that ends.
const COMPLAINTS_MAX: usize = 3;

/// The last complaints of a server.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<VecDeque<String>>);

impl Complaints {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == COMPLAINTS_MAX {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// Takes them, in one line; `None` when there are none.
    pub(super) fn take(&self) -> Option<String> {
        let lines: Vec<_> = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

/// Reads lines until the server closes its end.
pub(super) fn follow(lines: impl Read, complaints: &Complaints) {
    let mut lines = BufReader::new(lines);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => report(String::from_utf8_lossy(&line).trim(), complaints),
        }
    }
}

/// How loudly the server spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Account,
    Warning,
    Complaint,
}

fn report(line: &str, complaints: &Complaints) {
    let (level, line) = split(line);
    match level {
        _ if line.is_empty() => {}
        Level::Account => tracing::debug!(target: "nats", line, "nats-server says"),
        Level::Warning => tracing::warn!(target: "nats", line, "nats-server warns"),
        Level::Complaint => {
            complaints.push(line);
            tracing::error!(target: "nats", line, "nats-server complains");
        }
    }
}

/// Level and text of `[123] [INF] text`. What has no level comes from the server's command line and is a complaint.
fn split(line: &str) -> (Level, &str) {
    let rest = line.split_once("] ").map_or(line, |(_, rest)| rest);
    let Some((tag, text)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] ").or(rest.split_once(']')))
    else {
        return (Level::Complaint, line);
    };
    let level = match tag {
        // An account of its start and its end; what matters of it stands in our own log.
        "INF" | "DBG" | "TRC" => Level::Account,
        // The passwords are random, long, and in a file that only we may read; a slow hash would guard nothing.
        "WRN" if text.starts_with("Plaintext passwords detected") => Level::Account,
        "WRN" => Level::Warning,
        _ => Level::Complaint,
    };
    (level, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_the_servers() {
        assert_eq!(split("[12] [INF] Server is ready"), (Level::Account, "Server is ready"));
        assert_eq!(split("[12] [WRN] slow [disk] today"), (Level::Warning, "slow [disk] today"));
        assert_eq!(split("[12] [FTL] no port"), (Level::Complaint, "no port"));
        assert_eq!(split("[12] [INF]"), (Level::Account, ""));
        assert_eq!(split("nats-server: no such file"), (Level::Complaint, "nats-server: no such file"));
    }

    #[test]
    fn the_last_complaints_are_kept_and_long_lines_are_bounded() {
        let complaints = Complaints::default();
        let mut log = String::new();
        for n in 0..5 {
            log.push_str(&format!("[1] [ERR] number {n}\n[1] [INF] well\n"));
        }
        follow(log.as_bytes(), &complaints);
        assert_eq!(complaints.take().as_deref(), Some("number 2; number 3; number 4"));
        assert_eq!(complaints.take(), None);
        let endless = std::iter::repeat_n(b'x', 100 * 1024).collect::<Vec<_>>();
        follow(endless.as_slice(), &complaints);
        assert!(complaints.take().unwrap().len() <= COMPLAINTS_MAX * (LINE_BYTES_MAX as usize + 2));
    }
}

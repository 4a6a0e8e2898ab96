//! The server's log lines, carried into ours.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::storage::is_write_failure;

/// The longest piece of a line that is read at once; a longer line becomes several.
const LINE_BYTES_MAX: u64 = 16 * 1024;
/// At most one refusal of a client is reported in this time; the next report says how many were left out.
const REFUSAL_PAUSE: Duration = Duration::from_secs(60);
/// How many complaints are kept to explain a server that ends.
const COMPLAINTS_MAX: usize = 3;

/// The last complaints of a server.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<VecDeque<String>>);

impl Complaints {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock();
        if lines.len() == COMPLAINTS_MAX {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// Takes them, in one line; `None` when there are none.
    pub(super) fn take(&self) -> Option<String> {
        let lines: Vec<_> = std::mem::take(&mut *self.0.lock()).into();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

/// Reads lines until the server closes its end. Calls `write_failed` when the server has stopped writing.
pub(super) fn follow(lines: impl Read, complaints: &Complaints, write_failed: impl Fn()) {
    let mut refusals = Refusals::default();
    let mut lines = BufReader::new(lines);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let line = String::from_utf8_lossy(&line);
                report(line.trim(), complaints, &mut refusals, Instant::now());
                if is_write_failure(&line) {
                    write_failed();
                }
            }
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

/// Refusals that the server reports for its clients, which may repeat them without end.
#[derive(Debug, Default)]
struct Refusals {
    /// When the last one was reported.
    reported: Option<Instant>,
    /// How many have come since.
    unreported: u64,
}

impl Refusals {
    /// Whether a line speaks of something that a client was refused: a mistake of the client's and none of the server's.
    fn is_one(line: &str) -> bool {
        line.contains(" Violation") || line.contains("authentication error")
    }

    /// How many were left out before the one that is reported now; `None`: this one is left out, too.
    fn note(&mut self, now: Instant) -> Option<u64> {
        if self.reported.is_some_and(|reported| now.duration_since(reported) < REFUSAL_PAUSE) {
            self.unreported += 1;
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.unreported))
    }
}

fn report(line: &str, complaints: &Complaints, refusals: &mut Refusals, now: Instant) {
    let (level, line) = split(line);
    match level {
        _ if line.is_empty() => {}
        Level::Complaint if Refusals::is_one(line) => {
            if let Some(unreported) = refusals.note(now) {
                tracing::warn!(target: "nats", line, unreported, "nats-server refuses a client");
            }
        }
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
    fn refusals_of_clients_are_reported_once_a_minute() {
        let violation =
            r#"127.0.0.1:5 - cid:7 - "WEFT_TAIL/user:tail" - Publish Violation - User "tail", Subject "events.x""#;
        assert!(Refusals::is_one(violation));
        assert!(!Refusals::is_one("JetStream resource limits exceeded for server"));
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(refusals.note(start), Some(0));
        assert_eq!([1, 30, 59].map(|seconds| refusals.note(after(seconds))), [None; 3]);
        assert_eq!(refusals.note(after(60)), Some(3));
        assert_eq!(refusals.note(after(120)), Some(0));

        let complaints = Complaints::default();
        follow(format!("[1] [ERR] {violation}\n").as_bytes(), &complaints, || {});
        assert_eq!(complaints.take(), None, "it does not explain why the server ends");
    }

    #[test]
    fn the_last_complaints_are_kept_and_long_lines_are_bounded() {
        let complaints = Complaints::default();
        let mut log = String::new();
        for n in 0..5 {
            log.push_str(&format!("[1] [ERR] number {n}\n[1] [INF] well\n"));
        }
        follow(log.as_bytes(), &complaints, || panic!("no write has failed"));
        assert_eq!(complaints.take().as_deref(), Some("number 2; number 3; number 4"));
        assert_eq!(complaints.take(), None);
        let endless = std::iter::repeat_n(b'x', 100 * 1024).collect::<Vec<_>>();
        follow(endless.as_slice(), &complaints, || {});
        assert!(complaints.take().unwrap().len() <= COMPLAINTS_MAX * (LINE_BYTES_MAX as usize + 2));
    }
}

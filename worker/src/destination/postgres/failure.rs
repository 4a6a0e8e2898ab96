//! Errors of PostgreSQL, by SQLSTATE: what is the event's fault, the database's, or the configuration's. Pure.

use bytes::Bytes;
use tokio_postgres::error::DbError;
use weft_proto::v1::AttemptClass;

use crate::destination::{Failure, FailureKind, RESPONSE_BYTES_MAX, clients::Chain};

/// Phase of an operation in which an error occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connecting and authenticating.
    Connect,
    /// Preparing a statement, or creating a table: no event is involved.
    Prepare,
    /// Running the statements of events.
    Run,
}

/// The kind of an error with a SQLSTATE.
pub(super) fn kind(code: &str, phase: Phase) -> FailureKind {
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        // Deadlocks, serialization failures: the transaction would succeed if it were alone.
        ("40", _) => FailureKind::Failed,
        // A cancelled statement or one that took too long, which the event may have caused.
        (_, "57014") => FailureKind::Failed,
        // A read-only server: a standby, or a primary that was.
        (_, "25006") => FailureKind::Unavailable,
        // No memory, disk or connection left; shutdown, crash, recovery; a lock that is held; an input or output error.
        ("08" | "53" | "57" | "55" | "58", _) => FailureKind::Unavailable,
        // The server ended the connection, since this process did not continue its transaction.
        (_, "25P03") => FailureKind::Unavailable,
        // Authentication, an unknown database or schema.
        ("28" | "3D" | "3F", _) => FailureKind::Held,
        // Unknown tables and columns, syntax, privileges, unsupported features, statements that a pooler has lost.
        ("42" | "0A" | "26" | "25" | "0L" | "0P", _) => FailureKind::Held,
        // Constraints, data that a type cannot hold, limits of a row, errors that the user's functions raise.
        _ if phase != Phase::Run => FailureKind::Held,
        ("21" | "22" | "23" | "27" | "2F" | "38" | "39" | "44" | "54" | "P0", _) => FailureKind::Rejected,
        _ => FailureKind::Failed,
    }
}

/// The failure of an operation. `at` names the database.
pub(super) fn failure(error: &tokio_postgres::Error, phase: Phase, at: &str) -> Failure {
    if let Some(db) = error.as_db_error() {
        return of_database(db, phase, at);
    }
    let chain = Chain(error);
    let cause = chain.innermost();
    if phase == Phase::Connect {
        if chain.find::<rustls::Error>().is_some() {
            return Failure::unreachable(AttemptClass::Tls, format!("no TLS with {at}: {cause}"));
        }
        if is_lost(error) {
            return Failure::unreachable(AttemptClass::Connect, format!("no connection to {at}: {cause}"));
        }
        // A password is missing, or TLS that the server does not offer.
        return Failure::held(AttemptClass::Sql, format!("{at}: {error}: {cause}"));
    }
    let kind = if is_lost(error) { FailureKind::Unavailable } else { FailureKind::Failed };
    Failure { kind, ..Failure::failed(AttemptClass::Protocol, format!("no valid answer from {at}: {cause}")) }
}

/// Whether the connection has ended.
pub(super) fn is_lost(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || Chain(error).find::<std::io::Error>().is_some()
}

fn of_database(db: &DbError, phase: Phase, at: &str) -> Failure {
    let code = db.code().code();
    let kind = kind(code, phase);
    let mut error = format!("{} (SQLSTATE {code}) from {at}", db.message());
    match code {
        "42P01" => error.push_str("; create the table: weft subscription migrate NAME, or create = true"),
        "42P10" => error.push_str("; the column of event_id needs a unique index"),
        _ => {}
    }
    let class = if code == "57014" { AttemptClass::Timeout } else { AttemptClass::Sql };
    let parts = [("DETAIL", db.detail()), ("HINT", db.hint()), ("CONTEXT", db.where_())];
    let lines = parts.into_iter().filter_map(|(name, text)| Some(format!("{name}: {}", text?)));
    let mut response = lines.collect::<Vec<_>>().join("\n");
    while response.len() > RESPONSE_BYTES_MAX {
        response.pop();
    }
    Failure { kind, response: Bytes::from(response), ..Failure::failed(class, error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of docs/destinations.md.
    #[test]
    fn each_sqlstate_has_its_kind() {
        use FailureKind::{Failed, Held, Rejected, Unavailable};
        for (expected, codes) in [
            (
                Rejected,
                "22P05 22P02 22001 22003 22021 23502 23503 23505 23514 23P01 21000 44000 54000 54001 P0001 P0002",
            ),
            (Unavailable, "08006 25006 25P03 53100 53200 53300 55P03 55006 57P01 57P02 57P03 57P05 58030"),
            (Failed, "40001 40P01 57014 XX000 XX001"),
            (Held, "28P01 28000 3D000 3F000 42P01 42703 42601 42501 42P10 0A000 26000 25P02"),
        ] {
            for code in codes.split(' ') {
                assert_eq!(kind(code, Phase::Run), expected, "{code}");
            }
        }
        assert_eq!(kind("22P02", Phase::Prepare), Held, "a literal of the statement itself");
        assert_eq!(kind("57P03", Phase::Connect), Unavailable);
    }
}

//! What a process tells whoever started it, on stdout: a line for each endpoint, then `ready`.

use std::io::Write as _;

/// One endpoint or file: what it is and where.
pub type Line = (&'static str, String);

/// Prints the endpoints and `ready`. Nobody may be listening any more; that is no reason to end.
pub fn ready(lines: &[Line]) {
    let mut stdout = std::io::stdout().lock();
    for (name, place) in lines {
        let _ = writeln!(stdout, "{name} {place}");
    }
    let _ = writeln!(stdout, "ready");
    let _ = stdout.flush();
}

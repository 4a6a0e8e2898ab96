//! The rule that makes lanes provable: no I/O, no clock, no async, no global randomness.

use std::{fs, path::Path};

#[test]
fn lanes_name_no_runtime_no_clock_and_no_store() {
    const FORBIDDEN: [&str; 8] =
        ["tokio", "async_nats", "redb", "reqwest", "async fn", "SystemTime", "Timestamp::now", "Instant::now"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lane");
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        files += 1;
        let code: String = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| [line, "\n"])
            .collect();
        for name in FORBIDDEN {
            assert!(!code.contains(name), "{} names {name}: lanes are pure", path.display());
        }
    }
    assert!(files > 5, "the files of the lanes were found");
}

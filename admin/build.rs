//! Makes the folder of the built console, which may be empty, so that its files can be embedded.

use std::{env, fs, path::Path};

fn main() {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../console/dist");
    if let Err(error) = fs::create_dir_all(&folder) {
        println!("cargo::error={} cannot be made: {error}", folder.display());
    }
    // Files that are added or removed; of those that were embedded, the compiler knows.
    println!("cargo::rerun-if-changed={}", folder.display());
}

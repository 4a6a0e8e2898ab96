//! The master key of test meshes.

use crate::MasterKey;

/// The master key of test meshes as a text: always the same, so that all processes that share a server have it.
pub const MASTER_KEY: &str = "dGVzdCB0ZXN0IHRlc3QgdGVzdCB0ZXN0IHRlc3QgdGU=";

/// [`MASTER_KEY`] as a key.
///
/// # Panics
///
/// Never: the text is one.
pub fn master_key() -> MasterKey {
    MasterKey::parse(MASTER_KEY).expect("base64 of 32 bytes")
}

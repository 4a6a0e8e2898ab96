//! The bytes of an HTTP/1 connection: the result does not depend on how they are split, and a request with both a length and
//! a chunked coding is found after any complete requests.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_serve::framing::Framing;

const BOTH: &[u8] = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-length: 4\r\n\r\n";

/// Whether each head is in conflict, up to the end of what can be followed.
fn conflicts(bytes: &[u8], cut: usize) -> Vec<bool> {
    let mut framing = Framing::default();
    bytes.chunks(cut).for_each(|piece| framing.read(piece));
    std::iter::from_fn(|| framing.pop_conflict()).collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let whole = conflicts(bytes, bytes.len().max(1));
    assert_eq!(conflicts(bytes, usize::from(*cut).max(1)), whole);
    // The input as a body of known length.
    let mut chain = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n", bytes.len()).into_bytes();
    chain.extend_from_slice(bytes);
    chain.extend_from_slice(BOTH);
    assert_eq!(conflicts(&chain, usize::from(*cut).max(1)), [false, true]);
    // And as a chunk.
    let mut chain =
        format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n", bytes.len().max(1)).into_bytes();
    chain.extend_from_slice(if bytes.is_empty() { b"x" } else { bytes });
    chain.extend_from_slice(b"\r\n0\r\n\r\n");
    chain.extend_from_slice(BOTH);
    assert_eq!(conflicts(&chain, usize::from(*cut).max(1)), [false, true]);
});

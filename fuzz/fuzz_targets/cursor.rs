//! Cursors: any text is answered; what is a cursor says the same again; and every set of positions comes back as it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_nats::{cursor::Cursor, subject::Layout};
use weft_proto::ids::StreamSeq;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(cursor) = text.parse::<Cursor>()
    {
        // A varint has longer forms than its shortest, so the text may differ; the place does not.
        assert_eq!(cursor.to_string().parse::<Cursor>().as_ref(), Ok(&cursor));
    }
    let positions: Vec<StreamSeq> = input
        .chunks(8)
        .map(|chunk| StreamSeq(chunk.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))))
        .take(256)
        .collect();
    let Some(shards) = u32::try_from(positions.len()).ok().filter(|shards| *shards > 0) else { return };
    let layout = Layout::new(shards);
    let cursor = Cursor::new(layout, positions.clone());
    let text = cursor.to_string();
    let parsed = Cursor::parse(&text, layout).expect("its own text is a cursor");
    assert_eq!(parsed.positions(), positions);
    assert!(Cursor::parse(&text, Layout::new(shards + 1)).is_err(), "a cursor of another layout is none");
    // One slip is noticed wherever it is.
    let at = usize::from(input[0]) % text.len();
    let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
    let mut slip = text.clone();
    slip.replace_range(at..=at, other);
    assert!(slip.parse::<Cursor>().is_err(), "{slip} is not {text}");
});

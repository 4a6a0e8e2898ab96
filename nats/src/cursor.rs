//! A reader's position in the whole log: the sequence after which it continues, for every shard.
//!
//! As text it is opaque to clients: `c1_` (the form's version) and base64url of the positions as varints, closed by a
//! checksum, so that a cursor that was cut short or mistyped is refused instead of naming another place. The underscore
//! keeps it apart from every UUID, so that one parameter can take either.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::encoding::{decode_varint, encode_varint};
use weft_proto::ids::{ShardId, StreamSeq};

use crate::subject::Layout;

/// Prefix of a cursor's text.
const PREFIX: &str = "c1_";
/// The longest text that is looked at: 256 shards of 10 bytes each, with room to spare.
const TEXT_BYTES_MAX: usize = 4096;
/// Bytes of the checksum.
const CHECKSUM_BYTES: usize = 4;

/// The last sequence that a reader has seen, one for each shard in shard order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    positions: Vec<StreamSeq>,
}

/// Error for a text that is not a cursor, or one of a log with another number of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this log; use a nextCursor as it was given, or an event id")]
pub struct InvalidCursor;

impl Cursor {
    /// From one position per shard, in shard order; a missing one is 0, a surplus one is dropped.
    pub fn new(layout: Layout, positions: impl IntoIterator<Item = StreamSeq>) -> Self {
        let mut positions: Vec<_> = positions.into_iter().collect();
        positions.resize(layout.shards() as usize, StreamSeq(0));
        Self { positions }
    }

    /// The positions, in shard order.
    pub fn positions(&self) -> &[StreamSeq] {
        &self.positions
    }

    /// The position in a shard; 0 where the cursor has none.
    pub fn position(&self, shard: ShardId) -> StreamSeq {
        self.positions.get(shard.0 as usize).copied().unwrap_or_default()
    }

    /// Moves a shard's position; nothing where the cursor has none.
    pub fn set(&mut self, shard: ShardId, position: StreamSeq) {
        if let Some(place) = self.positions.get_mut(shard.0 as usize) {
            *place = position;
        }
    }

    /// The cursor of a text.
    ///
    /// # Errors
    ///
    /// [`InvalidCursor`] also when it is of a log with another number of shards.
    pub fn parse(text: &str, layout: Layout) -> Result<Self, InvalidCursor> {
        let cursor: Self = text.parse()?;
        if cursor.positions.len() == layout.shards() as usize { Ok(cursor) } else { Err(InvalidCursor) }
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(InvalidCursor);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidCursor)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| InvalidCursor)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(InvalidCursor)?;
        if body.is_empty() || *sum != checksum(body) {
            return Err(InvalidCursor);
        }
        let mut rest = body;
        let mut positions = Vec::new();
        while !rest.is_empty() {
            positions.push(StreamSeq(decode_varint(&mut rest).map_err(|_| InvalidCursor)?));
        }
        Ok(Self { positions })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        for position in &self.positions {
            encode_varint(position.0, &mut bytes);
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// FNV-1a: against slips, not against intent; a cursor is not a secret.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_proto::ids::EventId;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_survives_its_text(positions in proptest::collection::vec(any::<u64>(), 1..9)) {
            let layout = Layout::new(positions.len() as u32);
            let cursor = Cursor::new(layout, positions.into_iter().map(StreamSeq));
            let text = cursor.to_string();
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'));
            prop_assert!(text.parse::<EventId>().is_err());
            prop_assert_eq!(Cursor::parse(&text, layout), Ok(cursor));
            prop_assert_eq!(Cursor::parse(&text, Layout::new(layout.shards() + 1)), Err(InvalidCursor));
            for end in 0..text.len() {
                prop_assert_eq!(Cursor::parse(&text[..end], layout), Err(InvalidCursor));
            }
        }

        /// One mistyped character is refused, never another place in the log.
        #[test]
        fn a_mistyped_cursor_is_refused(position in any::<u64>(), at in any::<prop::sample::Index>(), typo in "[A-Za-z0-9_-]") {
            let cursor = Cursor::new(Layout::new(1), [StreamSeq(position)]);
            let text = cursor.to_string();
            let at = at.index(text.len());
            let mut mistyped = text.clone();
            mistyped.replace_range(at..=at, &typo);
            prop_assume!(mistyped != text);
            prop_assert_eq!(mistyped.parse::<Cursor>(), Err(InvalidCursor));
        }
    }

    #[test]
    fn other_texts_are_no_cursors() {
        let event_id = EventId::unique().to_string();
        for text in ["", "c1_", "c1_AA", "c2_AAAA", "7", &event_id, &"c1_".repeat(2000)] {
            assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text:.40}");
        }
    }
}

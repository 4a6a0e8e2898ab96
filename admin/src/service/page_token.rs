//! The page token of dead letters: behind which one the next page begins. Opaque to clients.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tonic::Status;
use weft_index::history::DeadLetterCursor;
use weft_proto::ids::{ShardId, StreamSeq, SubscriptionUid};

use crate::error::{Code, refuse};

pub(super) fn encode(cursor: DeadLetterCursor) -> String {
    let mut bytes = Vec::with_capacity(36);
    bytes.extend_from_slice(&cursor.at_ms.to_be_bytes());
    bytes.extend_from_slice(&cursor.shard.0.to_be_bytes());
    bytes.extend_from_slice(&cursor.seq.0.to_be_bytes());
    bytes.extend_from_slice(cursor.uid.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// `None` for the empty token: the first page.
pub(super) fn decode(token: &str) -> Result<Option<DeadLetterCursor>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let refused = || refuse(Code::BadQuery, "page_token is none of ours; use a next_page_token as it was given");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
    let parse = || {
        let (at_ms, rest) = bytes.split_first_chunk()?;
        let (shard, rest) = rest.split_first_chunk()?;
        let (seq, uid) = rest.split_first_chunk()?;
        Some(DeadLetterCursor {
            at_ms: i64::from_be_bytes(*at_ms),
            shard: ShardId(u32::from_be_bytes(*shard)),
            seq: StreamSeq(u64::from_be_bytes(*seq)),
            uid: SubscriptionUid::from_slice(uid)?,
        })
    };
    parse().map(Some).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_and_anything_else_is_refused() {
        let cursor = DeadLetterCursor {
            at_ms: 1_763_690_400_123,
            shard: ShardId(3),
            seq: StreamSeq(u64::MAX),
            uid: SubscriptionUid::unique(),
        };
        let token = encode(cursor);
        assert_eq!(decode(&token).unwrap(), Some(cursor));
        assert_eq!(decode("").unwrap(), None);
        for wrong in ["x", "AAAA", &token[1..], &format!("{token}AAAA"), "é"] {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
    }
}

//! Page tokens: the entry after which the next page begins. Opaque to clients.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tonic::Status;
use weft_index::history::{AuditCursor, DeadLetterCursor, LaneCursor, ReplayCursor};
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
    let parse = |bytes: &[u8]| {
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
    read(token, parse)
}

pub(super) fn encode_lane(cursor: LaneCursor) -> String {
    let mut bytes = cursor.uid.to_vec();
    bytes.extend_from_slice(&cursor.event.to_be_bytes());
    bytes.extend_from_slice(cursor.workflow.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// `None` for the empty token: the first page.
pub(super) fn decode_lane(token: &str) -> Result<Option<LaneCursor>, Status> {
    let parse = |bytes: &[u8]| {
        let (uid, rest) = bytes.split_at_checked(16)?;
        let (event, workflow) = rest.split_first_chunk()?;
        Some(LaneCursor {
            uid: SubscriptionUid::from_slice(uid)?,
            event: u64::from_be_bytes(*event),
            workflow: String::from_utf8(workflow.to_vec()).ok().filter(|workflow| !workflow.is_empty())?,
        })
    };
    read(token, parse)
}

pub(super) fn encode_replay(cursor: &ReplayCursor) -> String {
    let mut bytes = cursor.at_ms.to_be_bytes().to_vec();
    bytes.extend_from_slice(cursor.request_id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// `None` for the empty token: the first page.
pub(super) fn decode_replay(token: &str) -> Result<Option<ReplayCursor>, Status> {
    let parse = |bytes: &[u8]| {
        let (at_ms, request_id) = bytes.split_first_chunk()?;
        let request_id = String::from_utf8(request_id.to_vec()).ok().filter(|id| !id.is_empty())?;
        Some(ReplayCursor { at_ms: i64::from_be_bytes(*at_ms), request_id })
    };
    read(token, parse)
}

pub(super) fn encode_audit(cursor: &AuditCursor) -> String {
    URL_SAFE_NO_PAD.encode(cursor.0.iter().flat_map(|end| end.to_be_bytes()).collect::<Vec<_>>())
}

/// `None` for the empty token: the first page.
pub(super) fn decode_audit(token: &str, shards: u32) -> Result<Option<AuditCursor>, Status> {
    read(token, |bytes| {
        let (ends, rest) = bytes.as_chunks();
        let ends: Vec<_> = ends.iter().map(|end| u64::from_be_bytes(*end)).collect();
        (rest.is_empty() && u32::try_from(ends.len()) == Ok(shards)).then_some(AuditCursor(ends))
    })
}

pub(super) fn encode_number(number: u64) -> String {
    URL_SAFE_NO_PAD.encode(number.to_be_bytes())
}

/// 0 for the empty token: the first page.
pub(super) fn decode_number(token: &str) -> Result<u64, Status> {
    let number = read(token, |bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)))?;
    Ok(number.unwrap_or(0).min(u64::MAX - 1))
}

fn read<T>(token: &str, parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let refused = || refuse(Code::BadQuery, "page_token is not valid; use a next_page_token as it was given");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
    parse(&bytes).map(Some).ok_or_else(refused)
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

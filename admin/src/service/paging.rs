//! Pages of lists: how many entries they have, and tokens, the entry after which the next page begins. Opaque to clients.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tonic::Status;
use weft_index::history::{AuditCursor, DeadLetterCursor, LaneCursor, ReplayCursor};
use weft_proto::ids::{ShardId, StreamSeq, SubscriptionUid};

use crate::error::{Code, refuse};

/// Default number of events of one page.
const LIMIT_DEFAULT: u32 = 100;
/// Maximum number of events of one page.
const LIMIT_MAX: u32 = 1000;

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
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    parse(&bytes).map(Some).ok_or_else(invalid)
}

/// The refusal of a token.
fn invalid() -> Status {
    refuse(Code::BadQuery, "page_token is not valid; use a next_page_token as it was given")
}

/// How many entries a page holds; 0 stands for the default.
pub(super) fn page_size(asked: u32, field: &str) -> Result<usize, Status> {
    within(asked, field, LIMIT_DEFAULT, LIMIT_MAX)
}

/// As [`page_size`], of a list with smaller pages.
pub(super) fn within(asked: u32, field: &str, default: u32, max: u32) -> Result<usize, Status> {
    match asked {
        0 => Ok(default as usize),
        _ if asked <= max => Ok(asked as usize),
        _ => Err(refuse(Code::BadQuery, format!("{field} = {asked} is above {max}; ask for less at a time"))),
    }
}

/// The token of an entry with a name.
pub(super) fn encode_name(name: &str) -> String {
    URL_SAFE_NO_PAD.encode(name)
}

/// The name that the page before ended with; no name is empty.
pub(super) fn decode_name(token: &str) -> Result<String, Status> {
    Ok(read(token, |bytes| String::from_utf8(bytes.to_vec()).ok())?.unwrap_or_default())
}

/// The token of a message.
pub(super) fn encode_seq(seq: StreamSeq) -> String {
    encode_number(seq.0)
}

/// `None` for the empty token: the first page.
pub(super) fn decode_seq(token: &str) -> Result<Option<StreamSeq>, Status> {
    read(token, |bytes| Some(StreamSeq(u64::from_be_bytes(bytes.try_into().ok()?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_messages_token_survives_and_anything_else_is_refused() {
        let before = StreamSeq(4711);
        assert_eq!(decode_seq(&encode_seq(before)).unwrap(), Some(before));
        assert_eq!(decode_seq("").unwrap(), None);
        for wrong in ["x", "AAAA", "é"] {
            assert!(decode_seq(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn page_sizes_have_bounds() {
        assert_eq!(page_size(0, "limit").unwrap(), 100);
        assert_eq!(page_size(1000, "limit").unwrap(), 1000);
        assert!(page_size(1001, "limit").is_err());
    }

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

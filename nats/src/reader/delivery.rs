//! The reply subject of a delivered message, which says where it stands.
//!
//! `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time ns>.<pending>`, or with
//! `<domain>.<account hash>` behind `$JS.ACK` and a token more at the end.

use jiff::Timestamp;
use weft_proto::ids::StreamSeq;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub stream_seq: StreamSeq,
    pub consumer_seq: u64,
    pub stored_at: Timestamp,
    pub pending: u64,
}

impl Delivery {
    pub fn parse(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let numbers = match tokens.len() {
            7 => &tokens[3..],
            9.. => &tokens[5..],
            _ => return None,
        };
        Some(Self {
            stream_seq: StreamSeq(numbers.first()?.parse().ok()?),
            consumer_seq: numbers.get(1)?.parse().ok()?,
            stored_at: Timestamp::from_nanosecond(numbers.get(2)?.parse().ok()?).ok()?,
            pending: numbers.get(3)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let short = Delivery::parse("$JS.ACK.EVENTS.reader.1.42.7.1700000000000000001.3").unwrap();
        assert_eq!((short.stream_seq, short.consumer_seq, short.pending), (StreamSeq(42), 7, 3));
        assert_eq!(short.stored_at.as_nanosecond(), 1_700_000_000_000_000_001);
        let long = Delivery::parse("$JS.ACK._.hash.EVENTS.reader.1.42.7.1700000000000000001.3.rnd").unwrap();
        assert_eq!(short, long);
    }

    #[test]
    fn other_reply_subjects_are_not_parsed() {
        for reply in ["", "_INBOX.x", "$JS.ACK.a.b.c", "$JS.ACK.EVENTS.reader.1.x.7.1.3"] {
            assert_eq!(Delivery::parse(reply), None, "{reply}");
        }
    }
}

//! The server's answer to a publish: whether it is the success that was expected, and if not, what it is.

use serde::Deserialize;
use weft_proto::ids::StreamSeq;

use super::AppendErrorKind;
use crate::api_error::ApiError;

#[derive(Debug, Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    /// Messages of the atomic batch that this ack commits.
    count: Option<usize>,
    error: Option<ApiError>,
}

/// Expected content of an ack.
#[derive(Debug)]
pub(super) struct Expected {
    /// The sequence of the last message.
    pub last: StreamSeq,
    /// The number of messages, for a batch.
    pub batch: Option<usize>,
}

/// Success is only an ack without `duplicate`, with the sequence that was expected, for the whole batch.
pub(super) fn check(answer: &[u8], expected: &Expected) -> Result<(), AppendErrorKind> {
    let ack = parse(answer)?;
    if ack.duplicate || ack.seq != expected.last.0 {
        return Err(AppendErrorKind::Conflict { last: None });
    }
    if expected.batch.is_some_and(|messages| ack.count != Some(messages)) {
        return Err(AppendErrorKind::Unknown(format!("the ack counts {:?} messages", ack.count)));
    }
    Ok(())
}

/// As [`check`], at any sequence.
pub(super) fn check_stored(answer: &[u8]) -> Result<(), AppendErrorKind> {
    parse(answer).map(drop)
}

fn parse(answer: &[u8]) -> Result<Ack, AppendErrorKind> {
    let ack: Ack = serde_json::from_slice(answer)
        .map_err(|error| AppendErrorKind::Unknown(format!("an ack that cannot be read: {error}")))?;
    match ack.error {
        Some(error) => Err(classify(error)),
        None => Ok(ack),
    }
}

/// The error codes of nats-server 2.15, `server/errors.json`.
fn classify(error: ApiError) -> AppendErrorKind {
    let ApiError { code, err_code, description } = error;
    match err_code {
        // Wrong last sequence: the text ends with the stream's.
        10071 => {
            let last = description.rsplit(' ').next().and_then(|number| number.parse().ok()).map(StreamSeq);
            AppendErrorKind::Conflict { last }
        }
        // Wrong last sequence (in flight), duplicate in process, duplicate in the batch.
        10164 | 10158 | 10201 => AppendErrorKind::Conflict { last: None },
        // The batch is incomplete: the server gave it up.
        10176 => AppendErrorKind::Unknown(description),
        // Storing failed: at `max_bytes`, or the disk.
        10077 if description.contains("maximum") => AppendErrorKind::Full(description),
        10077 => AppendErrorKind::Unavailable(description),
        // No leader, JetStream not enabled or not available, resources exceeded, too many requests or batches.
        10002 | 10008 | 10009 | 10023 | 10028 | 10039 | 10047 | 10076 | 10118 | 10167 | 10194 | 10210 => {
            AppendErrorKind::Unavailable(description)
        }
        // Codes to come that speak of the server's state, not of the message.
        _ if matches!(code, 429 | 503) => AppendErrorKind::Unavailable(description),
        _ => AppendErrorKind::Refused(format!("{description} ({err_code})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expect(answer: &str, last: u64, batch: Option<usize>) -> Result<(), AppendErrorKind> {
        check(answer.as_bytes(), &Expected { last: StreamSeq(last), batch })
    }

    #[test]
    fn only_the_expected_ack_is_success() {
        assert_eq!(expect(r#"{"stream":"EVENTS","seq":7}"#, 7, None), Ok(()));
        assert_eq!(expect(r#"{"stream":"EVENTS","seq":9,"batch":"b","count":3}"#, 9, Some(3)), Ok(()));
        let conflict = Err(AppendErrorKind::Conflict { last: None });
        assert_eq!(expect(r#"{"stream":"EVENTS","seq":8}"#, 7, None), conflict);
        assert_eq!(expect(r#"{"stream":"EVENTS","seq":7,"duplicate":true}"#, 7, None), conflict);
        assert!(matches!(
            expect(r#"{"stream":"EVENTS","seq":9,"batch":"b","count":2}"#, 9, Some(3)),
            Err(AppendErrorKind::Unknown(_))
        ));
        assert!(matches!(expect("", 1, None), Err(AppendErrorKind::Unknown(_))));
    }

    #[test]
    fn errors_say_what_to_do() {
        let of_code = |http: u16, code: u64, text: &str| {
            let answer = format!(r#"{{"error":{{"code":{http},"err_code":{code},"description":"{text}"}},"seq":0}}"#);
            expect(&answer, 1, None).unwrap_err()
        };
        let error = |code, text| of_code(400, code, text);
        assert_eq!(error(10071, "wrong last sequence: 41"), AppendErrorKind::Conflict { last: Some(StreamSeq(41)) });
        assert_eq!(error(10164, "wrong last sequence"), AppendErrorKind::Conflict { last: None });
        assert!(matches!(error(10077, "maximum bytes exceeded"), AppendErrorKind::Full(_)));
        assert!(matches!(error(10077, "no space left on device"), AppendErrorKind::Unavailable(_)));
        assert!(matches!(error(10054, "message size exceeds maximum allowed"), AppendErrorKind::Refused(_)));
        assert!(matches!(of_code(503, 99_999, "something of tomorrow"), AppendErrorKind::Unavailable(_)));
        assert!(matches!(error(99_999, "something of tomorrow"), AppendErrorKind::Refused(_)));
        assert!(matches!(error(10176, "atomic publish batch is incomplete"), AppendErrorKind::Unknown(_)));
    }
}

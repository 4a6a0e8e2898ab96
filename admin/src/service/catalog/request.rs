//! Requests, converted to entries of the catalog.

use jiff::Timestamp;
use tonic::Status;
use weft_catalog::{Desired, DesiredSubscription, Start};
use weft_proto::v1::{self, start::From};

use crate::{
    convert,
    error::{Code, refuse},
};

/// The start of a new subscription; absent: now.
///
/// # Errors
///
/// BAD_QUERY.
pub(super) fn start(start: Option<v1::Start>) -> Result<Start, Status> {
    let wrong = |problem: String| refuse(Code::BadQuery, format!("start: {problem}"));
    match start.and_then(|start| start.from) {
        None | Some(From::Now(true)) => Ok(Start::Now),
        Some(From::Beginning(true)) => Ok(Start::Beginning),
        Some(From::Now(false) | From::Beginning(false)) => Err(wrong("say true, or leave it out".into())),
        Some(From::EventId(text)) => {
            text.parse().map(Start::Behind).map_err(|problem| wrong(format!("event_id {text:?} {problem}")))
        }
        Some(From::Time(time)) => convert::to_milliseconds(&time)
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .map(Start::At)
            .ok_or_else(|| wrong("time is not within years 1 to 9999".into())),
    }
}

/// The sources and subscriptions of a request.
///
/// # Errors
///
/// BAD_QUERY.
pub(super) fn desired(sources: Vec<v1::Source>, subscriptions: Vec<v1::WantedSubscription>) -> Result<Desired, Status> {
    let subscriptions = subscriptions.into_iter().map(|wanted| {
        let value = given(wanted.subscription, "subscription")?;
        Ok(DesiredSubscription { value, start: start(wanted.start)? })
    });
    Ok(Desired { sources, subscriptions: subscriptions.collect::<Result<_, Status>>()? })
}

/// The key of a request, without id and digest.
///
/// # Errors
///
/// BAD_QUERY: it would expire before its creation.
pub(super) fn key(request: &v1::CreateApiKeyRequest, now: Timestamp) -> Result<v1::ApiKey, Status> {
    let expires_at_ms = request.expires_at.as_ref().map_or(Ok(0), |time| {
        let ms = convert::to_milliseconds(time).filter(|ms| *ms > now.as_millisecond());
        ms.ok_or_else(|| refuse(Code::BadQuery, "expires_at is not a time to come"))
    });
    Ok(v1::ApiKey {
        name: request.name.clone(),
        scopes: request.scopes.clone(),
        sources: request.sources.clone(),
        workflow_prefixes: request.workflow_prefixes.clone(),
        expires_at_ms: expires_at_ms?,
        ..v1::ApiKey::default()
    })
}

/// A required field.
///
/// # Errors
///
/// BAD_QUERY: it is missing.
pub(super) fn given<T>(value: Option<T>, field: &str) -> Result<T, Status> {
    value.ok_or_else(|| refuse(Code::BadQuery, format!("{field} is missing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_expires_in_the_future() {
        let at = |seconds| v1::CreateApiKeyRequest {
            expires_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..Default::default()
        };
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(key(&at(101), now).unwrap().expires_at_ms, 101_000);
        assert!(key(&at(100), now).is_err());
    }

    #[test]
    fn a_start_is_read_or_refused() {
        let read = |from| start(Some(v1::Start { from: Some(from) })).map_err(|status| status.code());
        assert_eq!(start(None).unwrap(), Start::Now);
        assert_eq!(read(From::Beginning(true)), Ok(Start::Beginning));
        let id = "adc8ac26-5f51-590c-a093-d32f0b5c22c7";
        assert_eq!(read(From::EventId(id.into())), Ok(Start::Behind(id.parse().unwrap())));
        let time = prost_types::Timestamp { seconds: 5, nanos: 0 };
        assert_eq!(read(From::Time(time)), Ok(Start::At(Timestamp::from_second(5).unwrap())));
        for wrong in [From::Now(false), From::EventId("evt_1".into())] {
            assert_eq!(read(wrong), Err(tonic::Code::InvalidArgument));
        }
    }
}

//! Lag of the history when a call was answered.
//!
//! Reads are not refused while the history lags: they answer from its current state, and report the lag in response metadata.
//! A call is answered within one task, so the lag is kept in a task-local until the response is built.

use std::{
    cell::Cell,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http::HeaderValue;
use jiff::Timestamp;
use tower::{Layer, Service};
use weft_index::history::AsOf;
use weft_proto::rpc;

tokio::task_local! {
    /// `None`: the call has not queried the history's lag.
    static AS_OF: Cell<Option<AsOf>>;
}

/// Lag of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    messages: u64,
    time: Option<Timestamp>,
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the history is {} messages behind the log", self.messages)?;
        match self.time {
            Some(time) => write!(f, ", as of {time:.0}"),
            None => Ok(()),
        }
    }
}

/// Records the lag of the history for the metadata of the current call.
pub fn note(as_of: AsOf) {
    // Outside of a call, as in the body of a stream, there is no metadata left to write.
    let _ = AS_OF.try_with(|noted| noted.set(Some(as_of)));
}

/// Lag of the history, as recorded for the current call.
pub fn lag() -> Option<Lag> {
    match AS_OF.try_with(Cell::get) {
        Ok(Some(AsOf::Behind { messages, time })) => Some(Lag { messages, time }),
        Ok(Some(AsOf::Current) | None) | Err(_) => None,
    }
}

/// Writes the metadata of a call.
fn write(headers: &mut http::HeaderMap, as_of: AsOf, now: Timestamp) {
    let (messages, time) = match as_of {
        AsOf::Current => (0, Some(now)),
        AsOf::Behind { messages, time } => (messages, time),
    };
    let mut put = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    put(rpc::AS_OF_MESSAGES, messages.to_string());
    if let Some(time) = time {
        put(rpc::AS_OF, time.to_string());
        put(rpc::AS_OF_LAG_MS, now.duration_since(time).as_millis().max(0).to_string());
    }
}

/// Adds the recorded lag to each response.
#[derive(Debug, Clone, Copy)]
pub struct AsOfLayer;

impl<S> Layer<S> for AsOfLayer {
    type Service = AsOfService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AsOfService { inner }
    }
}

/// Services behind an [`AsOfLayer`].
#[derive(Debug, Clone)]
pub struct AsOfService<S> {
    inner: S,
}

impl<S, B, R> Service<http::Request<B>> for AsOfService<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let call = self.inner.call(request);
        Box::pin(AS_OF.scope(Cell::new(None), async move {
            let mut response = call.await?;
            if let Some(as_of) = AS_OF.with(Cell::get) {
                write(response.headers_mut(), as_of, Timestamp::now());
            }
            Ok(response)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_says_how_far_an_answer_is() {
        let now = Timestamp::from_second(1_000).unwrap();
        let mut headers = http::HeaderMap::new();
        write(&mut headers, AsOf::Current, now);
        assert_eq!(
            (&headers[rpc::AS_OF_MESSAGES], &headers[rpc::AS_OF_LAG_MS]),
            (&"0".parse().unwrap(), &"0".parse().unwrap())
        );
        let time = Some(Timestamp::from_second(990).unwrap());
        write(&mut headers, AsOf::Behind { messages: 7, time }, now);
        assert_eq!(headers[rpc::AS_OF_MESSAGES], "7");
        assert_eq!(headers[rpc::AS_OF_LAG_MS], "10000");
        assert_eq!(headers[rpc::AS_OF], "1970-01-01T00:16:30Z");
    }

    #[tokio::test]
    async fn a_call_knows_its_own_lag_only() {
        note(AsOf::Behind { messages: 1, time: None });
        assert_eq!(lag(), None, "outside of a call");
        AS_OF
            .scope(Cell::new(None), async {
                assert_eq!(lag(), None);
                note(AsOf::Behind { messages: 3, time: None });
                assert_eq!(lag().unwrap().to_string(), "the history is 3 messages behind the log");
                note(AsOf::Current);
                assert_eq!(lag(), None);
            })
            .await;
    }
}

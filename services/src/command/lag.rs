//! A channel to the admin that reports on stderr when an answer is from a history that lags behind the log.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::HeaderMap;
use tonic::{
    body::Body,
    codegen::Service,
    transport::{Channel, Error},
};
use weft_proto::rpc;

/// A lag below this is not reported: a history that follows a busy log is always some milliseconds late.
const REPORTED_FROM: Duration = Duration::from_secs(3);

/// The channel.
#[derive(Debug, Clone)]
pub struct LagChannel {
    channel: Channel,
    /// Once a process: a command that follows something makes many calls.
    reported: Arc<AtomicBool>,
}

impl LagChannel {
    /// Reports at most once, for all clones together.
    pub fn new(channel: Channel) -> Self {
        Self { channel, reported: Arc::default() }
    }
}

impl Service<http::Request<Body>> for LagChannel {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = self.channel.call(request);
        let reported = Arc::clone(&self.reported);
        Box::pin(async move {
            let response = call.await?;
            if let Some(notice) = notice(response.headers())
                && !reported.swap(true, Ordering::Relaxed)
            {
                super::output::notice(&notice);
            }
            Ok(response)
        })
    }
}

/// The line for an answer that lags by more than a few seconds.
fn notice(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let messages: u64 = text(rpc::AS_OF_MESSAGES)?.parse().ok()?;
    if messages == 0 {
        return None;
    }
    let Some(time) = text(rpc::AS_OF) else {
        return Some(format!("the admin's history is being built: {messages} messages are not in this answer yet"));
    };
    let lag = Duration::from_millis(text(rpc::AS_OF_LAG_MS)?.parse().ok()?);
    let seconds = lag.as_secs();
    let line = || format!("this answer is as of {time}, {seconds} s ago: {messages} messages are not in it yet");
    (lag >= REPORTED_FROM).then(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lag_that_a_person_notices_is_reported() {
        let notice_of = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, value.parse().unwrap());
            }
            notice(&headers)
        };
        let lags = |messages, ms| {
            notice_of(&[(rpc::AS_OF_MESSAGES, messages), (rpc::AS_OF, "2026-01-01T00:00:00Z"), (rpc::AS_OF_LAG_MS, ms)])
        };
        assert_eq!(notice_of(&[]), None);
        assert_eq!(lags("0", "0"), None);
        assert_eq!(lags("12", "400"), None);
        let expected = "this answer is as of 2026-01-01T00:00:00Z, 61 s ago: 12 messages are not in it yet";
        assert_eq!(lags("12", "61500").as_deref(), Some(expected));
        assert!(notice_of(&[(rpc::AS_OF_MESSAGES, "9")]).unwrap().contains("being built"));
    }
}

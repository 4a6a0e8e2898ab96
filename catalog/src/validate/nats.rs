//! Checks of NATS destinations.

use weft_proto::v1::NatsDestination;

use super::http::check_tls;
use crate::{nats_url::NatsUrl, subject_template::SubjectTemplate};

/// The longest name of a stream.
const STREAM_BYTES_MAX: usize = 255;

/// Checks a NATS destination. Whether its stream exists and takes the subject is only known when it is published to.
pub(super) fn check(nats: &NatsDestination) -> Result<(), String> {
    SubjectTemplate::parse(&nats.subject).map_err(|problem| format!("destination: subject {problem}"))?;
    check_stream(&nats.stream).map_err(|problem| format!("destination: stream {problem}"))?;
    if nats.url.is_empty() {
        if !nats.creds.is_empty() || nats.tls.is_some() {
            return Err(
                "destination: creds, ca, cert and key belong to a url; without one the mesh's own server is meant"
                    .into(),
            );
        }
    } else {
        NatsUrl::parse(&nats.url).map_err(|problem| format!("destination: {problem}"))?;
        nats.tls.as_ref().map_or(Ok(()), check_tls).map_err(|problem| format!("destination: {problem}"))?;
    }
    Ok(())
}

fn check_stream(name: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_graphic() && !b".*>/\\".contains(&byte);
    match name.len() {
        0 => Err("is missing: name the stream that must store the events".into()),
        1..=STREAM_BYTES_MAX if name.bytes().all(fits) => Ok(()),
        _ => Err(format!("{name:?} is not a name of a stream")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards: what is saved can be published, and not onto the subjects of the mesh.
    #[test]
    fn a_stream_and_a_subject_are_needed_and_the_meshs_own_refused() {
        let sound = NatsDestination {
            subject: "orders.{workflow}.{type}".into(),
            stream: "ORDERS".into(),
            url: "tls://nats.example".into(),
            creds: "creds".into(),
            tls: None,
        };
        assert_eq!(check(&sound), Ok(()));
        let own = NatsDestination { url: String::new(), creds: String::new(), ..sound.clone() };
        assert_eq!(check(&own), Ok(()));
        type Change = fn(&mut NatsDestination);
        let wrong: [(Change, &str); 7] = [
            (|nats| nats.subject.clear(), "subject is missing"),
            (|nats| nats.subject = "events.{workflow}".into(), "Weft itself"),
            (|nats| nats.subject = "$KV.weft_catalog.x".into(), "reserved by NATS"),
            (|nats| nats.stream.clear(), "stream is missing"),
            (|nats| nats.stream = "a.b".into(), "not a name"),
            (|nats| nats.url = "http://a".into(), "nats://"),
            (|nats| nats.url.clear(), "belong to a url"),
        ];
        for (change, problem) in wrong {
            let mut nats = sound.clone();
            change(&mut nats);
            assert!(check(&nats).unwrap_err().contains(problem), "{problem}");
        }
    }
}

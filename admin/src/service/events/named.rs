//! The events that a text names: an id, the beginning of one, or a sender's delivery id.

use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::history::{EventQuery, EventRef};
use weft_proto::ids::EventId;

use super::LogState;
use crate::error::{Code, of_history, refuse, unknown};

/// Minimum number of characters of the beginning of an id: fewer name several among some thousand events.
const PREFIX_MIN: usize = 8;
/// Maximum number of sources that a delivery id is looked up of, some milliseconds each.
const SOURCES_MAX: usize = 200;

/// The event that a text names.
pub(super) async fn one(log: &LogState, grant: &Grant, text: &str, source: &str) -> Result<EventRef, Status> {
    if let Ok(named) = text.parse() {
        return Ok(named);
    }
    if text.is_empty() {
        return Err(refuse(
            Code::BadQuery,
            "event_id is empty; give an event id, the beginning of one, or a delivery id",
        ));
    }
    let mut found = seen(log, grant, deliveries(log, grant, text, source).await?).await?;
    if found.is_empty() {
        found = beginning(log, grant, text).await?;
    }
    match &found[..] {
        [event] => Ok(EventRef { event: *event, seq: None }),
        [] => Err(unknown(Code::UnknownEvent, format!("no event with the id or the delivery id {text:?} is kept"))),
        _ => {
            let message =
                format!("{text:?} names several events; give more of the id, or the source of the delivery id");
            Err(refuse(Code::BadQuery, message))
        }
    }
}

/// The events with this delivery id: of this source, or of any.
pub(super) async fn deliveries(
    log: &LogState,
    grant: &Grant,
    delivery_id: &str,
    source: &str,
) -> Result<Vec<EventId>, Status> {
    let sources = if source.is_empty() {
        let known = log.history.sources(SOURCES_MAX + 1).await.map_err(of_history)?;
        if known.len() > SOURCES_MAX {
            let message =
                format!("events of more than {SOURCES_MAX} sources are kept; name the source of the delivery id");
            return Err(refuse(Code::BadQuery, message));
        }
        known
    } else {
        vec![source.to_owned()]
    };
    let allowed = |source: &&String| grant.sources().is_empty() || grant.sources().contains(source);
    let ids = sources.iter().filter(allowed).map(|source| EventId::of_delivery(source, delivery_id)).collect();
    log.history.known(ids).await.map_err(of_history)
}

/// Events that a caller may see whose ids begin with a text, at most two: more than one is too many.
async fn beginning(log: &LogState, grant: &Grant, text: &str) -> Result<Vec<EventId>, Status> {
    let Some((first, last)) = bounds(text) else { return Ok(Vec::new()) };
    if grant.check_unlimited().is_ok() {
        let mut ids = log.history.ids_between(first, last, 2).await.map_err(of_history)?;
        ids.dedup();
        return Ok(ids);
    }
    found(log, EventQuery { id_range: Some((first, last)), ..limited(grant) }).await
}

/// Those of these events that a caller may see, at most two where it may not see all.
async fn seen(log: &LogState, grant: &Grant, ids: Vec<EventId>) -> Result<Vec<EventId>, Status> {
    if ids.is_empty() || grant.check_unlimited().is_ok() {
        return Ok(ids);
    }
    found(log, EventQuery { ids: Some(ids), ..limited(grant) }).await
}

fn limited(grant: &Grant) -> EventQuery {
    let (sources, workflow_prefixes) = (grant.sources().to_vec(), grant.workflow_prefixes().to_vec());
    EventQuery { sources, workflow_prefixes, ..EventQuery::default() }
}

/// The ids of the first two events that a query takes.
async fn found(log: &LogState, query: EventQuery) -> Result<Vec<EventId>, Status> {
    let (mut ids, mut after): (Vec<EventId>, _) = (Vec::new(), None);
    while ids.len() < 2 {
        let page = log.history.list(query.clone(), after, 2).await.map_err(of_history)?;
        ids.extend(page.events.into_iter().map(|event| event.id));
        ids.dedup();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(ids)
}

/// The first and the last id that begin with a text; `None` if it begins none, or is too short.
pub(super) fn bounds(text: &str) -> Option<(EventId, EventId)> {
    let digits: String = text.chars().filter(|char| *char != '-').collect();
    if digits.len() < PREFIX_MIN || !text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return None;
    }
    let id = |fill: &str| {
        let filled = format!("{digits}{}", fill.repeat(32_usize.checked_sub(digits.len())?));
        let hyphened = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| filled.get(from..to));
        let parts: Vec<&str> = hyphened.into_iter().collect::<Option<_>>()?;
        parts.join("-").parse().ok()
    };
    Some((id("0")?, id("f")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_bounds_the_ids_that_begin_with_it() {
        let id = EventId::of_delivery("shop", "evt_1");
        let text = id.to_string();
        for length in [8, 9, 13, 20, 36] {
            let (first, last) = bounds(&text[..length]).unwrap();
            assert!(first <= id && id <= last, "{length}");
            assert!(last.to_string().starts_with(&text[..length]) && first.to_string().starts_with(&text[..length]));
        }
        for none in ["", "adc8ac2", "evt_12345678", &format!("{text}0"), "é234567890"] {
            assert_eq!(bounds(none), None, "{none}");
        }
    }
}

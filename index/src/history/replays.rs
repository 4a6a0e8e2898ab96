//! Reading: replays, by when they were commanded.

use weft_proto::internal;

use super::tables::View;

/// The replay after which a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayCursor {
    /// When it was commanded, in unix milliseconds.
    pub at_ms: i64,
    /// The replay's request id.
    pub request_id: String,
}

/// A page of replays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayPage {
    /// Their request ids, the newest first.
    pub request_ids: Vec<String>,
    /// `None` at the end.
    pub next: Option<ReplayCursor>,
}

/// A page after `after`.
pub(super) fn page(view: &View, after: Option<ReplayCursor>, limit: usize) -> Result<ReplayPage, redb::Error> {
    let end = after.as_ref().map_or((i64::MAX, ""), |after| (after.at_ms, after.request_id.as_str()));
    let mut page = ReplayPage { request_ids: Vec::new(), next: None };
    let mut last = None;
    for row in view.replays.range((i64::MIN, "")..end)?.rev() {
        if page.request_ids.len() >= limit.max(1) {
            page.next = last;
            break;
        }
        let (key, _) = row?;
        let (at_ms, request_id) = key.value();
        page.request_ids.push(request_id.to_owned());
        last = Some(ReplayCursor { at_ms, request_id: request_id.to_owned() });
    }
    Ok(page)
}

/// The newest command to a replay.
pub(super) fn order(view: &View, replay: &str) -> Result<Option<internal::ReplayAction>, redb::Error> {
    let order = view.replay_orders.get(replay)?;
    Ok(order.and_then(|order| internal::ReplayAction::try_from(order.value().1).ok()))
}

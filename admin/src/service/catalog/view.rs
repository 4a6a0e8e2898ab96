//! Entries in answers, without their secrets, and lists of them, page by page.

use std::sync::Arc;

use tonic::Status;
use weft_catalog::{
    Revised, Snapshot,
    change::Refusal,
    delivery_url::redact_query,
    entry::{Entry, without_secrets},
    keys::Grant,
};
use weft_proto::v1;

use super::mutation::of_refusal;
use crate::service::paging::{decode_name, encode_name, page_size};

/// An entry in an answer.
pub(super) trait View: Sized {
    /// Of what.
    type Entry: Entry;

    /// Without its secrets.
    fn of(snapshot: &Snapshot, entry: &Revised<Arc<Self::Entry>>) -> Self;

    /// The view of the entry of that name.
    ///
    /// # Errors
    ///
    /// NOT_FOUND.
    fn find(snapshot: &Snapshot, name: &str) -> Result<Self, Status> {
        let missing = || Refusal::NotFound { kind: Self::Entry::KIND, name: name.to_owned() };
        let entry = Self::Entry::all(snapshot).get(name).ok_or_else(|| of_refusal(&missing()))?;
        Ok(Self::of(snapshot, entry))
    }

    /// A page of all, by name, and the token of the next.
    ///
    /// # Errors
    ///
    /// BAD_QUERY.
    fn page(snapshot: &Snapshot, size: u32, token: &str) -> Result<(Vec<Self>, String), Status> {
        let (size, after) = (page_size(size, "page_size")?, decode_name(token)?);
        let mut rest = Self::Entry::all(snapshot).values().filter(|entry| entry.value.id() > after.as_str());
        let page: Vec<_> = rest.by_ref().take(size).collect();
        let more = rest.next().is_some();
        let next = page.last().filter(|_| more).map(|last| encode_name(last.value.id()));
        Ok((page.into_iter().map(|entry| Self::of(snapshot, entry)).collect(), next.unwrap_or_default()))
    }
}

impl View for v1::SourceView {
    type Entry = v1::Source;

    fn of(_snapshot: &Snapshot, entry: &Revised<Arc<v1::Source>>) -> Self {
        Self { source: Some(without_secrets(&*entry.value)), revision: entry.revision }
    }
}

impl View for v1::SubscriptionView {
    type Entry = v1::Subscription;

    fn of(_snapshot: &Snapshot, entry: &Revised<Arc<v1::Subscription>>) -> Self {
        let subscription = Some(without_secrets(&*entry.value));
        Self { subscription, revision: entry.revision, receivers: Vec::new() }
    }
}

impl View for v1::ApiKeyView {
    type Entry = v1::ApiKey;

    fn of(snapshot: &Snapshot, entry: &Revised<Arc<v1::ApiKey>>) -> Self {
        let key = v1::ApiKey { digest: Vec::new(), ..entry.value.as_ref().clone() };
        let used = snapshot.keys_used.get(&key.id);
        let last_used_at = used.map(|at| prost_types::Timestamp { seconds: at.as_second(), nanos: 0 });
        Self { key: Some(key), revision: entry.revision, last_used_at }
    }
}

/// Hides the values in the queries of URLs of destinations and token endpoints from callers without scope `admin`: some
/// receivers expect a token there.
pub(super) fn hide_queries(grant: &Grant, views: &mut [v1::SubscriptionView]) {
    if grant.is_admin() {
        return;
    }
    for subscription in views.iter_mut().filter_map(|view| view.subscription.as_mut()) {
        let destination = subscription.destination.as_mut().and_then(|destination| destination.kind.as_mut());
        let (url, auth) = match destination {
            Some(v1::destination::Kind::Http(http)) => (&mut http.url, &mut http.auth),
            Some(v1::destination::Kind::Grpc(grpc)) => (&mut grpc.url, &mut grpc.auth),
            _ => continue,
        };
        *url = redact_query(url);
        if let Some(v1::auth::Kind::Oauth2(oauth2)) = auth.as_mut().and_then(|auth| auth.kind.as_mut()) {
            oauth2.token_url = redact_query(&oauth2.token_url);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(names: &[&str]) -> Snapshot {
        let source = |name: &&str| v1::Source { name: (*name).to_owned(), ..v1::Source::default() };
        let sources =
            names.iter().map(|name| ((*name).to_owned(), Revised { revision: 1, value: Arc::new(source(name)) }));
        Snapshot { complete: true, sources: sources.collect(), ..Snapshot::default() }
    }

    /// Pages continue by name, so an entry that is added or removed in between moves no other.
    #[test]
    fn pages_hold_everything_once() {
        let names = |views: &[v1::SourceView]| -> Vec<String> {
            views.iter().map(|view| view.source.clone().unwrap().name).collect()
        };
        let (first, token) = v1::SourceView::page(&snapshot(&["a", "b", "c", "d"]), 2, "").unwrap();
        assert_eq!(names(&first), ["a", "b"]);
        let (second, end) = v1::SourceView::page(&snapshot(&["a", "c", "d"]), 2, &token).unwrap();
        assert_eq!((names(&second), end.as_str()), (vec!["c".to_owned(), "d".to_owned()], ""));
        assert!(v1::SourceView::page(&snapshot(&[]), 2, "!").is_err());
        assert!(v1::SourceView::page(&snapshot(&[]), 1001, "").is_err());
    }
}

//! Requests that an admin carries out for other roles: those of [`admin_requests`], and pausing a subscription whose receiver has
//! asked for it, which a worker notices.

use async_nats::Message;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use weft_nats::{
    admin_requests::{self, AskError},
    subject::{Layout, PAUSE_REQUESTS},
};
use weft_proto::ids::SubscriptionUid;

use crate::{
    Catalog, CatalogError, Stamp,
    change::{Action, pause},
};

/// The longest reason or name that a worker may give, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    uid: String,
    revision: u64,
    request_id: String,
    operator: String,
    reason: String,
}

/// Carries requests out until `stop`, with the rights of the catalog's connection, which is an admin's.
pub async fn serve(catalog: Catalog, layout: Layout, stop: CancellationToken) {
    let pause = |message| {
        let catalog = catalog.clone();
        async move { carry_out(&catalog, &message).await }
    };
    admin_requests::serve(catalog.requests(), layout, pause, stop).await;
}

/// Pauses a subscription that still has the revision by which its receiver was called; otherwise does nothing.
///
/// # Errors
///
/// [`CatalogError`].
pub async fn pause_subscription(
    catalog: &Catalog,
    uid: SubscriptionUid,
    revision: u64,
    stamp: &Stamp,
) -> Result<(), CatalogError> {
    let request = Request {
        uid: uid.to_string(),
        revision,
        request_id: stamp.request_id.clone(),
        operator: stamp.operator.clone(),
        reason: stamp.reason.clone(),
    };
    let payload = serde_json::to_vec(&request).map_err(|error| CatalogError::Unavailable(error.to_string()))?;
    match catalog.requests().ask(PAUSE_REQUESTS.to_owned(), payload).await {
        Ok(()) => Ok(()),
        // One user for all roles.
        Err(AskError::NoAdmin) => write(catalog, uid, revision, stamp).await,
        Err(AskError::Failed(problem)) => Err(CatalogError::Unavailable(problem)),
    }
}

/// Carries a worker's request out.
async fn carry_out(catalog: &Catalog, message: &Message) -> Result<(), String> {
    let request: Request = serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
    let Request { uid, revision, request_id, operator, reason } = request;
    if [&request_id, &operator, &reason].iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        return Err(format!("a text is longer than {TEXT_BYTES_MAX} bytes"));
    }
    let uid: SubscriptionUid = uid.parse().map_err(|_| "uid is not a UUID")?;
    let stamp = Stamp { request_id, operator, reason };
    match write(catalog, uid, revision, &stamp).await {
        // Changed meanwhile: by the new revision its receiver is called again.
        Ok(()) | Err(CatalogError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

async fn write(catalog: &Catalog, uid: SubscriptionUid, revision: u64, stamp: &Stamp) -> Result<(), CatalogError> {
    let snapshot = catalog.read().await?;
    let entry = snapshot.subscription_of(uid.as_bytes());
    let Some(entry) = entry.filter(|entry| entry.revision == revision) else { return Ok(()) };
    match pause(&snapshot, &entry.value.name, Some(&stamp.reason)) {
        Ok(Some(change)) => {
            debug_assert_eq!((change.action, change.expected), (Action::Paused, revision));
            catalog.write(&change, stamp).await
        }
        // Paused already, or just deleted.
        Ok(None) | Err(_) => Ok(()),
    }
}

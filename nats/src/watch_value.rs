//! Values that others follow.

use tokio::sync::watch;

/// Replaces a followed value where it differs, so that followers are woken by changes only; whether it did.
pub fn set_if_changed<T: PartialEq>(followed: &watch::Sender<T>, value: T) -> bool {
    followed.send_if_modified(|known| {
        let changed = *known != value;
        *known = value;
        changed
    })
}

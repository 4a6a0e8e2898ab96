//! Time of the last use of each key, to the minute.
//!
//! A request notes its key in memory and continues; one task writes what is new, so that a key costs the catalog at
//! most one small message per minute and process. The entries are not sealed and have no revision: the last write wins,
//! which is accurate enough.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::Keys;
use crate::catalog::Catalog;

/// Milliseconds of a minute: how exactly uses are known.
const MINUTE_MS: i64 = 60_000;
/// The pause after a write that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The last use of each key, and which of them have yet to be written.
#[derive(Debug, Default)]
pub struct Uses {
    /// By the key's id. Only keys that were let in, so it is as bounded as the catalog; those that have gone from there are
    /// forgotten at the next write.
    noted: Mutex<HashMap<String, Use>>,
    new: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Use {
    minute: i64,
    written: bool,
}

impl Uses {
    /// Notes a use of a key.
    pub fn note(&self, id: &str, now: Timestamp) {
        let minute = now.as_millisecond().div_euclid(MINUTE_MS);
        let mut noted = self.noted();
        match noted.get_mut(id) {
            Some(known) if known.minute >= minute => return,
            Some(known) => *known = Use { minute, written: false },
            None => {
                noted.insert(id.to_owned(), Use { minute, written: false });
            }
        }
        drop(noted);
        self.new.notify_one();
    }

    /// Uses that have yet to be written: ids and unix milliseconds. Forgets keys that are not `known`.
    fn unwritten(&self, known: impl Fn(&str) -> bool) -> Vec<(String, i64)> {
        let mut noted = self.noted();
        noted.retain(|id, _| known(id));
        let unwritten = noted.iter().filter(|(_, used)| !used.written);
        unwritten.map(|(id, used)| (id.clone(), used.minute * MINUTE_MS)).collect()
    }

    fn written(&self, id: &str, at_ms: i64) {
        if let Some(used) = self.noted().get_mut(id)
            && used.minute * MINUTE_MS == at_ms
        {
            used.written = true;
        }
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<String, Use>> {
        // Nothing in here can panic half-way through a change.
        self.noted.lock()
    }
}

impl Keys {
    /// Writes noted uses into the catalog until `stop`. What cannot be written is tried again.
    pub async fn write_uses(&self, catalog: &Catalog, stop: &CancellationToken) {
        let writing = async {
            loop {
                self.uses.new.notified().await;
                while !self.write_new_uses(catalog).await {
                    sleep(RETRY_PAUSE).await;
                }
            }
        };
        tokio::select! {
            () = writing => {}
            () = stop.cancelled() => {}
        }
    }

    /// Whether all could be written.
    async fn write_new_uses(&self, catalog: &Catalog) -> bool {
        let keys = self.catalog.borrow().clone();
        for (id, at_ms) in self.uses.unwritten(|id| keys.keys.contains_key(id)) {
            if let Err(error) = catalog.put_key_use(&id, at_ms).await {
                tracing::debug!(key = id, %error, "the use of a key is not written yet");
                return false;
            }
            self.uses.written(&id, at_ms);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However often a key is used, one minute is one message; what was not written is not lost.
    #[test]
    fn a_key_is_written_once_a_minute() {
        let uses = Uses::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        (0..60).for_each(|second| uses.note("a", at(120 + second)));
        uses.note("b", at(121));
        let unwritten = |uses: &Uses| {
            let mut unwritten = uses.unwritten(|id| id != "gone");
            unwritten.sort();
            unwritten
        };
        assert_eq!(unwritten(&uses), [("a".to_owned(), 120_000), ("b".to_owned(), 120_000)]);
        uses.written("a", 120_000);
        uses.note("a", at(179));
        assert_eq!(unwritten(&uses), [("b".to_owned(), 120_000)]);
        uses.note("a", at(180));
        uses.note("gone", at(180));
        uses.written("a", 120_000);
        assert_eq!(
            unwritten(&uses),
            [("a".to_owned(), 180_000), ("b".to_owned(), 120_000)],
            "a late answer is of the old one"
        );
        assert_eq!(uses.noted().len(), 2, "keys that are gone are forgotten");
        uses.note("a", at(100));
        assert_eq!(unwritten(&uses)[0].1, 180_000, "a clock that goes back changes nothing");
    }
}

//! Shares of places that only a limited number of callers may have at a time: a key has a part of them, and keys that may only read
//! leave some to operators.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tonic::Status;
use weft_catalog::keys::Grant;
use weft_proto::v1::Scope;

use crate::error::{Code, refuse};

/// Numbers of places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For all callers.
    pub total: usize,
    /// For callers that may neither operate nor administer.
    pub readers: usize,
    /// For one key.
    pub key: usize,
}

/// Places that callers take.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    /// Their purpose, in the plural.
    what: &'static str,
    limits: Limits,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    readers: usize,
    keys: HashMap<String, usize>,
}

/// A place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    taken: Arc<Mutex<Taken>>,
    key: String,
    is_reader: bool,
}

impl Shares {
    pub fn new(what: &'static str, limits: Limits) -> Self {
        Self { what, limits, taken: Arc::default() }
    }

    /// A place for a caller.
    ///
    /// # Errors
    ///
    /// OVERLOADED: the caller, or all of its kind, have as many as they may.
    pub fn take(&self, grant: &Grant) -> Result<Place, Status> {
        let is_reader = !grant.has(Scope::Operate) && !grant.is_admin();
        let key = grant.operator().to_owned();
        self.place(key, is_reader).map_err(|full| {
            let Self { what, .. } = self;
            refuse(Code::Overloaded, format!("{full} {what} are open already; close one, or try again later"))
        })
    }

    /// The number that is reached, if there is no place.
    fn place(&self, key: String, is_reader: bool) -> Result<Place, String> {
        let Limits { total, readers, key: of_key } = self.limits;
        let mut taken = self.taken.lock();
        let own = taken.keys.get(&key).copied().unwrap_or(0);
        if own >= of_key {
            return Err(format!("{of_key} of this key's"));
        }
        if is_reader && taken.readers >= readers {
            return Err(format!("{readers} of keys that may only read their"));
        }
        if taken.total >= total {
            return Err(total.to_string());
        }
        taken.total += 1;
        taken.readers += usize::from(is_reader);
        taken.keys.insert(key.clone(), own + 1);
        Ok(Place { taken: Arc::clone(&self.taken), key, is_reader })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.total -= 1;
        taken.readers -= usize::from(self.is_reader);
        if let Some(own) = taken.keys.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                taken.keys.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key takes its part only, readers leave some to operators, and a place that is given back can be taken again.
    #[test]
    fn a_share_is_left_for_other_keys_and_for_operators() {
        let shares = Shares::new("streams", Limits { total: 6, readers: 4, key: 3 });
        let place = |key: &str, is_reader| shares.place(key.to_owned(), is_reader);
        let mut held: Vec<_> = (0..3).map(|_| place("reader", true).unwrap()).collect();
        assert!(place("reader", true).is_err(), "its part");
        held.push(place("other", true).unwrap());
        assert!(place("third", true).is_err(), "the readers' part");
        held.push(place("bootstrap", false).unwrap());
        held.push(place("bootstrap", false).unwrap());
        assert!(place("bootstrap", false).is_err(), "all");
        held.remove(0);
        assert!(place("third", true).is_ok());
        drop(held);
        assert!(shares.taken.lock().keys.is_empty() && shares.taken.lock().total == 0);
    }
}

//! A map of bounded size: the entries that were written least recently are dropped.
//!
//! It has two generations: a key that is written moves into the young one; when that is full the old one is dropped and
//! the young one takes its place. So a key is dropped only after as many other keys as a generation holds have been written
//! since, and neither a clock nor a sweep is needed. The cost of dropping a key: its limit starts again from zero.

use std::{collections::HashMap, hash::Hash};

use governor::{nanos::Nanos, state::StateStore};
use parking_lot::Mutex;

/// Asks about a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Asked<K> {
    /// Counts one.
    Take(K),
    /// Only looks: whether one could be taken.
    Look(K),
}

/// A store for the limiter.
#[derive(Debug)]
pub(super) struct Generations<K> {
    /// The most keys of one generation.
    keys_max: usize,
    maps: Mutex<Maps<K>>,
}

#[derive(Debug)]
struct Maps<K> {
    young: HashMap<K, Nanos>,
    old: HashMap<K, Nanos>,
}

impl<K: Hash + Eq + Clone> Generations<K> {
    /// Holds at most twice `keys_max` keys.
    pub(super) fn new(keys_max: usize) -> Self {
        Self { keys_max, maps: Mutex::new(Maps { young: HashMap::new(), old: HashMap::new() }) }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let maps = self.maps.lock();
        maps.young.len() + maps.old.len()
    }
}

impl<K: Hash + Eq + Clone> StateStore for Generations<K> {
    type Key = Asked<K>;

    fn measure_and_replace<T, F, E>(&self, asked: &Asked<K>, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (Asked::Take(key) | Asked::Look(key)) = asked;
        // Nothing in here can panic half-way through a change.
        let mut maps = self.maps.lock();
        let known = maps.young.get(key).or_else(|| maps.old.get(key)).copied();
        let (outcome, next) = decide(known)?;
        if let Asked::Take(key) = asked {
            maps.put(key, next, self.keys_max);
        }
        Ok(outcome)
    }
}

impl<K: Hash + Eq + Clone> Maps<K> {
    fn put(&mut self, key: &K, value: Nanos, keys_max: usize) {
        if let Some(known) = self.young.get_mut(key) {
            *known = value;
            return;
        }
        self.old.remove(key);
        if self.young.len() >= keys_max {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key.clone(), value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn put(store: &Generations<u8>, key: u8, value: u64) {
        let _ = store.measure_and_replace(&Asked::Take(key), |_| Ok::<_, ()>(((), Nanos::new(value))));
    }

    fn get(store: &Generations<u8>, key: u8) -> Option<u64> {
        let known = store.measure_and_replace(&Asked::Look(key), |known| Ok::<_, ()>((known, Nanos::new(999))));
        known.unwrap().map(Nanos::as_u64)
    }

    proptest! {
        /// Memory is bounded, nothing false is ever remembered, looking changes nothing, and a key is known at least until as
        /// many others as a generation holds have been written.
        #[test]
        fn a_key_is_kept_until_a_generation_of_others_came(keys in prop::collection::vec(0u8..12, 1..200)) {
            const KEYS_MAX: usize = 4;
            let store = Generations::new(KEYS_MAX);
            for (index, key) in keys.iter().enumerate() {
                put(&store, *key, index as u64);
                prop_assert!(store.len() <= 2 * KEYS_MAX);
                for asked in 0..12 {
                    let last = keys[..=index].iter().rposition(|key| *key == asked);
                    let others: HashSet<_> = keys[last.map_or(0, |last| last + 1)..=index].iter().collect();
                    let known = get(&store, asked);
                    prop_assert!(known.is_none() || known == last.map(|last| last as u64));
                    prop_assert!(known.is_some() || last.is_none() || others.len() >= KEYS_MAX);
                }
            }
        }
    }
}

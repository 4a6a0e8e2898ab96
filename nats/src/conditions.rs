//! Conditions of a process that does its job, but not as it should: an operator has to act.
//!
//! A process that cannot do its job is not ready. What is listed here is shown with its readiness as `degraded: …`, and
//! does not take the process out of service.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// Conditions that are shown: a person reads them one by one, and a thousand broken subscriptions have few causes.
const SHOWN_MAX: usize = 100;
/// Conditions that are kept. More than these are not added.
const KEPT_MAX: usize = 10_000;

/// The conditions of a process, by name. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    texts: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Conditions {
    /// Sets the text of a condition; `None` clears it.
    pub fn set(&self, name: &str, text: Option<String>) {
        let mut texts = self.texts.lock();
        match text {
            None => drop(texts.remove(name)),
            Some(text) if texts.len() < KEPT_MAX || texts.contains_key(name) => {
                texts.insert(name.to_owned(), text);
            }
            Some(_) => {}
        }
    }

    /// Clears every condition whose name starts with `prefix`.
    pub fn clear_all(&self, prefix: &str) {
        self.texts.lock().retain(|name, _| !name.starts_with(prefix));
    }

    /// One line for each condition, in the order of their names.
    pub fn lines(&self) -> Vec<String> {
        let texts = self.texts.lock();
        let mut lines: Vec<String> =
            texts.iter().take(SHOWN_MAX).map(|(name, text)| format!("{name}: {text}")).collect();
        if texts.len() > SHOWN_MAX {
            lines.push(format!("{} more", texts.len() - SHOWN_MAX));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_listed_until_they_are_cleared() {
        let conditions = Conditions::default();
        conditions.set("shard 1: copies", Some("3 wait".into()));
        conditions.clone().set("shard 0: copies", Some("1 waits".into()));
        assert_eq!(conditions.lines(), ["shard 0: copies: 1 waits", "shard 1: copies: 3 wait"]);
        conditions.set("shard 0: copies", None);
        assert_eq!(conditions.lines(), ["shard 1: copies: 3 wait"]);
        conditions.clear_all("shard 1");
        assert!(conditions.lines().is_empty());
    }

    #[test]
    fn the_list_is_bounded() {
        let conditions = Conditions::default();
        for number in 0..=SHOWN_MAX {
            conditions.set(&format!("{number:04}"), Some("broken".into()));
        }
        assert_eq!(conditions.lines().len(), SHOWN_MAX + 1);
        assert_eq!(conditions.lines().last().unwrap(), "1 more");
    }
}

//! Changes that bring the catalog to a desired state. Pure.
//!
//! Subscriptions are made before sources, and go after them: no event is accepted while those that want it are not there.

use std::collections::BTreeSet;

use weft_proto::v1::{Source, Subscription};

use super::{
    change::{self, Change, Refusal},
    entry::Entry,
    snapshot::Snapshot,
    start::Start,
};

/// Desired content of the catalog.
#[derive(Clone, Default)]
pub struct Desired {
    /// Sources, in any order.
    pub sources: Vec<Source>,
    /// Subscriptions, in any order.
    pub subscriptions: Vec<DesiredSubscription>,
}

/// A desired subscription. Its uid and starts are made when it is created.
#[derive(Clone, PartialEq)]
pub struct DesiredSubscription {
    /// Without uid, starts and creation time.
    pub value: Subscription,
    /// Where it starts, if it is created now.
    pub start: Start,
}

impl std::fmt::Debug for Desired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect::<Vec<_>>();
        f.debug_struct("Desired")
            .field("sources", &names(&mut self.sources.iter().map(|source| &source.name)))
            .field("subscriptions", &names(&mut self.subscriptions.iter().map(|wanted| &wanted.value.name)))
            .finish()
    }
}

impl std::fmt::Debug for DesiredSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DesiredSubscription({} from {:?})", self.value.name, self.start)
    }
}

/// The changes, in the order in which they are to be made; none when everything is as it should be. With `prune`
/// sources and subscriptions that are not desired are deleted.
///
/// # Errors
///
/// [`Refusal::Invalid`]: of an entry that breaks a rule or is wanted twice.
pub fn plan(snapshot: &Snapshot, desired: &Desired, prune: bool) -> Result<Vec<Change>, Refusal> {
    let sources = names(desired.sources.iter())?;
    let subscriptions = names(desired.subscriptions.iter().map(|wanted| &wanted.value))?;
    let mut changes = Vec::new();
    for wanted in &desired.subscriptions {
        if snapshot.subscriptions.contains_key(&wanted.value.name) {
            changes.extend(change::update(snapshot, wanted.value.clone(), 0)?);
        } else {
            changes.push(change::create_subscription(snapshot, wanted.value.clone(), wanted.start)?);
        }
    }
    for wanted in &desired.sources {
        if snapshot.sources.contains_key(&wanted.name) {
            changes.extend(change::update(snapshot, wanted.clone(), 0)?);
        } else {
            changes.push(change::create(snapshot, wanted.clone())?);
        }
    }
    if prune {
        let unwanted = snapshot.sources.keys().filter(|name| !sources.contains(name.as_str()));
        changes
            .extend(unwanted.map(|name| change::delete::<Source>(snapshot, name, 0)).collect::<Result<Vec<_>, _>>()?);
        let unwanted = snapshot.subscriptions.keys().filter(|name| !subscriptions.contains(name.as_str()));
        let unwanted = unwanted.map(|name| change::delete::<Subscription>(snapshot, name, 0));
        changes.extend(unwanted.collect::<Result<Vec<_>, _>>()?);
    }
    Ok(changes)
}

fn names<'a, T: Entry + 'a>(entries: impl Iterator<Item = &'a T>) -> Result<BTreeSet<&'a str>, Refusal> {
    let mut names = BTreeSet::new();
    for entry in entries {
        if !names.insert(entry.id()) {
            let (name, problem) = (entry.id().to_owned(), "it is there twice".to_owned());
            return Err(Refusal::Invalid { kind: T::KIND, name, problem });
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;

//! Chains: events that are accepted in their sender's order and without a gap.
//!
//! A sender of ordered events sends the second before the first is answered. If the first is then refused, the second
//! must not be accepted alone: the first, sent again, would follow it. A chain is shared by such events; each member
//! holds a [`ChainPosition`].
//!
//! Invariant: what is accepted of a chain is a prefix of it, apart from refused members that do not break it. Three
//! rules keep it, all in the task that decides for a shard:
//!
//! - members come in order, and returning one to the queue returns the later ones after it;
//! - a refused or dropped member breaks the chain, and later members are not appended
//!   ([`decide`](super::decide::decide));
//! - of what is appended together a prefix is stored.
//!
//! It holds within one shard. Across shards, the submitter waits until all earlier events are accepted.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{Receipt, SubmitError};

/// State shared by the members of a chain. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    broken: Arc<AtomicBool>,
    reuse: Reuse,
}

/// Effect of a member whose id was used before with another body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// It is refused and breaks the chain.
    Breaks,
    /// It is refused, and the chain continues without it.
    LeftOut,
}

/// The position of a member. If it is dropped before it is [settled](ChainPosition::settle), the chain breaks.
#[derive(Debug)]
pub(crate) struct ChainPosition {
    chain: Chain,
    settled: bool,
}

/// State of the chain of a submission.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChainedSubmission {
    pub key: ChainKey,
    /// An earlier member was refused or dropped.
    pub broken: bool,
    /// True if a reused id breaks the chain.
    pub reuse_breaks: bool,
}

/// Identity of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ChainKey(*const AtomicBool);

impl Chain {
    pub fn new(reuse: Reuse) -> Self {
        Self { broken: Arc::default(), reuse }
    }

    /// The position of the next member.
    pub fn link(&self) -> ChainPosition {
        ChainPosition { chain: self.clone(), settled: false }
    }

    /// Breaks the chain: nothing more of it is appended.
    pub fn cut(&self) {
        self.broken.store(true, Ordering::Release);
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Equal for all members, while any of them exists.
    pub fn key(&self) -> ChainKey {
        ChainKey(Arc::as_ptr(&self.broken))
    }

    /// The current state.
    pub fn linked(&self) -> ChainedSubmission {
        ChainedSubmission { key: self.key(), broken: self.is_broken(), reuse_breaks: self.reuse == Reuse::Breaks }
    }
}

impl ChainPosition {
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Records the answer of the member: the chain continues, or breaks.
    pub fn settle(mut self, answer: &Result<Receipt, SubmitError>) {
        self.settled = match answer {
            Ok(_) => true,
            Err(SubmitError::IdReused) => self.chain.reuse == Reuse::LeftOut,
            Err(_) => false,
        };
    }
}

impl Drop for ChainPosition {
    fn drop(&mut self) {
        if !self.settled {
            self.chain.cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_or_forgotten_member_breaks_its_chain_only() {
        let other = Chain::new(Reuse::Breaks);
        for (reuse, answer, breaks) in [
            (Reuse::Breaks, Some(SubmitError::IdReused), true),
            (Reuse::LeftOut, Some(SubmitError::IdReused), false),
            (Reuse::LeftOut, Some(SubmitError::Full), true),
            (Reuse::LeftOut, None, true),
        ] {
            let chain = Chain::new(reuse);
            let (first, second) = (chain.link(), chain.link());
            assert_eq!(first.chain().key(), second.chain().key());
            assert_ne!(first.chain().key(), other.key());
            match &answer {
                Some(error) => first.settle(&Err(error.clone())),
                None => drop(first),
            }
            assert_eq!(second.chain().is_broken(), breaks, "{reuse:?} {answer:?}");
        }
        assert!(!other.is_broken());
    }
}

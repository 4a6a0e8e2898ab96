//! Events that stand in the log in their sender's order and without a hole, or not at all.
//!
//! Whoever sends events in order has sent the second before the first is answered. If then the first is refused, the
//! second must not be accepted alone: sent again, the first would stand behind it. A chain is what such events have in
//! common; a link is what each of them holds of it.
//!
//! Invariant: whatever of a chain is accepted is a beginning of it, without those that were refused and do not break it.
//! Three things keep it, all within the one task that decides for a shard:
//!
//! - the members come in order, and whatever sends one of them back sends those behind it back behind it;
//! - a member that is refused, or forgotten, breaks the chain, and whatever is behind it is not appended any more
//!   ([`decide`](super::decide::decide));
//! - of what is appended together a beginning is stored.
//!
//! It holds within one shard. Over several, whoever submits waits until everything before has been accepted.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{Receipt, SubmitError};

/// What the members of a chain have in common. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    broken: Arc<AtomicBool>,
    reuse: Reuse,
}

/// What a member does whose id was used before with another body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// It is refused and breaks the chain.
    Breaks,
    /// It is refused, and the chain goes on without it.
    LeftOut,
}

/// A member's part of its chain: dropped before it is [settled](ChainPosition::settle), it breaks the chain.
#[derive(Debug)]
pub(crate) struct ChainPosition {
    chain: Chain,
    settled: bool,
}

/// A chain as a member sees it that wants a number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChainedSubmission {
    pub key: ChainKey,
    /// A member before it was refused or forgotten.
    pub broken: bool,
    /// Whether it breaks the chain if its id was used before with another body.
    pub reuse_breaks: bool,
}

/// Tells chains apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ChainKey(*const AtomicBool);

impl Chain {
    pub fn new(reuse: Reuse) -> Self {
        Self { broken: Arc::default(), reuse }
    }

    /// The next member's part.
    pub fn link(&self) -> ChainPosition {
        ChainPosition { chain: self.clone(), settled: false }
    }

    /// Nothing more of it is to be appended.
    pub fn cut(&self) {
        self.broken.store(true, Ordering::Release);
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The same for all members, while any of them lives.
    pub fn key(&self) -> ChainKey {
        ChainKey(Arc::as_ptr(&self.broken))
    }

    /// As it is at this moment.
    pub fn linked(&self) -> ChainedSubmission {
        ChainedSubmission { key: self.key(), broken: self.is_broken(), reuse_breaks: self.reuse == Reuse::Breaks }
    }
}

impl ChainPosition {
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The member has its answer: the chain goes on behind it, or breaks.
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

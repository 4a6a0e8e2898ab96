//! The known end of the log, and what may be concluded from it. Pure.
//!
//! Two kinds of answers speak of the log's end. The *state* of a stream's Raft leader is what it has applied: it can be read, and it stays. The
//! number in a *refused append* is on a replicated log only what was proposed: it cannot be read yet, and it vanishes with
//! its leader. So the sequence of a refused append is only a hint to read further, for a while. In particular, what cannot be
//! read up to there has not been removed.

use weft_nats::streams::Presence;
use weft_proto::ids::StreamSeq;

/// The log's end, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct LogEnd {
    /// A leader has applied everything up to here.
    applied: StreamSeq,
    /// A refused append named this end; 0 when there is none to read on to.
    proposed: StreamSeq,
}

impl LogEnd {
    /// Of a log that is known to reach to `applied`.
    pub fn new(applied: StreamSeq) -> Self {
        Self { applied, proposed: StreamSeq(0) }
    }

    /// The end up to which messages must be read before a decision.
    pub fn wanted(&self) -> StreamSeq {
        self.applied.max(self.proposed)
    }

    /// A leader has applied everything up to `last`.
    pub fn reports(&mut self, last: StreamSeq) {
        self.applied = self.applied.max(last);
    }

    /// An append was refused, since the log reaches or may come to reach to `last`.
    pub fn refuses(&mut self, last: StreamSeq) {
        self.proposed = last;
    }

    /// A leader was asked for messages after `after`, where `read` is what has been read by now, up to `through`. Returns
    /// the sequence up to which there is nothing to read.
    pub fn concludes(
        &mut self,
        read: StreamSeq,
        after: StreamSeq,
        through: StreamSeq,
        presence: Presence,
    ) -> Option<StreamSeq> {
        match presence {
            Presence::Absent if after == read => Some(through),
            // It has been read meanwhile, or the reader brings it.
            Presence::Absent | Presence::Present => None,
            // The proposal is pending or has vanished; the next append shows.
            Presence::Unreached => {
                self.proposed = StreamSeq(0);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_is_read_on_to_and_never_concluded_from() {
        let mut end = LogEnd::new(StreamSeq(4));
        end.refuses(StreamSeq(6));
        assert_eq!(end.wanted(), StreamSeq(6));
        let (read, through) = (StreamSeq(4), StreamSeq(6));
        assert_eq!(end.concludes(read, read, through, Presence::Unreached), None);
        assert_eq!(end.wanted(), StreamSeq(4), "it may have vanished");
        end.reports(StreamSeq(6));
        end.reports(StreamSeq(5));
        assert_eq!(end.wanted(), StreamSeq(6), "a leader that lags takes nothing back");
        assert_eq!(end.concludes(read, read, through, Presence::Present), None);
        assert_eq!(end.concludes(StreamSeq(5), read, through, Presence::Absent), None, "it was read meanwhile");
        assert_eq!(end.concludes(read, read, through, Presence::Absent), Some(through));
    }
}

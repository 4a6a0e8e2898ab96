//! The distance between the answer to a query and the end of the log.

use jiff::Timestamp;
use weft_proto::ids::StreamSeq;

/// Lag of a history at the time of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsOf {
    /// It had read everything that the log held at the time of the query.
    Current,
    /// It had not, or had read messages that the log does not hold: a stream was restored or lost its tail, or its leader
    /// lags.
    Behind {
        /// Number of messages that only one of the two has.
        messages: u64,
        /// Storage time of the last message read, of the stream that lags most. `None`: no message of
        /// that stream has been read, or more than it holds.
        time: Option<Timestamp>,
    },
}

impl AsOf {
    /// From the ends of streams and the positions up to which they have been read.
    pub(super) fn of(ends: &[(usize, StreamSeq)], positions: &[StreamSeq], stored_at: &[Option<Timestamp>]) -> Self {
        let left = |index: usize, end: StreamSeq| end.0.saturating_sub(positions.get(index).map_or(0, |read| read.0));
        let lagging: Vec<usize> =
            ends.iter().filter(|(index, end)| left(*index, *end) > 0).map(|(index, _)| *index).collect();
        if lagging.is_empty() {
            return Self::Current;
        }
        // `None` is less than any time.
        let time = lagging.iter().map(|index| stored_at.get(*index).copied().flatten()).min().flatten();
        Self::Behind { messages: ends.iter().map(|(index, end)| left(*index, *end)).sum(), time }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_that_lags_most_says_how_far_an_answer_is() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let ends = [(0, StreamSeq(10)), (2, StreamSeq(5))];
        let positions = [10, 0, 5].map(StreamSeq);
        assert_eq!(AsOf::of(&ends, &positions, &[at(9), None, at(3)]), AsOf::Current);
        let positions = [7, 0, 4].map(StreamSeq);
        let behind = |time| AsOf::Behind { messages: 4, time };
        assert_eq!(AsOf::of(&ends, &positions, &[at(9), None, at(3)]), behind(at(3)));
        assert_eq!(AsOf::of(&ends, &positions, &[at(9), None, None]), behind(None), "nothing of it has been read");
        let positions = [7, 0, 5].map(StreamSeq);
        assert_eq!(AsOf::of(&ends, &positions, &[at(9), None, at(3)]), AsOf::Behind { messages: 3, time: at(9) });
    }
}

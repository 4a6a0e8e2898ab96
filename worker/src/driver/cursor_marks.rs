//! The messages at the cursors of commits, which identify the stream.

use std::collections::VecDeque;

use weft_nats::{
    message::Stored,
    position::{Mark, Position},
};
use weft_proto::{ids::StreamSeq, internal};

/// The messages of one stream that a commit's cursor may point to.
///
/// The cursor of a commit is the newest message when it is sealed. So one message is kept for each sealed commit, whose number
/// the driver bounds, and the newest one.
#[derive(Debug)]
pub(super) struct CursorMarks {
    /// The position of the newest commit.
    committed: Position,
    newest: (StreamSeq, Option<Mark>),
    sealed: VecDeque<(StreamSeq, Option<Mark>)>,
}

impl CursorMarks {
    /// Starts at the position of the ledger, which has been compared with the stream.
    pub fn new(committed: Position) -> Self {
        let newest = (committed.cursor, committed.mark);
        Self { committed, newest, sealed: VecDeque::new() }
    }

    /// The position of the newest commit.
    pub fn committed(&self) -> &Position {
        &self.committed
    }

    /// A message is about to be passed to the lanes.
    pub fn read(&mut self, message: &Stored) {
        self.newest = (message.seq, Some(Mark::of(message)));
    }

    /// The stream has dropped everything up to here.
    pub fn dropped(&mut self, through: StreamSeq) {
        self.newest = (through, None);
    }

    /// A commit was sealed at the newest message.
    pub fn seal(&mut self) {
        if self.sealed.back().is_none_or(|(seq, _)| *seq < self.newest.0) {
            self.sealed.push_back(self.newest);
        }
    }

    /// The position of a commit with this cursor. Cursors never go back.
    pub fn commit(&mut self, cursor: u64) -> internal::LogPosition {
        let cursor = StreamSeq(cursor);
        if cursor != self.committed.cursor {
            while self.sealed.front().is_some_and(|(seq, _)| *seq < cursor) {
                self.sealed.pop_front();
            }
            let known = self.sealed.front().copied().into_iter().chain([self.newest]);
            let mark = known.filter(|(seq, _)| *seq == cursor).find_map(|(_, mark)| mark);
            self.committed = Position { cursor, mark, ..self.committed.clone() };
        }
        internal::LogPosition::from(&self.committed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use weft_nats::async_nats::HeaderMap;

    use super::*;

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(nanos)).unwrap()
    }

    fn message(seq: u64) -> Stored {
        let (headers, payload) = (HeaderMap::new(), Bytes::new());
        Stored { seq: StreamSeq(seq), stored_at: at(seq * 10), subject: "events.a".into(), headers, payload }
    }

    #[test]
    fn a_commit_carries_the_message_at_its_cursor() {
        let mut marks = CursorMarks::new(Position::start(at(7)));
        let commit = |marks: &mut CursorMarks, cursor| {
            let position = marks.commit(cursor);
            (position.created_ns, position.sequence, position.stored_at_ns)
        };
        assert_eq!(commit(&mut marks, 0), (7, 0, None));
        for seq in 1..=5 {
            marks.read(&message(seq));
            if [2, 3].contains(&seq) {
                marks.seal();
            }
        }
        assert_eq!(commit(&mut marks, 2), (7, 2, Some(20)), "a commit that was sealed before more was read");
        assert_eq!(commit(&mut marks, 3), (7, 3, Some(30)));
        assert_eq!(commit(&mut marks, 3), (7, 3, Some(30)), "a commit that moves nothing");
        assert_eq!(commit(&mut marks, 5), (7, 5, Some(50)));
        marks.dropped(StreamSeq(9));
        assert_eq!(commit(&mut marks, 9), (7, 9, None), "no message stands there");
    }
}

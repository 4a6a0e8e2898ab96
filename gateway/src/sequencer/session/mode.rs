//! The source from which a session learns the state of the log.

use tokio::sync::watch;
use weft_nats::reader::{Batch, OrderedReader, ReadError};

use super::settled;
use crate::sequencer::probe::{TimestampAnswer, TimestampProbe};

/// The source of what is known of the log.
pub(super) enum Mode {
    /// A reader delivers messages; `losses` counts the consumers that it has lost.
    Reading { reader: OrderedReader, losses: watch::Receiver<u64> },
    /// Acks and notices say what is stored; a question under way asks for its time.
    Confirming(Option<TimestampProbe>),
}

/// The events of a [`Mode`].
pub(super) enum ModeEvent {
    Read(Result<Batch, ReadError>),
    /// The reader has lost its consumer.
    Detached,
    Confirmed(Option<TimestampAnswer>),
}

impl Mode {
    pub fn reading(reader: OrderedReader) -> Self {
        Self::Reading { losses: reader.losses(), reader }
    }

    pub fn is_reading(&self) -> bool {
        matches!(self, Self::Reading { .. })
    }

    /// True if the time of a message may be asked for.
    pub fn may_confirm(&self) -> bool {
        matches!(self, Self::Confirming(None))
    }

    /// The next event; messages only if there is `room` for them. Safe to cancel.
    pub async fn next(&mut self, room: bool) -> ModeEvent {
        match self {
            Self::Reading { reader, losses } => tokio::select! {
                batch = reader.next(), if room => ModeEvent::Read(batch),
                () = detached(losses) => ModeEvent::Detached,
            },
            Self::Confirming(probe) => ModeEvent::Confirmed(settled(probe).await),
        }
    }
}

/// Waits until the reader loses its consumer. Safe to cancel.
async fn detached(losses: &mut watch::Receiver<u64>) {
    // An error means that the reader's task has ended, with the runtime.
    if losses.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

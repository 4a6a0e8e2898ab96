//! Identifiers and positions. Each is its own type, so that an event id never stands where a subscription's uid belongs
//! and a stream sequence never where a workflow's number does.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

/// The name space of event ids made from delivery ids (UUID version 5).
const EVENT_ID_NAMESPACE: Uuid = Uuid::from_u128(0x7e5496a8_ed57_55d9_8282_6c44b8daa238);

/// The longest workflow id, in bytes before percent-encoding.
pub const WORKFLOW_ID_BYTES_MAX: usize = 128;

/// The longest delivery id, in bytes.
pub const DELIVERY_ID_BYTES_MAX: usize = 256;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The 16 bytes, most significant first.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// From 16 bytes, most significant first.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// From a field of a log record; `None` unless it holds 16 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Uuid::from_slice(bytes).ok().map(Self)
            }

            /// The bytes as a field of a log record.
            pub fn to_vec(self) -> Vec<u8> {
                self.0.as_bytes().to_vec()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId::NotUuid)
            }
        }
    };
}

uuid_id! {
    /// Identifies an event. The same delivery always has the same event id.
    EventId
}

uuid_id! {
    /// Identifies a subscription for ever: a subscription that is deleted and made again under the same name has another.
    SubscriptionUid
}

impl EventId {
    /// The id of the event that a sender's delivery stands for: UUIDv5 of `source + "\0" + delivery_id`.
    pub fn of_delivery(source: &str, delivery_id: &str) -> Self {
        let mut name = Vec::with_capacity(source.len() + 1 + delivery_id.len());
        name.extend_from_slice(source.as_bytes());
        name.push(0);
        name.extend_from_slice(delivery_id.as_bytes());
        Self(Uuid::new_v5(&EVENT_ID_NAMESPACE, &name))
    }

    /// A new id, for an event without a delivery id (UUIDv7).
    pub fn unique() -> Self {
        Self(Uuid::now_v7())
    }
}

impl SubscriptionUid {
    /// A new uid (UUIDv7).
    pub fn unique() -> Self {
        Self(Uuid::now_v7())
    }
}

/// Names a workflow: 1 to [`WORKFLOW_ID_BYTES_MAX`] bytes of UTF-8 without control characters.
///
/// Cheap to clone: lanes, queues and timers all name it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkflowId(Arc<str>);

impl WorkflowId {
    /// # Errors
    ///
    /// [`InvalidId`] when it is empty, too long, or holds a control character.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, InvalidId> {
        let text = text.into();
        if text.is_empty() {
            return Err(InvalidId::Empty);
        }
        if text.len() > WORKFLOW_ID_BYTES_MAX {
            return Err(InvalidId::TooLong { max: WORKFLOW_ID_BYTES_MAX });
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidId::ControlCharacter);
        }
        Ok(Self(text))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for WorkflowId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for WorkflowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkflowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// It holds a character that cannot be seen.
    #[error("holds an invisible character, such as a mark of text direction or a zero-width space")]
    Invisible,
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// More bytes than allowed.
    #[error("is longer than {max} bytes")]
    TooLong {
        /// The most bytes allowed.
        max: usize,
    },
    /// A control character, such as a line end or NUL.
    #[error("holds a control character")]
    ControlCharacter,
    /// Not in the form of a UUID.
    #[error("is not a UUID")]
    NotUuid,
}

macro_rules! position {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

position! {
    /// A message's place in its stream, from 1. 0 stands before the first: an empty stream's end.
    StreamSeq
}

position! {
    /// An event's number within its workflow, contiguous from 1.
    SequenceNumber
}

position! {
    /// Which delivery of an event to a subscription: 0 is the live one, else the COMMANDS sequence that asked for it.
    Run
}

impl Run {
    /// The delivery that the event's arrival asked for.
    pub const LIVE: Self = Self(0);
}

/// One log of the mesh: a pair of EVENTS and OUTCOMES streams. From 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_id_of_a_delivery_is_the_contracts_vector() {
        let id = EventId::of_delivery("shop", "evt_1");
        assert_eq!(id.to_string(), "adc8ac26-5f51-590c-a093-d32f0b5c22c7");
    }

    #[test]
    fn workflow_ids_have_bounds() {
        assert_eq!(WorkflowId::new(""), Err(InvalidId::Empty));
        assert!(WorkflowId::new("x".repeat(128)).is_ok());
        assert_eq!(WorkflowId::new("x".repeat(129)), Err(InvalidId::TooLong { max: 128 }));
        assert_eq!(WorkflowId::new("a\nb"), Err(InvalidId::ControlCharacter));
        assert!(WorkflowId::new("a.b *>é").is_ok());
    }
}

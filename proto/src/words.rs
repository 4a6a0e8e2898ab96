//! The words of statuses, states, reasons, outcomes and kinds: what the command prints and takes, and what errors and metrics say.

use crate::v1::{
    AttemptClass, AuditResult, AuditTargetKind, CatalogAction, CatalogKind, DeadLetterOperationKind, DeadLetterReason,
    DeadLetterStatus, DeliveryStatus, EventStatus, LaneState, ReceiverCondition, RedriveStatus, ReplayState,
    ShardState, SubscriptionCondition,
};

/// An enumeration whose values have words: the value's name in the proto in lower case, without that of its enumeration.
pub trait Word: Copy + Eq + TryFrom<i32> + 'static {
    /// Every value but UNSPECIFIED, in the order of the proto.
    const ALL: &'static [Self];

    /// The word; empty for UNSPECIFIED.
    fn word(self) -> &'static str;

    /// The value with this word.
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.word() == word)
    }

    /// Every word.
    fn words() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|value| value.word())
    }
}

/// The word of a message's field; `unknown` for a value that only newer versions have.
pub fn word<W: Word>(field: i32) -> &'static str {
    W::try_from(field).map_or("unknown", W::word)
}

/// The values of a repeated field; `None` where one is UNSPECIFIED or of a newer version.
pub fn values<W: Word>(field: &[i32]) -> Option<Vec<W>> {
    field.iter().map(|number| W::try_from(*number).ok().filter(|value| !value.word().is_empty())).collect()
}

macro_rules! words {
    ($($enumeration:ident { $($value:ident = $word:literal),* $(,)? })*) => {$(
        impl Word for $enumeration {
            const ALL: &'static [Self] = &[$(Self::$value),*];

            fn word(self) -> &'static str {
                match self {
                    Self::Unspecified => "",
                    $(Self::$value => $word,)*
                }
            }
        }
    )*};
}

words! {
    DeliveryStatus {
        Delivered = "delivered",
        Resolved = "resolved",
        Discarded = "discarded",
        Pending = "pending",
        Delivering = "delivering",
        Paused = "paused",
        Retrying = "retrying",
        DeadLettered = "dead_lettered",
        Blocked = "blocked",
    }
    EventStatus {
        Delivered = "delivered",
        Resolved = "resolved",
        Discarded = "discarded",
        Pending = "pending",
        Delivering = "delivering",
        Paused = "paused",
        Retrying = "retrying",
        DeadLettered = "dead_lettered",
        Blocked = "blocked",
        Unrouted = "unrouted",
        Erased = "erased",
    }
    DeadLetterStatus {
        Open = "open",
        Redriving = "redriving",
        Redriven = "redriven",
        Resolved = "resolved",
        Discarded = "discarded",
        Expired = "expired",
    }
    DeadLetterOperationKind { Redrive = "redrive", Resolve = "resolve", Discard = "discard" }
    DeadLetterReason {
        Exhausted = "exhausted",
        Permanent = "permanent",
        TransformFailed = "transform_failed",
        SchemaInvalid = "schema_invalid",
        Skipped = "skipped",
        Expired = "expired",
    }
    RedriveStatus {
        Redriving = "redriving",
        Redriven = "redriven",
        Open = "open",
        NotApplicable = "not_applicable",
        Waiting = "waiting",
        Discarded = "discarded",
        Resolved = "resolved",
        Expired = "expired",
        Cancelled = "cancelled",
    }
    AttemptClass {
        Delivered = "delivered",
        HttpStatus = "http_status",
        Timeout = "timeout",
        Connect = "connect",
        Dns = "dns",
        Tls = "tls",
        RefusedAddress = "refused_address",
        Protocol = "protocol",
        Expression = "expression",
        GrpcStatus = "grpc_status",
        Sql = "sql",
    }
    ReceiverCondition { Available = "available", Away = "away", Held = "held", Paused = "paused" }
    LaneState {
        Open = "open",
        Waiting = "waiting",
        Blocked = "blocked",
        Paused = "paused",
        Away = "away",
        Held = "held",
    }
    ReplayState { Running = "running", Paused = "paused", Cancelled = "cancelled", Done = "done" }
    ShardState { New = "new", Consistent = "consistent", Stopped = "stopped" }
    CatalogKind { Source = "source", Subscription = "subscription", ApiKey = "api_key" }
    CatalogAction {
        Created = "created",
        Adopted = "adopted",
        Updated = "updated",
        Deleted = "deleted",
        Paused = "paused",
        Resumed = "resumed",
    }
    SubscriptionCondition {
        Active = "active",
        Paused = "paused",
        Away = "away",
        Held = "held",
        Orphaned = "orphaned",
        Deleted = "deleted",
    }
    AuditResult { Done = "done", Pending = "pending", NotApplicable = "not_applicable", Failed = "failed" }
    AuditTargetKind {
        Source = "source",
        Subscription = "subscription",
        ApiKey = "api_key",
        Lane = "lane",
        DeadLetter = "dead_letter",
        Delivery = "delivery",
        Replay = "replay",
        Rejected = "rejected",
        Shard = "shard",
        Event = "event",
        DeadLetterOperation = "dead_letter_operation",
    }
}

impl From<DeliveryStatus> for EventStatus {
    /// The status of an event whose worst delivery has this one.
    fn from(worst: DeliveryStatus) -> Self {
        // The proto gives them the same numbers.
        Self::try_from(i32::from(worst)).unwrap_or_default()
    }
}

impl From<DeadLetterStatus> for RedriveStatus {
    /// The status of a dead letter that a dry run selects.
    fn from(status: DeadLetterStatus) -> Self {
        match status {
            DeadLetterStatus::Unspecified => Self::Unspecified,
            DeadLetterStatus::Open => Self::Open,
            DeadLetterStatus::Redriving => Self::Redriving,
            DeadLetterStatus::Redriven => Self::Redriven,
            DeadLetterStatus::Resolved => Self::Resolved,
            DeadLetterStatus::Discarded => Self::Discarded,
            DeadLetterStatus::Expired => Self::Expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of one enumeration: those of the proto's names, each back to its value, and no value without.
    fn check<W: Word + std::fmt::Debug + Into<i32>>(name_of: fn(&W) -> &'static str, unspecified: W) {
        let prefix = name_of(&unspecified).strip_suffix("UNSPECIFIED").unwrap();
        assert_eq!(unspecified.word(), "");
        for (number, value) in (1..).zip(W::ALL) {
            assert_eq!((*value).into(), number, "{value:?}: no value is left out");
            assert_eq!(name_of(value).strip_prefix(prefix).unwrap().to_lowercase(), value.word());
            assert_eq!(W::from_word(value.word()), Some(*value));
        }
        assert_eq!(word::<W>(i32::MAX), "unknown");
        assert_eq!(W::from_word(""), None);
    }

    /// The command takes and prints the names of the protos.
    #[test]
    fn words_are_those_of_the_protos() {
        check(DeliveryStatus::as_str_name, DeliveryStatus::Unspecified);
        check(EventStatus::as_str_name, EventStatus::Unspecified);
        check(DeadLetterStatus::as_str_name, DeadLetterStatus::Unspecified);
        check(DeadLetterOperationKind::as_str_name, DeadLetterOperationKind::Unspecified);
        check(DeadLetterReason::as_str_name, DeadLetterReason::Unspecified);
        check(RedriveStatus::as_str_name, RedriveStatus::Unspecified);
        check(AttemptClass::as_str_name, AttemptClass::Unspecified);
        check(ReceiverCondition::as_str_name, ReceiverCondition::Unspecified);
        check(LaneState::as_str_name, LaneState::Unspecified);
        check(ReplayState::as_str_name, ReplayState::Unspecified);
        check(ShardState::as_str_name, ShardState::Unspecified);
        check(CatalogKind::as_str_name, CatalogKind::Unspecified);
        check(CatalogAction::as_str_name, CatalogAction::Unspecified);
        check(SubscriptionCondition::as_str_name, SubscriptionCondition::Unspecified);
        check(AuditResult::as_str_name, AuditResult::Unspecified);
        check(AuditTargetKind::as_str_name, AuditTargetKind::Unspecified);
    }

    #[test]
    fn an_events_status_is_that_of_its_worst_delivery() {
        for status in DeliveryStatus::ALL {
            assert_eq!(EventStatus::from(*status).word(), status.word());
        }
        for status in DeadLetterStatus::ALL {
            assert_eq!(RedriveStatus::from(*status).word(), status.word());
        }
    }
}

//! Sources, subscriptions and API keys: prost messages in the KV bucket `weft_catalog`, under `source.<name>`,
//! `subscription.<name>` and `key.<id>`, sealed (`seal`) with the master key, changed by revision and watched by every role.
//!
//! - `reading`: the bucket's messages applied in order; `snapshot`: the entries at a revision. `matcher`: matches events
//!   against a subscription's current filter; `filters`: against the filter that was in force when an event was read.
//! - [`change`] and `plan`: a requested change, and its effects on a snapshot; [`mod@diff`], [`fields`], [`entry`]: changes and
//!   entries as text, without secrets. Pure.
//! - [`keys`]: generates API keys, and decides what the caller that sends one may do.
//! - [`requests`]: requests of other roles to an admin.
//! - [`edit`]: makes changes, stamped (`stamp`) and recorded; `start`: where a new subscription begins.

mod apply;
mod bucket;
mod catalog;
pub mod change;
mod defaults;
pub mod delivery_headers;
pub mod delivery_url;
pub mod diff;
pub mod edit;
pub mod entry;
mod expression;
pub mod fields;
mod filters;
pub mod keys;
mod matcher;
pub mod nats_url;
mod orphan;
mod plan;
mod reading;
mod request_changes;
pub mod requests;
mod seal;
mod snapshot;
mod stamp;
mod start;
pub mod statuses;
pub mod subject_template;
mod validate;

pub use catalog::{Catalog, CatalogError, Resealed};
pub use defaults::{default_retry, is_ordered};
pub use expression::{FilterExpression, Verdict, input_of};
pub use filters::{Filters, Match, apply_change, cut_off, is_covered};
pub use matcher::{Matcher, Mismatch, explain};
pub use orphan::{Orphan, orphans};
pub use plan::{Desired, DesiredSubscription, plan};
pub use seal::MasterKey;
pub use snapshot::{Author, Removal, Revised, Snapshot};
pub use stamp::Stamp;
pub use start::{Locate, LocateError, Start};
pub use validate::{source_warnings, validate_key, validate_source, validate_subscription};

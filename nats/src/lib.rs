//! The log: how events and decisions lie in NATS JetStream, and how they are appended and read.
//!
//! - [`subject`]: names of streams and subjects, the escaping of workflow ids, the shard of a workflow.
//! - [`event`]: an event as a NATS message (CloudEvents NATS binding, binary mode) and back.
//! - [`envelope`]: an event as JSON.
//! - [`error_chain`]: an error and its causes, in one line.
//! - [`clock`]: the server's clock, estimated from its answers.
//! - [`conditions`]: conditions that an operator should fix, shown with a process's readiness.
//! - [`connect`]: one connection, whose state can be asked.
//! - [`streams`]: the streams and buckets: created and changed by admins, checked by all roles.
//! - [`append`]: compare-and-append, the only way into EVENTS and OUTCOMES.
//! - [`folder_lock`]: one process at a time in a data folder.
//! - [`private_file`]: files with secrets, readable by their owner alone.
//! - [`records`]: what the log holds besides events, and how it is distinguished from them.
//! - [`pattern`]: patterns of event types.
//! - [`position`]: a place in a stream, with proof that it is still that stream.
//! - [`reader`]: a stream in order from a sequence on, without end, through restarts of the server.
//! - [`direct`]: a few messages by sequence, without a consumer.
//! - [`rfc3339`]: times as people and senders write them.
//! - [`cursor`] and [`scan`]: a reader's place in the whole log as opaque text, and the page of events after that
//!   place.
//! - [`tags`]: proof that a message sent outside the log comes from a process of the mesh.
//! - [`leases`]: keys that expire.
//! - [`dead_letter`]: the copies of dead letters on DLQ.
//! - [`tail`]: the events behind a cursor and those to come.
//! - [`checkpoints`]: the checkpoints of a shard's owner, found and read.
//! - [`admin_requests`]: requests that an admin carries out for users that may not do so themselves.
//! - [`commands`]: what operators ask for, and the record of what they have changed.
//! - [`options`]: the sections `[nats]`, `[log]`, `[dead_letters]`, `[rejected]`, and the typed durations and sizes of all sections.
//! - [`server`]: nats-server as a supervised child process.
//! - [`user_streams`] and [`user_subjects`]: streams of users, and the subjects of the mesh's server that are theirs.
//!
//! This crate knows nothing of HTTP requests, of redb, of the catalog, or of what gateways, workers and admins decide.

pub mod admin_requests;
mod api_error;
pub mod append;
pub mod backoff;
pub mod checkpoints;
pub mod clock;
pub mod commands;
pub mod conditions;
pub mod connect;
pub mod cursor;
pub mod dead_letter;
pub mod direct;
pub mod entry;
pub mod envelope;
pub mod erasure;
pub mod error_chain;
pub mod event;
pub mod folder_lock;
pub mod headers;
pub mod leases;
pub mod message;
pub mod options;
pub mod pattern;
pub mod position;
pub mod private_file;
pub mod reader;
pub mod records;
pub mod rfc3339;
pub mod scan;
pub mod server;
pub mod streams;
pub mod subject;
pub mod tags;
pub mod tail;
pub mod user_streams;
pub mod user_subjects;
pub mod watch_value;

pub use async_nats;

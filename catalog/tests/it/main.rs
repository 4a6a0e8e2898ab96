//! The catalog, and the rights of each role's user, against a real nats-server.

mod accounts;
mod admin_requests;
mod catalog;
mod users;

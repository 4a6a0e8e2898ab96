//! Projections of a real log.

mod history;
mod receipts;

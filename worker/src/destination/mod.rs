//! destination/mod

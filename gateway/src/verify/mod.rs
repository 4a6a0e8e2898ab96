//! verify/mod

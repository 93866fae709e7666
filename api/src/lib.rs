//! Types, defaults, validation, labels and conditions of every kind that Muster serves.
//!
//! This crate has no tokio and no I/O: the API server, the operator and the launcher share its rules.

pub mod clock;
pub mod field;
pub mod quantity;
pub mod random;

//! Types, defaults, validation, labels and conditions of every kind that Muster serves.
//!
//! This crate has no tokio and no I/O: the API server, the operator and the launcher share its rules.

pub mod admission;
pub mod clock;
pub mod field;
pub mod names;
pub mod quantity;
pub mod quota;
pub mod random;
pub mod training;

/// The CustomResourceDefinitions that the API server installs at start.
pub fn crds() -> Vec<serde_json::Value> {
    training::crd::definitions()
}

//! A Kubernetes-compatible API server over a durable store.

pub mod builtin;
pub mod error;
pub mod patch;
pub mod schema;

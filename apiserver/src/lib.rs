//! A Kubernetes-compatible API server over a durable store.

pub mod auth;
pub mod builtin;
pub mod crd;
pub mod error;
pub mod openapi;
pub mod patch;
pub mod schema;
pub mod selector;
pub mod store;
pub mod tls;

mod codec;
mod diff;
mod discovery;
mod handlers;
mod negotiate;
mod options;
mod protobuf;
mod registry;
mod request;
mod response;
mod server;
mod table;
mod watch;
mod yaml;

pub use auth::{Identity, Keys};
pub use response::{Body, BoxError, Response};
pub use server::{ApiServer, Backend, NodeService, OpenError, Options, Readiness, Service};

//! Membership of a training job: who takes part, under which rank, since which epoch.
//!
//! [`server`] runs beside the operator; [`client`] is in each worker process. [`quorum`] holds every decision
//! and no I/O, and [`token`] says which job a process may speak for. Gradients never pass here: the members of
//! an epoch talk to each other directly, and go on when the server is away.

pub mod client;
pub mod quorum;
pub mod server;
pub mod token;
mod wire;

pub use token::{JobIdentity, TokenKey, job_of, peer_secret};

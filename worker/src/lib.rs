//! The data-parallel training runtime on libtorch.
//!
//! One process is one rank. Its contract with whoever starts it is its environment ([`mod@env`]), its arguments
//! ([`cli`]) and the rendezvous; it knows nothing of Kubernetes. The path of a step:
//!
//! ```text
//! sampler -> data -> models -> autograd (backward) -> ddp::reduction (collectives) -> optimizer
//! ```
//!
//! [`train`] drives it. When a rank is lost, [`ddp::membership`] waits for the next epoch, the ranks take over the
//! furthest state that one of them holds, and training goes on from there.

pub mod autograd;
pub mod buffers;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod ddp;
pub mod env;
pub mod evaluate;
pub mod metrics;
pub mod models;
pub mod optimizer;
pub mod parameters;
pub mod program;
pub mod sampler;
pub mod train;

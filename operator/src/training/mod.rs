//! The training operator: PyTorchJob, TFJob and MXJob.
//!
//! A pass over a job goes in one direction: [`observe`] reads what there is, [`decide`](mod@decide) makes a [`plan`]
//! of it without any I/O, and the plan is applied. What a job kind is, is data: [`framework`].

pub mod address;
mod apply;
pub mod decide;
pub mod framework;
mod gang;
mod limits;
mod metrics;
pub mod observe;
pub mod plan;
mod pod;
mod progress;
mod replicas;
pub mod run;
mod scaler;
mod state;

pub use address::Addressing;
pub use decide::{Policy, decide};
pub use metrics::Metrics;
pub use run::{Config, Error, JobToken, Rendezvous, run};

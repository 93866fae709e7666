//! Gang scheduler, node and devices: what places pods and what runs them.
//!
//! `gang` decides where whole gangs go; `node` runs the pods of one machine as processes; `devices` knows its GPUs.
//! Both hold a `kube::Client` and nothing else of the API server.

pub mod devices;
pub mod gang;
pub mod node;

mod quantity;
mod watch;

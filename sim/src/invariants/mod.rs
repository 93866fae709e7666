//! What must hold after every transaction, whatever goes wrong, and what must hold once the world is at rest.
//!
//! | invariant | file |
//! |---|---|
//! | a gang starts whole or not at all | `gang_whole` |
//! | no GPU is held twice | `gpu_exclusive` |
//! | a terminal status is final | `terminal_final` |
//! | every owned object has an owner, at rest a live one | `owned_objects` |
//! | one pod per (job, role, index) | `one_pod_per_rank` |
//! | a binding is final | `binding_final` |
//! | at rest a job's status says what is there | `status_true` |
//! | no watch goes back in time | `watch_order` |
//! | healed, everything converges | `convergence` |

mod binding_final;
mod convergence;
mod gang_whole;
mod gpu_exclusive;
mod one_pod_per_rank;
mod owned_objects;
mod status_true;
mod terminal_final;
pub mod watch_order;

use crate::cluster::{Change, Cluster};
use crate::scenario::Scenario;

pub use convergence::{NAME as CONVERGENCE, unsettled};

/// One rule, with what it must remember.
pub trait Invariant {
    fn name(&self) -> &'static str;

    /// Looks at one transaction: what it changed, and the cluster after it.
    fn observe(&mut self, _changes: &[Change], _cluster: &Cluster) -> Result<(), String> {
        Ok(())
    }

    /// Looks at the cluster once nothing goes wrong any more and nothing moves.
    fn at_rest(&mut self, _cluster: &Cluster) -> Result<(), String> {
        Ok(())
    }
}

/// A broken invariant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    pub invariant: &'static str,
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.invariant, self.message)
    }
}

pub fn all(_scenario: &Scenario) -> Vec<Box<dyn Invariant + Send>> {
    vec![
        Box::new(gang_whole::GangWhole::default()),
        Box::new(gpu_exclusive::GpuExclusive),
        Box::new(terminal_final::TerminalFinal),
        Box::new(owned_objects::OwnedObjects::default()),
        Box::new(one_pod_per_rank::OnePodPerRank),
        Box::new(binding_final::BindingFinal),
        Box::new(status_true::StatusTrue),
    ]
}

/// The names of all invariants.
pub const NAMES: [&str; 9] = [
    "gang-whole",
    "gpu-exclusive",
    "terminal-final",
    "owned-objects",
    "one-pod-per-rank",
    "binding-final",
    "status-true",
    watch_order::NAME,
    CONVERGENCE,
];

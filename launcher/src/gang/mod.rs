//! The gang scheduler: places all pods of a gang, or none.

mod problem;
mod reason;
mod solve;

pub use problem::{BoundPod, Gang, GangId, Node, PendingPod, Problem, Resources, Taint, Toleration};
pub use reason::{Closest, Reason, ReasonKey, Refusal, Shortfall};
pub use solve::{Placement, Solution, Start, Waiting, solve};

//! The gang scheduler: places all pods of a gang, or none.
//!
//! `scheduler` watches pods, PodGroups, nodes and priority classes into a `snapshot`; whenever that changes,
//! `solve` (pure) turns it into starts and reasons to wait; `commit` binds each start whole; `report` tells the
//! reasons. It does not preempt, and it keeps nothing on disk: a restarted scheduler decides the same.

mod commit;
mod problem;
mod reason;
mod report;
mod scheduler;
mod snapshot;
mod solve;

pub use problem::{BoundPod, Gang, GangId, Node, PendingPod, Problem, Resources, Taint, Toleration};
pub use reason::{Closest, Reason, ReasonKey, Refusal, Shortfall};
pub use scheduler::{Config, Error, run};
pub use snapshot::POD_GROUP_LABEL;
pub(crate) use snapshot::key_of;
pub use solve::{Placement, Solution, Start, Waiting, solve};

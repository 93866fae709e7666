//! The training kinds of `kubeflow.org/v1`: their types, defaults, conditions and definitions.

pub mod conditions;
pub mod crd;
pub mod defaults;
pub mod kind;
pub mod pod_group;
mod pod_template;
pub mod types;

pub use kind::{JOB_KINDS, JobKind, RoleKind};
pub use types::{
    CleanPodPolicy, Condition, ConditionType, ElasticPolicy, Job, JobStatus, ReplicaSpec, ReplicaStatus, RestartPolicy,
    RunPolicy, SchedulingPolicy,
};

//! What distinguishes one training kind from another, as data.

use super::types::RestartPolicy;

/// One role of a kind, in the spelling that the operator stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleKind {
    pub name: &'static str,
}

/// The static description of one training kind.
#[derive(Debug)]
pub struct JobKind {
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    /// The `framework` label of the metrics.
    pub framework: &'static str,
    /// The field of the spec that holds the roles, e.g. `pytorchReplicaSpecs`.
    pub replica_specs: &'static str,
    /// The roles in the order in which they are looked at.
    pub roles: &'static [RoleKind],
    /// The container that counts: its ports become services, its exit code decides.
    pub container: &'static str,
    pub port_name: &'static str,
    pub port: i32,
    pub restart_policy: RestartPolicy,
    /// The value of the label `training.kubeflow.org/operator-name`.
    pub operator_name: &'static str,
    /// The roles whose key may be written in any case (`worker` for `Worker`).
    pub recased_roles: &'static [&'static str],
    /// The role that the scale subresource changes.
    pub scale_role: Option<&'static str>,
}

pub const GROUP: &str = "kubeflow.org";
pub const VERSION: &str = "v1";
pub const API_VERSION: &str = "kubeflow.org/v1";

const fn role(name: &'static str) -> RoleKind {
    RoleKind { name }
}

pub static PYTORCH_JOB: JobKind = JobKind {
    kind: "PyTorchJob",
    plural: "pytorchjobs",
    singular: "pytorchjob",
    framework: "pytorch",
    replica_specs: "pytorchReplicaSpecs",
    roles: &[role("Master"), role("Worker")],
    container: "pytorch",
    port_name: "pytorchjob-port",
    port: 23456,
    restart_policy: RestartPolicy::OnFailure,
    operator_name: "pytorchjob-controller",
    recased_roles: &["Master", "Worker"],
    scale_role: Some("Worker"),
};

pub static TF_JOB: JobKind = JobKind {
    kind: "TFJob",
    plural: "tfjobs",
    singular: "tfjob",
    framework: "tensorflow",
    replica_specs: "tfReplicaSpecs",
    roles: &[role("Chief"), role("Evaluator"), role("Master"), role("PS"), role("Worker")],
    container: "tensorflow",
    port_name: "tfjob-port",
    port: 2222,
    restart_policy: RestartPolicy::Never,
    operator_name: "tfjob-controller",
    recased_roles: &["PS", "Worker", "Chief", "Master", "Evaluator"],
    scale_role: None,
};

pub static MX_JOB: JobKind = JobKind {
    kind: "MXJob",
    plural: "mxjobs",
    singular: "mxjob",
    framework: "mxnet",
    replica_specs: "mxReplicaSpecs",
    roles: &[
        role("Scheduler"),
        role("Server"),
        role("Worker"),
        role("TunerTracker"),
        role("TunerServer"),
        role("Tuner"),
    ],
    container: "mxnet",
    port_name: "mxjob-port",
    port: 9091,
    restart_policy: RestartPolicy::Never,
    operator_name: "mxjob-controller",
    recased_roles: &["Scheduler", "Server", "Worker"],
    scale_role: None,
};

/// Every training kind that Muster serves.
pub static JOB_KINDS: [&JobKind; 3] = [&PYTORCH_JOB, &TF_JOB, &MX_JOB];

impl JobKind {
    pub fn by_kind(kind: &str) -> Option<&'static JobKind> {
        JOB_KINDS.into_iter().find(|k| k.kind == kind)
    }

    pub fn by_plural(plural: &str) -> Option<&'static JobKind> {
        JOB_KINDS.into_iter().find(|k| k.plural == plural)
    }

    /// The name of the CustomResourceDefinition, e.g. `pytorchjobs.kubeflow.org`.
    pub fn crd_name(&self) -> String {
        format!("{}.{GROUP}", self.plural)
    }

    /// Where a role comes in the order of the kind; unknown roles come last.
    pub fn role_order(&self, role: &str) -> usize {
        self.roles.iter().position(|r| r.name == role).unwrap_or(self.roles.len())
    }
}

//! The label, annotation and environment names that Muster reads and writes.

/// Labels of the training operator, the same on every pod and service of a job.
pub mod label {
    /// Which controller made the object, e.g. `pytorchjob-controller`.
    pub const OPERATOR_NAME: &str = "training.kubeflow.org/operator-name";
    /// The name of the job.
    pub const JOB_NAME: &str = "training.kubeflow.org/job-name";
    /// The role in lower case, e.g. `worker`.
    pub const REPLICA_TYPE: &str = "training.kubeflow.org/replica-type";
    /// The index within the role, from 0.
    pub const REPLICA_INDEX: &str = "training.kubeflow.org/replica-index";
    /// `master` on the pod that leads the job; on no other pod and on no service.
    pub const JOB_ROLE: &str = "training.kubeflow.org/job-role";
    /// The pod group of a pod, as the scheduler-plugins coscheduling plugin reads it.
    pub const POD_GROUP: &str = "scheduling.x-k8s.io/pod-group";
    /// The value of [`JOB_ROLE`].
    pub const JOB_ROLE_MASTER: &str = "master";
}

/// Annotations.
pub mod annotation {
    /// On a pod template: `true` asks for `MUSTER_RENDEZVOUS` and `MUSTER_JOB_TOKEN` whatever the image is.
    pub const RENDEZVOUS: &str = "muster.dev/rendezvous";
    /// On an MXJob's pod template: the key that TVM's tuner looks for.
    pub const TUNER_SERVER_KEY: &str = "tuner-server-key";
    /// The pod group of a pod, as Volcano reads it.
    pub const VOLCANO_GROUP_NAME: &str = "scheduling.k8s.io/group-name";
    /// The role of a pod within its pod group, as Volcano reads it.
    pub const VOLCANO_TASK_SPEC: &str = "volcano.sh/task-spec";
}

/// Environment variables that Muster adds to those of the training operator.
pub mod env {
    /// `host:port` of the rendezvous service.
    pub const RENDEZVOUS: &str = "MUSTER_RENDEZVOUS";
    /// The job's token for the rendezvous service.
    pub const JOB_TOKEN: &str = "MUSTER_JOB_TOKEN";
}

/// The built-in image of the data-parallel training runtime.
pub const WORKER_IMAGE: &str = "muster-worker";

/// The value of `runPolicy.managedBy` that means this operator.
pub const MANAGED_BY_OPERATOR: &str = "kubeflow.org/training-operator";
/// The value of `runPolicy.managedBy` that hands a job to MultiKueue.
pub const MANAGED_BY_MULTIKUEUE: &str = "kueue.x-k8s.io/multikueue";

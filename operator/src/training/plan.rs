//! What the decider wants done, as data.

use muster_api::training::{JobKind, JobStatus};
pub use muster_events::Severity;
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// The outcome of one decision about one job.
///
/// It is carried out in this order: secrets, then all other creations and updates together with the status, then the
/// deletions. A status that is refused (because the job has changed since) drops the rest, so nothing is deleted on
/// account of a count or an end that is not on record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub creates: Vec<Create>,
    pub updates: Vec<Update>,
    pub deletes: Vec<Delete>,
    /// The new status, where it differs from the stored one.
    pub status: Option<JobStatus>,
    pub events: Vec<Event>,
    pub counts: Vec<Count>,
    /// When to decide again although nothing has happened.
    pub requeue_after: Option<Duration>,
    /// The job's time to live is over.
    pub delete_job: bool,
}

impl Plan {
    /// Nothing is to be changed. Events and the time of the next look do not count.
    pub fn is_settled(&self) -> bool {
        self.creates.is_empty()
            && self.updates.is_empty()
            && self.deletes.is_empty()
            && self.status.is_none()
            && !self.delete_job
    }

    pub(super) fn requeue(&mut self, after: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(after, |earlier| earlier.min(after)));
    }

    pub(super) fn event(&mut self, severity: Severity, reason: Reason, message: impl Into<String>) {
        self.events.push(Event { severity, reason, message: message.into() });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    Secret,
    PodGroup,
    VolcanoPodGroup,
    HorizontalPodAutoscaler,
    Service,
    Pod,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Create {
    pub resource: Resource,
    pub name: String,
    pub object: Value,
}

/// A merge patch of an object that the job owns, valid for one version of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub resource: Resource,
    pub name: String,
    pub patch: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    pub resource: Resource,
    pub name: String,
    /// Only the object with this uid is deleted.
    pub uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub severity: Severity,
    pub reason: Reason,
    pub message: String,
}

/// Why something was done; the `reason` of events and conditions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A reason of the job itself, e.g. `PyTorchJobRunning`.
    Job(&'static str, Word),
    SuccessfulCreatePod,
    FailedCreatePod,
    SuccessfulDeletePod,
    FailedDeletePod,
    SuccessfulCreateService,
    FailedCreateService,
    SuccessfulDeleteService,
    FailedDeleteService,
    SuccessfulDeletePodGroup,
    FailedDeletePodGroup,
    SuccessfulDeleteJob,
    FailedDeleteJob,
    FailedCreate,
    ExitedWithCode,
    JobTerminated,
    SetPodTemplateRestartPolicy,
    SetPodTemplateSchedulerName,
    /// What the kubelet or the scheduler says about a pod.
    Reported(String),
}

/// What happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word {
    Created,
    Running,
    Restarting,
    Succeeded,
    Failed,
    Suspended,
    Resumed,
    FailedValidation,
}

impl Reason {
    pub fn of(kind: &'static JobKind, word: Word) -> Reason {
        Reason::Job(kind.kind, word)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Job(kind, word) => write!(f, "{kind}{word:?}"),
            Reason::Reported(text) => f.write_str(text),
            other => fmt::Debug::fmt(other, f),
        }
    }
}

/// Something to count in the metrics of the job's namespace and framework.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Created,
    Successful,
    Failed,
    Restarted,
    /// A pod was seen failed.
    FailedPod,
}

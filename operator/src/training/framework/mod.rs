//! Job kinds as data. The decider knows kinds only through these values.

mod mxnet;
mod pytorch;
mod tensorflow;

use super::address::Addresses;
use super::plan::{Reason, Word};
use muster_api::training::kind::{MX_JOB, PYTORCH_JOB, TF_JOB};
use muster_api::training::{Job, JobKind};

/// What the decider must know about one job kind.
#[derive(Debug)]
pub struct Framework {
    pub kind: &'static JobKind,
    /// The roles whose success is the job's success. A job has at most one of them.
    pub chiefs: &'static [&'static str],
    /// Who decides where the job has no chief.
    pub crowd: Crowd,
    /// Which pod carries the label `job-role=master`.
    pub lead: Lead,
    pub failure: FailureRule,
    /// How messages about a job with a chief name it; a job without one is always named with its namespace where
    /// `crowd_subject` says so.
    pub chief_subject: Subject,
    pub crowd_subject: Subject,
    /// The subject and the verb of failure messages.
    pub failure_phrase: FailurePhrase,
    /// Whether `replicaStatuses` carry label selectors.
    pub selectors: bool,
    /// The reason of the event that tells of the end of a finished job's time to live.
    pub expired_as_job: bool,
    /// The reason of the event about a job that is not valid.
    pub validation_reason: Reason,
    /// The init container that waits for a role's first pod.
    pub wait: Option<Wait>,
    /// The environment of one replica.
    pub environment: fn(&Job, &Addresses<'_>, Replica<'_>) -> Environment,
}

/// Who decides where no chief does: the first of these roles that the job has.
#[derive(Debug)]
pub struct Crowd {
    pub roles: &'static [&'static str],
    pub done: CrowdDone,
}

/// When the crowd has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrowdDone {
    /// All have; in an elastic job, any one.
    AllOrAnyIfElastic,
    /// The first one has, with exit code 0, or all have. The success policy `AllWorkers` asks for all.
    FirstOrAll,
    All,
}

/// Which replicas lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// All of the chief's role, or else the first worker.
    ChiefOrFirstWorker,
    /// All of one role, whether it decides or not.
    Role(&'static str),
}

/// What failed pods of a role do to the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureRule {
    /// While replicas are missing: `Never` fails the job, any other policy restarts it.
    WhileMissing,
    /// The job fails unless it is already restarting. Only the kind's own roles count, and with dynamic workers the
    /// failures of `tolerated` do not.
    UnlessRestarting { tolerated: &'static str },
    /// `ExitCode` restarts, any other policy fails the job.
    UnlessExitCode,
}

/// How a message names the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `NAME is running.`, `NAME is successfully completed.`
    Name,
    /// `NAMESPACE/NAME is running.`, `NAMESPACE/NAME successfully completed.`
    NamespacedName,
}

/// How failure and restart messages begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePhrase {
    /// `PyTorchJob`, or in lower case where upstream writes it so.
    pub kind: &'static str,
    pub namespaced: bool,
    /// `is failed` or `has failed`.
    pub failed: &'static str,
}

/// An init container that holds back the pods of one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    pub role: &'static str,
    pub for_role: &'static str,
    pub container: &'static str,
}

/// One replica of a job.
#[derive(Clone, Copy, Debug)]
pub struct Replica<'a> {
    pub role: &'a str,
    pub index: i32,
}

/// Environment variables to append, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    pub variables: Vec<(&'static str, String)>,
    /// Only the kind's own container gets them, not the sidecars.
    pub main_container_only: bool,
}

pub static PYTORCH: Framework = Framework {
    kind: &PYTORCH_JOB,
    chiefs: &["Master"],
    crowd: Crowd { roles: &["Worker"], done: CrowdDone::AllOrAnyIfElastic },
    lead: Lead::ChiefOrFirstWorker,
    failure: FailureRule::WhileMissing,
    chief_subject: Subject::Name,
    crowd_subject: Subject::NamespacedName,
    failure_phrase: FailurePhrase { kind: "PyTorchJob", namespaced: false, failed: "is failed" },
    selectors: true,
    expired_as_job: false,
    validation_reason: Reason::Job("PyTorchJob", Word::FailedValidation),
    wait: Some(Wait { role: "Worker", for_role: "Master", container: "init-pytorch" }),
    environment: pytorch::environment,
};

pub static TENSORFLOW: Framework = Framework {
    kind: &TF_JOB,
    chiefs: &["Chief", "Master"],
    crowd: Crowd { roles: &["Worker"], done: CrowdDone::FirstOrAll },
    lead: Lead::ChiefOrFirstWorker,
    failure: FailureRule::UnlessRestarting { tolerated: "Worker" },
    chief_subject: Subject::NamespacedName,
    crowd_subject: Subject::NamespacedName,
    failure_phrase: FailurePhrase { kind: "TFJob", namespaced: true, failed: "has failed" },
    selectors: false,
    expired_as_job: true,
    validation_reason: Reason::Job("TFJob", Word::FailedValidation),
    wait: None,
    environment: tensorflow::environment,
};

pub static MXNET: Framework = Framework {
    kind: &MX_JOB,
    chiefs: &["Scheduler"],
    crowd: Crowd { roles: &["Worker", "Tuner"], done: CrowdDone::All },
    lead: Lead::Role("Server"),
    failure: FailureRule::UnlessExitCode,
    chief_subject: Subject::Name,
    crowd_subject: Subject::Name,
    failure_phrase: FailurePhrase { kind: "mxjob", namespaced: false, failed: "is failed" },
    selectors: false,
    expired_as_job: false,
    // Upstream says MPIJob here, where users can see it.
    validation_reason: Reason::Job("MPIJob", Word::FailedValidation),
    wait: None,
    environment: mxnet::environment,
};

/// Every framework, in the order of the kinds.
pub static FRAMEWORKS: [&Framework; 3] = [&PYTORCH, &TENSORFLOW, &MXNET];

impl Framework {
    pub fn by_kind(kind: &str) -> Option<&'static Framework> {
        FRAMEWORKS.into_iter().find(|framework| framework.kind.kind == kind)
    }

    /// The job's chief role, if it has one.
    pub fn chief(&self, job: &Job) -> Option<&'static str> {
        self.chiefs.iter().copied().find(|role| job.has_role(role))
    }

    /// The role that decides in a job without a chief.
    pub fn crowd_role(&self, job: &Job) -> Option<&'static str> {
        self.crowd.roles.iter().copied().find(|role| job.has_role(role))
    }

    /// Whether a replica carries the label `job-role=master`.
    pub fn leads(&self, job: &Job, replica: Replica<'_>) -> bool {
        match self.lead {
            Lead::Role(role) => replica.role == role,
            Lead::ChiefOrFirstWorker => match self.chief(job) {
                Some(_) => self.chiefs.contains(&replica.role),
                None => replica.role == "Worker" && replica.index == 0,
            },
        }
    }
}

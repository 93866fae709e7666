//! The training operator's decision: from what is observed of one job to what should be done about it.
//!
//! It is a pure function. It knows job kinds only as [`Framework`] values, and times only as the `now` it is given.

use super::address::{Addresses, Addressing};
use super::framework::Framework;
use super::observe::Observed;
use super::plan::{Count, Delete, Plan, Reason, Resource, Severity, Word};
use super::{address, gang, limits, progress, replicas, scaler};
use jiff::Timestamp;
use muster_api::clock::rfc3339;
use muster_api::names::MANAGED_BY_OPERATOR;
use muster_api::training::types::Job;
use muster_api::training::{CleanPodPolicy, ConditionType, JobStatus, conditions};
use muster_planted::{self as planted, Bug};
use serde_json::{Value, json};
use std::time::Duration;

/// More pods than this are refused: a job of any real cluster stays below it, and what a typing error asks for would
/// take the memory of the machine.
const MOST_REPLICAS: i32 = 10_000;

/// The choices that hold for all jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub addressing: Addressing,
    /// The scheduler that places gangs; `None` makes no pod groups.
    pub gang_scheduler: Option<String>,
    /// The image and the number of tries of the init container that waits for a master.
    pub init_container_image: String,
    pub init_container_tries: u32,
    /// What follows `svc` in the names of services, where the cluster's resolver needs it.
    pub cluster_domain: Option<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            addressing: Addressing::Dns,
            gang_scheduler: None,
            init_container_image: "alpine:3.10".to_owned(),
            init_container_tries: 100,
            cluster_domain: None,
        }
    }
}

/// One decision while it is being made.
pub(super) struct Pass<'a> {
    pub now: Timestamp,
    pub observed: &'a Observed,
    pub framework: &'static Framework,
    pub policy: &'a Policy,
    /// The status as it will be.
    pub status: JobStatus,
    pub plan: Plan,
}

/// Decides what to do about a job.
pub fn decide(now: Timestamp, observed: &Observed, framework: &'static Framework, policy: &Policy) -> Plan {
    let job = &observed.job;
    if job.deleting || is_managed_elsewhere(job) {
        return Plan::default();
    }
    let forgotten = planted::is(Bug::ForgottenStatus);
    let status = if forgotten { JobStatus::default() } else { job.status.clone() };
    let mut pass = Pass { now, observed, framework, policy, status, plan: Plan::default() };
    if let Some(problem) = muster_api::admission::operator_error(job) {
        let message = format!("{} failed validation because {problem}", framework.kind.kind);
        pass.plan.event(Severity::Warning, framework.validation_reason.clone(), message);
        return pass.plan;
    }
    acknowledge(&mut pass);
    scaler::decide(&mut pass);
    if job.is_finished() {
        finished(&mut pass);
    } else if job.spec.run_policy.is_suspended() {
        suspended(&mut pass);
    } else if let Some(problem) = unrunnable(job) {
        let message = format!("{} {} {problem}", framework.kind.kind, job.name);
        pass.plan.event(Severity::Warning, Reason::of(framework.kind, Word::FailedValidation), message);
    } else {
        active(&mut pass);
    }
    pass.finish()
}

fn is_managed_elsewhere(job: &Job) -> bool {
    job.spec.run_policy.managed_by.as_deref().is_some_and(|manager| manager != MANAGED_BY_OPERATOR)
}

/// Why there is nothing to be done for a job that is valid.
fn unrunnable(job: &Job) -> Option<String> {
    let total = job.total_replicas();
    if job.replica_specs().is_empty() {
        Some("has no replica specs, so there is nothing to run.".to_owned())
    } else if total > MOST_REPLICAS {
        Some(format!("asks for {total} pods, and at most {MOST_REPLICAS} are made."))
    } else {
        None
    }
}

/// The first thing on record about a job is that it was seen.
fn acknowledge(pass: &mut Pass<'_>) {
    if conditions::get(&pass.status, ConditionType::Created).is_none() {
        let message = format!("{} {} is created.", pass.framework.kind.kind, pass.observed.job.name);
        pass.condition(ConditionType::Created, true, Word::Created, &message);
    }
}

/// A finished job loses the pods that its policy says, and in the end itself.
fn finished(pass: &mut Pass<'_>) {
    let job = &pass.observed.job;
    match job.spec.run_policy.clean_pod_policy {
        Some(CleanPodPolicy::None) | None => {}
        Some(CleanPodPolicy::Running) => pass
            .delete_pods(|pod| !matches!(pod.phase, super::observe::Phase::Succeeded | super::observe::Phase::Failed)),
        Some(CleanPodPolicy::All | CleanPodPolicy::Other(_)) => pass.delete_pods(|_| true),
    }
    gang::release(pass);
    if conditions::is_true(&pass.status, ConditionType::Succeeded) {
        for replicas in pass.status.replica_statuses.values_mut() {
            replicas.succeeded += replicas.active;
            replicas.active = 0;
        }
    }
    limits::expire(pass);
}

/// A suspended job has no pods.
fn suspended(pass: &mut Pass<'_>) {
    let (kind, name) = (pass.framework.kind.kind, &pass.observed.job.name);
    pass.delete_pods(|_| true);
    gang::release(pass);
    for replicas in pass.status.replica_statuses.values_mut() {
        replicas.active = 0;
    }
    let message = format!("{kind} {name} is suspended.");
    if conditions::is_true(&pass.status, ConditionType::Running) {
        pass.condition(ConditionType::Running, false, Word::Suspended, &message);
    }
    if !conditions::is_true(&pass.status, ConditionType::Suspended) {
        pass.condition(ConditionType::Suspended, true, Word::Suspended, &message);
    }
    pass.plan.event(Severity::Normal, Reason::of(pass.framework.kind, Word::Suspended), message);
}

/// A job that should run.
fn active(pass: &mut Pass<'_>) {
    let (kind, name) = (pass.framework.kind, &pass.observed.job.name);
    if conditions::is_true(&pass.status, ConditionType::Suspended) {
        let message = format!("{} {name} is resumed.", kind.kind);
        pass.condition(ConditionType::Suspended, false, Word::Resumed, &message);
        pass.status.start_time = Some(rfc3339(pass.now));
        pass.plan.event(Severity::Normal, Reason::of(kind, Word::Resumed), message);
    }
    replicas::report_abnormal(pass);
    if let Some(message) = limits::exceeded(pass) {
        pass.complete();
        pass.condition(ConditionType::Failed, true, Word::Failed, &message);
        pass.plan.event(Severity::Normal, Reason::of(kind, Word::Failed), message);
        return;
    }
    if !gang::admit(pass) {
        return;
    }
    let job = &pass.observed.job;
    let domain = pass.policy.cluster_domain.as_deref();
    let (addresses, ready) = match pass.policy.addressing {
        Addressing::Dns => (Addresses::dns(job, domain), true),
        Addressing::HostPorts => {
            let held = address::allocate(pass.observed);
            let all = usize::try_from(job.total_replicas()).unwrap_or(0);
            if held.len() < all {
                pass.plan.requeue(Duration::from_secs(1));
            }
            // Pods name each other's ports, so every port is on record before the first pod is made.
            let ready = held.len() == all && held.values().all(|port| port.recorded);
            let ports = held.into_iter().map(|(key, held)| (key, held.port)).collect();
            (Addresses::host_ports(job, ports), ready)
        }
    };
    replicas::decide(pass, &addresses, ready);
    progress::decide(pass);
    if conditions::is_true(&pass.status, ConditionType::Succeeded)
        || conditions::is_true(&pass.status, ConditionType::Failed)
    {
        // Nothing more is started for a job that has just ended.
        pass.plan.creates.retain(|create| create.resource == Resource::HorizontalPodAutoscaler);
    } else {
        limits::watch_deadline(pass);
    }
}

impl Pass<'_> {
    pub(super) fn condition(&mut self, kind: ConditionType, value: bool, word: Word, message: &str) {
        let reason = Reason::of(self.framework.kind, word).to_string();
        conditions::set(&mut self.status, kind, value, &reason, message, &rfc3339(self.now));
    }

    /// Notes the end of the job, once.
    pub(super) fn complete(&mut self) {
        self.status.completion_time.get_or_insert_with(|| rfc3339(self.now));
    }

    pub(super) fn delete(&mut self, resource: Resource, name: &str, uid: &str) {
        let delete = Delete { resource, name: name.to_owned(), uid: uid.to_owned() };
        if !self.plan.deletes.contains(&delete) {
            self.plan.deletes.push(delete);
        }
    }

    /// Deletes some pods, their services, and the services that no pod is left to use.
    pub(super) fn delete_pods(&mut self, which: impl Fn(&super::observe::ObservedPod) -> bool) {
        let observed = self.observed;
        for pod in observed.pods.values().filter(|pod| which(pod) && !pod.deleting) {
            self.delete(Resource::Pod, &pod.name, &pod.uid);
        }
        for service in observed.services.values().filter(|service| !service.deleting) {
            if observed.pods.get(&service.name).is_none_or(&which) {
                self.delete(Resource::Service, &service.name, &service.uid);
            }
        }
    }

    fn finish(mut self) -> Plan {
        let old = &self.observed.job.status;
        for (kind, count) in [
            (ConditionType::Created, Count::Created),
            (ConditionType::Succeeded, Count::Successful),
            (ConditionType::Failed, Count::Failed),
        ] {
            if conditions::is_true(&self.status, kind) && !conditions::is_true(old, kind) {
                self.plan.counts.push(count);
            }
        }
        if self.status != *old {
            self.plan.status = Some(self.status);
        }
        self.plan
    }
}

/// The owner reference of everything that a job makes.
pub(super) fn owner_reference(job: &Job) -> Value {
    json!({
        "apiVersion": muster_api::training::kind::API_VERSION,
        "kind": job.kind.kind,
        "name": job.name,
        "uid": job.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

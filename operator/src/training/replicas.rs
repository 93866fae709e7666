//! Pods and services: one of each for every index of every role.

use super::address::Addresses;
use super::decide::{Pass, owner_reference};
use super::framework::Replica;
use super::limits::{Fate, fate, retries};
use super::observe::{ContainerState, ObservedPod, Phase};
use super::plan::{Count, Create, Reason, Resource, Severity, Word};
use super::pod;
use muster_api::names::label;
use muster_api::training::types::{Job, replica_name};
use muster_api::training::{ConditionType, ReplicaSpec, ReplicaStatus};
use muster_planted::{self as planted, Bug};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A pass makes no more than this; the next pass makes more. Every pod of some kinds carries the addresses of all.
const MOST_CREATES: usize = 250;

/// The labels that all objects of a role have.
pub(super) fn role_labels(job: &Job, role: &str) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (label::JOB_NAME, job.name.clone()),
        (label::OPERATOR_NAME, job.kind.operator_name.to_owned()),
        (label::REPLICA_TYPE, role.to_lowercase()),
    ])
}

/// The labels of one replica's pod and service.
pub(super) fn replica_labels(job: &Job, replica: Replica<'_>) -> BTreeMap<&'static str, String> {
    let mut labels = role_labels(job, replica.role);
    labels.insert(label::REPLICA_INDEX, replica.index.to_string());
    labels
}

/// Makes, deletes and counts the pods and services of all roles. Pods are made only where `ready` says so.
pub(super) fn decide(pass: &mut Pass<'_>, addresses: &Addresses<'_>, ready: bool) {
    let job = &pass.observed.job;
    for (role, spec) in job.roles() {
        pods(pass, role, spec, addresses, ready);
        services(pass, role, spec, addresses);
    }
}

fn pods(pass: &mut Pass<'_>, role: &str, spec: &ReplicaSpec, addresses: &Addresses<'_>, ready: bool) {
    let observed = pass.observed;
    let job = &observed.job;
    let before = pass.status.replica_statuses.remove(role).unwrap_or_default();
    let mut status = ReplicaStatus { restarts: before.restarts, ..ReplicaStatus::default() };
    if job.spec.run_policy.backoff_limit.is_none() {
        status.restarts = 0;
    }
    for index in 0..spec.count() {
        if pass.plan.creates.len() >= MOST_CREATES {
            break;
        }
        let gone = |pod: &ObservedPod| pod.deleting && planted::is(Bug::HastySuccessor);
        if ready && observed.pod(role, index).is_none_or(gone) {
            pod::create(pass, Replica { role, index }, spec, addresses);
        }
    }
    let mut replaced = false;
    for pod in observed.pods_of(role) {
        if pod.index.is_none_or(|index| !(0..spec.count()).contains(&index)) && !pod.deleting {
            pass.delete(Resource::Pod, &pod.name, &pod.uid);
        }
        report_exit_code(pass, pod);
        match fate(pod, spec, job.kind.container) {
            Some(Fate::Replaced) => {
                replaced = true;
                replace(pass, pod, &before, &mut status);
                let message = format!("job {} is restarting because {role} replica(s) failed.", job.name);
                pass.condition(ConditionType::Restarting, true, Word::Restarting, &message);
                pass.plan.event(Severity::Warning, Reason::of(job.kind, Word::Restarting), message);
            }
            Some(Fate::FailsJob) => {
                let message = format!("job \"{}\" is failing because \"{role}\" replica(s) failed.", job.name);
                pass.complete();
                pass.condition(ConditionType::Failed, true, Word::Failed, &message);
                pass.plan.event(Severity::Warning, Reason::of(job.kind, Word::Failed), message);
            }
            Some(Fate::Stays) | None => {}
        }
        match pod.phase {
            // A pod that is going while it runs may never get to say how it ended.
            Phase::Running if pod.deleting => status.failed += 1,
            Phase::Running => status.active += 1,
            Phase::Succeeded => status.succeeded += 1,
            Phase::Failed => {
                status.failed += 1;
                pass.plan.counts.push(Count::FailedPod);
            }
            Phase::Pending | Phase::Unknown => {}
        }
    }
    if replaced {
        pass.plan.counts.push(Count::Restarted);
    }
    if pass.framework.selectors {
        let labels = role_labels(job, role);
        status.selector = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    }
    pass.status.replica_statuses.insert(role.to_owned(), status);
}

/// Deletes a failed pod so that the next pass makes it anew, and counts that once.
fn replace(pass: &mut Pass<'_>, pod: &ObservedPod, before: &ReplicaStatus, status: &mut ReplicaStatus) {
    if pass.observed.job.spec.run_policy.backoff_limit.is_some() {
        if !before.replacing.contains(&pod.uid) {
            status.restarts = status.restarts.saturating_add(retries(pod));
        }
        status.replacing.push(pod.uid.clone());
    }
    if !pod.deleting {
        pass.delete(Resource::Pod, &pod.name, &pod.uid);
    }
}

fn report_exit_code(pass: &mut Pass<'_>, pod: &ObservedPod) {
    let job = &pass.observed.job;
    for container in pod.containers.iter().filter(|container| container.name == job.kind.container) {
        if let Some(terminated) = &container.terminated {
            let (namespace, name, code) = (&job.namespace, &pod.name, terminated.exit_code);
            let message = format!("Pod: {namespace}.{name} exited with code {code}");
            pass.plan.event(Severity::Normal, Reason::ExitedWithCode, message);
        }
    }
}

fn services(pass: &mut Pass<'_>, role: &str, spec: &ReplicaSpec, addresses: &Addresses<'_>) {
    let observed = pass.observed;
    for index in 0..spec.count() {
        if pass.plan.creates.len() >= MOST_CREATES {
            break;
        }
        if observed.service(role, index).is_none() && addresses.has(role, index) {
            let replica = Replica { role, index };
            let object = service(&observed.job, replica, spec, addresses);
            let name = replica_name(&observed.job.name, role, index);
            pass.plan.creates.push(Create { resource: Resource::Service, name, object });
        }
    }
    let role = role.to_lowercase();
    for service in observed.services.values().filter(|service| service.role == role && !service.deleting) {
        if service.index.is_none_or(|index| !(0..spec.count()).contains(&index)) {
            pass.delete(Resource::Service, &service.name, &service.uid);
        }
    }
}

/// The headless service that gives one replica its name, with all ports of the main container.
fn service(job: &Job, replica: Replica<'_>, spec: &ReplicaSpec, addresses: &Addresses<'_>) -> Value {
    let mut ports = Map::new();
    let container = spec.containers().iter().find(|container| container["name"] == job.kind.container);
    for port in container.and_then(|container| container["ports"].as_array()).into_iter().flatten() {
        let name = port["name"].as_str().unwrap_or_default();
        ports.insert(name.to_owned(), port["containerPort"].clone());
    }
    if let Some(port) = addresses.host_port(replica.role, replica.index) {
        ports.insert(job.kind.port_name.to_owned(), json!(port));
    }
    let ports: Vec<Value> = ports
        .into_iter()
        .map(|(name, port)| if name.is_empty() { json!({"port": port}) } else { json!({"name": name, "port": port}) })
        .collect();
    let labels = replica_labels(job, replica);
    let owners = if planted::is(Bug::OrphanedService) { json!([]) } else { json!([owner_reference(job)]) };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": replica_name(&job.name, replica.role, replica.index),
            "namespace": job.namespace,
            "labels": labels,
            "ownerReferences": owners,
        },
        "spec": { "clusterIP": "None", "selector": labels, "ports": ports },
    })
}

/// Passes on what is wrong with pods that should run: the state of their containers, or else their newest condition.
pub(super) fn report_abnormal(pass: &mut Pass<'_>) {
    for pod in pass.observed.pods.values().filter(|pod| pod.is_active()) {
        let states = if pod.containers.is_empty() { &pod.init_containers } else { &pod.containers };
        if !states.is_empty() {
            states.iter().for_each(|state| report_container(pass, &pod.name, state));
            continue;
        }
        // Of several with the same time the first counts.
        let newest = pod.conditions.iter().reduce(|newest, condition| {
            if condition.last_transition_time > newest.last_transition_time { condition } else { newest }
        });
        if let Some(condition) = newest.filter(|condition| condition.status != "True") {
            let message = format!("Error pod {} condition message: {}", pod.name, condition.message);
            pass.plan.event(Severity::Warning, Reason::Reported(condition.reason.clone()), message);
        }
    }
}

fn report_container(pass: &mut Pass<'_>, pod: &str, state: &ContainerState) {
    let container = &state.name;
    if let Some(end) = state.terminated.as_ref().filter(|end| end.exit_code != 0) {
        let (code, text) = (end.exit_code, &end.message);
        let message = format!("Error pod {pod} container {container} exitCode: {code} terminated message: {text}");
        pass.plan.event(Severity::Warning, Reason::Reported(end.reason.clone()), message);
    }
    if let Some(waiting) = state.waiting.as_ref().filter(|waiting| !waiting.message.is_empty()) {
        let message = format!("Error pod {pod} container {container} waiting message: {}", waiting.message);
        pass.plan.event(Severity::Warning, Reason::Reported(waiting.reason.clone()), message);
    }
}

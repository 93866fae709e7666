//! The status of a pod as its object carries it, made of what the node has observed. Pure.

use super::lifecycle::{Cause, Container, Ended, Facts, Observed, Phase, Plan, RestartPolicy, State, restart_at};
use super::runtime::ContainerId;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use muster_api::clock::seconds;
use std::collections::BTreeMap;

/// Where the pod runs; with host networking that is the pod's own address, too.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) host_ip: String,
    pub(crate) pod_ip: String,
}

/// The status to be written. Conditions of others stay as the object has them; a condition that has not changed keeps
/// its time, from `rendered` (this node's latest, perhaps still on its way) or the object.
pub(crate) fn render(
    now: Timestamp,
    pod: &core::Pod,
    facts: &Facts,
    observed: &Observed,
    plan: &Plan,
    address: &Address,
    rendered: &[core::PodCondition],
) -> core::PodStatus {
    let spec = pod.spec.clone().unwrap_or_default();
    let known = pod.status.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let images: BTreeMap<&str, &str> = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| (c.name.as_str(), c.image.as_deref().unwrap_or_default()))
        .collect();
    let one = |name: &String, init: bool| {
        let sidecar = init && facts.init.iter().any(|i| i.name == *name && i.sidecar);
        let policy = match (sidecar, init, facts.restart_policy) {
            (true, ..) => RestartPolicy::Always,
            (false, true, RestartPolicy::Always) => RestartPolicy::OnFailure,
            (false, _, policy) => policy,
        };
        let container = &observed.containers[name];
        let creating = if !init && !plan.initialised { "PodInitializing" } else { "ContainerCreating" };
        let stopping = observed.stop.is_some() || plan.finished;
        container_status(
            pod,
            name,
            &uid,
            images[name.as_str()],
            container,
            policy,
            creating,
            stopping,
            init && !sidecar,
        )
    };
    let init: Vec<core::ContainerStatus> = facts.init.iter().map(|i| one(&i.name, true)).collect();
    let containers: Vec<core::ContainerStatus> = facts.containers.iter().map(|name| one(name, false)).collect();
    let deadline = plan.finished && observed.stop.is_some_and(|stop| stop.cause == Cause::Deadline);
    core::PodStatus {
        phase: Some(plan.phase.as_str().to_owned()),
        reason: deadline.then(|| "DeadlineExceeded".to_owned()),
        message: deadline.then(|| "Pod was active on the node longer than the specified deadline".to_owned()),
        conditions: Some(conditions(now, facts, observed, plan, &known, rendered)),
        host_ip: Some(address.host_ip.clone()),
        host_ips: Some(vec![core::HostIP { ip: address.host_ip.clone() }]),
        pod_ip: Some(address.pod_ip.clone()),
        pod_ips: Some(vec![core::PodIP { ip: address.pod_ip.clone() }]),
        start_time: Some(Time(seconds(facts.started_at))),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(containers),
        ..core::PodStatus::default()
    }
}

fn conditions(
    now: Timestamp,
    facts: &Facts,
    observed: &Observed,
    plan: &Plan,
    known: &core::PodStatus,
    rendered: &[core::PodCondition],
) -> Vec<core::PodCondition> {
    let unready: Vec<&str> = facts
        .containers
        .iter()
        .filter(|name| {
            let container = &observed.containers[*name];
            !matches!(container.state, State::Running { .. }) || !container.probed.ready
        })
        .map(String::as_str)
        .collect();
    let uninitialised: Vec<&str> = facts
        .init
        .iter()
        .filter(|init| !matches!(&observed.containers[&init.name].state, State::Ended(e) if e.exit_code == 0))
        .map(|init| init.name.as_str())
        .collect();
    let not_ready = match plan.phase {
        Phase::Succeeded => Some(("PodCompleted", None)),
        Phase::Failed => Some(("PodFailed", None)),
        _ if unready.is_empty() => None,
        _ => Some(("ContainersNotReady", Some(format!("containers with unready status: [{}]", unready.join(" "))))),
    };
    let not_initialised = (!plan.initialised).then(|| {
        let message = format!("containers with incomplete status: [{}]", uninitialised.join(" "));
        ("ContainersNotInitialized", Some(message))
    });
    let completed = (plan.phase == Phase::Succeeded).then(|| "PodCompleted".to_owned());
    let mut conditions: Vec<core::PodCondition> = Vec::new();
    for (kind, wrong) in
        [("Initialized", not_initialised), ("Ready", not_ready.clone()), ("ContainersReady", not_ready)]
    {
        let status = if wrong.is_none() { "True" } else { "False" };
        let (reason, message) = match wrong {
            Some((reason, message)) => (Some(reason.to_owned()), message),
            None if kind == "Initialized" => (completed.clone(), None),
            None => (None, None),
        };
        conditions.push(core::PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_transition_time: Some(Time(seconds(now))),
            ..core::PodCondition::default()
        });
    }
    let before = known.conditions.as_deref().unwrap_or_default();
    for condition in &mut conditions {
        if let Some(same) =
            rendered.iter().chain(before).find(|b| b.type_ == condition.type_ && b.status == condition.status)
            && same.last_transition_time.is_some()
        {
            condition.last_transition_time = same.last_transition_time.clone();
        }
    }
    let others = before.iter().filter(|b| !conditions.iter().any(|c| c.type_ == b.type_)).cloned();
    let others: Vec<core::PodCondition> = others.collect();
    conditions.extend(others);
    conditions
}

#[allow(clippy::too_many_arguments)]
fn container_status(
    pod: &core::Pod,
    name: &str,
    uid: &str,
    image: &str,
    container: &Container,
    policy: RestartPolicy,
    creating: &str,
    stopping: bool,
    init: bool,
) -> core::ContainerStatus {
    let id = ContainerId { pod_uid: uid.to_owned(), container: name.to_owned(), attempt: container.attempt };
    let waiting = |reason: &str, message: Option<String>| core::ContainerState {
        waiting: Some(core::ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..core::ContainerState::default()
    };
    let terminated = |ended: &Ended, attempt: u32| core::ContainerState {
        terminated: Some(core::ContainerStateTerminated {
            container_id: Some(ContainerId { attempt, ..id.clone() }.to_string()),
            exit_code: ended.exit_code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            message: ended.message.clone(),
            started_at: ended.started_at.map(|time| Time(seconds(time))),
            finished_at: Some(Time(seconds(ended.finished_at))),
        }),
        ..core::ContainerState::default()
    };
    let mut last = container.last.as_ref().map(|ended| terminated(ended, container.attempt.saturating_sub(1)));
    let state = match &container.state {
        State::Waiting | State::Starting => waiting(creating, None),
        State::Held(obstacle) => waiting(obstacle.reason, Some(obstacle.message.clone())),
        State::Running { started_at, .. } => core::ContainerState {
            running: Some(core::ContainerStateRunning { started_at: Some(Time(seconds(*started_at))) }),
            ..core::ContainerState::default()
        },
        State::Ended(ended) => match restart_at(policy, container).filter(|_| !stopping) {
            Some(at) if at > ended.finished_at => {
                last = Some(terminated(ended, container.attempt));
                let delay = at.duration_since(ended.finished_at).as_secs();
                let (namespace, pod) = (
                    pod.metadata.namespace.as_deref().unwrap_or_default(),
                    pod.metadata.name.as_deref().unwrap_or_default(),
                );
                let delay = if delay % 60 == 0 {
                    format!("{}m0s", delay / 60)
                } else if delay > 60 {
                    format!("{}m{}s", delay / 60, delay % 60)
                } else {
                    format!("{delay}s")
                };
                let message =
                    format!("back-off {delay} restarting failed container={name} pod={pod}_{namespace}({uid})");
                waiting("CrashLoopBackOff", Some(message))
            }
            _ => terminated(ended, container.attempt),
        },
    };
    let running = state.running.is_some();
    let done = init && matches!(&container.state, State::Ended(e) if e.exit_code == 0);
    let was_started =
        !matches!(container.state, State::Waiting | State::Held(_) | State::Starting) || container.attempt > 0;
    core::ContainerStatus {
        name: name.to_owned(),
        image: image.to_owned(),
        image_id: if was_started { image.to_owned() } else { String::new() },
        container_id: was_started.then(|| id.to_string()),
        ready: running && container.probed.ready && !init || done,
        started: Some(running && container.probed.started),
        restart_count: i32::try_from(container.attempt).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        ..core::ContainerStatus::default()
    }
}

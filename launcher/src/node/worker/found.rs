//! What a worker begins with: what the pod's object asks for, and what is known of its containers.

use crate::devices::GPU_RESOURCE;
use crate::node::lifecycle::{Container, Ended, Facts, InitContainer, RestartPolicy, State};
use crate::node::peers::JOB_NAME_LABEL;
use crate::node::probe;
use crate::node::runtime::{Exit, Recovered, RecoveredPod};
use crate::quantity::amount;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn ended(exit: &Exit) -> Ended {
    let (reason, message) = match exit {
        Exit { lost: true, .. } => (
            "ContainerStatusUnknown",
            Some("The container could not be located: its supervisor is gone without a record".to_owned()),
        ),
        Exit { exit_code: 0, .. } => ("Completed", None),
        _ => ("Error", None),
    };
    Ended {
        exit_code: exit.exit_code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message,
        started_at: exit.started_at,
        finished_at: exit.finished_at,
    }
}

pub(super) fn facts(pod: &core::Pod, now: Timestamp) -> Facts {
    let spec = pod.spec.clone().unwrap_or_default();
    let is_job = pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(JOB_NAME_LABEL));
    Facts {
        restart_policy: match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        },
        init: spec
            .init_containers
            .iter()
            .flatten()
            .map(|c| InitContainer {
                name: c.name.clone(),
                sidecar: c.restart_policy.as_deref() == Some("Always"),
                by_node: c.name == "init-pytorch" && is_job,
            })
            .collect(),
        containers: spec.containers.iter().map(|c| c.name.clone()).collect(),
        active_deadline: spec.active_deadline_seconds.map(SignedDuration::from_secs),
        started_at: pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |time| time.0),
    }
}

/// The containers as earlier nodes left them: on disk, else in the status.
pub(super) fn containers(
    pod: &core::Pod,
    facts: &Facts,
    recovered: Option<&RecoveredPod>,
    now: Timestamp,
) -> BTreeMap<String, Container> {
    let status = pod.status.clone().unwrap_or_default();
    let statuses: Vec<core::ContainerStatus> = { status.init_container_statuses.into_iter().flatten() }
        .chain(status.container_statuses.into_iter().flatten())
        .collect();
    let names = facts.init.iter().map(|init| &init.name).chain(&facts.containers);
    names
        .map(|name| {
            let starts = recovered.iter().flat_map(|r| &r.containers).filter(|(id, _)| id.container == *name);
            let mut container = Container::new();
            for (id, found) in starts {
                if let State::Ended(before) = &container.state {
                    container.last = Some(before.clone());
                }
                container.attempt = id.attempt;
                container.crashes = id.attempt;
                container.state = match found {
                    Recovered::Running(started) => State::Running { pid: started.pid, started_at: started.started_at },
                    Recovered::Exited(exit) => {
                        container.crashes = id.attempt + 1;
                        State::Ended(ended(exit))
                    }
                };
            }
            if container.state == State::Waiting
                && let Some(known) = statuses.iter().find(|s| s.name == *name)
            {
                from_status(known, &mut container, now);
            }
            (name.clone(), container)
        })
        .collect()
}

/// A container of which this machine has no record: what the status says of it, and that it does not run.
fn from_status(known: &core::ContainerStatus, container: &mut Container, now: Timestamp) {
    let state = known.state.clone().unwrap_or_default();
    container.attempt = u32::try_from(known.restart_count).unwrap_or(0);
    container.crashes = container.attempt;
    if let Some(terminated) = state.terminated {
        container.crashes += 1;
        container.state = State::Ended(Ended {
            exit_code: terminated.exit_code,
            signal: terminated.signal,
            reason: terminated.reason.unwrap_or_default(),
            message: terminated.message,
            started_at: terminated.started_at.map(|time| time.0),
            finished_at: terminated.finished_at.map_or(now, |time| time.0),
        });
    } else if let Some(running) = state.running {
        container.crashes += 1;
        container.state = State::Ended(ended(&Exit {
            exit_code: 137,
            signal: None,
            started_at: running.started_at.map(|time| time.0),
            finished_at: now,
            lost: true,
        }));
    }
}

pub(super) fn container_spec<'a>(pod: &'a core::Pod, name: &str) -> Option<&'a core::Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
}

pub(super) fn gpu_counts(pod: &core::Pod) -> BTreeMap<String, usize> {
    let spec = pod.spec.iter().flat_map(|spec| &spec.containers);
    spec.filter_map(|container| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        let count = usize::try_from(amount(GPU_RESOURCE, &limits.get(GPU_RESOURCE)?.0)?).ok()?;
        (count > 0).then(|| (container.name.clone(), count))
    })
    .collect()
}

/// Fields that the pod sets and that have no effect here.
pub(super) fn unsupported(pod: &core::Pod) -> Vec<String> {
    let mut found = BTreeSet::new();
    let Some(spec) = &pod.spec else { return Vec::new() };
    if let Some(context) = &spec.security_context {
        let context = serde_json::to_value(context).unwrap_or_default();
        found.extend(without_effect(&context).map(|field| format!("securityContext.{field}")));
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        found.extend(probe::probes(container, "").1.into_iter().map(str::to_owned));
        let lifecycle = container.lifecycle.as_ref();
        for (name, handler) in [
            ("lifecycle.preStop", lifecycle.and_then(|l| l.pre_stop.as_ref())),
            ("lifecycle.postStart", lifecycle.and_then(|l| l.post_start.as_ref())),
        ] {
            if probe::hook(handler, container, "").is_err() {
                found.insert(name.to_owned());
            }
        }
        if let Some(context) = &container.security_context {
            let context = serde_json::to_value(context).unwrap_or_default();
            found.extend(without_effect(&context).map(|field| format!("securityContext.{field}")));
        }
    }
    found.into_iter().collect()
}

/// The fields of a security context that ask for another process than one of this user with this user's rights.
fn without_effect(context: &Value) -> impl Iterator<Item = &str> {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    context.as_object().into_iter().flatten().filter_map(move |(field, value)| {
        let given = match field.as_str() {
            "runAsUser" => value.as_u64() == Some(user.as_raw().into()),
            "runAsGroup" => value.as_u64() == Some(group.as_raw().into()),
            "runAsNonRoot" => *value == json!(false) || !user.is_root(),
            "privileged" | "readOnlyRootFilesystem" => *value == json!(false),
            "allowPrivilegeEscalation" => *value == json!(true),
            _ => value.is_null(),
        };
        (!given).then_some(field.as_str())
    })
}

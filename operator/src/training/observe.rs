//! What the decider sees: one job, and what belongs to it, read from the API server's objects without judging them.

use kube::core::DynamicObject;
use muster_api::names::label;
use muster_api::training::{Job, types::replica_name};
use serde_json::Value;
use std::collections::BTreeMap;

/// One job and everything that belongs to it at one moment.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The job as it is stored, with its defaults filled in.
    pub job: Job,
    /// The job's own pods, by name.
    pub pods: BTreeMap<String, ObservedPod>,
    /// The job's own services, by name.
    pub services: BTreeMap<String, ObservedService>,
    /// The pod group of the job's name, if there is one that the job owns.
    pub pod_group: Option<ObservedPodGroup>,
    /// The autoscaler of the job's name, if there is one that the job owns.
    pub autoscaler: Option<ObservedAutoscaler>,
    /// Host ports that nobody uses, for replicas that have none yet.
    pub free_ports: Vec<u16>,
    /// Where the rendezvous service is and what it will accept from this job.
    pub rendezvous: Option<RendezvousAccess>,
}

/// The rendezvous service as one job reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RendezvousAccess {
    pub address: String,
    pub token: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ObservedPod {
    pub name: String,
    pub uid: String,
    /// The role in lower case, from the label.
    pub role: String,
    pub index: Option<i32>,
    pub phase: Phase,
    /// It has a deletion timestamp.
    pub deleting: bool,
    pub containers: Vec<ContainerState>,
    pub init_containers: Vec<ContainerState>,
    pub conditions: Vec<PodCondition>,
    /// The named ports of its containers.
    pub ports: BTreeMap<String, i32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ContainerState {
    pub name: String,
    pub restart_count: i32,
    pub terminated: Option<Terminated>,
    pub waiting: Option<Waiting>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Terminated {
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PodCondition {
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ObservedService {
    pub name: String,
    pub uid: String,
    pub role: String,
    pub index: Option<i32>,
    pub deleting: bool,
    pub ports: BTreeMap<String, i32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ObservedPodGroup {
    pub uid: String,
    pub resource_version: String,
    pub spec: Value,
    /// Volcano's phase; empty while nobody has looked at the group.
    pub phase: String,
    pub deleting: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ObservedAutoscaler {
    pub uid: String,
    pub resource_version: String,
    pub spec: Value,
    pub deleting: bool,
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn int(value: &Value) -> i32 {
    value.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn role_and_index(object: &DynamicObject) -> (String, Option<i32>) {
    let labels = object.metadata.labels.as_ref();
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let role = get(label::REPLICA_TYPE).cloned().unwrap_or_default();
    (role, get(label::REPLICA_INDEX).and_then(|index| index.parse().ok()))
}

fn container_states(status: &Value, key: &str) -> Vec<ContainerState> {
    items(status, key)
        .iter()
        .map(|container| {
            let state = &container["state"];
            let present = |key: &str| state.get(key).filter(|value| value.is_object());
            ContainerState {
                name: text(container, "name"),
                restart_count: int(&container["restartCount"]),
                terminated: present("terminated").map(|t| Terminated {
                    exit_code: int(&t["exitCode"]),
                    reason: text(t, "reason"),
                    message: text(t, "message"),
                }),
                waiting: present("waiting").map(|w| Waiting { reason: text(w, "reason"), message: text(w, "message") }),
            }
        })
        .collect()
}

impl ObservedPod {
    pub fn read(object: &DynamicObject) -> ObservedPod {
        let (spec, status) = (&object.data["spec"], &object.data["status"]);
        let (role, index) = role_and_index(object);
        ObservedPod {
            name: object.metadata.name.clone().unwrap_or_default(),
            uid: object.metadata.uid.clone().unwrap_or_default(),
            role,
            index,
            phase: match status["phase"].as_str() {
                Some("Pending") | None => Phase::Pending,
                Some("Running") => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                Some(_) => Phase::Unknown,
            },
            deleting: object.metadata.deletion_timestamp.is_some(),
            containers: container_states(status, "containerStatuses"),
            init_containers: container_states(status, "initContainerStatuses"),
            conditions: items(status, "conditions")
                .iter()
                .map(|condition| PodCondition {
                    status: text(condition, "status"),
                    reason: text(condition, "reason"),
                    message: text(condition, "message"),
                    last_transition_time: text(condition, "lastTransitionTime"),
                })
                .collect(),
            ports: items(spec, "containers")
                .iter()
                .flat_map(|container| items(container, "ports"))
                .map(|port| (text(port, "name"), int(&port["containerPort"])))
                .collect(),
        }
    }

    /// It has neither ended nor is it about to.
    pub fn is_active(&self) -> bool {
        !matches!(self.phase, Phase::Succeeded | Phase::Failed) && !self.deleting
    }

    /// The exit code of a container that has ended.
    pub fn exit_code(&self, container: &str) -> Option<i32> {
        let state = self.containers.iter().rfind(|state| state.name == container && state.terminated.is_some())?;
        state.terminated.as_ref().map(|terminated| terminated.exit_code)
    }

    /// How often its containers were started again in place.
    pub fn restart_count(&self) -> i32 {
        let all = self.init_containers.iter().chain(&self.containers);
        all.fold(0, |sum: i32, container| sum.saturating_add(container.restart_count))
    }
}

impl ObservedService {
    pub fn read(object: &DynamicObject) -> ObservedService {
        let (role, index) = role_and_index(object);
        ObservedService {
            name: object.metadata.name.clone().unwrap_or_default(),
            uid: object.metadata.uid.clone().unwrap_or_default(),
            role,
            index,
            deleting: object.metadata.deletion_timestamp.is_some(),
            ports: items(&object.data["spec"], "ports")
                .iter()
                .map(|port| (text(port, "name"), int(&port["port"])))
                .collect(),
        }
    }
}

impl ObservedPodGroup {
    pub fn read(object: &DynamicObject) -> ObservedPodGroup {
        ObservedPodGroup {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            spec: object.data["spec"].clone(),
            phase: text(&object.data["status"], "phase"),
            deleting: object.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl ObservedAutoscaler {
    pub fn read(object: &DynamicObject) -> ObservedAutoscaler {
        ObservedAutoscaler {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            spec: object.data["spec"].clone(),
            deleting: object.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl Observed {
    /// The pod at one place of a role.
    pub fn pod(&self, role: &str, index: i32) -> Option<&ObservedPod> {
        let by_name = self.pods.get(&replica_name(&self.job.name, role, index));
        let fits = |pod: &&ObservedPod| pod.index == Some(index) && pod.role == role.to_lowercase();
        by_name.filter(fits).or_else(|| self.pods.values().find(fits))
    }

    /// The service at one place of a role.
    pub fn service(&self, role: &str, index: i32) -> Option<&ObservedService> {
        let by_name = self.services.get(&replica_name(&self.job.name, role, index));
        let fits = |service: &&ObservedService| service.index == Some(index) && service.role == role.to_lowercase();
        by_name.filter(fits).or_else(|| self.services.values().find(fits))
    }

    /// The pods of a role, in the order of their index.
    pub fn pods_of(&self, role: &str) -> Vec<&ObservedPod> {
        let role = role.to_lowercase();
        let mut pods: Vec<_> = self.pods.values().filter(|pod| pod.role == role).collect();
        pods.sort_by_key(|pod| pod.index);
        pods
    }
}

//! What the scheduler remembers of the watched objects, and the problem it makes of it. No I/O.
//!
//! A pod whose binding is on its way is *assumed* on its node, so that the next decision counts it; an answer of
//! failure takes that back, the watch confirms it.

use super::problem::{BoundPod, Gang, GangId, Node, PendingPod, Problem, Resources, Taint, Toleration};
use super::solve::Start;
use crate::quantity::amount;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::DynamicObject;
use muster_events::Subject;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The label that makes a pod a member of a PodGroup.
pub const POD_GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";

/// Pods that name one of these are this scheduler's.
const SCHEDULER_NAMES: [&str; 2] = ["muster", "default-scheduler"];

pub(crate) type Key = (String, String);

/// What of a pod matters here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodEntry {
    pub(crate) asks: Arc<PendingPod>,
    /// The resource version in which it was seen. Versions are counters on every server that we know; on one where
    /// they are not, all are 0.
    pub(crate) version: u64,
    pub(crate) owner: Option<Subject>,
    /// The message of its condition PodScheduled=False, if it has one.
    pub(crate) told: Option<String>,
    gang: Arc<GangId>,
    created: Timestamp,
    priority: Option<i32>,
    priority_class: Option<String>,
    ours: bool,
    gated: bool,
    deleting: bool,
    node: Option<(String, Timestamp)>,
    /// The binding was sent and is not seen in the watch yet.
    assumed: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GroupEntry {
    pub(crate) uid: String,
    min_member: usize,
    created: Timestamp,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pods: BTreeMap<Key, PodEntry>,
    /// Succeeded members of PodGroups: they hold nothing and count as members.
    done: BTreeMap<Key, Arc<GangId>>,
    /// How many of them each PodGroup has.
    done_of: BTreeMap<Arc<GangId>, usize>,
    groups: BTreeMap<Key, GroupEntry>,
    nodes: BTreeMap<String, Node>,
    classes: BTreeMap<String, (i32, bool)>,
}

impl Snapshot {
    /// Takes in a pod as it is now. True where that may change a decision.
    pub(crate) fn apply_pod(&mut self, pod: &core::Pod) -> bool {
        let key = key_of(&pod.metadata.namespace, &pod.metadata.name);
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
        if phase == "Succeeded" || phase == "Failed" {
            let removed = self.pods.remove(&key).is_some();
            let gang = gang_of(pod);
            if phase == "Succeeded" && matches!(gang, GangId::Group { .. }) {
                return self.count_done(key, Arc::new(gang)) || removed;
            }
            return removed;
        }
        self.forget_done(&key);
        let mut entry = PodEntry::new(pod);
        let before = self.pods.get(&key);
        if let Some(before) = before
            && before.asks.uid == entry.asks.uid
        {
            if before.version > entry.version {
                // The watch lags behind what was read of the pod.
                return false;
            }
            if entry.node.is_none() && before.assumed {
                entry.node = before.node.clone();
                entry.assumed = true;
            }
            if before.asks == entry.asks {
                entry.asks = before.asks.clone();
            }
        }
        let relevant = before.is_none_or(|before| {
            let unremarkable = |e: &PodEntry| PodEntry {
                told: None,
                version: 0,
                assumed: false,
                node: e.node.as_ref().map(|(node, _)| (node.clone(), Timestamp::UNIX_EPOCH)),
                ..e.clone()
            };
            unremarkable(before) != unremarkable(&entry)
        });
        self.pods.insert(key, entry);
        relevant
    }

    pub(crate) fn remove_pod(&mut self, key: &Key) -> bool {
        let was_done = self.forget_done(key);
        self.pods.remove(key).is_some() || was_done
    }

    pub(crate) fn apply_node(&mut self, node: &core::Node) -> bool {
        let node = node_of(node);
        self.nodes.insert(node.name.clone(), node.clone()).as_ref() != Some(&node)
    }

    pub(crate) fn remove_node(&mut self, name: &str) -> bool {
        self.nodes.remove(name).is_some()
    }

    pub(crate) fn apply_group(&mut self, group: &DynamicObject) -> bool {
        let key = key_of(&group.metadata.namespace, &group.metadata.name);
        let min_member = group.data.pointer("/spec/minMember").and_then(serde_json::Value::as_u64).unwrap_or(1);
        let entry = GroupEntry {
            uid: group.metadata.uid.clone().unwrap_or_default(),
            min_member: usize::try_from(min_member).unwrap_or(usize::MAX),
            created: created(&group.metadata),
        };
        self.groups.insert(key, entry.clone()).as_ref() != Some(&entry)
    }

    pub(crate) fn remove_group(&mut self, key: &Key) -> bool {
        self.groups.remove(key).is_some()
    }

    pub(crate) fn apply_class(&mut self, class: &PriorityClass) -> bool {
        let name = class.metadata.name.clone().unwrap_or_default();
        let value = (class.value, class.global_default.unwrap_or(false));
        self.classes.insert(name, value) != Some(value)
    }

    pub(crate) fn remove_class(&mut self, name: &str) -> bool {
        self.classes.remove(name).is_some()
    }

    /// Forgets what a fresh list did not name.
    pub(crate) fn retain_pods(&mut self, seen: &BTreeSet<Key>) {
        self.pods.retain(|key, _| seen.contains(key));
        let gone: Vec<Key> = self.done.keys().filter(|key| !seen.contains(*key)).cloned().collect();
        for key in gone {
            self.forget_done(&key);
        }
    }

    /// True where the pod was not known to have succeeded.
    fn count_done(&mut self, key: Key, gang: Arc<GangId>) -> bool {
        let news = !self.forget_done(&key);
        *self.done_of.entry(gang.clone()).or_default() += 1;
        self.done.insert(key, gang);
        news
    }

    fn forget_done(&mut self, key: &Key) -> bool {
        let Some(gang) = self.done.remove(key) else { return false };
        if let Some(count) = self.done_of.get_mut(&gang) {
            *count -= 1;
            if *count == 0 {
                self.done_of.remove(&gang);
            }
        }
        true
    }

    pub(crate) fn retain_nodes(&mut self, seen: &BTreeSet<Key>) {
        self.nodes.retain(|name, _| seen.contains(&(String::new(), name.clone())));
    }

    pub(crate) fn retain_groups(&mut self, seen: &BTreeSet<Key>) {
        self.groups.retain(|key, _| seen.contains(key));
    }

    pub(crate) fn retain_classes(&mut self, seen: &BTreeSet<Key>) {
        self.classes.retain(|name, _| seen.contains(&(String::new(), name.clone())));
    }

    /// Counts the start's pods as bound from `now` on.
    pub(crate) fn assume(&mut self, start: &Start, now: Timestamp) {
        for placement in &start.placements {
            let key = (start.gang.namespace().to_owned(), placement.pod.clone());
            if let Some(pod) = self.pods.get_mut(&key)
                && pod.asks.uid == placement.uid
            {
                pod.node = Some((placement.node.clone(), now));
                pod.assumed = true;
            }
        }
    }

    /// Takes in what has become of a start whose binding failed or was not answered: its pods as they are now, by name.
    /// True where it is bound as it should be. Until then its pods count as bound: the binding may have been carried
    /// out, and what it took must not be given to others.
    pub(crate) fn settle(&mut self, start: &Start, current: &BTreeMap<String, core::Pod>) -> bool {
        let mut bound = true;
        for placement in &start.placements {
            let key = (start.gang.namespace().to_owned(), placement.pod.clone());
            if let Some(pod) = self.pods.get_mut(&key)
                && pod.asks.uid == placement.uid
                && pod.assumed
            {
                pod.node = None;
                pod.assumed = false;
            }
            let same = |pod: &&core::Pod| pod.metadata.uid.as_deref() == Some(&placement.uid);
            match current.get(&placement.pod).filter(same) {
                Some(pod) => {
                    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                    bound &= node == Some(&placement.node);
                    self.apply_pod(pod);
                }
                None => {
                    bound = false;
                    if self.pods.get(&key).is_some_and(|pod| pod.asks.uid == placement.uid) {
                        self.remove_pod(&key);
                    }
                }
            }
        }
        bound
    }

    pub(crate) fn group(&self, id: &GangId) -> Option<&GroupEntry> {
        match id {
            GangId::Group { namespace, name } => self.groups.get(&(namespace.clone(), name.clone())),
            GangId::Pod { .. } => None,
        }
    }

    /// The waiting pods of a gang.
    pub(crate) fn waiting_pods<'a>(&'a self, gang: &'a GangId) -> impl Iterator<Item = (&'a Key, &'a PodEntry)> {
        let from = (gang.namespace().to_owned(), String::new());
        self.pods
            .range(from..)
            .take_while(|((namespace, _), _)| namespace == gang.namespace())
            .filter(move |(_, pod)| *pod.gang == *gang && pod.waits())
    }

    fn priority(&self, pod: &PodEntry) -> i32 {
        let of_class = |name: &str| match name {
            "system-cluster-critical" => Some(2_000_000_000),
            "system-node-critical" => Some(2_000_001_000),
            name => self.classes.get(name).map(|(value, _)| *value),
        };
        let global = || self.classes.values().filter(|(_, default)| *default).map(|(value, _)| *value).max();
        pod.priority.or_else(|| pod.priority_class.as_deref().and_then(of_class)).or_else(global).unwrap_or(0)
    }

    /// The problem as it stands, without the gangs for which `held` is true.
    pub(crate) fn problem(
        &self,
        now: Timestamp,
        reserve_after: SignedDuration,
        held: impl Fn(&GangId) -> bool,
    ) -> Problem {
        let mut nodes = self.nodes.clone();
        let mut gangs: BTreeMap<&GangId, Gang> = BTreeMap::new();
        let mut members: BTreeMap<&GangId, usize> = BTreeMap::new();
        for pod in self.pods.values() {
            if let Some((node, bound_at)) = &pod.node {
                if let Some(node) = nodes.get_mut(node) {
                    let (requests, bound_at) = (pod.asks.requests.clone(), *bound_at);
                    node.pods.push(BoundPod { requests, bound_at, gang: pod.gang.clone() });
                }
                if !pod.deleting {
                    *members.entry(&pod.gang).or_default() += 1;
                }
            } else if pod.waits() && !held(&pod.gang) {
                let group = self.group(&pod.gang);
                let alone = matches!(*pod.gang, GangId::Pod { .. });
                let gang = gangs.entry(&pod.gang).or_insert_with(|| Gang {
                    id: (*pod.gang).clone(),
                    priority: i32::MIN,
                    created: group.map_or(pod.created, |group| group.created),
                    waiting_since: pod.created,
                    min_member: group.map_or(1, |group| group.min_member),
                    bound: 0,
                    group_exists: alone || group.is_some(),
                    pods: Vec::new(),
                });
                gang.priority = gang.priority.max(self.priority(pod));
                gang.waiting_since = gang.waiting_since.max(pod.created);
                gang.pods.push(pod.asks.clone());
            }
        }
        for (id, gang) in &mut gangs {
            let done = self.done_of.get(*id).copied().unwrap_or(0);
            gang.bound = members.get(id).copied().unwrap_or(0) + done;
        }
        Problem { now, reserve_after, nodes: nodes.into_values().collect(), gangs: gangs.into_values().collect() }
    }
}

impl PodEntry {
    fn new(pod: &core::Pod) -> PodEntry {
        let spec = pod.spec.clone().unwrap_or_default();
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled");
        let made = created(&pod.metadata);
        let bound_at = scheduled
            .filter(|c| c.status == "True")
            .and_then(|c| c.last_transition_time.as_ref())
            .map_or(made, |time| time.0);
        let asks = PendingPod {
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            requests: Arc::new(requests_of(&spec)),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            tolerations: spec.tolerations.iter().flatten().map(toleration_of).collect(),
        };
        PodEntry {
            asks: Arc::new(asks),
            version: pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0),
            owner: owner_of(pod),
            told: scheduled.filter(|c| c.status == "False").and_then(|c| c.message.clone()),
            gang: Arc::new(gang_of(pod)),
            created: made,
            priority: spec.priority,
            priority_class: spec.priority_class_name.clone(),
            ours: SCHEDULER_NAMES.contains(&spec.scheduler_name.as_deref().unwrap_or("default-scheduler")),
            gated: spec.scheduling_gates.is_some_and(|gates| !gates.is_empty()),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            node: spec.node_name.filter(|n| !n.is_empty()).map(|node| (node, bound_at)),
            assumed: false,
        }
    }

    fn waits(&self) -> bool {
        self.node.is_none() && self.ours && !self.gated && !self.deleting
    }
}

pub(crate) fn key_of(namespace: &Option<String>, name: &Option<String>) -> Key {
    (namespace.clone().unwrap_or_default(), name.clone().unwrap_or_default())
}

fn created(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Timestamp {
    metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

fn gang_of(pod: &core::Pod) -> GangId {
    let (namespace, name) = key_of(&pod.metadata.namespace, &pod.metadata.name);
    match pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_GROUP_LABEL)) {
        Some(group) if !group.is_empty() => GangId::Group { namespace, name: group.clone() },
        _ => GangId::Pod { namespace, name },
    }
}

fn owner_of(pod: &core::Pod) -> Option<Subject> {
    let owner = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true))?;
    Some(Subject {
        api_version: owner.api_version.clone(),
        kind: owner.kind.clone(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        field_path: None,
    })
}

fn toleration_of(toleration: &core::Toleration) -> Toleration {
    Toleration {
        key: toleration.key.clone().unwrap_or_default(),
        exists: toleration.operator.as_deref() == Some("Exists"),
        value: toleration.value.clone().unwrap_or_default(),
        effect: toleration.effect.clone().unwrap_or_default(),
    }
}

fn node_of(node: &core::Node) -> Node {
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    Node {
        name: node.metadata.name.clone().unwrap_or_default(),
        ready: ready && node.metadata.deletion_timestamp.is_none(),
        unschedulable: spec.unschedulable.unwrap_or(false),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        taints: spec
            .taints
            .into_iter()
            .flatten()
            .map(|t| Taint { key: t.key, value: t.value.unwrap_or_default(), effect: t.effect })
            .collect(),
        allocatable: amounts(status.allocatable.as_ref().or(status.capacity.as_ref())),
        pods: Vec::new(),
    }
}

fn amounts(list: Option<&BTreeMap<String, Quantity>>) -> Resources {
    list.into_iter().flatten().filter_map(|(name, quantity)| Some((name.clone(), amount(name, &quantity.0)?))).collect()
}

/// What a pod holds while it runs: its containers and sidecars together, or the largest moment of its
/// initialisation, plus overhead and the pod itself.
pub(crate) fn requests_of(spec: &core::PodSpec) -> Resources {
    let mut total = Resources::new();
    for container in &spec.containers {
        add(&mut total, &container_requests(container));
    }
    let mut sidecars = Resources::new();
    let mut peak = Resources::new();
    for container in spec.init_containers.iter().flatten() {
        let mut asked = container_requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &asked);
        } else {
            add(&mut asked, &sidecars);
            for (resource, value) in asked {
                let peak = peak.entry(resource).or_insert(0);
                *peak = (*peak).max(value);
            }
        }
    }
    add(&mut total, &sidecars);
    for (resource, value) in peak {
        let total = total.entry(resource).or_insert(0);
        *total = (*total).max(value);
    }
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total.insert("pods".to_owned(), 1);
    total
}

fn container_requests(container: &core::Container) -> Resources {
    let resources = container.resources.clone().unwrap_or_default();
    let mut asked = amounts(resources.limits.as_ref());
    asked.extend(amounts(resources.requests.as_ref()));
    asked
}

fn add(to: &mut Resources, resources: &Resources) {
    for (resource, amount) in resources {
        let value = to.entry(resource.clone()).or_insert(0);
        *value = value.saturating_add(*amount);
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;

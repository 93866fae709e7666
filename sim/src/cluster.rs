//! The objects as the store has them, read for what the invariants and the simulated machines need.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_api::names::label;
use serde_json::Value;

pub const PODS: &str = "/pods";
pub const SERVICES: &str = "/services";
pub const NODES: &str = "/nodes";
pub const POD_GROUPS: &str = "scheduling.x-k8s.io/podgroups";
pub const JOBS: [&str; 3] = ["kubeflow.org/pytorchjobs", "kubeflow.org/tfjobs", "kubeflow.org/mxjobs"];

pub const GPU: &str = "nvidia.com/gpu";

/// Which object: `group/plural` and `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    pub resource: String,
    pub path: String,
}

impl Key {
    pub fn parse(key: &str) -> Option<Key> {
        let mut ends = key.match_indices('/').map(|(at, _)| at);
        let (_, plural_end) = (ends.next()?, ends.next()?);
        Some(Key { resource: key[..plural_end].to_owned(), path: key[plural_end + 1..].to_owned() })
    }

    pub fn namespace(&self) -> &str {
        self.path.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.path.split_once('/').map_or(&self.path, |(_, name)| name)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = self.resource.rsplit('/').next().unwrap_or_default();
        write!(f, "{plural}/{}", self.path)
    }
}

/// One object before and after a transaction.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: Key,
    pub before: Option<Arc<Value>>,
    pub after: Option<Arc<Value>>,
}

#[derive(Clone, Debug, Default)]
pub struct Cluster {
    objects: BTreeMap<Key, Arc<Value>>,
}

impl Cluster {
    /// Takes in one change; gives it with what was there before.
    pub fn apply(&mut self, key: Key, after: Option<Value>) -> Change {
        let after = after.map(Arc::new);
        let before = match &after {
            Some(value) => self.objects.insert(key.clone(), Arc::clone(value)),
            None => self.objects.remove(&key),
        };
        Change { key, before, after }
    }

    pub fn all(&self) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter()
    }

    pub fn of<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let from = Key { resource: resource.to_owned(), path: String::new() };
        self.objects.range(from..).take_while(move |(key, _)| key.resource == resource)
    }

    pub fn pods(&self) -> impl Iterator<Item = (&Key, Pod<'_>)> {
        self.of(PODS).map(|(key, value)| (key, Pod(value)))
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        let path = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        self.objects.get(&Key { resource: resource.to_owned(), path })
    }

    pub fn jobs(&self) -> impl Iterator<Item = (&Key, Job<'_>)> {
        JOBS.iter().flat_map(|resource| self.of(resource)).map(|(key, value)| (key, Job(value)))
    }

    /// Whether an object with this uid is there.
    pub fn has_uid(&self, uid: &str) -> bool {
        self.objects.values().any(|object| self::uid(object) == uid)
    }
}

pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// The owner that controls an object: its kind, name and uid.
pub fn controller(object: &Value) -> Option<(&str, &str, &str)> {
    let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    Some((text(owner, "/kind"), text(owner, "/name"), text(owner, "/uid")))
}

pub fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["metadata"]["labels"][name].as_str()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[derive(Clone, Copy)]
pub struct Pod<'a>(pub &'a Value);

impl<'a> Pod<'a> {
    pub fn uid(self) -> &'a str {
        uid(self.0)
    }

    pub fn phase(self) -> &'a str {
        match text(self.0, "/status/phase") {
            "" => "Pending",
            phase => phase,
        }
    }

    pub fn is_finished(self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    pub fn node(self) -> Option<&'a str> {
        Some(text(self.0, "/spec/nodeName")).filter(|node| !node.is_empty())
    }

    /// The name of its PodGroup.
    pub fn group(self) -> Option<&'a str> {
        label(self.0, label::POD_GROUP)
    }

    pub fn gpus(self) -> u64 {
        let containers = self.0.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
        containers.map(|container| gpus(&container["resources"])).sum()
    }

    /// The job, by uid, the role and the index that it runs.
    pub fn rank(self) -> Option<(&'a str, &'a str, &'a str)> {
        let (_, _, job) = controller(self.0)?;
        Some((job, label(self.0, label::REPLICA_TYPE)?, label(self.0, label::REPLICA_INDEX)?))
    }
}

/// GPUs of a `resources` field: requests, or limits where there are none.
fn gpus(resources: &Value) -> u64 {
    let amount = [&resources["requests"][GPU], &resources["limits"][GPU]].into_iter().find(|value| !value.is_null());
    amount.map_or(0, count)
}

/// A whole quantity.
pub fn count(amount: &Value) -> u64 {
    amount.as_u64().or_else(|| amount.as_str()?.parse().ok()).unwrap_or(0)
}

#[derive(Clone, Copy)]
pub struct Job<'a>(pub &'a Value);

impl<'a> Job<'a> {
    pub fn uid(self) -> &'a str {
        uid(self.0)
    }

    pub fn has_condition(self, kind: &str) -> bool {
        let conditions = self.0.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        conditions.into_iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
    }

    /// Its terminal condition.
    pub fn ending(self) -> Option<&'static str> {
        ["Succeeded", "Failed"].into_iter().find(|kind| self.has_condition(kind))
    }

    pub fn policy(self) -> &'a Value {
        &self.0["spec"]["runPolicy"]
    }

    pub fn is_suspended(self) -> bool {
        self.policy()["suspend"] == true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_parsed_with_and_without_group_and_namespace() {
        let key = |text| Key::parse(text).map(|key| (key.resource, key.path));
        assert_eq!(key("/pods/default/a"), Some(("/pods".into(), "default/a".into())));
        assert_eq!(key("/nodes/a"), Some(("/nodes".into(), "a".into())));
        assert_eq!(key("kubeflow.org/tfjobs/x/a"), Some(("kubeflow.org/tfjobs".into(), "x/a".into())));
        assert_eq!(key("nothing"), None);
    }

    #[test]
    fn gpus_of_all_containers_count() {
        let pod = json!({"spec": {"containers": [
            {"resources": {"limits": {GPU: 2}}}, {"resources": {"requests": {GPU: "1"}, "limits": {GPU: 1}}}, {},
        ]}});
        assert_eq!(Pod(&pod).gpus(), 3);
    }
}

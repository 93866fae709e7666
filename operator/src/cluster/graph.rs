//! Who owns whom: the metadata of every object that garbage collection needs, and nothing else.

use super::resources::Resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// What the graph knows of an object.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) resource: Arc<Resource>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    /// Deleted in the foreground: goes once its dependents have gone.
    pub(super) waits_for_dependents: bool,
    /// Deleted with its dependents to be orphaned.
    pub(super) orphans: bool,
    pub(super) finalizers: bool,
}

impl Node {
    pub(super) fn new(resource: Arc<Resource>, metadata: &ObjectMeta) -> Node {
        let deleting = metadata.deletion_timestamp.is_some();
        let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|f| f == name);
        Node {
            resource,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            owners: metadata.owner_references.clone().unwrap_or_default(),
            deleting,
            waits_for_dependents: deleting && has(FOREGROUND),
            orphans: deleting && has(ORPHAN),
            finalizers: !finalizers.is_empty(),
        }
    }
}

/// What is known of one owner of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// There, and meant to stay.
    Solid,
    /// There, but waits for this dependent to go.
    Waiting,
    /// Was deleted, or never was.
    Absent,
    /// Not seen here: the API has to be asked.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: BTreeMap<String, Node>,
    dependents: BTreeMap<String, BTreeSet<String>>,
    /// The namespaces that are on their way out.
    ending: BTreeSet<String>,
    /// Namespace and name of each quota.
    quotas: BTreeSet<(String, String)>,
    /// Namespace and uid of each claim that is on its way out.
    leaving_claims: BTreeSet<(String, String)>,
    gone: Gone,
}

/// How many deleted uids are remembered.
const REMEMBERED: usize = 4096;

/// Uids of objects that were deleted lately: their dependents need not ask the API whether they are there.
#[derive(Debug, Default)]
struct Gone {
    uids: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Gone {
    fn insert(&mut self, uid: String) {
        if self.uids.insert(uid.clone()) {
            self.order.push_back(uid);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
    }
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Takes in an object as it is now; gives what was known of it before.
    pub(super) fn put(&mut self, uid: &str, node: Node) -> Option<Node> {
        let before = self.nodes.get(uid).cloned();
        if let Some(before) = &before {
            self.unlink(uid, before);
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
        }
        if node.resource.is("", "Namespace") && node.deleting {
            self.ending.insert(node.name.clone());
        } else if node.resource.is("", "ResourceQuota") {
            self.quotas.insert((node.namespace.clone(), node.name.clone()));
        } else if node.resource.is("", "PersistentVolumeClaim") && node.deleting {
            self.leaving_claims.insert((node.namespace.clone(), uid.to_owned()));
        }
        self.nodes.insert(uid.to_owned(), node);
        before
    }

    /// Forgets an object that is gone.
    pub(super) fn remove(&mut self, uid: &str) -> Option<Node> {
        let node = self.nodes.remove(uid)?;
        self.unlink(uid, &node);
        self.gone.insert(uid.to_owned());
        Some(node)
    }

    /// An owner that the API has been asked for and does not have.
    pub(super) fn know_absent(&mut self, uid: &str) {
        if !self.nodes.contains_key(uid) {
            self.gone.insert(uid.to_owned());
        }
    }

    fn unlink(&mut self, uid: &str, node: &Node) {
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        if node.resource.is("", "Namespace") {
            self.ending.remove(&node.name);
        } else if node.resource.is("", "ResourceQuota") {
            self.quotas.remove(&(node.namespace.clone(), node.name.clone()));
        } else if node.resource.is("", "PersistentVolumeClaim") {
            self.leaving_claims.remove(&(node.namespace.clone(), uid.to_owned()));
        }
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// The dependents that an owner deleted in the foreground waits for.
    pub(super) fn blockers(&self, uid: &str) -> Vec<String> {
        let blocks =
            |node: &Node| node.owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true));
        let all = self.dependents.get(uid).into_iter().flatten();
        all.filter(|dependent| self.nodes.get(*dependent).is_some_and(blocks)).cloned().collect()
    }

    /// What is known of an owner that an object in `namespace` refers to.
    pub(super) fn owner_state(&self, owner: &OwnerReference, namespace: &str) -> OwnerState {
        match self.nodes.get(&owner.uid) {
            Some(node) => {
                let reachable = node.namespace.is_empty() || node.namespace == namespace;
                let named = node.name == owner.name && node.resource.api.kind == owner.kind;
                match (reachable && named, node.waits_for_dependents) {
                    // The uid is another object's: what the reference names does not exist.
                    (false, _) => OwnerState::Unknown,
                    (true, true) => OwnerState::Waiting,
                    (true, false) => OwnerState::Solid,
                }
            }
            None if self.gone.uids.contains(&owner.uid) => OwnerState::Absent,
            None => OwnerState::Unknown,
        }
    }

    /// Whether a namespace is on its way out.
    pub(super) fn is_ending(&self, namespace: &str) -> bool {
        self.ending.contains(namespace)
    }

    /// The names of the quotas of a namespace.
    pub(super) fn quotas(&self, namespace: &str) -> Vec<String> {
        of_namespace(&self.quotas, namespace)
    }

    /// The uids of the claims of a namespace that are on their way out.
    pub(super) fn leaving_claims(&self, namespace: &str) -> Vec<String> {
        of_namespace(&self.leaving_claims, namespace)
    }
}

fn of_namespace(index: &BTreeSet<(String, String)>, namespace: &str) -> Vec<String> {
    let from = (namespace.to_owned(), String::new());
    index.range(from..).take_while(|(ns, _)| ns == namespace).map(|(_, value)| value.clone()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::shell::resource::resource;

    pub(in crate::cluster) fn node(name: &str, owners: &[(&str, bool)]) -> Node {
        let api = resource("", "v1", "ConfigMap", "configmaps");
        let resource = Arc::new(Resource { api, namespaced: true, deletable: true, collection: true });
        let owners = owners.iter().map(|(uid, blocks)| OwnerReference {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: (*uid).to_owned(),
            uid: (*uid).to_owned(),
            block_owner_deletion: Some(*blocks),
            controller: None,
        });
        let metadata = ObjectMeta {
            namespace: Some("n".into()),
            name: Some(name.to_owned()),
            owner_references: Some(owners.collect()),
            ..ObjectMeta::default()
        };
        Node::new(resource, &metadata)
    }

    #[test]
    fn dependents_follow_references() {
        let mut graph = Graph::default();
        graph.put("a", node("a", &[]));
        graph.put("b", node("b", &[("a", true)]));
        graph.put("c", node("c", &[("a", false)]));
        assert_eq!(graph.dependents("a"), ["b", "c"]);
        assert_eq!(graph.blockers("a"), ["b"]);
        graph.put("b", node("b", &[]));
        assert_eq!(graph.dependents("a"), ["c"]);
        graph.remove("c");
        assert!(graph.dependents("a").is_empty());
    }

    #[test]
    fn states_of_owners() {
        let mut graph = Graph::default();
        graph.put("a", node("a", &[]));
        let mut waiting = node("w", &[]);
        waiting.waits_for_dependents = true;
        graph.put("w", waiting);
        graph.put("g", node("g", &[]));
        graph.remove("g");
        let dependent = node("d", &[("a", true), ("w", true), ("g", true), ("x", true)]);
        let states: Vec<_> = dependent.owners.iter().map(|o| graph.owner_state(o, "n")).collect();
        assert_eq!(states, [OwnerState::Solid, OwnerState::Waiting, OwnerState::Absent, OwnerState::Unknown]);
        // An owner in another namespace is none.
        assert_eq!(graph.owner_state(&dependent.owners[0], "m"), OwnerState::Unknown);
    }

    #[test]
    fn memory_of_the_gone_is_bounded() {
        let mut graph = Graph::default();
        for i in 0..REMEMBERED + 10 {
            graph.know_absent(&i.to_string());
        }
        assert_eq!(graph.gone.uids.len(), REMEMBERED);
    }
}

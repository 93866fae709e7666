//! A gang starts whole or not at all: the transaction that binds the first pod of a pod group binds as many as the
//! group needs.
//!
//! Later bindings of a started group are replacements of single pods.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Invariant;
use crate::cluster::{Change, Cluster, POD_GROUPS, PODS, Pod, uid};

#[derive(Default)]
pub(super) struct GangWhole {
    /// The last pod group of each path, also when it is gone: its uid and how many pods it needs.
    groups: BTreeMap<String, (String, u64)>,
    /// Uids of groups that have started.
    started: BTreeSet<String>,
}

impl Invariant for GangWhole {
    fn name(&self) -> &'static str {
        "gang-whole"
    }

    fn observe(&mut self, changes: &[Change], cluster: &Cluster) -> Result<(), String> {
        for change in changes {
            if let (POD_GROUPS, Some(group)) = (change.key.resource.as_str(), &change.after) {
                let needs = group.pointer("/spec/minMember").and_then(Value::as_u64).unwrap_or(1);
                self.groups.insert(change.key.path.clone(), (uid(group).to_owned(), needs));
            }
        }
        for change in changes.iter().filter(|change| change.key.resource == PODS) {
            let was_bound = change.before.as_ref().is_some_and(|pod| Pod(pod).node().is_some());
            let Some(pod) = change.after.as_ref().map(|pod| Pod(pod)) else { continue };
            let (false, Some(_), Some(name)) = (was_bound, pod.node(), pod.group()) else { continue };
            let namespace = change.key.namespace();
            let path = format!("{namespace}/{name}");
            let Some((group, needs)) = self.groups.get(&path) else {
                return Err(format!("pod {} is bound before its pod group exists", change.key.path));
            };
            if self.started.contains(group) {
                continue;
            }
            let bound = cluster
                .pods()
                .filter(|(key, pod)| key.namespace() == namespace && pod.group() == Some(name) && pod.node().is_some())
                .count() as u64;
            if bound < *needs {
                return Err(format!("{bound} of {needs} pods of {path} are bound"));
            }
            self.started.insert(group.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::Key;

    fn change(cluster: &mut Cluster, key: &str, value: Value) -> Change {
        cluster.apply(Key::parse(key).expect("a key"), Some(value))
    }

    fn pod(node: Option<&str>) -> Value {
        json!({"metadata": {"labels": {"scheduling.x-k8s.io/pod-group": "g"}}, "spec": {"nodeName": node}})
    }

    fn start(cluster: &mut Cluster, rule: &mut GangWhole) {
        let group = json!({"metadata": {"uid": "1"}, "spec": {"minMember": 2}});
        let mut changes = vec![change(cluster, "scheduling.x-k8s.io/podgroups/a/g", group)];
        for name in ["x", "y"] {
            changes.push(change(cluster, &format!("/pods/a/{name}"), pod(None)));
        }
        assert_eq!(rule.observe(&changes, cluster), Ok(()));
    }

    #[test]
    fn all_at_once_holds_and_replacements_too() {
        let (mut cluster, mut rule) = (Cluster::default(), GangWhole::default());
        start(&mut cluster, &mut rule);
        let both = ["x", "y"].map(|name| change(&mut cluster, &format!("/pods/a/{name}"), pod(Some("n"))));
        assert_eq!(rule.observe(&both, &cluster), Ok(()));
        cluster.apply(Key::parse("/pods/a/x").expect("a key"), None);
        cluster.apply(Key::parse("/pods/a/y").expect("a key"), None);
        let again = change(&mut cluster, "/pods/a/x", pod(Some("n")));
        assert_eq!(rule.observe(&[again], &cluster), Ok(()));
    }

    #[test]
    fn one_of_two_is_a_violation() {
        let (mut cluster, mut rule) = (Cluster::default(), GangWhole::default());
        start(&mut cluster, &mut rule);
        let one = change(&mut cluster, "/pods/a/x", pod(Some("n")));
        assert!(rule.observe(&[one], &cluster).is_err());
    }
}

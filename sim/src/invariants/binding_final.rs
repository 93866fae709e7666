//! A binding is final: a pod that has a node keeps it as long as it lives, and never starts over.

use super::Invariant;
use crate::cluster::{Change, Cluster, PODS, Pod, uid};

pub(super) struct BindingFinal;

impl Invariant for BindingFinal {
    fn name(&self) -> &'static str {
        "binding-final"
    }

    fn observe(&mut self, changes: &[Change], _cluster: &Cluster) -> Result<(), String> {
        for change in changes.iter().filter(|change| change.key.resource == PODS) {
            let (Some(before), Some(after)) = (&change.before, &change.after) else { continue };
            if uid(before) != uid(after) {
                return Err(format!("{} has become another pod without a deletion", change.key));
            }
            let (before, after) = (Pod(before), Pod(after));
            if before.node().is_some() && before.node() != after.node() {
                let (was, is) = (before.node().unwrap_or_default(), after.node().unwrap_or("no node"));
                return Err(format!("{} was bound to {was} and is bound to {is}", change.key));
            }
            if before.phase() == "Running" && after.phase() == "Pending" {
                return Err(format!("{} was running and is pending again", change.key));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Key;

    fn change(before: &Value, after: &Value) -> Result<(), String> {
        let mut cluster = Cluster::default();
        let key = || Key::parse("/pods/a/x").expect("a key");
        cluster.apply(key(), Some(before.clone()));
        let change = cluster.apply(key(), Some(after.clone()));
        BindingFinal.observe(&[change], &cluster)
    }

    #[test]
    fn a_pod_is_bound_once() {
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node}, "status": {"phase": phase}});
        assert_eq!(change(&pod("", "Pending"), &pod("n", "Pending")), Ok(()));
        assert_eq!(change(&pod("n", "Pending"), &pod("n", "Running")), Ok(()));
        assert!(change(&pod("n", "Pending"), &pod("m", "Pending")).is_err());
        assert!(change(&pod("n", "Running"), &pod("n", "Pending")).is_err());
    }
}

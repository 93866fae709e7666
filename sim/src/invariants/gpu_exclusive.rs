//! No GPU is held twice: the unfinished pods of a node never ask for more GPUs than it has.

use std::collections::BTreeMap;

use super::Invariant;
use crate::cluster::{Change, Cluster, GPU, NODES, PODS, count};

pub(super) struct GpuExclusive;

impl Invariant for GpuExclusive {
    fn name(&self) -> &'static str {
        "gpu-exclusive"
    }

    fn observe(&mut self, changes: &[Change], cluster: &Cluster) -> Result<(), String> {
        if !changes.iter().any(|change| change.key.resource == PODS || change.key.resource == NODES) {
            return Ok(());
        }
        let mut held: BTreeMap<&str, u64> = BTreeMap::new();
        for (_, pod) in cluster.pods().filter(|(_, pod)| !pod.is_finished()) {
            if let Some(node) = pod.node() {
                *held.entry(node).or_default() += pod.gpus();
            }
        }
        for (node, held) in held {
            let has = cluster.get(NODES, "", node).map_or(0, |node| count(&node["status"]["allocatable"][GPU]));
            if held > has {
                return Err(format!("pods on {node} hold {held} GPUs of {has}"));
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

    fn pod(phase: &str) -> Value {
        json!({"spec": {"nodeName": "n", "containers": [{"resources": {"limits": {GPU: 1}}}]}, "status": {"phase": phase}})
    }

    #[test]
    fn finished_pods_hold_nothing() {
        let mut cluster = Cluster::default();
        let mut apply = |key: &str, value| cluster.apply(Key::parse(key).expect("a key"), Some(value));
        apply("/nodes/n", json!({"status": {"allocatable": {GPU: "1"}}}));
        apply("/pods/a/x", pod("Succeeded"));
        let first = apply("/pods/a/y", pod("Running"));
        assert_eq!(GpuExclusive.observe(&[first], &cluster), Ok(()));
        let second = cluster.apply(Key::parse("/pods/a/z").expect("a key"), Some(pod("Pending")));
        assert!(GpuExclusive.observe(&[second], &cluster).is_err());
    }
}

//! One pod per (job, role, index) at a time: two processes of one rank would both write its checkpoints.

use std::collections::BTreeMap;

use super::Invariant;
use crate::cluster::{Change, Cluster, PODS};

pub(super) struct OnePodPerRank;

impl Invariant for OnePodPerRank {
    fn name(&self) -> &'static str {
        "one-pod-per-rank"
    }

    fn observe(&mut self, changes: &[Change], cluster: &Cluster) -> Result<(), String> {
        let is_creation = |change: &Change| change.key.resource == PODS && change.before.is_none();
        if !changes.iter().any(is_creation) {
            return Ok(());
        }
        let mut pods = BTreeMap::new();
        for (key, pod) in cluster.pods() {
            if let Some(rank @ (_, role, index)) = pod.rank()
                && let Some(other) = pods.insert(rank, &key.path)
            {
                return Err(format!("{other} and {} are both {role} {index} of their job", key.path));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use muster_api::names::label;
    use serde_json::json;

    use super::*;
    use crate::cluster::Key;

    #[test]
    fn the_same_index_of_other_roles_and_jobs_is_another_rank() {
        let mut cluster = Cluster::default();
        let mut create = |name: &str, job: &str, role: &str| {
            let labels = json!({label::REPLICA_TYPE: role, label::REPLICA_INDEX: "0"});
            let owner = json!([{"kind": "TFJob", "name": "x", "uid": job, "controller": true}]);
            let pod = json!({"metadata": {"labels": labels, "ownerReferences": owner}});
            let change = cluster.apply(Key::parse(&format!("/pods/a/{name}")).expect("a key"), Some(pod));
            OnePodPerRank.observe(&[change], &cluster)
        };
        assert_eq!(create("1", "a", "worker"), Ok(()));
        assert_eq!(create("2", "a", "ps"), Ok(()));
        assert_eq!(create("3", "b", "worker"), Ok(()));
        assert!(create("4", "a", "worker").is_err());
    }
}

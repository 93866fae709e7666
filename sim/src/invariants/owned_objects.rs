//! Every object that a job needs is owned by it from its creation on, and at rest every owner is alive.

use std::collections::BTreeSet;

use muster_api::names::label;

use super::Invariant;
use crate::cluster::{Change, Cluster, JOBS, POD_GROUPS, PODS, SERVICES, controller, label, uid};

#[derive(Default)]
pub(super) struct OwnedObjects {
    /// Uids of all jobs that there have been.
    jobs: BTreeSet<String>,
}

impl Invariant for OwnedObjects {
    fn name(&self) -> &'static str {
        "owned-objects"
    }

    fn observe(&mut self, changes: &[Change], _cluster: &Cluster) -> Result<(), String> {
        for change in changes {
            let Some(object) = &change.after else { continue };
            if JOBS.contains(&change.key.resource.as_str()) {
                self.jobs.insert(uid(object).to_owned());
            }
            let made_for_job = match change.key.resource.as_str() {
                PODS | SERVICES => label(object, label::JOB_NAME).is_some(),
                POD_GROUPS => true,
                _ => false,
            };
            if made_for_job && !controller(object).is_some_and(|(_, _, owner)| self.jobs.contains(owner)) {
                return Err(format!("{} is not owned by a job", change.key));
            }
        }
        Ok(())
    }

    fn at_rest(&mut self, cluster: &Cluster) -> Result<(), String> {
        for (key, object) in cluster.all() {
            if let Some((kind, name, owner)) = controller(object)
                && !cluster.has_uid(owner)
            {
                return Err(format!("{key} has outlived its owner, {kind} {name}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::Key;

    #[test]
    fn orphans_are_seen() {
        let (mut cluster, mut rule) = (Cluster::default(), OwnedObjects::default());
        let key = |text| Key::parse(text).expect("a key");
        let job = cluster.apply(key("kubeflow.org/tfjobs/a/x"), Some(json!({"metadata": {"uid": "1"}})));
        assert_eq!(rule.observe(&[job], &cluster), Ok(()));
        let labels = json!({label::JOB_NAME: "x"});
        let owner = json!([{"kind": "TFJob", "name": "x", "uid": "1", "controller": true}]);
        let owned = json!({"metadata": {"uid": "2", "labels": labels, "ownerReferences": owner}});
        let owned = cluster.apply(key("/services/a/x"), Some(owned));
        assert_eq!(rule.observe(&[owned], &cluster), Ok(()));
        assert_eq!(rule.at_rest(&cluster), Ok(()));
        cluster.apply(key("kubeflow.org/tfjobs/a/x"), None);
        assert!(rule.at_rest(&cluster).is_err());
        let orphan = cluster.apply(key("/pods/a/y"), Some(json!({"metadata": {"uid": "3", "labels": labels}})));
        assert!(rule.observe(&[orphan], &cluster).is_err());
    }
}

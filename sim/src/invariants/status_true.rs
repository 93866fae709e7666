//! At rest a job's status says what is there: its counts are those of its pods, and it has the times that it should.

use serde_json::Value;

use super::Invariant;
use crate::cluster::{Cluster, Job, Pod, controller, label};
use muster_api::names::label;

pub(super) struct StatusTrue;

impl Invariant for StatusTrue {
    fn name(&self) -> &'static str {
        "status-true"
    }

    fn at_rest(&mut self, cluster: &Cluster) -> Result<(), String> {
        for (key, job) in cluster.jobs() {
            let status = &job.0["status"];
            let has_ended = job.ending().is_some();
            if has_ended != status["completionTime"].is_string() {
                return Err(format!("{key} has {} completion time", if has_ended { "no" } else { "a" }));
            }
            for (role, counts) in status["replicaStatuses"].as_object().into_iter().flatten() {
                let said = |count: &str| counts[count].as_u64().unwrap_or(0);
                if (job.is_suspended() || job.ending() == Some("Succeeded")) && said("active") > 0 {
                    return Err(format!("{key} is over and has {} active {role}", said("active")));
                }
                // What has ended may have lost its pods since.
                if has_ended || job.is_suspended() {
                    continue;
                }
                for (count, phase) in [("active", "Running"), ("succeeded", "Succeeded"), ("failed", "Failed")] {
                    let there = pods_of(cluster, job, role).filter(|pod| pod.phase() == phase).count() as u64;
                    if said(count) != there {
                        return Err(format!("{key} says {} {role} are {count}, and {there} are", said(count)));
                    }
                }
            }
        }
        Ok(())
    }
}

fn pods_of<'a>(cluster: &'a Cluster, job: Job<'a>, role: &str) -> impl Iterator<Item = Pod<'a>> {
    let role = role.to_lowercase();
    let belongs = move |pod: &Value| {
        controller(pod).is_some_and(|(_, _, owner)| owner == job.uid())
            && label(pod, label::REPLICA_TYPE) == Some(role.as_str())
    };
    cluster.pods().map(|(_, pod)| pod).filter(move |pod| belongs(pod.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::Key;

    #[test]
    fn counts_are_those_of_the_pods() {
        let job = |active: u32, ending: Option<&str>| {
            let conditions = ending.map(|kind| json!({"type": kind, "status": "True"}));
            let completion = ending.map(|_| "2026-01-01T00:00:00Z");
            json!({"metadata": {"uid": "1"}, "status": {
                "conditions": conditions.into_iter().collect::<Vec<_>>(), "completionTime": completion,
                "replicaStatuses": {"Worker": {"active": active}}}})
        };
        let owner = json!([{"kind": "TFJob", "name": "x", "uid": "1", "controller": true}]);
        let pod = json!({"metadata": {"labels": {label::REPLICA_TYPE: "worker"}, "ownerReferences": owner},
            "status": {"phase": "Running"}});
        let mut cluster = Cluster::default();
        let mut check = |key: &str, value: Value| {
            cluster.apply(Key::parse(key).expect("a key"), Some(value));
            StatusTrue.at_rest(&cluster).is_ok()
        };
        assert!(check("kubeflow.org/tfjobs/a/x", job(0, None)));
        assert!(!check("/pods/a/x-worker-0", pod));
        assert!(check("kubeflow.org/tfjobs/a/x", job(1, None)));
        assert!(check("kubeflow.org/tfjobs/a/x", job(1, Some("Failed"))));
        assert!(!check("kubeflow.org/tfjobs/a/x", job(1, Some("Succeeded"))));
    }
}

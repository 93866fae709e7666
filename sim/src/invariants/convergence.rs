//! Once nothing goes wrong any more, everything comes to rest where it should: jobs end, their leftovers go, what
//! cannot run says so and holds nothing.

use crate::cluster::{Cluster, Job, NODES, Pod, controller, is_deleting};
use crate::scenario::Scenario;

pub const NAME: &str = "convergence";

/// The first thing that is not yet as it will stay.
pub fn unsettled(cluster: &Cluster, scenario: &Scenario) -> Option<String> {
    for (key, object) in cluster.all() {
        if is_deleting(object) {
            return Some(format!("{key} is still being deleted"));
        }
        if let Some((kind, name, owner)) = controller(object)
            && !cluster.has_uid(owner)
        {
            return Some(format!("{key} has outlived its owner, {kind} {name}"));
        }
    }
    for (key, job) in cluster.jobs() {
        let plan = scenario.jobs.iter().find(|plan| plan.namespace == key.namespace() && plan.name == key.name());
        let too_large = plan.is_some_and(|plan| plan.too_large);
        let mut pods = cluster.pods().filter(|(_, pod)| belongs(*pod, job));
        if job.is_suspended() && job.ending().is_none() {
            if let Some((pod, _)) = pods.next() {
                return Some(format!("{key} is suspended and has pod {}", pod.path));
            }
            continue;
        }
        let Some(_) = job.ending() else {
            if !too_large {
                return Some(format!("{key} has not ended"));
            }
            if let Some((pod, _)) = pods.find(|(_, pod)| pod.node().is_some()) {
                return Some(format!("{key} is too large for the cluster and has pod {} on a node", pod.path));
            }
            continue;
        };
        if job.policy()["ttlSecondsAfterFinished"].is_u64() {
            return Some(format!("{key} has outlived its time to live"));
        }
        let left = match job.policy()["cleanPodPolicy"].as_str() {
            Some("All") => pods.next(),
            Some("Running") => pods.find(|(_, pod)| !pod.is_finished()),
            _ => None,
        };
        if let Some((pod, _)) = left {
            return Some(format!("{key} has ended and keeps pod {}", pod.path));
        }
    }
    for plan in &scenario.jobs {
        let resource = format!("kubeflow.org/{}", plan.plural);
        if plan.delete_at.is_some() && cluster.get(&resource, plan.namespace, &plan.name).is_some() {
            return Some(format!("{} was not deleted", plan.name));
        }
    }
    let ready = |node: &serde_json::Value| {
        let conditions = node.pointer("/status/conditions").and_then(serde_json::Value::as_array);
        conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let lost = cluster.of(NODES).find(|(_, node)| !ready(node));
    lost.map(|(key, _)| format!("{key} is not ready"))
}

fn belongs(pod: Pod<'_>, job: Job<'_>) -> bool {
    controller(pod.0).is_some_and(|(_, _, owner)| owner == job.uid())
}

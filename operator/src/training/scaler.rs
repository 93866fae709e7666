//! The HorizontalPodAutoscaler of an elastic job that has metrics.

use super::decide::{Pass, owner_reference};
use super::plan::{Create, Resource, Update};
use muster_api::training::kind::API_VERSION;
use serde_json::{Value, json};

pub(super) fn decide(pass: &mut Pass<'_>) {
    let job = &pass.observed.job;
    let existing = pass.observed.autoscaler.as_ref();
    let policy = job.spec.elastic_policy.as_ref();
    let metrics = policy.and_then(|policy| policy.metrics.as_ref());
    let wanted = job.kind.scale_role.is_some() && !job.spec.run_policy.is_suspended();
    let (Some(policy), Some(metrics), true) = (policy, metrics, wanted) else {
        if let Some(existing) = existing.filter(|existing| !existing.deleting) {
            pass.delete(Resource::HorizontalPodAutoscaler, &job.name, &existing.uid);
        }
        return;
    };
    let mut spec = json!({
        "scaleTargetRef": {"apiVersion": API_VERSION, "kind": job.kind.kind, "name": job.name},
        "maxReplicas": policy.max_replicas,
        "metrics": metrics,
    });
    if let Some(min) = policy.min_replicas {
        spec["minReplicas"] = json!(min);
    }
    match existing {
        None => {
            let object = json!({
                "apiVersion": "autoscaling/v2",
                "kind": "HorizontalPodAutoscaler",
                "metadata": {
                    "name": job.name,
                    "namespace": job.namespace,
                    "ownerReferences": [owner_reference(job)],
                },
                "spec": spec,
            });
            let resource = Resource::HorizontalPodAutoscaler;
            pass.plan.creates.push(Create { resource, name: job.name.clone(), object });
        }
        Some(existing) if !existing.deleting && differs(&spec, &existing.spec) => {
            let patch = json!({"metadata": {"resourceVersion": existing.resource_version}, "spec": spec});
            let resource = Resource::HorizontalPodAutoscaler;
            pass.plan.updates.push(Update { resource, name: job.name.clone(), patch });
        }
        Some(_) => {}
    }
}

/// Some field that we set has another value. What the API server has filled in is left alone.
fn differs(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            ours.iter().any(|(key, value)| differs(value, theirs.get(key).unwrap_or(&Value::Null)))
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() != theirs.len() || ours.iter().zip(theirs).any(|(ours, theirs)| differs(ours, theirs))
        }
        (ours, theirs) => ours != theirs,
    }
}

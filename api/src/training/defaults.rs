//! Defaulting of jobs. It happens when the operator reads a job; stored objects stay as they were written.

use super::types::{CleanPodPolicy, Job, ReplicaSpec};
use serde_json::{Value, json};

/// Fills in what the user left out. Doing it twice changes nothing.
pub fn apply(job: &mut Job) {
    let kind = job.kind;
    job.spec.run_policy.clean_pod_policy.get_or_insert(CleanPodPolicy::None);
    if let Some(specs) = &mut job.spec.replica_specs {
        for role in kind.recased_roles {
            let other = specs.keys().find(|key| key.eq_ignore_ascii_case(role) && key != role).cloned();
            if let Some(spec) = other.and_then(|key| specs.remove(&key)) {
                specs.insert((*role).to_owned(), spec);
            }
        }
        for spec in specs.values_mut() {
            spec.replicas.get_or_insert(1);
            if spec.restart_policy.as_ref().is_none_or(|p| p.as_str().is_empty()) {
                spec.restart_policy = Some(kind.restart_policy.clone());
            }
            default_port(spec, kind.container, kind.port_name, kind.port);
        }
    }
    let workers = job.replica_specs().get("Worker").and_then(|spec| spec.replicas);
    let deprecated = job.spec.elastic_policy.as_ref().is_some_and(|policy| policy.n_proc_per_node.is_some());
    if let Some(policy) = &mut job.spec.elastic_policy {
        let (min, max) = (policy.min_replicas, policy.max_replicas);
        policy.min_replicas = min.or(max).or(workers);
        policy.max_replicas = max.or(min).or(workers);
    }
    if !deprecated {
        job.spec.nproc_per_node.get_or_insert_with(|| "auto".to_owned());
    }
    job.spec.success_policy.get_or_insert_default();
}

/// Adds the kind's port to its container, or to the first one where none has its name.
fn default_port(spec: &mut ReplicaSpec, container: &str, name: &str, number: i32) {
    let Some(containers) = spec.template.pointer_mut("/spec/containers").and_then(Value::as_array_mut) else {
        return;
    };
    let index = containers.iter().position(|c| c["name"] == container).unwrap_or(0);
    let Some(container) = containers.get_mut(index).and_then(Value::as_object_mut) else {
        return;
    };
    let ports = container.entry("ports").or_insert_with(|| json!([]));
    if !ports.is_array() {
        *ports = json!([]);
    }
    if let Some(ports) = ports.as_array_mut()
        && !ports.iter().any(|p| p["name"] == name)
    {
        ports.push(json!({ "name": name, "containerPort": number }));
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind::PYTORCH_JOB;
    use super::*;

    fn job(spec: Value) -> Job {
        let mut job = Job::parse(&PYTORCH_JOB, &json!({"metadata": {"name": "j"}, "spec": spec})).expect("a job");
        apply(&mut job);
        job
    }

    #[test]
    fn roles_are_recased_and_filled_in() {
        let containers = json!([{"name": "side", "image": "a"}, {"name": "pytorch", "image": "b"}]);
        let job = job(json!({"pytorchReplicaSpecs": {"worker": {"template": {"spec": {"containers": containers}}}}}));
        let worker = &job.replica_specs()["Worker"];
        assert_eq!(worker.replicas, Some(1));
        assert_eq!(worker.restart_policy.as_ref().map(|p| p.as_str()), Some("OnFailure"));
        assert_eq!(worker.port("pytorch", "pytorchjob-port"), Some(23456));
        assert_eq!(worker.port("side", "pytorchjob-port"), None);
        assert_eq!(job.spec.nproc_per_node.as_deref(), Some("auto"));
        let mut again = job.clone();
        apply(&mut again);
        assert_eq!(again.spec, job.spec);
    }

    #[test]
    fn elastic_bounds_come_from_each_other_or_from_the_workers() {
        let spec = |policy: Value| json!({"elasticPolicy": policy, "pytorchReplicaSpecs": {"Worker": {"replicas": 3}}});
        for (policy, bounds) in [
            (json!({}), (Some(3), Some(3))),
            (json!({"minReplicas": 2}), (Some(2), Some(2))),
            (json!({"maxReplicas": 5}), (Some(5), Some(5))),
            (json!({"minReplicas": 2, "maxReplicas": 5}), (Some(2), Some(5))),
        ] {
            let policy = job(spec(policy)).spec.elastic_policy.expect("a policy");
            assert_eq!((policy.min_replicas, policy.max_replicas), bounds);
        }
        assert_eq!(job(spec(json!({"nProcPerNode": 2}))).spec.nproc_per_node, None);
    }
}

//! The validating admission of the training kinds: the rules of upstream's webhooks, in upstream's words.
//!
//! The API server calls [`review`] after the schema has accepted an object. MXJob has no webhook; what is wrong with
//! one is said by the operator in an event.

use crate::field::{FieldError, aggregate};
use crate::names::{MANAGED_BY_MULTIKUEUE, MANAGED_BY_OPERATOR};
use crate::training::{Job, JobKind};
use serde_json::{Value, json};

/// Reviews the creation (`old` is `None`) or the update of an object. `Ok` carries warnings, `Err` the denial.
pub fn review(kind: &str, old: Option<&Value>, new: &Value) -> Result<Vec<String>, String> {
    let Some(job_kind) = JobKind::by_kind(kind) else { return Ok(Vec::new()) };
    let rules = match kind {
        "PyTorchJob" => pytorch,
        "TFJob" => tensorflow,
        _ => return Ok(Vec::new()),
    };
    let mut warnings = Vec::new();
    let mut errors = Vec::new();
    name(new, &mut errors);
    if let Some(old) = old {
        run_policy_update(old, new, &mut errors);
    }
    run_policy(new, &mut errors);
    rules(job_kind, &new["spec"], &mut warnings, &mut errors);
    let mut seen = Vec::new();
    errors.retain(|error| {
        let text = error.to_string();
        let first = !seen.contains(&text);
        seen.push(text);
        first
    });
    if errors.is_empty() {
        return Ok(warnings);
    }
    let webhook = format!("validator.{}.training-operator.kubeflow.org", job_kind.singular);
    Err(format!("admission webhook \"{webhook}\" denied the request: {}", aggregate(&errors)))
}

/// What is wrong with a job of a kind without a webhook, as its operator says it.
pub fn operator_error(job: &Job) -> Option<String> {
    if job.kind.kind != "MXJob" {
        return None;
    }
    let invalid = || Some("MXJobSpec is not valid".to_owned());
    let name = dns1035_errors(&job.name);
    if !name.is_empty() {
        return Some(format!("MXJob name is invalid: [{}]", name.join(" ")));
    }
    let Some(specs) = &job.spec.replica_specs else { return invalid() };
    for spec in specs.values() {
        let containers = spec.containers();
        let unnamed = !containers.iter().any(|c| c["name"] == job.kind.container);
        if containers.is_empty() || unnamed || containers.iter().any(|c| text(c, "image").is_empty()) {
            return invalid();
        }
    }
    None
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The ways in which a name is not a DNS-1035 label.
fn dns1035_errors(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 63 {
        errors.push("must be no more than 63 characters".to_owned());
    }
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let well_formed = bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|b| alphanumeric(*b))
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-');
    if !well_formed {
        errors.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
             validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    errors
}

fn name(new: &Value, errors: &mut Vec<FieldError>) {
    let name = text(&new["metadata"], "name");
    let wrong = dns1035_errors(name);
    if !wrong.is_empty() {
        let detail = format!("should match: {}", wrong.join(","));
        errors.push(FieldError::invalid("metadata.name", &json!(name), detail));
    }
}

fn managed_by(object: &Value) -> Option<&str> {
    object.pointer("/spec/runPolicy/managedBy").and_then(Value::as_str)
}

const MANAGED_BY: &str = "spec.runPolicy.managedBy";

fn run_policy(new: &Value, errors: &mut Vec<FieldError>) {
    let supported = [MANAGED_BY_MULTIKUEUE, MANAGED_BY_OPERATOR];
    if let Some(manager) = managed_by(new).filter(|manager| !supported.contains(manager)) {
        errors.push(FieldError::not_supported(MANAGED_BY, &json!(manager), &supported));
    }
}

fn run_policy_update(old: &Value, new: &Value, errors: &mut Vec<FieldError>) {
    let manager = managed_by(new);
    if manager != managed_by(old) {
        let shown = json!(manager.unwrap_or("null"));
        errors.push(FieldError::invalid(MANAGED_BY, &shown, "field is immutable"));
    }
}

fn pytorch(kind: &JobKind, spec: &Value, warnings: &mut Vec<String>, errors: &mut Vec<FieldError>) {
    let specs = format!("spec.{}", kind.replica_specs);
    let elastic = &spec["elasticPolicy"];
    if elastic.is_object() {
        if !spec[kind.replica_specs].as_object().is_some_and(|roles| roles.contains_key("Worker")) {
            errors
                .push(FieldError::required(format!("{specs}[Worker]"), "must be configured if elastic policy is used"));
        }
        if !elastic["nProcPerNode"].is_null() {
            let (old, new) = ("spec.elasticPolicy.nProcPerNode", "spec.nprocPerNode");
            warnings.push(format!("{old} is deprecated, use {new} instead"));
            if !spec["nprocPerNode"].is_null() {
                errors.push(FieldError::forbidden(old, format!("must not be used with {new}")));
            }
        }
    }
    replica_specs(kind, spec, errors, pytorch_role, pytorch_replicas);
}

fn pytorch_role(kind: &JobKind, role: &str, path: &str, errors: &mut Vec<FieldError>) {
    let roles: Vec<&str> = kind.roles.iter().map(|r| r.name).collect();
    if !roles.contains(&role) {
        errors.push(FieldError::not_supported(path, &json!(role), &roles));
    }
}

fn pytorch_replicas(role: &str, path: &str, replicas: Option<i64>, errors: &mut Vec<FieldError>) {
    let path = format!("{path}.replicas");
    if role == "Master" {
        if replicas != Some(1) {
            errors.push(FieldError::forbidden(path, "must be 1"));
        }
    } else if replicas.is_some_and(|n| n < 1) {
        errors.push(FieldError::forbidden(path, "must be at least 1"));
    }
}

fn tensorflow(kind: &JobKind, spec: &Value, _: &mut Vec<String>, errors: &mut Vec<FieldError>) {
    replica_specs(kind, spec, errors, |_, _, _, _| (), |_, _, _, _| ());
    let roles = spec[kind.replica_specs].as_object();
    let chiefs = roles.map_or(0, |roles| roles.keys().filter(|role| *role == "Chief" || *role == "Master").count());
    if chiefs > 1 {
        let path = format!("spec.{}", kind.replica_specs);
        errors.push(FieldError::forbidden(path, "must not have more than 1 Chief or Master role"));
    }
}

/// The rules on roles and containers that all kinds share. `on_role` looks at a role before its containers are looked
/// at, `on_replicas` after them, so that the errors keep upstream's order.
fn replica_specs(
    kind: &JobKind,
    spec: &Value,
    errors: &mut Vec<FieldError>,
    on_role: fn(&JobKind, &str, &str, &mut Vec<FieldError>),
    on_replicas: fn(&str, &str, Option<i64>, &mut Vec<FieldError>),
) {
    let specs = format!("spec.{}", kind.replica_specs);
    let Some(roles) = spec[kind.replica_specs].as_object() else {
        errors.push(FieldError::required(specs, "must be required"));
        return;
    };
    for (role, replica) in roles {
        let path = format!("{specs}[{role}]");
        on_role(kind, role, &path, errors);
        let containers_path = format!("{path}.template.spec.containers");
        let containers = replica.pointer("/template/spec/containers").and_then(Value::as_array);
        let containers = containers.map_or(&[][..], Vec::as_slice);
        if containers.is_empty() {
            errors.push(FieldError::required(&containers_path, "must be specified"));
        }
        for (index, container) in containers.iter().enumerate() {
            if text(container, "image").is_empty() {
                errors.push(FieldError::required(format!("{containers_path}[{index}].image"), "must be required"));
            }
        }
        if !containers.iter().any(|container| container["name"] == kind.container) {
            let detail = format!("must have at least one container with name {}", kind.container);
            errors.push(FieldError::required(containers_path, &detail));
        }
        on_replicas(role, &path, replica["replicas"].as_i64(), errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pytorch_job(spec: Value) -> Value {
        json!({"metadata": {"name": "demo"}, "spec": spec})
    }

    fn role(replicas: Option<i32>) -> Value {
        let mut role = json!({"template": {"spec": {"containers": [{"name": "pytorch", "image": "i"}]}}});
        if let Some(n) = replicas {
            role["replicas"] = json!(n);
        }
        role
    }

    fn denial(kind: &str, old: Option<&Value>, new: &Value) -> String {
        let webhook = format!("validator.{}.training-operator.kubeflow.org", kind.to_lowercase());
        let prefix = format!("admission webhook \"{webhook}\" denied the request: ");
        let denied = review(kind, old, new).expect_err("a denial");
        denied.strip_prefix(&prefix).expect("the webhook's name").to_owned()
    }

    #[test]
    fn elastic_policy_needs_a_worker_and_one_process_count() {
        let job = pytorch_job(json!({
            "nprocPerNode": "2", "elasticPolicy": {"nProcPerNode": 2}, "pytorchReplicaSpecs": {"Master": role(Some(1))},
        }));
        assert_eq!(
            denial("PyTorchJob", None, &job),
            "[spec.pytorchReplicaSpecs[Worker]: Required value: must be configured if elastic policy is used, \
             spec.elasticPolicy.nProcPerNode: Forbidden: must not be used with spec.nprocPerNode]"
        );
        let job =
            pytorch_job(json!({"elasticPolicy": {"nProcPerNode": 2}, "pytorchReplicaSpecs": {"Worker": role(None)}}));
        assert_eq!(
            review("PyTorchJob", None, &job),
            Ok(vec!["spec.elasticPolicy.nProcPerNode is deprecated, use spec.nprocPerNode instead".to_owned()])
        );
    }

    #[test]
    fn managed_by_is_immutable_for_every_kind_with_a_webhook() {
        for (kind, specs) in [("PyTorchJob", "pytorchReplicaSpecs"), ("TFJob", "tfReplicaSpecs")] {
            let job = |manager: Option<&str>| pytorch_job(json!({"runPolicy": {"managedBy": manager}, specs: {}}));
            let old = job(Some(MANAGED_BY_OPERATOR));
            assert_eq!(review(kind, Some(&old), &old), Ok(vec![]));
            assert_eq!(
                denial(kind, Some(&old), &job(Some(MANAGED_BY_MULTIKUEUE))),
                "spec.runPolicy.managedBy: Invalid value: \"kueue.x-k8s.io/multikueue\": field is immutable"
            );
            assert_eq!(
                denial(kind, Some(&old), &job(None)),
                "spec.runPolicy.managedBy: Invalid value: \"null\": field is immutable"
            );
        }
    }

    #[test]
    fn one_chief_or_master() {
        let chief = json!({"template": {"spec": {"containers": [{"name": "tensorflow", "image": "i"}]}}});
        let job = pytorch_job(json!({"tfReplicaSpecs": {"Chief": chief, "Master": chief}}));
        assert_eq!(
            denial("TFJob", None, &job),
            "spec.tfReplicaSpecs: Forbidden: must not have more than 1 Chief or Master role"
        );
    }

    #[test]
    fn other_kinds_pass() {
        assert_eq!(review("MXJob", None, &json!({"metadata": {"name": "1abc"}})), Ok(vec![]));
        assert_eq!(review("ConfigMap", None, &json!({})), Ok(vec![]));
    }
}

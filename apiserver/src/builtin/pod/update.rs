//! What an update of a pod may change.

use crate::builtin::Context;
use crate::builtin::value::{field, fields, int, items, items_mut, list, text};
use crate::schema::internal;
use muster_api::field::FieldError;
use serde_json::{Map, Value};

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
     `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
     tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate(new: &Value, old: &Value, context: &Context<'_>) -> Vec<FieldError> {
    match context.subresource {
        "status" => status(new, old),
        _ => spec(new, old),
    }
}

fn spec(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = Value::Object(Map::new());
    let (new_spec, old_spec) = (new.get("spec").unwrap_or(&empty), old.get("spec").unwrap_or(&empty));
    for key in ["containers", "initContainers"] {
        if items(new_spec, key).len() != items(old_spec, key).len() {
            errors.push(FieldError::forbidden(format!("spec.{key}"), "pod updates may not add or remove containers"));
            return errors;
        }
    }
    deadline(new_spec, old_spec, &mut errors);
    gates(new_spec, old_spec, &mut errors);
    tolerations(new_spec, old_spec, &mut errors);
    // What may change is made equal, so that whatever still differs may not.
    let mut munged = new_spec.clone();
    for key in ["containers", "initContainers"] {
        for (container, old) in items_mut(&mut munged, key).zip(items(old_spec, key)) {
            restore(fields(container), old, "image");
        }
    }
    let munged_fields = fields(&mut munged);
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        restore(munged_fields, old_spec, key);
    }
    if int(old_spec, "/terminationGracePeriodSeconds").is_some_and(|grace| grace < 0)
        && int(new_spec, "/terminationGracePeriodSeconds") == Some(1)
    {
        restore(munged_fields, old_spec, "terminationGracePeriodSeconds");
    }
    if !items(old_spec, "schedulingGates").is_empty() {
        node_selector(new_spec, old_spec, &mut errors);
        restore(munged_fields, old_spec, "nodeSelector");
        if narrows_affinity(new_spec, old_spec) {
            restore(munged_fields, old_spec, "affinity");
        }
    }
    if munged != *old_spec {
        let shown = internal::diff("core.PodSpec", old_spec, &munged);
        errors.push(FieldError::forbidden("spec", format!("{CHANGEABLE}\n{shown}")));
    }
    errors
}

fn restore(target: &mut Map<String, Value>, old: &Value, key: &str) {
    match old.get(key) {
        Some(value) => target.insert(key.to_owned(), value.clone()),
        None => target.remove(key),
    };
}

fn deadline(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let path = "spec.activeDeadlineSeconds";
    let value = new.get("activeDeadlineSeconds").unwrap_or(&Value::Null);
    match (int(new, "/activeDeadlineSeconds"), int(old, "/activeDeadlineSeconds")) {
        (Some(after), Some(before)) if after > before => {
            errors.push(FieldError::invalid(path, value, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(path, value, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

fn gates(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let before: Vec<&str> = items(old, "schedulingGates").iter().map(|g| field(g, "name")).collect();
    for (i, gate) in items(new, "schedulingGates").iter().enumerate() {
        let name = field(gate, "name");
        if !before.contains(&name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}].name"), why));
        }
    }
}

fn tolerations(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let same = |a: &Value, b: &Value| ["key", "operator", "value", "effect"].iter().all(|k| field(a, k) == field(b, k));
    let after = items(new, "tolerations");
    if !items(old, "tolerations").iter().all(|toleration| after.iter().any(|t| same(t, toleration))) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", why));
    }
}

/// A gated pod's selector may only be narrowed.
fn node_selector(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let empty = Map::new();
    let map = |spec: &Value| spec.get("nodeSelector").and_then(Value::as_object).unwrap_or(&empty).clone();
    let after = map(new);
    if !map(old).iter().all(|(key, value)| after.get(key) == Some(value)) {
        let why = "only additions are allowed to spec.nodeSelector";
        errors.push(FieldError::invalid("spec.nodeSelector", &Value::Object(after), why));
    }
}

/// Whether a gated pod's affinity changes only by a first required node affinity.
fn narrows_affinity(new: &Value, old: &Value) -> bool {
    let required = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    let others = |spec: &Value| {
        (spec.pointer("/affinity/podAffinity").cloned(), spec.pointer("/affinity/podAntiAffinity").cloned())
    };
    old.pointer(required).is_none() && others(new) == others(old)
}

fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = text(old, "/spec/restartPolicy");
    if policy == "Always" {
        return errors;
    }
    // A container that ended for good stays ended.
    for before in list(old, "/status/containerStatuses") {
        let Some(ended) = before.pointer("/state/terminated") else { continue };
        if policy == "OnFailure" && int(ended, "/exitCode").unwrap_or(0) != 0 {
            continue;
        }
        for (i, after) in list(new, "/status/containerStatuses").iter().enumerate() {
            if field(after, "name") == field(before, "name") && after.pointer("/state/terminated").is_none() {
                let path = format!("status.containerStatuses[{i}].state");
                errors.push(FieldError::forbidden(path, "may not be transitioned to non-terminated state"));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn changed(change: Value) -> Vec<String> {
        let old = json!({"spec": {"nodeName": "n", "activeDeadlineSeconds": 60,
            "containers": [{"name": "a", "image": "i", "command": ["x"]}],
            "tolerations": [{"key": "a", "operator": "Exists"}]}});
        let mut new = old.clone();
        for (key, value) in change.as_object().unwrap() {
            new["spec"][key] = value.clone();
        }
        spec(&new, &old).into_iter().map(|e| e.field).collect()
    }

    #[test]
    fn a_few_fields_may_change() {
        let none: [&str; 0] = [];
        for (change, refused) in [
            (json!({"containers": [{"name": "a", "image": "j", "command": ["x"]}]}), &none[..]),
            (json!({"activeDeadlineSeconds": 30}), &none),
            (json!({"activeDeadlineSeconds": 90}), &["spec.activeDeadlineSeconds"]),
            (json!({"tolerations": [{"key": "b", "operator": "Exists"}, {"key": "a", "operator": "Exists"}]}), &none),
            (json!({"tolerations": []}), &["spec.tolerations"]),
            (json!({"containers": [{"name": "a", "image": "i", "command": ["y"]}]}), &["spec"]),
            (json!({"nodeName": "m"}), &["spec"]),
            (json!({"nodeSelector": {"a": "b"}}), &["spec"]),
            (json!({"schedulingGates": [{"name": "g"}]}), &["spec.schedulingGates[0].name"]),
            (json!({"containers": []}), &["spec.containers"]),
        ] {
            assert_eq!(changed(change.clone()), refused, "{change}");
        }
    }

    #[test]
    fn gated_pods_may_be_narrowed() {
        let old = json!({"spec": {"containers": [], "schedulingGates": [{"name": "g"}], "nodeSelector": {"a": "b"}}});
        let mut new = old.clone();
        new["spec"]["nodeSelector"] = json!({"a": "b", "c": "d"});
        new["spec"].as_object_mut().unwrap().remove("schedulingGates");
        assert_eq!(spec(&new, &old), []);
        new["spec"]["nodeSelector"] = json!({"c": "d"});
        assert_eq!(spec(&new, &old)[0].field, "spec.nodeSelector");
    }

    #[test]
    fn ended_containers_stay_ended() {
        let old = json!({"spec": {"restartPolicy": "Never"},
            "status": {"containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 1}}}]}});
        let mut new = old.clone();
        assert_eq!(status(&new, &old), []);
        new["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
        assert_eq!(status(&new, &old).len(), 1);
        let mut restarting = old.clone();
        restarting["spec"]["restartPolicy"] = "OnFailure".into();
        assert_eq!(status(&new, &restarting), []);
    }
}

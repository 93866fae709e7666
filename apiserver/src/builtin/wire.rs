//! The form in which Kubernetes writes its own kinds: zero values of plain fields are left out, quantities are in
//! canonical text. Clients see this form after every write, whatever they sent.
//!
//! Kubernetes decodes into typed structs whose fields are either plain (zero is as good as absent) or optional
//! (zero is kept). Schemas do not tell the two apart, so the plain numbers and booleans are named here.

use muster_api::quantity::Quantity;
use serde_json::{Map, Value};

/// Maps with keys of the user's own: what is in them is left alone.
const USER_MAPS: &[&str] = &[
    "annotations",
    "binaryData",
    "data",
    "extra",
    "fieldsV1",
    "labels",
    "matchLabels",
    "nodeSelector",
    "options",
    "parameters",
    "stringData",
    "volumeAttributes",
];
/// Maps from resource names to quantities.
const RESOURCE_LISTS: &[&str] = &[
    "allocatable",
    "allocatedResources",
    "capacity",
    "default",
    "defaultRequest",
    "hard",
    "limits",
    "max",
    "maxLimitRequestRatio",
    "min",
    "overhead",
    "requests",
    "used",
];
/// Quantities that stand alone.
const QUANTITIES: &[&str] = &["divisor", "sizeLimit"];
/// Optional strings, for which "" is a value.
const OPTIONAL_STRINGS: &[&str] = &["holderIdentity", "ingressClassName", "storageClassName"];
const PLAIN_BOOLEANS: &[&str] = &[
    "globalDefault",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "paused",
    "publishNotReadyAddresses",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
    "unschedulable",
];
const PLAIN_NUMBERS: &[&str] = &[
    "active",
    "availableReplicas",
    "count",
    "currentReplicas",
    "failed",
    "failureThreshold",
    "fullyLabeledReplicas",
    "generation",
    "healthCheckNodePort",
    "hostPort",
    "initialDelaySeconds",
    "minReadySeconds",
    "nodePort",
    "observedGeneration",
    "periodSeconds",
    "readyReplicas",
    "signal",
    "succeeded",
    "successThreshold",
    "unavailableReplicas",
    "updatedReplicas",
];

/// Brings an object of a built-in kind into the form in which Kubernetes writes it.
pub(super) fn normalise(object: &mut Value) {
    if let Value::Object(fields) = object {
        normalise_fields(fields);
    }
}

fn normalise_fields(fields: &mut Map<String, Value>) {
    fields.retain(|key, value| keep(key, value));
}

fn keep(key: &str, value: &mut Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set || !PLAIN_BOOLEANS.contains(&key),
        Value::Number(number) => {
            if QUANTITIES.contains(&key) {
                canonical_quantity(value);
                return true;
            }
            number.as_i64() != Some(0) || !PLAIN_NUMBERS.contains(&key)
        }
        Value::String(text) => {
            if QUANTITIES.contains(&key) {
                canonical_quantity(value);
                return true;
            }
            !text.is_empty() || OPTIONAL_STRINGS.contains(&key)
        }
        Value::Array(items) => {
            items.iter_mut().for_each(normalise);
            !items.is_empty()
        }
        Value::Object(fields) if RESOURCE_LISTS.contains(&key) && is_flat(fields) => {
            fields.values_mut().for_each(canonical_quantity);
            !fields.is_empty()
        }
        Value::Object(fields) if USER_MAPS.contains(&key) || (key == "selector" && is_flat(fields)) => {
            fields.retain(|_, v| !v.is_null());
            !fields.is_empty() || key == "selector"
        }
        Value::Object(fields) => {
            normalise_fields(fields);
            true
        }
    }
}

/// Whether a map holds plain values alone, as label maps and resource lists do.
fn is_flat(fields: &Map<String, Value>) -> bool {
    fields.values().all(|v| v.is_string() || v.is_number())
}

/// Rewrites a quantity canonically; a text that is none is left for validation to refuse.
pub(super) fn canonical_quantity(value: &mut Value) {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    if let Ok(quantity) = text.parse::<Quantity>() {
        *value = quantity.to_string().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn written_form() {
        let mut object = json!({
            "metadata": {"name": "a", "labels": {}, "annotations": {"empty": ""}, "finalizers": [], "uid": null},
            "data": {"k": ""},
            "spec": {"hostNetwork": false, "automountServiceAccountToken": false, "storageClassName": "",
                "containers": [{"name": "c", "command": [], "resources": {"limits": {"cpu": "1000m", "memory": 1024}},
                    "ports": [{"hostPort": 0, "containerPort": 0}], "livenessProbe": {"periodSeconds": 0}}],
                "volumes": [{"emptyDir": {"sizeLimit": "1024Ki"}}]},
            "status": {},
        });
        normalise(&mut object);
        assert_eq!(
            object,
            json!({
                "metadata": {"name": "a", "annotations": {"empty": ""}},
                "data": {"k": ""},
                "spec": {"automountServiceAccountToken": false, "storageClassName": "",
                    "containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1024"}},
                        "ports": [{"containerPort": 0}], "livenessProbe": {}}],
                    "volumes": [{"emptyDir": {"sizeLimit": "1Mi"}}]},
                "status": {},
            })
        );
    }
}

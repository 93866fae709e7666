//! The structural schema of a pod template, and of the autoscaling metrics, as they stand inside our definitions.
//!
//! Types, formats and descriptions come from k8s-openapi. What Go's markers say beyond that (list maps, atomic lists
//! and maps, defaults) is in the tables below.

use k8s_openapi::api::autoscaling::v2::MetricSpec;
use k8s_openapi::api::core::v1::PodSpec;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Lists whose elements are told apart by keys: definition, property, keys.
const LIST_MAPS: &[(&str, &str, &[&str])] = &[
    ("Container", "env", &["name"]),
    ("Container", "ports", &["containerPort", "protocol"]),
    ("Container", "volumeDevices", &["devicePath"]),
    ("Container", "volumeMounts", &["mountPath"]),
    ("EphemeralContainer", "env", &["name"]),
    ("EphemeralContainer", "ports", &["containerPort", "protocol"]),
    ("EphemeralContainer", "volumeDevices", &["devicePath"]),
    ("EphemeralContainer", "volumeMounts", &["mountPath"]),
    ("PodSpec", "containers", &["name"]),
    ("PodSpec", "ephemeralContainers", &["name"]),
    ("PodSpec", "hostAliases", &["ip"]),
    ("PodSpec", "imagePullSecrets", &["name"]),
    ("PodSpec", "initContainers", &["name"]),
    ("PodSpec", "resourceClaims", &["name"]),
    ("PodSpec", "schedulingGates", &["name"]),
    ("PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("PodSpec", "volumes", &["name"]),
    ("ResourceRequirements", "claims", &["name"]),
];

/// Maps that are replaced as a whole.
const ATOMIC_MAPS: &[&str] = &[
    "LabelSelector",
    "LocalObjectReference",
    "NodeSelector",
    "NodeSelectorTerm",
    "ObjectFieldSelector",
    "ResourceFieldSelector",
    "SecretKeySelector",
    "ConfigMapKeySelector",
    "SecretReference",
    "TypedLocalObjectReference",
];

/// Defaults that the definition itself carries: definition, property, value.
const DEFAULTS: &[(&str, &str, &str)] = &[
    ("AzureDiskVolumeSource", "fsType", r#""ext4""#),
    ("AzureDiskVolumeSource", "readOnly", "false"),
    ("ConfigMapEnvSource", "name", r#""""#),
    ("ConfigMapKeySelector", "name", r#""""#),
    ("ConfigMapProjection", "name", r#""""#),
    ("ConfigMapVolumeSource", "name", r#""""#),
    ("ContainerPort", "protocol", r#""TCP""#),
    ("GRPCAction", "service", r#""""#),
    ("ISCSIVolumeSource", "iscsiInterface", r#""default""#),
    ("LocalObjectReference", "name", r#""""#),
    ("RBDVolumeSource", "keyring", r#""/etc/ceph/keyring""#),
    ("RBDVolumeSource", "pool", r#""rbd""#),
    ("RBDVolumeSource", "user", r#""admin""#),
    ("ScaleIOVolumeSource", "fsType", r#""xfs""#),
    ("ScaleIOVolumeSource", "storageMode", r#""ThinProvisioned""#),
    ("SecretEnvSource", "name", r#""""#),
    ("SecretKeySelector", "name", r#""""#),
    ("SecretProjection", "name", r#""""#),
];

/// Lists without a type of their own, which merge by no key but are not atomic either.
const PLAIN_LISTS: &[(&str, &str)] = &[("PodTemplateMetadata", "finalizers")];

const QUANTITY_PATTERN: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// A quantity: a number or a string such as `500m`.
pub(super) fn quantity() -> Value {
    json!({
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": QUANTITY_PATTERN,
        "x-kubernetes-int-or-string": true,
    })
}

/// The schema of `template`.
pub(super) fn pod_template() -> Value {
    json!({
        "description": "The pods of this role. The restart policy of the replica overrides the one in here.",
        "type": "object",
        "properties": { "metadata": embedded_metadata(), "spec": inlined::<PodSpec>() },
    })
}

/// The schema of one metric of autoscaling/v2.
pub(super) fn metric_spec() -> Value {
    inlined::<MetricSpec>()
}

/// What a pod template may say in its metadata.
fn embedded_metadata() -> Value {
    let strings = json!({"type": "object", "additionalProperties": {"type": "string"}});
    json!({
        "description": "Labels and annotations of the pods.",
        "type": "object",
        "properties": {
            "annotations": strings,
            "finalizers": {"type": "array", "items": {"type": "string"}},
            "labels": strings,
            "name": {"type": "string"},
            "namespace": {"type": "string"},
        },
    })
}

fn inlined<T: JsonSchema>() -> Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::openapi3());
    let root = generator.subschema_for::<T>().to_value();
    let definitions = generator.take_definitions(false);
    inline(&root, None, &definitions)
}

/// Replaces every reference by what it names. Pod specs are not recursive, so this ends.
fn inline(schema: &Value, name: Option<&str>, definitions: &Map<String, Value>) -> Value {
    let Some(object) = schema.as_object() else { return schema.clone() };
    if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
        let full = reference.rsplit('/').next().unwrap_or(reference);
        let short = full.rsplit('.').next().unwrap_or(full);
        let mut target = match short {
            "ObjectMeta" => embedded_metadata(),
            "Quantity" => quantity(),
            "IntOrString" => {
                json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true})
            }
            _ => definitions.get(full).map(|s| inline(s, Some(short), definitions)).unwrap_or_else(|| json!({})),
        };
        if let (Some(target), Some(description)) = (target.as_object_mut(), object.get("description")) {
            target.insert("description".to_owned(), description.clone());
        }
        return target;
    }
    let mut out = Map::new();
    for (key, value) in object {
        let value = match key.as_str() {
            "properties" => Value::Object(
                value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(property, schema)| {
                        let mut schema = inline(schema, None, definitions);
                        if let Some(definition) = name {
                            annotate(definition, property, &mut schema);
                        }
                        (property.clone(), schema)
                    })
                    .collect(),
            ),
            "items" | "additionalProperties" => inline(value, None, definitions),
            "allOf" if value.as_array().is_some_and(|all| all.len() == 1) => {
                if let Value::Object(only) = inline(&value[0], None, definitions) {
                    for (key, value) in only {
                        out.entry(key).or_insert(value);
                    }
                }
                continue;
            }
            "nullable" | "title" => continue,
            _ => value.clone(),
        };
        out.insert(key.clone(), value);
    }
    if name.is_some_and(|name| ATOMIC_MAPS.contains(&name)) {
        out.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
    }
    Value::Object(out)
}

fn annotate(definition: &str, property: &str, schema: &mut Value) {
    let is_array = schema["type"] == "array";
    let Some(object) = schema.as_object_mut() else { return };
    if let Some((_, _, keys)) = LIST_MAPS.iter().find(|(d, p, _)| *d == definition && *p == property) {
        object.insert("x-kubernetes-list-type".to_owned(), json!("map"));
        object.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
    } else if is_array && !PLAIN_LISTS.contains(&(definition, property)) {
        object.insert("x-kubernetes-list-type".to_owned(), json!("atomic"));
    }
    if let Some((_, _, text)) = DEFAULTS.iter().find(|(d, p, _)| *d == definition && *p == property)
        && let Ok(default) = serde_json::from_str(text)
    {
        object.insert("default".to_owned(), default);
    }
}

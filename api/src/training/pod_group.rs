//! Pod groups: the form of scheduler-plugins' coscheduling (`scheduling.x-k8s.io/v1alpha1`), which Muster's own gang
//! scheduler reads too.

use super::pod_template::quantity;
use serde_json::{Value, json};

pub const GROUP: &str = "scheduling.x-k8s.io";
pub const VERSION: &str = "v1alpha1";
pub const API_VERSION: &str = "scheduling.x-k8s.io/v1alpha1";
pub const KIND: &str = "PodGroup";
pub const PLURAL: &str = "podgroups";

/// The CustomResourceDefinition of a pod group.
pub(super) fn definition() -> Value {
    let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{PLURAL}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND, "listKind": "PodGroupList", "plural": PLURAL, "singular": "podgroup",
                "shortNames": ["pg", "pgs"],
            },
            "scope": "Namespaced",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": [
                    column("Phase", "string", ".status.phase"),
                    column("MinMember", "integer", ".spec.minMember"),
                    column("Running", "integer", ".status.running"),
                    column("Succeeded", "integer", ".status.succeeded"),
                    column("Failed", "integer", ".status.failed"),
                    column("Age", "date", ".metadata.creationTimestamp"),
                ],
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema()},
            }],
        },
    })
}

fn schema() -> Value {
    let int32 = |description: &str| json!({"description": description, "type": "integer", "format": "int32"});
    let string = |description: &str| json!({"description": description, "type": "string"});
    json!({
        "description": "A PodGroup is a set of pods that are scheduled together or not at all.",
        "type": "object",
        "properties": {
            "apiVersion": string("The group and version of this representation of the object."),
            "kind": string("The kind of the object."),
            "metadata": {"type": "object"},
            "spec": {
                "description": "What the group needs.",
                "type": "object",
                "properties": {
                    "minMember": int32("How many pods must be placed at once."),
                    "minResources": {
                        "description": "What the group needs at least.",
                        "type": "object",
                        "additionalProperties": quantity(),
                    },
                    "scheduleTimeoutSeconds": int32("How long the group may wait."),
                },
            },
            "status": {
                "description": "How far the group is.",
                "type": "object",
                "properties": {
                    "phase": string("The phase of the group."),
                    "occupiedBy": string("The owner of the group."),
                    "running": int32("Running pods."),
                    "succeeded": int32("Pods that ended well."),
                    "failed": int32("Pods that failed."),
                    "scheduleStartTime": {
                        "description": "When scheduling began.", "type": "string", "format": "date-time",
                    },
                    "conditions": conditions(),
                },
            },
        },
    })
}

fn conditions() -> Value {
    json!({
        "description": "Why the group waits, and other observations.",
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "type": {"type": "string"},
                "status": {"type": "string"},
                "reason": {"type": "string"},
                "message": {"type": "string"},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
            },
            "required": ["type", "status"],
        },
    })
}

//! The CustomResourceDefinitions of the training kinds.

use super::kind::{GROUP, JOB_KINDS, JobKind, VERSION};
use super::pod_template::{metric_spec, pod_template, quantity};
use serde_json::{Map, Value, json};

/// Everything that the API server must serve for the training operator, in a stable order.
pub fn definitions() -> Vec<Value> {
    let template = pod_template();
    let mut all: Vec<Value> = JOB_KINDS.into_iter().map(|kind| definition(kind, &template)).collect();
    all.push(super::pod_group::definition());
    all
}

fn definition(kind: &JobKind, template: &Value) -> Value {
    let mut subresources = json!({"status": {}});
    if let Some(role) = kind.scale_role {
        subresources["scale"] = json!({
            "specReplicasPath": format!(".spec.{}.{role}.replicas", kind.replica_specs),
            "statusReplicasPath": format!(".status.replicaStatuses.{role}.active"),
            "labelSelectorPath": format!(".status.replicaStatuses.{role}.selector"),
        });
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name()},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.kind,
                "listKind": format!("{}List", kind.kind),
                "plural": kind.plural,
                "singular": kind.singular,
            },
            "scope": "Namespaced",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": [
                    {"name": "State", "type": "string", "jsonPath": ".status.conditions[-1:].type"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "subresources": subresources,
                "schema": {"openAPIV3Schema": {
                    "description": format!("A {} runs one distributed training.", kind.kind),
                    "type": "object",
                    "properties": {
                        "apiVersion": {
                            "description": "The group and version of this representation of the object.",
                            "type": "string",
                        },
                        "kind": {"description": "The kind of the object.", "type": "string"},
                        "metadata": {"type": "object"},
                        "spec": spec(kind, template),
                        "status": status(),
                    },
                }},
            }],
        },
    })
}

fn int32(description: &str) -> Value {
    json!({"description": description, "type": "integer", "format": "int32"})
}

fn string(description: &str) -> Value {
    json!({"description": description, "type": "string"})
}

fn spec(kind: &JobKind, template: &Value) -> Value {
    let roles = kind.roles.iter().map(|role| role.name).collect::<Vec<_>>().join(", ");
    // The MXJob is the definition of training-operator 1.7, which knows neither `managedBy` nor the rule on `queue`.
    let legacy = kind.kind == "MXJob";
    let mut properties = Map::new();
    properties.insert("runPolicy".to_owned(), run_policy(legacy));
    properties.insert(
        kind.replica_specs.to_owned(),
        json!({
            "description": format!("The roles of the job, by name: {roles}."),
            "type": "object",
            "additionalProperties": {
                "description": "One role: how many pods, and what they are.",
                "type": "object",
                "properties": {
                    "replicas": int32("How many pods. Defaults to 1."),
                    "restartPolicy": string(
                        "Always, OnFailure, Never, or ExitCode (a new pod for exit codes from 128 on, failure below)."
                    ),
                    "template": template,
                },
            },
        }),
    );
    let mut required = vec![kind.replica_specs];
    match kind.kind {
        "PyTorchJob" => {
            properties.insert("elasticPolicy".to_owned(), elastic_policy());
            properties.insert(
                "nprocPerNode".to_owned(),
                string("Processes per pod: auto, cpu, gpu or a number. Defaults to auto."),
            );
        }
        "TFJob" => {
            properties.insert(
                "successPolicy".to_owned(),
                string("When the job has succeeded: empty for the default rules, or AllWorkers."),
            );
            properties.insert(
                "enableDynamicWorker".to_owned(),
                json!({"description": "Workers may come and go.", "type": "boolean"}),
            );
        }
        _ => {
            properties.insert("jobMode".to_owned(), string("MXTrain or MXTune."));
            required.insert(0, "jobMode");
        }
    }
    json!({
        "description": "What the job should be.",
        "type": "object",
        "properties": properties,
        "required": required,
    })
}

fn run_policy(legacy: bool) -> Value {
    let mut policy = json!({
        "description": "Policies of the run: clean-up, limits, suspension, scheduling.",
        "type": "object",
        "properties": {
            "activeDeadlineSeconds": {
                "description": "How long the job may be active, from startTime on.", "type": "integer", "format": "int64",
            },
            "backoffLimit": int32("How many retries before the job fails."),
            "cleanPodPolicy": string("Which pods a finished job loses: All, Running or None. Defaults to None."),
            "schedulingPolicy": {
                "description": "How the pods are scheduled as a gang.",
                "type": "object",
                "properties": {
                    "minAvailable": int32("How many pods must be placed at once. Defaults to all."),
                    "minResources": {
                        "description": "What the gang needs at least. Defaults to the sum over its pods.",
                        "type": "object",
                        "additionalProperties": quantity(),
                    },
                    "priorityClass": string("The priority class of the gang."),
                    "queue": string("The queue of the gang."),
                    "scheduleTimeoutSeconds": int32("How long the gang may wait to be scheduled."),
                },
            },
            "suspend": {
                "description": "No pods while true; those that run are deleted.", "type": "boolean", "default": false,
            },
            "ttlSecondsAfterFinished": int32("How long a finished job is kept."),
        },
    });
    if !legacy {
        policy["properties"]["managedBy"] = string(
            "Who runs the job: kubeflow.org/training-operator (the default) or kueue.x-k8s.io/multikueue. Immutable.",
        );
        policy["properties"]["schedulingPolicy"]["properties"]["queue"]["x-kubernetes-validations"] = json!([
            {"rule": "self == oldSelf", "message": "spec.runPolicy.schedulingPolicy.queue is immutable"}
        ]);
    }
    policy
}

fn elastic_policy() -> Value {
    json!({
        "description": "How the job grows and shrinks.",
        "type": "object",
        "properties": {
            "minReplicas": int32("The fewest workers. Defaults to maxReplicas."),
            "maxReplicas": int32("The most workers. Defaults to minReplicas."),
            "rdzvBackend": string("c10d (the default), etcd or etcd-v2."),
            "rdzvPort": int32("The port of the rendezvous."),
            "rdzvHost": string("The host of the rendezvous."),
            "rdzvId": string("The id of the rendezvous."),
            "rdzvConf": {
                "description": "Further settings of the rendezvous.",
                "type": "array",
                "items": {"type": "object", "properties": {"key": {"type": "string"}, "value": {"type": "string"}}},
            },
            "standalone": {"description": "Start a local rendezvous for one pod.", "type": "boolean"},
            "nProcPerNode": int32("Processes per pod. Deprecated: use spec.nprocPerNode."),
            "maxRestarts": int32("How often torchrun restarts its workers."),
            "metrics": {
                "description": "With metrics, a HorizontalPodAutoscaler scales the workers.",
                "type": "array",
                "items": metric_spec(),
            },
        },
    })
}

fn status() -> Value {
    let time = |description: &str| json!({"description": description, "type": "string", "format": "date-time"});
    let atomic_strings = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"});
    json!({
        "description": "What the job is. Written by the operator.",
        "type": "object",
        "properties": {
            "conditions": {
                "description": "Created, Running, Restarting, Suspended, Succeeded, Failed; the last change stands last.",
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "type": {"type": "string"},
                        "status": {"type": "string"},
                        "reason": {"type": "string"},
                        "message": {"type": "string"},
                        "lastUpdateTime": {"type": "string", "format": "date-time"},
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                    },
                    "required": ["status", "type"],
                },
            },
            "replicaStatuses": {
                "description": "Pods per role.",
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {
                        "active": int32("Running pods."),
                        "succeeded": int32("Pods that ended well."),
                        "failed": int32("Pods that failed."),
                        "selector": string("The label selector of the pods."),
                        "restarts": int32("Failed pods replaced so far, where backoffLimit is set."),
                        "replacing": {
                            "description": "Uids of failed pods that are counted and about to go.",
                            "type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic",
                        },
                        "labelSelector": {
                            "description": "Deprecated: use selector.",
                            "type": "object",
                            "x-kubernetes-map-type": "atomic",
                            "properties": {
                                "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
                                "matchExpressions": {
                                    "type": "array",
                                    "x-kubernetes-list-type": "atomic",
                                    "items": {
                                        "type": "object",
                                        "properties": {
                                            "key": {"type": "string"},
                                            "operator": {"type": "string"},
                                            "values": atomic_strings,
                                        },
                                        "required": ["key", "operator"],
                                    },
                                },
                            },
                        },
                    },
                },
            },
            "startTime": time("When the job was first taken up, or resumed."),
            "completionTime": time("When the job ended."),
            "lastReconcileTime": time("When the job last waited for its pod group."),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every node of a structural schema has a type (or is an int-or-string), and no reference is left.
    fn check(schema: &Value, path: &str) {
        let object = schema.as_object().unwrap_or_else(|| panic!("{path} is not an object"));
        assert!(!object.contains_key("$ref"), "{path} has a reference");
        let int_or_string = object.contains_key("x-kubernetes-int-or-string");
        assert!(int_or_string || object["type"].is_string(), "{path} has no type: {schema}");
        if object.get("x-kubernetes-list-type").is_some_and(|t| t == "map") {
            for key in object["x-kubernetes-list-map-keys"].as_array().expect("keys") {
                let key = key.as_str().expect("a string");
                let item = &object["items"];
                let required = item["required"].as_array().is_some_and(|r| r.iter().any(|k| k == key));
                assert!(required || item["properties"][key].get("default").is_some(), "{path}: {key} is optional");
            }
        }
        for (name, child) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            check(child, &format!("{path}.{name}"));
        }
        for key in ["items", "additionalProperties"] {
            if let Some(child) = object.get(key).filter(|c| c.is_object()) {
                check(child, &format!("{path}[]"));
            }
        }
    }

    #[test]
    fn schemas_are_structural() {
        let all = definitions();
        let names: Vec<_> = all.iter().filter_map(|d| d["metadata"]["name"].as_str()).collect();
        assert_eq!(
            names,
            ["pytorchjobs.kubeflow.org", "tfjobs.kubeflow.org", "mxjobs.kubeflow.org", "podgroups.scheduling.x-k8s.io"]
        );
        for definition in &all {
            check(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "");
        }
    }

    #[test]
    fn the_pod_template_is_whole() {
        let template = pod_template();
        let container = "/properties/spec/properties/containers/items/properties";
        for (path, expected) in [
            ("ports/items/properties/protocol/default", json!("TCP")),
            ("env/x-kubernetes-list-map-keys", json!(["name"])),
            ("resources/properties/limits/additionalProperties/x-kubernetes-int-or-string", json!(true)),
            ("livenessProbe/properties/httpGet/properties/port/x-kubernetes-int-or-string", json!(true)),
            ("env/items/properties/valueFrom/properties/fieldRef/x-kubernetes-map-type", json!("atomic")),
            ("args/x-kubernetes-list-type", json!("atomic")),
        ] {
            assert_eq!(template.pointer(&format!("{container}/{path}")), Some(&expected), "{path}");
        }
        assert_eq!(template["properties"]["spec"]["required"], json!(["containers"]));
    }
}

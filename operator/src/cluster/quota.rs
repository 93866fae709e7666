//! Resource quotas: how much of each is used.

use super::Shared;
use super::garbage::api;
use super::resources::Resource;
use crate::shell::resource::RequestError;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::DynamicObject;
use muster_api::quantity::Quantity;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

type Amounts = BTreeMap<String, Quantity>;

pub(super) async fn attend(
    shared: &Arc<Shared>,
    namespace: &str,
    name: &str,
) -> Result<Option<Duration>, RequestError> {
    let quotas: Api<ResourceQuota> = Api::namespaced(shared.client.clone(), namespace);
    let Some(quota) = quotas.get_opt(name).await? else { return Ok(None) };
    let spec = json!(quota.spec);
    let hard: BTreeSet<&str> = spec["hard"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    let mut amounts = Amounts::new();
    for resource in counted(shared, &hard) {
        let objects = api(shared, &resource, namespace).list(&ListParams::default()).await?;
        let scoped: Vec<&DynamicObject> = match resource.is("", "Pod") {
            true => objects.items.iter().filter(|pod| in_scope(&pod.data, &spec)).collect(),
            false => objects.items.iter().collect(),
        };
        for object in scoped {
            add(&mut amounts, usage(&resource.api.group, &resource.api.plural, &object.data));
        }
    }
    let used: BTreeMap<&str, String> = hard
        .iter()
        .map(|key| (*key, amounts.get(canonical(key)).copied().unwrap_or(Quantity::ZERO).to_string()))
        .collect();
    let status = json!({"hard": spec["hard"], "used": used});
    if json!(quota.status) == status {
        return Ok(None);
    }
    // A merge patch takes away what is not limited any more.
    let gone = |part: &str| -> Value {
        let before = json!(quota.status)[part].as_object().cloned().unwrap_or_default();
        let mut map: serde_json::Map<String, Value> = before
            .into_iter()
            .filter(|(key, _)| !hard.contains(key.as_str()))
            .map(|(key, _)| (key, Value::Null))
            .collect();
        map.extend(status[part].as_object().cloned().unwrap_or_default());
        Value::Object(map)
    };
    let patch = json!({"status": {"hard": gone("hard"), "used": gone("used")}});
    match quotas.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(RequestError::from) {
        Ok(_) | Err(RequestError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `cpu` and `requests.cpu` are two names of one thing.
fn canonical(key: &str) -> &str {
    match key {
        "requests.cpu" => "cpu",
        "requests.memory" => "memory",
        "requests.ephemeral-storage" => "ephemeral-storage",
        other => other,
    }
}

/// The kinds whose objects the quota limits.
fn counted(shared: &Shared, hard: &BTreeSet<&str>) -> Vec<Arc<Resource>> {
    let wanted = |resource: &Resource| {
        let plural = resource.api.plural.as_str();
        let count = match resource.api.group.as_str() {
            "" => format!("count/{plural}"),
            group => format!("count/{plural}.{group}"),
        };
        let core = resource.api.group.is_empty();
        hard.iter().any(|key| {
            *key == count
                || core
                    && match plural {
                        "pods" => {
                            !key.contains('/') && !is_object_count(key) && !key.contains("storage.k8s.io")
                                || key.starts_with("requests.") && key.contains('/')
                        }
                        "services" => key.split('.').next() == Some("services"),
                        "persistentvolumeclaims" => *key == plural || *key == "requests.storage",
                        _ => *key == plural,
                    }
        })
    };
    shared.resources().values().filter(|r| r.namespaced && wanted(r)).cloned().collect()
}

fn is_object_count(key: &str) -> bool {
    let counts = [
        "configmaps",
        "persistentvolumeclaims",
        "replicationcontrollers",
        "requests.storage",
        "resourcequotas",
        "secrets",
        "services",
        "services.loadbalancers",
        "services.nodeports",
    ];
    counts.contains(&key)
}

fn add(sum: &mut Amounts, amounts: Amounts) {
    for (key, amount) in amounts {
        let total = sum.entry(key).or_insert(Quantity::ZERO);
        *total = *total + amount;
    }
}

/// What one object takes of each resource.
fn usage(group: &str, plural: &str, object: &Value) -> Amounts {
    let one = Quantity::from_units(1);
    let mut amounts = Amounts::new();
    let count = if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") };
    amounts.insert(count, one);
    if !group.is_empty() {
        return amounts;
    }
    match plural {
        "pods" => {
            if !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                amounts.insert("pods".to_owned(), one);
                add(&mut amounts, pod_requests(&object["spec"]));
            }
        }
        "services" => {
            amounts.insert("services".to_owned(), one);
            let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len);
            let all_ports = Quantity::from_units(i64::try_from(ports).unwrap_or(i64::MAX));
            match object["spec"]["type"].as_str() {
                Some("NodePort") => {
                    amounts.insert("services.nodeports".to_owned(), all_ports);
                }
                Some("LoadBalancer") => {
                    amounts.insert("services.loadbalancers".to_owned(), one);
                    amounts.insert("services.nodeports".to_owned(), all_ports);
                }
                _ => {}
            }
        }
        "persistentvolumeclaims" => {
            amounts.insert("persistentvolumeclaims".to_owned(), one);
            let size = quantity(&object["spec"]["resources"]["requests"]["storage"]);
            amounts.insert("requests.storage".to_owned(), size);
        }
        _ => {
            amounts.insert(plural.to_owned(), one);
        }
    }
    amounts
}

fn quantity(value: &Value) -> Quantity {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(Quantity::ZERO)
}

/// What a pod asks for: its containers together, or its largest init container, whichever is more.
fn pod_requests(spec: &Value) -> Amounts {
    let mut amounts = Amounts::new();
    for list in ["requests", "limits"] {
        let of = |containers: &str| -> Vec<Amounts> {
            let containers = spec[containers].as_array().into_iter().flatten();
            containers
                .map(|container| {
                    let map = container["resources"][list].as_object().into_iter().flatten();
                    map.map(|(key, value)| (key.clone(), quantity(value))).collect()
                })
                .collect()
        };
        let mut sum = Amounts::new();
        of("containers").into_iter().for_each(|container| add(&mut sum, container));
        for container in of("initContainers") {
            for (key, amount) in container {
                let total = sum.entry(key).or_insert(Quantity::ZERO);
                *total = (*total).max(amount);
            }
        }
        for (key, amount) in sum {
            let native = ["cpu", "memory", "ephemeral-storage"].contains(&key.as_str());
            let key = if list == "requests" && native { key } else { format!("{list}.{key}") };
            amounts.insert(key, amount);
        }
    }
    amounts
}

/// Whether a pod is one of those that the quota is about.
fn in_scope(pod: &Value, spec: &Value) -> bool {
    let best_effort = pod["status"]["qosClass"].as_str() == Some("BestEffort");
    let limited = !pod["spec"]["activeDeadlineSeconds"].is_null();
    let scopes = spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let simple = scopes.into_iter().all(|scope| match scope {
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "Terminating" => limited,
        "NotTerminating" => !limited,
        _ => true,
    });
    let selected = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten().all(|expression| {
        let class = pod["spec"]["priorityClassName"].as_str().unwrap_or_default();
        let listed = expression["values"].as_array().is_some_and(|values| values.iter().any(|v| v == class));
        match (expression["scopeName"].as_str(), expression["operator"].as_str()) {
            (Some("PriorityClass"), Some("In")) => listed,
            (Some("PriorityClass"), Some("NotIn")) => !listed,
            (Some("PriorityClass"), Some("Exists")) => !class.is_empty(),
            (Some("PriorityClass"), Some("DoesNotExist")) => class.is_empty(),
            (Some("BestEffort"), _) => best_effort,
            (Some("NotBestEffort"), _) => !best_effort,
            (Some("Terminating"), _) => limited,
            (Some("NotTerminating"), _) => !limited,
            _ => true,
        }
    });
    simple && selected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(amounts: &Amounts) -> Vec<String> {
        amounts.iter().map(|(key, amount)| format!("{key}={amount}")).collect()
    }

    #[test]
    fn what_objects_take() {
        let pod = json!({"spec": {"containers": [
                {"resources": {"requests": {"cpu": "500m", "nvidia.com/gpu": "1"}, "limits": {"memory": "1Gi"}}},
                {"resources": {"requests": {"cpu": "250m"}}}],
            "initContainers": [{"resources": {"requests": {"cpu": "1"}}}]}, "status": {"phase": "Running"}});
        assert_eq!(
            shown(&usage("", "pods", &pod)),
            ["count/pods=1", "cpu=1", "limits.memory=1Gi", "pods=1", "requests.nvidia.com/gpu=1"]
        );
        let done = json!({"spec": {}, "status": {"phase": "Succeeded"}});
        assert_eq!(shown(&usage("", "pods", &done)), ["count/pods=1"]);
        let service = json!({"spec": {"type": "NodePort", "ports": [{}, {}]}});
        assert_eq!(shown(&usage("", "services", &service)), ["count/services=1", "services=1", "services.nodeports=2"]);
        assert_eq!(shown(&usage("batch", "jobs", &json!({}))), ["count/jobs.batch=1"]);
    }

    #[test]
    fn scopes() {
        let pod = json!({"spec": {"priorityClassName": "high"}, "status": {"qosClass": "BestEffort"}});
        for (spec, expected) in [
            (json!({}), true),
            (json!({"scopes": ["BestEffort"]}), true),
            (json!({"scopes": ["NotBestEffort"]}), false),
            (json!({"scopes": ["Terminating"]}), false),
            (
                json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}),
                true,
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "DoesNotExist"}]}}),
                false,
            ),
        ] {
            assert_eq!(in_scope(&pod, &spec), expected, "{spec}");
        }
    }
}

//! Resource quotas: what objects take of what a namespace may have.

use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// By the name that a quota has for it: `pods`, `requests.nvidia.com/gpu`.
pub type Amounts = BTreeMap<String, Quantity>;

/// `cpu` and `requests.cpu` are two names of one thing.
pub fn canonical(key: &str) -> &str {
    match key {
        "requests.cpu" => "cpu",
        "requests.memory" => "memory",
        "requests.ephemeral-storage" => "ephemeral-storage",
        other => other,
    }
}

pub fn add(sum: &mut Amounts, amounts: Amounts) {
    for (key, amount) in amounts {
        let total = sum.entry(key).or_insert(Quantity::ZERO);
        *total = *total + amount;
    }
}

/// What one object takes of each resource.
pub fn usage(group: &str, plural: &str, object: &Value) -> Amounts {
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

/// What a pod needs of each resource (`requests` or `limits`): its containers and sidecars together, or the largest
/// moment of its initialisation, and its overhead.
pub fn of_pod(spec: &Value, list: &str) -> Amounts {
    let amounts = |map: &Value| -> Amounts {
        map.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), quantity(value))).collect()
    };
    let mut sum = Amounts::new();
    for container in spec["containers"].as_array().into_iter().flatten() {
        add(&mut sum, amounts(&container["resources"][list]));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        let asked = amounts(&container["resources"][list]);
        if container["restartPolicy"] == "Always" {
            add(&mut sidecars, asked);
            continue;
        }
        let mut moment = sidecars.clone();
        add(&mut moment, asked);
        for (key, amount) in moment {
            let most = peak.entry(key).or_insert(Quantity::ZERO);
            *most = (*most).max(amount);
        }
    }
    add(&mut sum, sidecars);
    for (key, amount) in peak {
        let total = sum.entry(key).or_insert(Quantity::ZERO);
        *total = (*total).max(amount);
    }
    let mut overhead = amounts(&spec["overhead"]);
    // What has no limit gets none by its overhead.
    overhead.retain(|key, _| list == "requests" || sum.contains_key(key));
    add(&mut sum, overhead);
    sum
}

fn pod_requests(spec: &Value) -> Amounts {
    let mut amounts = Amounts::new();
    for list in ["requests", "limits"] {
        for (key, amount) in of_pod(spec, list) {
            let native = ["cpu", "memory", "ephemeral-storage"].contains(&key.as_str());
            let key = if list == "requests" && native { key } else { format!("{list}.{key}") };
            amounts.insert(key, amount);
        }
    }
    amounts
}

/// Whether a pod is one of those that the quota is about.
pub fn in_scope(pod: &Value, spec: &Value) -> bool {
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

/// What a pod has to say of each of its containers where a quota counts it: `limits.cpu for: a,b`.
pub fn unsaid<'a>(pod: &Value, hard: impl Iterator<Item = &'a str>) -> Vec<String> {
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .collect();
    let mut found = Vec::new();
    for key in hard {
        let (list, name) = match key.split_once('.') {
            Some((list @ ("requests" | "limits"), name @ ("cpu" | "memory"))) => (list, name),
            None if matches!(key, "cpu" | "memory") => ("requests", key),
            _ => continue,
        };
        let silent = containers.iter().filter(|container| container["resources"][list][name].is_null());
        let mut names: Vec<&str> = silent.filter_map(|container| container["name"].as_str()).collect();
        names.sort_unstable();
        if !names.is_empty() {
            found.push(format!("{key} for: {}", names.join(",")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
    fn a_sidecar_counts_beside_the_containers() {
        let gpu = json!({"requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}});
        let spec = json!({"containers": [{"resources": gpu}], "overhead": {"cpu": "100m"}, "initContainers": [
            {"resources": gpu, "restartPolicy": "Always"},
            {"resources": {"requests": {"nvidia.com/gpu": "2", "cpu": "1"}}}]});
        assert_eq!(shown(&of_pod(&spec, "requests")), ["cpu=1100m", "nvidia.com/gpu=3"]);
        assert_eq!(shown(&of_pod(&spec, "limits")), ["nvidia.com/gpu=2"]);
    }

    #[test]
    fn what_is_counted_must_be_said() {
        let pod =
            json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        assert_eq!(
            unsaid(&pod, ["limits.cpu", "memory", "pods"].into_iter()),
            ["limits.cpu for: b", "memory for: a,b"]
        );
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

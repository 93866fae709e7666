//! The quality of service class of a pod.

use crate::builtin::value::{entries, items};
use muster_api::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// `Guaranteed`, `Burstable` or `BestEffort`, by what the containers ask for and are held to.
pub(super) fn class(spec: &Value) -> &'static str {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut all_limited = true;
    let pod_level = spec.get("resources").filter(|r| r.get("requests").is_some() || r.get("limits").is_some());
    let containers = items(spec, "containers").iter().chain(items(spec, "initContainers"));
    let holders: Vec<&Value> = match pod_level {
        Some(_) => vec![spec],
        None => containers.collect(),
    };
    for holder in holders {
        let Some(resources) = holder.get("resources") else {
            all_limited = false;
            continue;
        };
        add(&mut requests, resources, "requests");
        all_limited &= add(&mut limits, resources, "limits") == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if all_limited && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Adds the cpu and memory of one list to the sums; how many of the two it has.
fn add<'a>(sums: &mut BTreeMap<&'a str, Quantity>, resources: &'a Value, key: &str) -> usize {
    let mut found = 0;
    for (name, value) in entries(resources, key) {
        let quantity = value.as_str().and_then(|text| text.parse::<Quantity>().ok()).unwrap_or(Quantity::ZERO);
        if matches!(name.as_str(), "cpu" | "memory") && quantity > Quantity::ZERO {
            let sum = sums.entry(name).or_insert(Quantity::ZERO);
            *sum = *sum + quantity;
            found += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let all = json!({"cpu": "1", "memory": "1Gi"});
        let gpu = json!({"nvidia.com/gpu": "1"});
        for (containers, class_name) in [
            (json!([{}]), "BestEffort"),
            (json!([{"resources": {"limits": gpu, "requests": gpu}}]), "BestEffort"),
            (json!([{"resources": {"requests": {"cpu": "1"}}}]), "Burstable"),
            (json!([{"resources": {"limits": all, "requests": all}}]), "Guaranteed"),
            (json!([{"resources": {"limits": all, "requests": all}}, {}]), "Burstable"),
            (json!([{"resources": {"limits": all, "requests": {"cpu": "500m", "memory": "1Gi"}}}]), "Burstable"),
            (json!([{"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}]), "Burstable"),
        ] {
            assert_eq!(class(&json!({"containers": containers})), class_name, "{containers}");
        }
    }
}

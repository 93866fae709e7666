//! Resource quotas: how much of each is used.

use super::Shared;
use super::garbage::api;
use super::resources::Resource;
use crate::shell::resource::RequestError;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::DynamicObject;
use muster_api::quantity::Quantity;
use muster_api::quota::{Amounts, add, canonical, in_scope, usage};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

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

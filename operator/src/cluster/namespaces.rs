//! Deletion of namespaces: everything in them goes first.

use super::Shared;
use super::garbage::api;
use super::resources::Resource;
use crate::shell::resource::RequestError;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PropagationPolicy};
use muster_api::clock::rfc3339;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long until a namespace is looked at again that nothing seems to leave.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const FINALIZER: &str = "kubernetes";

/// What is left in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rest {
    /// How many objects of each kind, as `pods.` or `deployments.apps`.
    kinds: BTreeMap<String, usize>,
    /// How many objects wait for each finalizer.
    finalizers: BTreeMap<String, usize>,
    failures: Vec<String>,
}

pub(super) async fn attend(shared: &Arc<Shared>, name: &str) -> Result<Option<Duration>, RequestError> {
    let namespaces: Api<Namespace> = Api::all(shared.client.clone());
    let Some(namespace) = namespaces.get_opt(name).await? else { return Ok(None) };
    if namespace.metadata.deletion_timestamp.is_none() {
        return Ok(None);
    }
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(None);
    }
    let resources: Vec<Arc<Resource>> =
        shared.resources().values().filter(|r| r.namespaced && r.deletable).cloned().collect();
    let is_pods = |resource: &&Arc<Resource>| resource.is("", "Pod");
    // Pods go before what they use: their secrets, their volumes.
    let mut rest = Rest::default();
    for resource in resources.iter().filter(is_pods) {
        empty(shared, resource, name, &mut rest).await;
    }
    if rest.kinds.is_empty() {
        for resource in resources.iter().filter(|resource| !is_pods(resource)) {
            empty(shared, resource, name, &mut rest).await;
        }
    }
    if rest == Rest::default() {
        finalize(shared, &namespace, &finalizers).await?;
        return Ok(None);
    }
    report(shared, &namespaces, &namespace, &rest).await?;
    Ok(Some(LOOK_AGAIN))
}

/// Deletes all objects of a kind in a namespace, and notes what stays.
async fn empty(shared: &Shared, resource: &Resource, namespace: &str, rest: &mut Rest) {
    match try_to_empty(shared, resource, namespace, rest).await {
        // A kind whose definition has gone meanwhile has no objects left.
        Ok(()) | Err(RequestError::NotFound(_)) => {}
        Err(error) => rest.failures.push(format!("{}: {error}", resource.api.plural)),
    }
}

async fn try_to_empty(
    shared: &Shared,
    resource: &Resource,
    namespace: &str,
    rest: &mut Rest,
) -> Result<(), RequestError> {
    let objects = api(shared, resource, namespace);
    let all = ListParams::default();
    let found = objects.list_metadata(&all).await?;
    let standing = found.items.iter().filter(|object| object.metadata.deletion_timestamp.is_none());
    let params = DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    let mut acted = false;
    if resource.collection {
        if standing.count() > 0 {
            objects.delete_collection(&params, &all).await?;
            acted = true;
        }
    } else {
        for name in standing.filter_map(|object| object.metadata.name.as_deref()) {
            match objects.delete(name, &params).await.map_err(RequestError::from) {
                Ok(_) | Err(RequestError::NotFound(_)) => acted = true,
                Err(error) => return Err(error),
            }
        }
    }
    let left = if acted { objects.list_metadata(&all).await?.items } else { found.items };
    if !left.is_empty() {
        *rest.kinds.entry(format!("{}.{}", resource.api.plural, resource.api.group)).or_default() += left.len();
    }
    for finalizer in left.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
        *rest.finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    Ok(())
}

async fn finalize(shared: &Shared, namespace: &Namespace, finalizers: &[String]) -> Result<(), RequestError> {
    let kept: Vec<&String> = finalizers.iter().filter(|f| *f != FINALIZER).collect();
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let body = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "uid": namespace.metadata.uid, "resourceVersion": namespace.metadata.resource_version},
        "spec": {"finalizers": kept},
    });
    let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(|error| RequestError::Unreachable(error.to_string()))?;
    match shared.client.request::<Value>(request).await.map_err(RequestError::from) {
        Ok(_) | Err(RequestError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The conditions that say what a namespace waits for.
fn conditions(rest: &Rest, now: &str) -> Value {
    let condition = |kind: &str, set: bool, reasons: [&str; 2], messages: [String; 2]| {
        let pick = usize::from(!set);
        json!({
            "type": kind, "status": if set { "True" } else { "False" }, "lastTransitionTime": now,
            "reason": reasons[pick], "message": messages[pick],
        })
    };
    let list = |counts: &BTreeMap<String, usize>, words: &str| {
        counts
            .iter()
            .map(|(name, count)| format!("{name} {words} {count} resource instances"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let waits = |counts: &BTreeMap<String, usize>| {
        counts
            .iter()
            .map(|(name, count)| format!("{name} in {count} resource instances"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    json!([
        condition(
            "NamespaceDeletionDiscoveryFailure",
            false,
            ["DiscoveryFailed", "ResourcesDiscovered"],
            [String::new(), "All resources successfully discovered".into()],
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ["GroupVersionParsingFailed", "ParsedGroupVersions"],
            [String::new(), "All legacy kube types successfully parsed".into()],
        ),
        condition(
            "NamespaceDeletionContentFailure",
            !rest.failures.is_empty(),
            ["ContentDeletionFailed", "ContentDeleted"],
            [
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    rest.failures.len(),
                    rest.failures.join(", ")
                ),
                "All content successfully deleted, may be waiting on finalization".into(),
            ],
        ),
        condition(
            "NamespaceContentRemaining",
            !rest.kinds.is_empty(),
            ["SomeResourcesRemain", "ContentRemoved"],
            [
                format!("Some resources are remaining: {}", list(&rest.kinds, "has")),
                "All content successfully removed".into()
            ],
        ),
        condition(
            "NamespaceFinalizersRemaining",
            !rest.finalizers.is_empty(),
            ["SomeFinalizersRemain", "ContentHasNoFinalizers"],
            [
                format!("Some content in the namespace has finalizers remaining: {}", waits(&rest.finalizers)),
                "All content-preserving finalizers finished".into(),
            ],
        ),
    ])
}

async fn report(
    shared: &Shared,
    namespaces: &Api<Namespace>,
    namespace: &Namespace,
    rest: &Rest,
) -> Result<(), RequestError> {
    let mut wanted = conditions(rest, &rfc3339(shared.config.clock.now()));
    let known = json!(namespace.status.as_ref().and_then(|s| s.conditions.clone()));
    let empty = Vec::new();
    let known = known.as_array().unwrap_or(&empty);
    let mut changed = false;
    for condition in wanted.as_array_mut().into_iter().flatten() {
        let before = known.iter().find(|c| c["type"] == condition["type"]);
        match before {
            Some(before) if before["status"] == condition["status"] => {
                condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
            }
            _ => {}
        }
        changed |= before != Some(condition);
    }
    if !changed {
        return Ok(());
    }
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let patch = json!({"status": {"phase": "Terminating", "conditions": wanted}});
    match namespaces
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(RequestError::from)
    {
        Ok(_) | Err(RequestError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_what_is_left() {
        let rest = Rest {
            kinds: [("configmaps.".to_owned(), 1)].into(),
            finalizers: [("x.io/hold".to_owned(), 1)].into(),
            failures: Vec::new(),
        };
        let conditions = conditions(&rest, "2020-01-01T00:00:00Z");
        let statuses: Vec<&str> =
            conditions.as_array().unwrap().iter().map(|c| c["status"].as_str().unwrap()).collect();
        assert_eq!(statuses, ["False", "False", "False", "True", "True"]);
        assert_eq!(conditions[3]["message"], "Some resources are remaining: configmaps. has 1 resource instances");
    }
}

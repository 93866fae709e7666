//! OpenAPI v3 documents of what is served, one a group and version: kubectl learns from them that it may ask for strict
//! field validation and dry runs, and explains fields. They are made when asked for, and the last one of each group and
//! version is kept as bytes.

mod models;
mod paths;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex, PoisonError};

/// One kind in one version, as far as documents are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Kind<'a> {
    /// Empty for the core group.
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub list_kind: &'a str,
    pub plural: &'a str,
    pub namespaced: bool,
    pub verbs: &'a [String],
    /// `status`, `scale`, ...
    pub subresources: &'a [String],
    /// The schema of a custom kind as JSON text; built-in kinds have theirs.
    pub custom: Option<&'a str>,
}

/// `api/v1`, `apis/batch/v1`.
fn place(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The answer to `/openapi/v3`: where each document is. The address changes when the document does, so that clients
/// may keep what they have.
pub fn index(kinds: &[Kind<'_>]) -> Value {
    let mut hashes: Map<String, Value> = Map::new();
    let mut groups: Vec<(&str, &str)> = kinds.iter().map(|kind| (kind.group, kind.version)).collect();
    groups.sort_unstable();
    groups.dedup();
    for (group, version) in groups {
        let at = place(group, version);
        let hash = hash(group, version, kinds);
        hashes.insert(at.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{at}?hash={hash:016X}")}));
    }
    json!({"paths": hashes})
}

/// A number that changes with what the document of a group and version is made of.
fn hash(group: &str, version: &str, kinds: &[Kind<'_>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    for kind in kinds.iter().filter(|kind| kind.group == group && kind.version == version) {
        (kind.kind, kind.plural, kind.namespaced, kind.verbs, kind.subresources).hash(&mut hasher);
        kind.custom.hash(&mut hasher);
    }
    hasher.finish()
}

/// The document of a group and version as JSON text, made anew only when what it describes has changed.
pub fn document_bytes(group: &str, version: &str, kinds: &[Kind<'_>]) -> Option<Bytes> {
    static LAST: LazyLock<Mutex<HashMap<String, (u64, Bytes)>>> = LazyLock::new(Mutex::default);
    let (at, hash) = (place(group, version), hash(group, version, kinds));
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner).get(&at).cloned();
    match last {
        Some((of, bytes)) if of == hash => Some(bytes),
        _ => {
            let bytes = Bytes::from(document(group, version, kinds)?.to_string());
            LAST.lock().unwrap_or_else(PoisonError::into_inner).insert(at, (hash, bytes.clone()));
            Some(bytes)
        }
    }
}

/// The document of a group and version; `None` where nothing of it is served.
pub fn document(group: &str, version: &str, kinds: &[Kind<'_>]) -> Option<Value> {
    let kinds: Vec<Kind<'_>> =
        kinds.iter().filter(|kind| kind.group == group && kind.version == version).copied().collect();
    if kinds.is_empty() {
        return None;
    }
    let mut models = models::Models::default();
    let mut paths = Map::new();
    for kind in &kinds {
        let model = models.add(kind);
        paths::add(&mut paths, kind, &model);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": models.finish()},
    }))
}

/// The answer to `/openapi/v2`: an empty document, since everything is described in version 3.
pub fn v2() -> Value {
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.34.4"}, "paths": {}, "definitions": {}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    fn every_verb() -> Vec<String> {
        words(&["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"])
    }

    fn kind<'a>(
        group: &'a str,
        kind: &'a str,
        list_kind: &'a str,
        plural: &'a str,
        verbs: &'a [String],
        subresources: &'a [String],
    ) -> Kind<'a> {
        Kind { group, version: "v1", kind, list_kind, plural, namespaced: true, verbs, subresources, custom: None }
    }

    #[test]
    fn a_small_group_is_described_whole() {
        let verbs = every_verb();
        let leases = kind("coordination.k8s.io", "Lease", "LeaseList", "leases", &verbs, &[]);
        let index = index(&[leases]);
        let url = index["paths"]["apis/coordination.k8s.io/v1"]["serverRelativeURL"].as_str().unwrap_or_default();
        assert!(url.starts_with("/openapi/v3/apis/coordination.k8s.io/v1?hash="), "{url}");

        let document = document("coordination.k8s.io", "v1", &[leases]).expect("served");
        let item = &document["paths"]["/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"];
        let gvk = json!({"group": "coordination.k8s.io", "version": "v1", "kind": "Lease"});
        assert_eq!(item["patch"]["x-kubernetes-group-version-kind"], gvk);
        assert_eq!(item["patch"]["x-kubernetes-action"], "patch");
        let parameters: Vec<&str> =
            item["patch"]["parameters"].as_array().into_iter().flatten().filter_map(|p| p["name"].as_str()).collect();
        assert!(parameters.contains(&"fieldValidation") && parameters.contains(&"dryRun"), "{parameters:?}");
        let schemas = &document["components"]["schemas"];
        assert_eq!(
            schemas["io.k8s.api.coordination.v1.LeaseSpec"]["properties"]["leaseDurationSeconds"]["type"],
            "integer"
        );
        assert_eq!(
            schemas["io.k8s.api.coordination.v1.LeaseList"]["x-kubernetes-group-version-kind"][0]["kind"],
            "LeaseList"
        );
        assert_eq!(
            schemas["io.k8s.api.coordination.v1.Lease"]["properties"]["spec"]["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.api.coordination.v1.LeaseSpec"
        );
    }

    #[test]
    fn references_lead_somewhere() {
        let verbs = every_verb();
        let subresources = words(&["status", "scale"]);
        let schema = r#"{"type":"object","properties":{"spec":{"type":"object"}}}"#;
        let custom = Kind { custom: Some(schema), ..kind("g.io", "Run", "RunList", "runs", &verbs, &subresources) };
        let kinds = [
            kind("", "Pod", "PodList", "pods", &verbs, &subresources),
            kind("apps", "Deployment", "DeploymentList", "deployments", &verbs, &subresources),
            kind(
                "apiextensions.k8s.io",
                "CustomResourceDefinition",
                "CustomResourceDefinitionList",
                "customresourcedefinitions",
                &verbs,
                &[],
            ),
            custom,
        ];
        for group in ["", "apps", "apiextensions.k8s.io", "g.io"] {
            let document = document(group, "v1", &kinds).expect("served");
            let text = document.to_string();
            for part in text.split("\"$ref\":\"").skip(1) {
                let target = part.split('"').next().unwrap_or_default();
                let name = target.strip_prefix("#/components/schemas/").expect(target);
                assert!(document["components"]["schemas"].get(name).is_some(), "{target}");
            }
        }
    }

    #[test]
    fn lists_and_values_are_annotated() {
        let verbs = every_verb();
        let document = document("", "v1", &[kind("", "Pod", "PodList", "pods", &verbs, &[])]).expect("served");
        let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(spec["restartPolicy"]["enum"], json!(["Always", "Never", "OnFailure"]));
        let described = spec["restartPolicy"]["description"].as_str().unwrap_or_default();
        assert!(described.ends_with("\n\nPossible enum values:\n - `\"Always\"`\n - `\"Never\"`\n - `\"OnFailure\"`"));
    }
}

//! Discovery: which groups, versions and resources there are; plain and aggregated.

use crate::crd::CustomKind;
use crate::error::ApiResult;
use crate::handlers::{Req, unknown_path};
use crate::negotiate;
use crate::openapi;
use crate::registry::{Catalog, Served, Source, api_version};
use crate::response::{self, Response};
use crate::server::Api;
use serde_json::{Value, json};
use std::sync::Arc;

/// The only form in which kubectl asks for OpenAPI v2, which it does for kinds that no v3 document has.
const OPENAPI_V2: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// A document without definitions: swagger "2.0", info { title "Kubernetes", version "unversioned" }.
const EMPTY_OPENAPI_V2: &[u8] = b"\x0a\x032.0\x12\x19\x0a\x0aKubernetes\x12\x0bunversioned";

/// The aggregated form, if the client prefers it: its version and media type.
fn aggregated(accept: Option<&str>) -> Option<(&'static str, &'static str)> {
    for range in negotiate::ranges(accept.unwrap_or_default()) {
        match (range.media, range.param("as"), range.param("g"), range.param("v")) {
            ("application/json", Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => {
                return Some(("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"));
            }
            ("application/json", Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2beta1")) => {
                return Some(("v2beta1", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"));
            }
            ("application/json" | "*/*" | "application/*", None, ..) => return None,
            _ => {}
        }
    }
    None
}

impl Api {
    pub(crate) fn discovery(self: &Arc<Self>, req: &Req, segments: &[&str]) -> ApiResult<Response> {
        let catalog = self.registry.catalog();
        let value = match segments {
            [] => paths(&catalog),
            ["api"] | ["apis"] => {
                let core = segments[0] == "api";
                if let Some((version, content_type)) = aggregated(req.accept()) {
                    let list = group_discovery(&catalog, core, version);
                    return Ok(response::bytes(200, content_type, list.to_string()));
                }
                if core { core_versions() } else { group_list(&catalog) }
            }
            ["api", "v1"] => resources(&catalog, "", "v1"),
            ["apis", group] if catalog.groups().contains_key(group) && !group.is_empty() => api_group(&catalog, group),
            ["apis", group, version] if !group.is_empty() => {
                let groups = catalog.groups();
                let Some(versions) = groups.get(group) else { return Ok(response::page_not_found()) };
                if !versions.contains(version) {
                    return Err(unknown_path());
                }
                resources(&catalog, group, version)
            }
            ["openapi", "v2"] if req.accept().is_some_and(|accept| accept.contains(OPENAPI_V2)) => {
                // Go's parser of media types refuses the `@` of what was asked for.
                return Ok(response::bytes(200, &OPENAPI_V2.replace('@', "."), EMPTY_OPENAPI_V2));
            }
            ["openapi", ..] => return Ok(self.openapi(segments)),
            ["api", ..] => return Err(unknown_path()),
            _ => return Ok(response::page_not_found()),
        };
        Ok(response::json(200, &value))
    }

    /// `/openapi/v3`, its documents, and an empty `/openapi/v2` for clients that ask for it first.
    fn openapi(&self, segments: &[&str]) -> Response {
        let catalog = self.registry.catalog();
        let custom = self.described_kinds();
        let kinds: Vec<openapi::Kind<'_>> = catalog.all().map(|served| described(served, &custom)).collect();
        let document = match segments {
            ["openapi", "v2"] => return response::json(200, &openapi::v2()),
            ["openapi", "v3"] => return response::json(200, &openapi::index(&kinds)),
            ["openapi", "v3", "api", version] => openapi::document_bytes("", version, &kinds),
            ["openapi", "v3", "apis", group, version] => openapi::document_bytes(group, version, &kinds),
            _ => None,
        };
        document.map_or_else(response::page_not_found, |json| response::bytes(200, "application/json", json))
    }
}

/// A kind as documents are made of it.
fn described<'a>(served: &'a Served, custom: &'a [CustomKind]) -> openapi::Kind<'a> {
    let same = |kind: &&CustomKind| {
        kind.group == served.group && kind.version == served.version && kind.plural == served.plural
    };
    openapi::Kind {
        group: &served.group,
        version: &served.version,
        kind: &served.kind,
        list_kind: &served.list_kind,
        plural: &served.plural,
        namespaced: served.namespaced,
        verbs: &served.verbs,
        subresources: &served.subresources,
        custom: match &served.source {
            Source::Builtin(_) => None,
            Source::Custom(_) => custom.iter().find(same).map(|kind| &*kind.open_api),
        },
    }
}

fn paths(catalog: &Catalog) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in catalog.groups() {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
            paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
        }
    }
    paths.extend(["/healthz", "/livez", "/metrics", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    json!({"paths": paths})
}

fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let version = |version: &str| json!({"groupVersion": api_version(group, version), "version": version});
    let preferred = versions.first().copied().unwrap_or_default();
    json!({
        "name": group,
        "versions": versions.iter().map(|v| version(v)).collect::<Vec<_>>(),
        "preferredVersion": version(preferred),
    })
}

fn group_list(catalog: &Catalog) -> Value {
    let groups = catalog.groups();
    let groups: Vec<Value> = groups
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_value(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn api_group(catalog: &Catalog, group: &str) -> Value {
    let groups = catalog.groups();
    let mut value = group_value(group, groups.get(group).map(Vec::as_slice).unwrap_or_default());
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    value
}

/// What a subresource is and which verbs it has: group, version, kind, verbs.
fn subresource<'a>(served: &'a Served, name: &str) -> (&'a str, &'a str, &'a str, &'static [&'static str]) {
    match name {
        "scale" => ("autoscaling", "v1", "Scale", &["get", "patch", "update"]),
        "binding" => ("", "", "Binding", &["create"]),
        "eviction" => ("policy", "v1", "Eviction", &["create"]),
        "token" => ("authentication.k8s.io", "v1", "TokenRequest", &["create"]),
        "log" => ("", "", &served.kind, &["get"]),
        "finalize" => ("", "", &served.kind, &["update"]),
        "attach" => ("", "", "PodAttachOptions", &["create", "get"]),
        "exec" => ("", "", "PodExecOptions", &["create", "get"]),
        "portforward" => ("", "", "PodPortForwardOptions", &["create", "get"]),
        "proxy" => ("", "", "NodeProxyOptions", &["create", "delete", "get", "patch", "update"]),
        _ => ("", "", &served.kind, &["get", "patch", "update"]),
    }
}

fn resources(catalog: &Catalog, group: &str, version: &str) -> Value {
    let mut resources = Vec::new();
    for served in catalog.all().filter(|s| s.group == group && s.version == version) {
        let mut resource = json!({
            "name": served.plural, "singularName": served.singular, "namespaced": served.namespaced,
            "kind": served.kind, "verbs": served.verbs,
        });
        if !served.short_names.is_empty() {
            resource["shortNames"] = served.short_names.clone().into();
        }
        if !served.categories.is_empty() {
            resource["categories"] = served.categories.clone().into();
        }
        resources.push(resource);
        for name in &served.subresources {
            let (group, version, kind, verbs) = subresource(served, name);
            let mut resource = json!({
                "name": format!("{}/{name}", served.plural), "singularName": "", "namespaced": served.namespaced,
                "kind": kind, "verbs": verbs,
            });
            if !version.is_empty() {
                resource["version"] = version.into();
                if !group.is_empty() {
                    resource["group"] = group.into();
                }
            }
            resources.push(resource);
        }
    }
    let mut list =
        json!({"kind": "APIResourceList", "groupVersion": api_version(group, version), "resources": resources});
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    list
}

fn group_discovery(catalog: &Catalog, core: bool, list_version: &str) -> Value {
    let mut items = Vec::new();
    for (group, versions) in catalog.groups() {
        if group.is_empty() != core {
            continue;
        }
        let versions: Vec<Value> = versions
            .iter()
            .map(|version| {
                let resources: Vec<Value> = catalog
                    .all()
                    .filter(|s| s.group == group && s.version == *version)
                    .map(|served| resource_discovery(served))
                    .collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            })
            .collect();
        let metadata = if core { json!({}) } else { json!({"name": group}) };
        items.push(json!({"metadata": metadata, "versions": versions}));
    }
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{list_version}"),
        "metadata": {}, "items": items,
    })
}

fn resource_discovery(served: &Served) -> Value {
    let builtin = served.as_builtin().is_some();
    let kind_of = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let own = if builtin { ("", "") } else { (served.group.as_str(), served.version.as_str()) };
    let mut resource = json!({
        "resource": served.plural,
        "responseKind": kind_of(own.0, own.1, &served.kind),
        "scope": if served.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": served.singular,
        "verbs": served.verbs,
    });
    if !served.short_names.is_empty() {
        resource["shortNames"] = served.short_names.clone().into();
    }
    if !served.categories.is_empty() {
        resource["categories"] = served.categories.clone().into();
    }
    if !served.subresources.is_empty() {
        let subresources = served.subresources.iter().map(|name| {
            let (group, version, kind, verbs) = subresource(served, name);
            let (group, version) = if version.is_empty() { own } else { (group, version) };
            json!({"subresource": name, "responseKind": kind_of(group, version, kind), "verbs": verbs})
        });
        resource["subresources"] = subresources.collect::<Vec<_>>().into();
    }
    resource
}

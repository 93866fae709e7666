//! Namespaces and nodes.

use super::columns::{Column, Doc};
use super::metadata::NOT_NEGATIVE;
use super::pod::validate::{quantity_errors, resource_name};
use super::rows::{AGE, NAME, age, name, or_none};
use super::table::{BASE, keep_status};
use super::value::{child, entries, field, fields, fill, flag, items, items_mut, list, text};
use super::{BuiltinKind, Context, NameRule, names, wire};
use crate::schema::internal;
use k8s_openapi::api::core::v1::{NodeStatus, NodeSystemInfo};
use muster_api::field::{FieldError, Reason};
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &["finalize", "status"],
        name_rule: NameRule::Label,
        default: default_namespace,
        prepare_create: create_namespace,
        prepare_update: update_namespace,
        columns: &[NAME, Column::new("Status", Doc::Text("The status of the namespace")), AGE],
        row: |namespace, now| vec![name(namespace), text(namespace, "/status/phase").into(), age(namespace, now)],
        fields: |namespace| {
            let mut values = Map::new();
            values.insert("status.phase".into(), text(namespace, "/status/phase").into());
            values
        },
        field_labels: &["status.phase"],
        ..BASE
    },
    BuiltinKind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        subresources: &["proxy", "status"],
        default: default_node,
        prepare_create: |node, _| taint_unready(node),
        prepare_update: |new, old, context| keep_status(new, old, context.subresource),
        validate: |node, _| validate_node(node),
        validate_update: validate_node_update,
        columns: &[
            NAME,
            Column::new("Status", Doc::Text("The status of the node")),
            Column::new("Roles", Doc::Text("The roles of the node")),
            AGE,
            Column::new("Version", Doc::Field(NodeSystemInfo::json_schema, "kubeletVersion")),
            Column::wide("Internal-IP", Doc::Field(NodeStatus::json_schema, "addresses")),
            Column::wide("External-IP", Doc::Field(NodeStatus::json_schema, "addresses")),
            Column::wide("OS-Image", Doc::Field(NodeSystemInfo::json_schema, "osImage")),
            Column::wide("Kernel-Version", Doc::Field(NodeSystemInfo::json_schema, "kernelVersion")),
            Column::wide("Container-Runtime", Doc::Field(NodeSystemInfo::json_schema, "containerRuntimeVersion")),
        ],
        row: node_row,
        fields: |node| {
            let mut values = Map::new();
            values.insert("spec.unschedulable".into(), flag(node, "/spec/unschedulable").to_string().into());
            values
        },
        field_labels: &["spec.unschedulable"],
        ..BASE
    },
];

/// The label that gives every namespace its own name, for selectors.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

fn default_namespace(namespace: &mut Value) {
    wire::normalise(namespace);
    child(namespace, "spec");
    child(namespace, "status");
    label_with_name(namespace);
}

fn label_with_name(namespace: &mut Value) {
    let name = text(namespace, "/metadata/name").to_owned();
    if !name.is_empty() {
        fields(child(child(namespace, "metadata"), "labels")).insert(NAME_LABEL.into(), name.into());
    }
}

fn create_namespace(namespace: &mut Value, _: &Context<'_>) {
    label_with_name(namespace);
    fields(namespace).insert("status".into(), json!({"phase": "Active"}));
    let spec = child(namespace, "spec");
    let mut finalizers: Vec<Value> = items(spec, "finalizers").to_vec();
    if !finalizers.iter().any(|f| f == "kubernetes") {
        finalizers.push("kubernetes".into());
    }
    fields(spec).insert("finalizers".into(), finalizers.into());
}

fn update_namespace(new: &mut Value, old: &Value, context: &Context<'_>) {
    let mut keep = |key: &str| {
        let value = old.get(key).cloned().unwrap_or_else(|| json!({}));
        fields(new).insert(key.to_owned(), value);
    };
    match context.subresource {
        "status" => keep("spec"),
        "finalize" => keep("status"),
        _ => {
            keep("spec");
            keep("status");
        }
    }
}

fn default_node(node: &mut Value) {
    wire::normalise(node);
    child(node, "spec");
    let status = child(node, "status");
    if let Some(capacity) = status.get("capacity").cloned() {
        let allocatable = child(status, "allocatable");
        for (resource, amount) in entries(&json!({"all": capacity}), "all") {
            fill(allocatable, resource, amount.clone());
        }
    }
    fill(child(child(status, "daemonEndpoints"), "kubeletEndpoint"), "Port", 0);
    let info = child(status, "nodeInfo");
    for key in [
        "architecture",
        "bootID",
        "containerRuntimeVersion",
        "kernelVersion",
        "kubeProxyVersion",
        "kubeletVersion",
        "machineID",
        "operatingSystem",
        "osImage",
        "systemUUID",
    ] {
        fill(info, key, "");
    }
    for condition in items_mut(status, "conditions") {
        fill(condition, "lastHeartbeatTime", Value::Null);
        fill(condition, "lastTransitionTime", Value::Null);
    }
}

fn is_ready(node: &Value) -> bool {
    list(node, "/status/conditions").iter().any(|c| field(c, "type") == "Ready" && field(c, "status") == "True")
}

/// A node that does not say that it is ready gets no pods until it does.
fn taint_unready(node: &mut Value) {
    if is_ready(node) {
        return;
    }
    let spec = child(node, "spec");
    let mut taints = items(spec, "taints").to_vec();
    if !taints.iter().any(|t| field(t, "key") == NOT_READY && field(t, "effect") == "NoSchedule") {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
    fields(spec).insert("taints".into(), taints.into());
}

fn validate_node(node: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (i, taint) in list(node, "/spec/taints").iter().enumerate() {
        let path = format!("spec.taints[{i}]");
        let (key, value, effect) = (field(taint, "key"), field(taint, "value"), field(taint, "effect"));
        let mut push = |name: &str, value: &str, messages: Vec<String>| {
            let path = format!("{path}.{name}");
            errors.extend(messages.into_iter().map(|m| FieldError::invalid(path.clone(), &Value::from(value), m)));
        };
        push("key", key, names::qualified(key));
        push("value", value, names::label_value(value));
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if effect.is_empty() {
            errors.push(FieldError::required(format!("{path}.effect"), ""));
        } else if !effects.contains(&effect) {
            errors.push(FieldError::not_supported(format!("{path}.effect"), &Value::from(effect), &effects));
        }
        if !seen.insert((key, effect)) {
            let shown = internal::json("core.Taint", taint);
            errors.push(FieldError::new(Reason::Duplicate, path, format!("Duplicate value: {shown}")));
        }
    }
    let empty = Value::Object(Map::new());
    let status = node.get("status").unwrap_or(&empty);
    for map in ["capacity", "allocatable"] {
        for (resource, amount) in entries(status, map) {
            let path = format!("status.{map}[{resource}]");
            let standard = ["cpu", "memory", "ephemeral-storage", "pods", "storage"];
            resource_name(resource, &standard, &path, &mut errors);
            quantity_errors(resource, amount, &path, &mut errors);
        }
    }
    errors
}

fn validate_node_update(new: &Value, old: &Value, _: &Context<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, what) in [("podCIDR", "podCIDRs"), ("providerID", "providerID")] {
        let (before, after) = (text(old, &format!("/spec/{key}")), text(new, &format!("/spec/{key}")));
        if !before.is_empty() && before != after {
            let why = "node updates may not change ".to_owned() + what + " except from \"\" to valid";
            errors.push(FieldError::forbidden(format!("spec.{what}"), why));
        }
    }
    if let Some(number) = new.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").filter(|p| p.as_i64() < Some(0)) {
        errors.push(FieldError::invalid("status.daemonEndpoints.kubeletEndpoint.Port", number, NOT_NEGATIVE));
    }
    errors
}

fn node_row(node: &Value, now: i64) -> Vec<Value> {
    let ready = list(node, "/status/conditions").iter().find(|c| field(c, "type") == "Ready");
    let mut status = match ready.map(|c| field(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(node, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = list(node, "/status/addresses").iter().find(|a| field(a, "type") == kind);
        or_none(found.map_or("", |a| field(a, "address")))
    };
    let known = |key: &str| match text(node, &format!("/status/nodeInfo/{key}")) {
        "" => "<unknown>".into(),
        value => value.into(),
    };
    vec![
        name(node),
        status.into(),
        or_none(&roles(node)),
        age(node, now),
        text(node, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        known("osImage"),
        known("kernelVersion"),
        known("containerRuntimeVersion"),
    ]
}

fn roles(node: &Value) -> String {
    let empty = Value::Object(Map::new());
    let metadata = node.get("metadata").unwrap_or(&empty);
    let mut roles: Vec<&str> = entries(metadata, "labels")
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::NoObjects;

    const CONTEXT: Context<'static> =
        Context { now: "", namespace: None, subresource: "", objects: &NoObjects, random: &|| 7 };

    #[test]
    fn namespaces_are_born_active_and_guarded() {
        let mut namespace =
            json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "status": {"phase": "Terminating"}});
        default_namespace(&mut namespace);
        create_namespace(&mut namespace, &CONTEXT);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "a", "labels": {"x": "y", NAME_LABEL: "a"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        let old = namespace.clone();
        namespace["spec"] = json!({});
        update_namespace(&mut namespace, &old, &CONTEXT);
        assert_eq!(namespace["spec"], old["spec"]);
        namespace["spec"] = json!({});
        update_namespace(&mut namespace, &old, &Context { subresource: "finalize", ..CONTEXT });
        assert_eq!(namespace["spec"], json!({}));
    }

    #[test]
    fn nodes_are_tainted_until_ready() {
        let mut node = json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "8", "memory": "16Gi"}}});
        default_node(&mut node);
        taint_unready(&mut node);
        assert_eq!(node["spec"]["taints"], json!([{"key": NOT_READY, "effect": "NoSchedule"}]));
        assert_eq!(node["status"]["allocatable"], node["status"]["capacity"]);
        assert_eq!(validate_node(&node), []);
        let mut ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        taint_unready(&mut ready);
        assert_eq!(ready.get("spec"), None);
    }

    #[test]
    fn node_lines() {
        let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "False"}],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}});
        let row = node_row(&node, 0);
        assert_eq!(row[1..3], ["NotReady,SchedulingDisabled", "control-plane"]);
        assert_eq!(row[5..8], ["127.0.0.1", "<none>", "<unknown>"]);
    }
}

//! The smaller kinds of the core group: service accounts, endpoints, quotas, templates.

use super::columns::{Column, Doc};
use super::pod::validate::{CONTAINER_RESOURCES, STANDARD_RESOURCES, quantity_errors, resource_name};
use super::rows::{AGE, NAME, age, containers_and_images, label_map, name, or_none};
use super::table::{BASE, WITH_STATUS};
use super::value::{child, entries, field, fields, fill, int, items, items_mut, text};
use super::{BuiltinKind, Context, idle, limit_range, names, pod, wire};
use k8s_openapi::api::core::v1::{Endpoints, ReplicationControllerSpec, ReplicationControllerStatus, ServiceAccount};
use muster_api::field::FieldError;
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind { kind: "Binding", plural: "bindings", singular: "binding", verbs: &["create"], ..BASE },
    BuiltinKind {
        kind: "Endpoints",
        idle: idle::ROUTE,
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        create_on_update: true,
        default: |endpoints| {
            wire::normalise(endpoints);
            for subset in items_mut(endpoints, "subsets") {
                for port in items_mut(subset, "ports") {
                    fill(port, "protocol", "TCP");
                }
            }
        },
        validate: |endpoints, _| validate_endpoints(endpoints),
        warnings: |_, _| vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()],
        columns: &[NAME, Column::new("Endpoints", Doc::Field(Endpoints::json_schema, "subsets")), AGE],
        row: |endpoints, now| vec![name(endpoints), addresses(endpoints).into(), age(endpoints, now)],
        ..BASE
    },
    BuiltinKind {
        kind: "LimitRange",
        plural: "limitranges",
        singular: "limitrange",
        short_names: &["limits"],
        create_on_update: true,
        default: default_limits,
        validate: |range, _| limit_range::validate(range),
        ..BASE
    },
    BuiltinKind {
        kind: "PodTemplate",
        plural: "podtemplates",
        singular: "podtemplate",
        generation: true,
        returns_deleted: true,
        default: |object| {
            wire::normalise(object);
            pod::defaults::template(child(object, "template"));
        },
        validate: |object, _| object.get("template").map_or_else(Vec::new, |t| pod::validate::template(t, "template")),
        columns: &[
            NAME,
            Column::new("Containers", Doc::Text("Names of each container in the template.")),
            Column::new("Images", Doc::Text("Images referenced by each container in the template.")),
            Column::new("Pod Labels", Doc::Text("The labels for the pod template.")),
        ],
        row: |object, _| {
            let [containers, images] = containers_and_images(object.pointer("/template/spec"));
            vec![name(object), containers, images, or_none(&label_map(object.pointer("/template/metadata/labels")))]
        },
        ..BASE
    },
    BuiltinKind {
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: &["all"],
        subresources: &["scale", "status"],
        generation: true,
        idle: idle::WORKLOAD,
        orphan_by_default: true,
        default: default_controller,
        prepare_create: |object, _| {
            fields(object).insert("status".into(), json!({"replicas": 0}));
        },
        validate: |object, _| validate_controller(object),
        columns: &[
            NAME,
            Column::new("Desired", Doc::Field(ReplicationControllerSpec::json_schema, "replicas")).typed("integer"),
            Column::new("Current", Doc::Field(ReplicationControllerStatus::json_schema, "replicas")).typed("integer"),
            Column::new("Ready", Doc::Field(ReplicationControllerStatus::json_schema, "readyReplicas"))
                .typed("integer"),
            AGE,
            super::rows::CONTAINERS,
            super::rows::IMAGES,
            Column::wide("Selector", Doc::Field(ReplicationControllerSpec::json_schema, "selector")),
        ],
        row: |object, now| {
            let [containers, images] = containers_and_images(object.pointer("/spec/template/spec"));
            let count = |pointer: &str| int(object, pointer).unwrap_or(0).into();
            vec![
                name(object),
                count("/spec/replicas"),
                count("/status/replicas"),
                count("/status/readyReplicas"),
                age(object, now),
                containers,
                images,
                or_none(&label_map(object.pointer("/spec/selector"))),
            ]
        },
        fields: |object| {
            let mut values = Map::new();
            let replicas = int(object, "/status/replicas").unwrap_or(0);
            values.insert("status.replicas".into(), replicas.to_string().into());
            values
        },
        field_labels: &["status.replicas"],
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        singular: "resourcequota",
        short_names: &["quota"],
        create_on_update: true,
        returns_deleted: true,
        default: |quota| {
            wire::normalise(quota);
            child(quota, "spec");
            child(quota, "status");
        },
        prepare_create: |quota, _| {
            fields(quota).insert("status".into(), json!({}));
        },
        validate: |quota, _| validate_quota(quota),
        validate_update: validate_quota_update,
        columns: &[
            NAME,
            Column::new(
                "Request",
                Doc::Text("Request represents a minimum amount of cpu/memory that a container may consume."),
            ),
            Column::new(
                "Limit",
                Doc::Text(
                    "Limits control the maximum amount of cpu/memory that a container may use independent of contention \
                     on the node.",
                ),
            ),
            AGE,
        ],
        row: quota_row,
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        subresources: &["token"],
        returns_deleted: true,
        columns: &[NAME, Column::new("Secrets", Doc::Field(ServiceAccount::json_schema, "secrets")), AGE],
        row: |account, now| vec![name(account), items(account, "secrets").len().into(), age(account, now)],
        ..BASE
    },
];

fn validate_endpoints(endpoints: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, subset) in items(endpoints, "subsets").iter().enumerate() {
        let path = format!("subsets[{i}]");
        if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
            errors.push(FieldError::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for key in ["addresses", "notReadyAddresses"] {
            for (j, address) in items(subset, key).iter().enumerate() {
                pod::validate::ip(field(address, "ip"), &format!("{path}.{key}[{j}].ip"), &mut errors);
            }
        }
        let ports = items(subset, "ports");
        for (j, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{j}]");
            let name = field(port, "name");
            if name.is_empty() && ports.len() > 1 {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            } else if !name.is_empty() {
                let wrong = names::label(name).into_iter();
                errors.extend(wrong.map(|m| FieldError::invalid(format!("{path}.name"), &Value::from(name), m)));
            }
            let number = int(port, "/port").unwrap_or(0);
            if let Some(why) = names::port(number) {
                errors.push(FieldError::invalid(format!("{path}.port"), &number.into(), why));
            }
        }
    }
    errors
}

/// The first three addresses with their ports, and how many more there are.
fn addresses(endpoints: &Value) -> String {
    let mut all = Vec::new();
    for subset in items(endpoints, "subsets") {
        let ports = items(subset, "ports");
        for address in items(subset, "addresses") {
            let ip = field(address, "ip");
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|port| format!("{host}:{}", int(port, "/port").unwrap_or(0))));
        }
    }
    match all.len() {
        0 => "<none>".to_owned(),
        1..=3 => all.join(","),
        more => format!("{} + {} more...", all[..3].join(","), more - 3),
    }
}

/// A container's default limit falls back to its maximum, its default request to its limit or its minimum.
fn default_limits(range: &mut Value) {
    wire::normalise(range);
    for item in items_mut(child(range, "spec"), "limits") {
        if field(item, "type") != "Container" {
            continue;
        }
        for (target, source) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            if let Some(Value::Object(amounts)) = item.get(source).cloned() {
                for (resource, amount) in amounts {
                    fill(child(item, target), &resource, amount);
                }
            }
        }
    }
}

fn default_controller(object: &mut Value) {
    wire::normalise(object);
    child(object, "status");
    fill(child(object, "status"), "replicas", 0);
    let spec = child(object, "spec");
    fill(spec, "replicas", 1);
    if let Some(template) = spec.get_mut("template") {
        pod::defaults::template(template);
        if let Some(labels) = template.pointer("/metadata/labels").cloned() {
            fill(spec, "selector", labels.clone());
            if object.pointer("/metadata/labels").is_none() {
                fields(child(object, "metadata")).insert("labels".into(), labels);
            }
        }
    }
}

fn validate_controller(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(replicas) = object.pointer("/spec/replicas").filter(|r| r.as_i64() < Some(0)) {
        errors.push(FieldError::invalid("spec.replicas", replicas, super::metadata::NOT_NEGATIVE));
    }
    let selector: Vec<(&String, &Value)> = object.get("spec").map_or(Vec::new(), |s| entries(s, "selector").collect());
    if selector.is_empty() {
        errors.push(FieldError::required("spec.selector", ""));
    }
    let Some(template) = object.pointer("/spec/template") else {
        errors.push(FieldError::required("spec.template", ""));
        return errors;
    };
    let labels = template.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    if !selector.iter().all(|(key, value)| labels.get(key.as_str()) == Some(value)) {
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", &labels, why));
    }
    errors.extend(pod::validate::template(template, "spec.template"));
    errors
}

/// Resources that a quota can count besides objects.
fn validate_quota(quota: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let known = [&STANDARD_RESOURCES[..], &CONTAINER_RESOURCES, &["storage"]].concat();
    for (part, map) in [("spec", "hard"), ("status", "hard"), ("status", "used")] {
        let Some(amounts) = quota.get(part) else { continue };
        for (resource, amount) in entries(amounts, map) {
            let path = format!("{part}.{map}[{resource}]");
            resource_name(resource, &known, &path, &mut errors);
            quantity_errors(resource, amount, &path, &mut errors);
        }
    }
    errors
}

fn validate_quota_update(new: &Value, old: &Value, _: &Context<'_>) -> Vec<FieldError> {
    if new.pointer("/spec/scopes") == old.pointer("/spec/scopes") {
        return Vec::new();
    }
    let value = new.pointer("/spec/scopes").unwrap_or(&Value::Null);
    vec![FieldError::invalid("spec.scopes", value, super::metadata::IMMUTABLE)]
}

fn quota_row(quota: &Value, now: i64) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let empty = json!({});
    let status = quota.get("status").unwrap_or(&empty);
    for (resource, hard) in entries(status, "hard") {
        let used = text(status, &format!("/used/{}", resource.replace('/', "~1")));
        let used = if used.is_empty() { "0" } else { used };
        let line = format!("{resource}: {used}/{}", hard.as_str().unwrap_or_default());
        let column = if resource.starts_with("limits") { &mut limits } else { &mut requests };
        column.push(line);
    }
    vec![name(quota), requests.join(", ").into(), limits.join(", ").into(), age(quota, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::value::list;

    #[test]
    fn endpoints_in_one_cell() {
        let ips: Vec<Value> = (1..6).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect();
        let endpoints = json!({"subsets": [{"addresses": ips, "ports": [{"port": 80}]}]});
        assert_eq!(addresses(&endpoints), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
        assert_eq!(addresses(&json!({})), "<none>");
    }

    #[test]
    fn limits_fall_back() {
        let mut range =
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Gi"}}]}});
        default_limits(&mut range);
        let item = &list(&range, "/spec/limits")[0];
        assert_eq!(
            (&item["default"], &item["defaultRequest"]),
            (&json!({"cpu": "2"}), &json!({"cpu": "2", "memory": "1Gi"}))
        );
    }

    #[test]
    fn quotas() {
        let quota = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "4", "limits.cpu": "2"}, "used": {"pods": "1"}}});
        assert_eq!(quota_row(&quota, 0)[1..3], ["pods: 1/4", "limits.cpu: 0/2"]);
        let errors =
            validate_quota(&json!({"spec": {"hard": {"pods": "1.5", "nonsense": "1", "count/jobs.batch": "2"}}}));
        assert_eq!(
            errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(),
            ["spec.hard[nonsense]", "spec.hard[pods]"]
        );
    }
}

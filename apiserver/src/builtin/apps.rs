//! Deployments, replica sets, stateful sets, daemon sets: stored, not acted on.

use super::columns::{Column, Doc};
use super::metadata::{IMMUTABLE, NOT_NEGATIVE};
use super::rows::{AGE, CONTAINERS, IMAGES, NAME, age, containers_and_images, label_map, name, or_none, selector};
use super::table::{WITH_STATUS, keep_status};
use super::value::{child, field, fields, fill, int, items_mut, text};
use super::workload_status::status_counts;
use super::{BuiltinKind, Context, idle, label_selector, names, pod, wire};
use crate::schema::internal;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSetStatus, DeploymentStatus, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::core::v1::PodSpec;
use muster_api::field::{FieldError, Reason};
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

const APPS: BuiltinKind =
    BuiltinKind { group: "apps", categories: &["all"], generation: true, idle: idle::WORKLOAD, ..WITH_STATUS };
// These columns keep the words that older versions of their kinds had.
const NODES_READY: &str = "The number of nodes that should be running the daemon pod and have one or more of the daemon \
                           pod running and ready.";
const DAEMONS_SELECTOR: &str = "A label query over pods that are managed by the daemon set. Must match in order to be \
                                controlled. If empty, defaulted to labels on Pod template. More info: \
                                https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors";
const REPLICAS_SELECTOR: &str = "Selector is a label query over pods that should match the replica count. If the selector \
                                 is empty, it is defaulted to the labels present on the pod template. Label keys and \
                                 values that must match in order to be controlled by this replica set. More info: \
                                 https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors";
const SCALED: &[&str] = &["scale", "status"];

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind {
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        categories: &[],
        subresources: &[],
        generation: false,
        idle: idle::NOT_IDLE,
        default: |_| {},
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        columns: &[
            NAME,
            Column::new("Controller", Doc::Text("Controller of the object")),
            Column::new("Revision", Doc::Field(ControllerRevision::json_schema, "revision")),
            AGE,
        ],
        row: |revision, now| {
            vec![
                name(revision),
                or_none(&controller(revision)),
                int(revision, "/revision").unwrap_or(0).into(),
                age(revision, now),
            ]
        },
        ..APPS
    },
    BuiltinKind {
        kind: "DaemonSet",
        warnings: |object, old| pod::warnings::workload(object, old, "spec.template", false),
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        default: default_daemon_set,
        prepare_create: |set, _| {
            fields(set).remove("status");
            daemon_set_status(set);
            set_template_generation(set, 1);
        },
        prepare_update: |new, old, context| {
            keep_status(new, old, context.subresource);
            let changed = new.pointer("/spec/template") != old.pointer("/spec/template");
            set_template_generation(new, template_generation(old) + i64::from(changed));
        },
        validate: |set, _| validate_daemon_set(set),
        validate_update: selector_is_immutable,
        columns: &[
            NAME,
            Column::new("Desired", Doc::Field(DaemonSetStatus::json_schema, "desiredNumberScheduled")).typed("integer"),
            Column::new("Current", Doc::Field(DaemonSetStatus::json_schema, "currentNumberScheduled")).typed("integer"),
            Column::new("Ready", Doc::Text(NODES_READY)).typed("integer"),
            Column::new("Up-to-date", Doc::Field(DaemonSetStatus::json_schema, "updatedNumberScheduled"))
                .typed("integer"),
            Column::new("Available", Doc::Field(DaemonSetStatus::json_schema, "numberAvailable")).typed("integer"),
            Column::new("Node Selector", Doc::Field(PodSpec::json_schema, "nodeSelector")),
            AGE,
            CONTAINERS,
            IMAGES,
            Column::wide("Selector", Doc::Text(DAEMONS_SELECTOR)),
        ],
        row: |set, now| {
            let [containers, images] = containers_and_images(set.pointer("/spec/template/spec"));
            let mut row = vec![name(set)];
            row.extend(
                [
                    "desiredNumberScheduled",
                    "currentNumberScheduled",
                    "numberReady",
                    "updatedNumberScheduled",
                    "numberAvailable",
                ]
                .map(|key| count(set, &format!("/status/{key}"))),
            );
            row.push(or_none(&label_map(set.pointer("/spec/template/spec/nodeSelector"))));
            row.extend([age(set, now), containers, images, selector(set.pointer("/spec/selector")).into()]);
            row
        },
        ..APPS
    },
    BuiltinKind {
        kind: "Deployment",
        warnings: |object, old| pod::warnings::workload(object, old, "spec.template", true),
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        subresources: SCALED,
        default: default_deployment,
        prepare_create: |deployment, _| {
            fields(deployment).insert("status".into(), json!({}));
        },
        prepare_update: |new, old, context| {
            keep_status(new, old, context.subresource);
            let annotations = |object: &Value| object.pointer("/metadata/annotations").cloned();
            if context.subresource == "status" {
                let metadata = fields(child(new, "metadata"));
                match old.pointer("/metadata/labels") {
                    Some(labels) => metadata.insert("labels".into(), labels.clone()),
                    None => metadata.remove("labels"),
                };
            } else if new.get("spec") == old.get("spec") && annotations(new) != annotations(old) {
                // Its controller copies annotations to what it makes.
                let generation = int(old, "/metadata/generation").unwrap_or(0) + 1;
                fields(child(new, "metadata")).insert("generation".into(), generation.into());
            }
        },
        validate: |deployment, _| validate_deployment(deployment),
        validate_update: selector_is_immutable,
        columns: &[
            NAME,
            Column::new("Ready", Doc::Text("Number of the pod with ready state")),
            Column::new("Up-to-date", Doc::Field(DeploymentStatus::json_schema, "updatedReplicas")),
            Column::new("Available", Doc::Field(DeploymentStatus::json_schema, "availableReplicas")),
            AGE,
            CONTAINERS,
            IMAGES,
            Column::wide(
                "Selector",
                Doc::Text(
                    "Label selector for pods. Existing ReplicaSets whose pods are selected by this will be the ones \
                     affected by this deployment.",
                ),
            ),
        ],
        row: |deployment, now| {
            let [containers, images] = containers_and_images(deployment.pointer("/spec/template/spec"));
            vec![
                name(deployment),
                ready_of_desired(deployment),
                count(deployment, "/status/updatedReplicas"),
                count(deployment, "/status/availableReplicas"),
                age(deployment, now),
                containers,
                images,
                selector(deployment.pointer("/spec/selector")).into(),
            ]
        },
        ..APPS
    },
    BuiltinKind {
        kind: "ReplicaSet",
        warnings: |object, old| pod::warnings::workload(object, old, "spec.template", true),
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        subresources: SCALED,
        default: |set| {
            wire::normalise(set);
            fill(child(set, "status"), "replicas", 0);
            let spec = child(set, "spec");
            fill(spec, "replicas", 1);
            pod::defaults::template(child(spec, "template"));
        },
        prepare_create: |set, _| {
            fields(set).insert("status".into(), json!({"replicas": 0}));
        },
        validate: |set, _| {
            let mut errors = Vec::new();
            numbers(set, &["replicas", "minReadySeconds"], &mut errors);
            selector_and_template(set, "ReplicaSet", "deployment", &mut errors);
            errors
        },
        validate_update: selector_is_immutable,
        columns: &[
            NAME,
            Column::new("Desired", Doc::Field(ReplicaSetSpec::json_schema, "replicas")).typed("integer"),
            Column::new("Current", Doc::Field(ReplicaSetStatus::json_schema, "replicas")).typed("integer"),
            Column::new("Ready", Doc::Field(ReplicaSetStatus::json_schema, "readyReplicas")).typed("integer"),
            AGE,
            CONTAINERS,
            IMAGES,
            Column::wide("Selector", Doc::Text(REPLICAS_SELECTOR)),
        ],
        row: |set, now| {
            let [containers, images] = containers_and_images(set.pointer("/spec/template/spec"));
            vec![
                name(set),
                count(set, "/spec/replicas"),
                count(set, "/status/replicas"),
                count(set, "/status/readyReplicas"),
                age(set, now),
                containers,
                images,
                selector(set.pointer("/spec/selector")).into(),
            ]
        },
        ..APPS
    },
    BuiltinKind {
        kind: "StatefulSet",
        warnings: |set, old| {
            let mut found = pod::warnings::workload(set, old, "spec.template", false);
            if int(set, "/spec/revisionHistoryLimit").is_some_and(|limit| limit < 0) {
                let why = "a negative value retains all historical revisions; a value >= 0 is recommended";
                found.push(format!("spec.revisionHistoryLimit: {why}"));
            }
            found
        },
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        subresources: SCALED,
        default: default_stateful_set,
        prepare_create: |set, _| {
            fields(set).insert("status".into(), json!({"replicas": 0, "availableReplicas": 0}));
        },
        validate: |set, _| validate_stateful_set(set),
        validate_update: validate_stateful_set_update,
        columns: &[
            NAME,
            Column::new("Ready", Doc::Text("Number of the pod with ready state")),
            AGE,
            CONTAINERS,
            IMAGES,
        ],
        row: |set, now| {
            let [containers, images] = containers_and_images(set.pointer("/spec/template/spec"));
            vec![name(set), ready_of_desired(set), age(set, now), containers, images]
        },
        ..APPS
    },
];

fn count(object: &Value, pointer: &str) -> Value {
    int(object, pointer).unwrap_or(0).into()
}

fn ready_of_desired(object: &Value) -> Value {
    let number = |pointer: &str| int(object, pointer).unwrap_or(0);
    format!("{}/{}", number("/status/readyReplicas"), number("/spec/replicas")).into()
}

/// The controller of an object as `kind.group/name`.
fn controller(object: &Value) -> String {
    let owners = super::value::list(object, "/metadata/ownerReferences");
    let Some(owner) = owners.iter().find(|o| o.get("controller") == Some(&Value::Bool(true))) else {
        return String::new();
    };
    let kind = field(owner, "kind").to_lowercase();
    match field(owner, "apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", field(owner, "name")),
        None => format!("{kind}/{}", field(owner, "name")),
    }
}

fn default_deployment(deployment: &mut Value) {
    wire::normalise(deployment);
    let status = fields(child(deployment, "status"));
    if status.get("replicas") == Some(&json!(0)) {
        status.remove("replicas");
    }
    let spec = child(deployment, "spec");
    fill(spec, "replicas", 1);
    let strategy = child(spec, "strategy");
    fill(strategy, "type", "RollingUpdate");
    if field(strategy, "type") == "RollingUpdate" {
        let update = child(strategy, "rollingUpdate");
        fill(update, "maxUnavailable", "25%");
        fill(update, "maxSurge", "25%");
    }
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    pod::defaults::template(child(spec, "template"));
}

fn default_stateful_set(set: &mut Value) {
    wire::normalise(set);
    let status = child(set, "status");
    fill(status, "replicas", 0);
    fill(status, "availableReplicas", 0);
    let spec = child(set, "spec");
    fill(spec, "replicas", 1);
    fill(spec, "serviceName", "");
    fill(spec, "podManagementPolicy", "OrderedReady");
    let strategy = child(spec, "updateStrategy");
    fill(strategy, "type", "RollingUpdate");
    if field(strategy, "type") == "RollingUpdate" {
        fill(child(strategy, "rollingUpdate"), "partition", 0);
    }
    fill(spec, "revisionHistoryLimit", 10);
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    fill(retention, "whenDeleted", "Retain");
    fill(retention, "whenScaled", "Retain");
    for claim in items_mut(spec, "volumeClaimTemplates") {
        fill(claim, "apiVersion", "v1");
        fill(claim, "kind", "PersistentVolumeClaim");
        fill(child(claim, "status"), "phase", "Pending");
        let spec = child(claim, "spec");
        child(spec, "resources");
        fill(spec, "volumeMode", "Filesystem");
    }
    pod::defaults::template(child(spec, "template"));
}

fn default_daemon_set(set: &mut Value) {
    wire::normalise(set);
    daemon_set_status(set);
    set_template_generation(set, template_generation(set));
    let spec = child(set, "spec");
    let strategy = child(spec, "updateStrategy");
    fill(strategy, "type", "RollingUpdate");
    if field(strategy, "type") == "RollingUpdate" {
        let update = child(strategy, "rollingUpdate");
        fill(update, "maxUnavailable", 1);
        fill(update, "maxSurge", 0);
    }
    fill(spec, "revisionHistoryLimit", 10);
    pod::defaults::template(child(spec, "template"));
}

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// How often the template was changed, as it is told in an annotation.
fn template_generation(set: &Value) -> i64 {
    let annotations = set.pointer("/metadata/annotations");
    annotations
        .and_then(|a| a.get(TEMPLATE_GENERATION))
        .and_then(Value::as_str)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

fn set_template_generation(set: &mut Value, generation: i64) {
    let annotations = child(child(set, "metadata"), "annotations");
    fields(annotations).insert(TEMPLATE_GENERATION.into(), generation.to_string().into());
}

fn daemon_set_status(set: &mut Value) {
    let status = child(set, "status");
    for key in ["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"] {
        fill(status, key, 0);
    }
}

fn numbers(object: &Value, keys: &[&str], errors: &mut Vec<FieldError>) {
    for key in keys {
        let value = object.pointer(&format!("/spec/{key}"));
        if let Some(value) = value.filter(|v| v.as_i64().is_some_and(|n| n < 0)) {
            errors.push(FieldError::invalid(format!("spec.{}", key.replace('/', ".")), value, NOT_NEGATIVE));
        }
    }
}

/// Checks that the selector is there and selects the template's own pods, and the template.
fn selector_and_template(object: &Value, kind: &str, words: &str, errors: &mut Vec<FieldError>) {
    let selector = object.pointer("/spec/selector");
    let mut sound = true;
    match selector {
        None if kind == "DaemonSet" => {}
        None => errors.push(FieldError::required("spec.selector", "")),
        Some(selector) => {
            let wrong = label_selector::validate(selector, "spec.selector");
            sound = wrong.is_empty();
            errors.extend(wrong);
            if label_selector::is_empty(selector) {
                let why = format!("empty selector is invalid for {words}");
                errors.push(FieldError::invalid("spec.selector", selector, why));
            }
        }
    }
    let empty = json!({});
    let template = object.pointer("/spec/template").unwrap_or(&empty);
    let labels = template.pointer("/metadata/labels");
    if !sound && kind != "DaemonSet" {
        // What it selects cannot be told, so the template is not looked at.
        let why = if kind == "ReplicaSet" { "invalid label selector" } else { "" };
        errors.push(FieldError::invalid("spec.selector", selector.unwrap_or(&Value::Null), why));
        return;
    }
    if sound && !label_selector::matches(selector, labels) {
        let value = labels.unwrap_or(&Value::Null);
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", value, why));
    }
    errors.extend(pod::validate::template(template, "spec.template"));
    let policy = text(template, "/spec/restartPolicy");
    if ["OnFailure", "Never"].contains(&policy) {
        let path = "spec.template.spec.restartPolicy";
        errors.push(FieldError::not_supported(path, &Value::from(policy), &["Always"]));
    }
    if template.pointer("/spec/activeDeadlineSeconds").is_some() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", why));
    }
}

fn validate_deployment(deployment: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    numbers(deployment, &["replicas"], &mut errors);
    selector_and_template(deployment, "ReplicaSet", "deployment", &mut errors);
    let empty = json!({});
    let strategy = deployment.pointer("/spec/strategy").unwrap_or(&empty);
    match field(strategy, "type") {
        "Recreate" if strategy.get("rollingUpdate").is_some() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", why));
        }
        "Recreate" => {}
        "RollingUpdate" => rolling_update(strategy, "spec.strategy.rollingUpdate", &mut errors),
        _ => {
            let shown = internal::json("apps.DeploymentStrategy", strategy);
            let message = format!("Unsupported value: {shown}: supported values: \"Recreate\", \"RollingUpdate\"");
            errors.push(FieldError::new(Reason::NotSupported, "spec.strategy", message));
        }
    }
    numbers(deployment, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], &mut errors);
    let number = |key: &str| int(deployment, &format!("/spec/{key}"));
    if let Some(deadline) = number("progressDeadlineSeconds").filter(|d| *d <= number("minReadySeconds").unwrap_or(0)) {
        let why = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid("spec.progressDeadlineSeconds", &deadline.into(), why));
    }
    errors
}

fn rolling_update(strategy: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut zero = true;
    for key in ["maxUnavailable", "maxSurge"] {
        let Some(value) = strategy.pointer(&format!("/rollingUpdate/{key}")) else { continue };
        let path = format!("{path}.{key}");
        match value {
            Value::String(text) => {
                let percent = text.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
                match percent.and_then(|d| d.parse::<u32>().ok()) {
                    None => {
                        let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                                   regex used for validation is '[0-9]+%')";
                        errors.push(FieldError::invalid(path, value, why));
                    }
                    Some(percent) => {
                        zero &= percent == 0;
                        if percent > 100 && key == "maxUnavailable" {
                            errors.push(FieldError::invalid(path, value, "must not be greater than 100%"));
                        }
                    }
                }
            }
            number => {
                zero &= number.as_i64() == Some(0);
                if number.as_i64() < Some(0) {
                    errors.push(FieldError::invalid(path, number, NOT_NEGATIVE));
                }
            }
        }
    }
    if zero {
        let value = strategy.pointer("/rollingUpdate/maxUnavailable").unwrap_or(&Value::Null);
        let why = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(format!("{path}.maxUnavailable"), value, why));
    }
}

fn validate_daemon_set(set: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    selector_and_template(set, "DaemonSet", "daemonset", &mut errors);
    numbers(set, &["minReadySeconds", "revisionHistoryLimit"], &mut errors);
    let kind = text(set, "/spec/updateStrategy/type");
    if !["OnDelete", "RollingUpdate"].contains(&kind) {
        let value = Value::from(kind);
        let shown =
            internal::json("apps.DaemonSetUpdateStrategy", set.pointer("/spec/updateStrategy").unwrap_or(&value));
        let message = format!("Unsupported value: {shown}: supported values: \"RollingUpdate\", \"OnDelete\"");
        errors.push(FieldError::new(Reason::NotSupported, "spec.updateStrategy", message));
    }
    errors
}

fn validate_stateful_set(set: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = text(set, "/spec/podManagementPolicy");
    if !["OrderedReady", "Parallel"].contains(&policy) {
        let why = "must be 'OrderedReady' or 'Parallel'";
        errors.push(FieldError::invalid("spec.podManagementPolicy", &Value::from(policy), why));
    }
    let kind = text(set, "/spec/updateStrategy/type");
    if !["OnDelete", "RollingUpdate"].contains(&kind) {
        let why = "must be 'RollingUpdate' or 'OnDelete'";
        let strategy = set.pointer("/spec/updateStrategy").unwrap_or(&Value::Null);
        errors.push(internal::invalid("spec.updateStrategy", "apps.StatefulSetUpdateStrategy", strategy, why));
    }
    numbers(set, &["updateStrategy/rollingUpdate/partition", "ordinals/start"], &mut errors);
    for key in ["whenDeleted", "whenScaled"] {
        let value = set.pointer(&format!("/spec/persistentVolumeClaimRetentionPolicy/{key}")).unwrap_or(&Value::Null);
        if !["Retain", "Delete"].contains(&value.as_str().unwrap_or_default()) {
            let path = format!("spec.persistentVolumeClaimRetentionPolicy.{key}");
            errors.push(FieldError::not_supported(path, value, &["Retain", "Delete"]));
        }
    }
    let service = text(set, "/spec/serviceName");
    if !service.is_empty() {
        let wrong = names::label(service).into_iter();
        errors.extend(wrong.map(|why| FieldError::invalid("spec.serviceName", &Value::from(service), why)));
    }
    numbers(set, &["replicas", "minReadySeconds"], &mut errors);
    selector_and_template(set, "StatefulSet", "statefulset", &mut errors);
    errors
}

fn validate_stateful_set_update(new: &Value, old: &Value, context: &Context<'_>) -> Vec<FieldError> {
    if context.subresource == "status" {
        return status_counts("StatefulSet", new);
    }
    let mutable = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |object: &Value| -> Map<String, Value> {
        let spec = object.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
        spec.into_iter().filter(|(key, _)| !mutable.contains(&key.as_str())).collect()
    };
    if rest(new) == rest(old) {
        return Vec::new();
    }
    let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
               'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
    vec![FieldError::forbidden("spec", why)]
}

fn selector_is_immutable(new: &Value, old: &Value, context: &Context<'_>) -> Vec<FieldError> {
    if context.subresource == "status" {
        return status_counts(field(new, "kind"), new);
    }
    let (after, before) = (new.pointer("/spec/selector"), old.pointer("/spec/selector"));
    if after == before {
        return Vec::new();
    }
    vec![FieldError::invalid("spec.selector", after.unwrap_or(&Value::Null), IMMUTABLE)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(changes: Value) -> Value {
        let mut spec = json!({"selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}}});
        for (key, value) in changes.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let mut object = json!({"metadata": {"name": "d"}, "spec": spec});
        default_deployment(&mut object);
        object
    }

    #[test]
    fn deployments() {
        let good = deployment(json!({}));
        assert_eq!(good["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
        assert_eq!(validate_deployment(&good), []);
        for (changes, expected) in [
            (json!({"replicas": -1}), vec!["spec.replicas"]),
            (json!({"selector": null}), vec!["spec.selector", "spec.template.metadata.labels"]),
            (json!({"selector": {"matchLabels": {"app": "x"}}}), vec!["spec.template.metadata.labels"]),
            (json!({"selector": {}}), vec!["spec.selector"]),
            (json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}), vec!["spec.strategy.rollingUpdate"]),
            (json!({"strategy": {"type": "Nope"}}), vec!["spec.strategy"]),
            (
                json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}),
                vec!["spec.strategy.rollingUpdate.maxUnavailable"],
            ),
            (json!({"progressDeadlineSeconds": 5, "minReadySeconds": 5}), vec!["spec.progressDeadlineSeconds"]),
        ] {
            let errors = validate_deployment(&deployment(changes.clone()));
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), expected, "{changes}");
        }
    }

    #[test]
    fn revisions_name_their_controller() {
        let revision = json!({"metadata": {"ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true}]}});
        assert_eq!(controller(&revision), "statefulset.apps/web");
    }
}

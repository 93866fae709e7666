//! Leases, priority classes, endpoint slices, budgets, networking, reviews: kinds with few rules of their own.

use super::columns::{Column, Doc};
use super::metadata::{IMMUTABLE, NOT_NEGATIVE};
use super::rows::{AGE, NAME, age, name, or_none, selector};
use super::table::{BASE, WITH_STATUS};
use super::value::{child, field, fields, fill, flag, int, items, items_mut, list, text};
use super::{BuiltinKind, Context, idle, label_selector, wire};
use crate::error::{ApiError, ApiResult};
use crate::schema::internal;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use muster_api::field::FieldError;
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

/// A review: an object that is only ever created, and answered.
const REVIEW: BuiltinKind = BuiltinKind { verbs: &["create"], namespaced: false, ..BASE };
const AUTHORIZATION: BuiltinKind = BuiltinKind { group: "authorization.k8s.io", ..REVIEW };
const AUTHENTICATION: BuiltinKind = BuiltinKind { group: "authentication.k8s.io", ..REVIEW };
const NETWORKING: BuiltinKind = BuiltinKind { group: "networking.k8s.io", generation: true, idle: idle::ROUTE, ..BASE };
const WEBHOOKS: BuiltinKind = BuiltinKind {
    group: "admissionregistration.k8s.io",
    namespaced: false,
    generation: true,
    idle: idle::WEBHOOK,
    columns: &[
        NAME,
        Column::new(
            "Webhooks",
            Doc::Text("Webhooks indicates the number of webhooks registered in this configuration"),
        )
        .typed("integer"),
        AGE,
    ],
    row: |object, now| vec![name(object), items(object, "webhooks").len().into(), age(object, now)],
    ..BASE
};

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind {
        kind: "MutatingWebhookConfiguration",
        plural: "mutatingwebhookconfigurations",
        singular: "mutatingwebhookconfiguration",
        ..WEBHOOKS
    },
    BuiltinKind {
        kind: "ValidatingWebhookConfiguration",
        plural: "validatingwebhookconfigurations",
        singular: "validatingwebhookconfiguration",
        ..WEBHOOKS
    },
    BuiltinKind {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        singular: "customresourcedefinition",
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        generation: true,
        default: |_| {},
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        ..AUTHENTICATION
    },
    BuiltinKind { kind: "TokenReview", plural: "tokenreviews", singular: "tokenreview", ..AUTHENTICATION },
    BuiltinKind {
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        namespaced: true,
        ..AUTHORIZATION
    },
    BuiltinKind {
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        ..AUTHORIZATION
    },
    BuiltinKind {
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        ..AUTHORIZATION
    },
    BuiltinKind {
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        ..AUTHORIZATION
    },
    BuiltinKind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        unconditional_update: false,
        create_on_update: true,
        default: |lease| {
            wire::normalise(lease);
            child(lease, "spec");
        },
        validate: |lease, _| validate_lease(lease),
        columns: &[NAME, Column::new("Holder", Doc::Field(LeaseSpec::json_schema, "holderIdentity")), AGE],
        row: |lease, now| vec![name(lease), text(lease, "/spec/holderIdentity").into(), age(lease, now)],
        ..BASE
    },
    BuiltinKind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        idle: idle::ROUTE,
        plural: "endpointslices",
        singular: "endpointslice",
        generation: true,
        default: default_slice,
        validate: |slice, _| validate_slice(slice),
        validate_update: |new, old, _| immutable(new, old, &["addressType"]),
        columns: &[
            NAME,
            Column::new("AddressType", Doc::Field(EndpointSlice::json_schema, "addressType")),
            Column::new("Ports", Doc::Field(EndpointSlice::json_schema, "ports")),
            Column::new("Endpoints", Doc::Field(EndpointSlice::json_schema, "endpoints")),
            AGE,
        ],
        row: slice_row,
        ..BASE
    },
    BuiltinKind {
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        namespaced: false,
        columns: &[
            NAME,
            Column::new("Controller", Doc::Text("Controller that is responsible for handling this class")),
            Column::new("Parameters", Doc::Text("A reference to a resource with additional parameters")),
            AGE,
        ],
        row: |class, now| {
            let parameters = match (text(class, "/spec/parameters/kind"), text(class, "/spec/parameters/apiGroup")) {
                ("", _) => String::new(),
                (kind, "") => format!("{kind}/{}", text(class, "/spec/parameters/name")),
                (kind, group) => format!("{kind}.{group}/{}", text(class, "/spec/parameters/name")),
            };
            vec![name(class), text(class, "/spec/controller").into(), or_none(&parameters), age(class, now)]
        },
        ..NETWORKING
    },
    BuiltinKind {
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        subresources: WITH_STATUS.subresources,
        default: |ingress| {
            wire::normalise(ingress);
            fill(child(ingress, "status"), "loadBalancer", json!({}));
        },
        prepare_create: |ingress, _| {
            fields(ingress).insert("status".into(), json!({"loadBalancer": {}}));
        },
        prepare_update: WITH_STATUS.prepare_update,
        validate: |ingress, _| validate_ingress(ingress),
        columns: &[
            NAME,
            Column::new(
                "Class",
                Doc::Text("The name of the IngressClass resource that should be used for additional configuration"),
            ),
            Column::new("Hosts", Doc::Text("Hosts that incoming requests are matched against before the ingress rule")),
            Column::new("Address", Doc::Text("Address is a list containing ingress points for the load-balancer")),
            Column::new("Ports", Doc::Text("Ports of TLS configurations that open")),
            AGE,
        ],
        row: ingress_row,
        ..NETWORKING
    },
    BuiltinKind {
        kind: "NetworkPolicy",
        idle: idle::POLICY,
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        default: |policy| {
            wire::normalise(policy);
            let spec = child(policy, "spec");
            child(spec, "podSelector");
            let kinds = if spec.get("egress").is_some() { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            fill(spec, "policyTypes", kinds);
            for rule in ["ingress", "egress"] {
                for rule in items_mut(spec, rule) {
                    for port in items_mut(rule, "ports") {
                        fill(port, "protocol", "TCP");
                    }
                }
            }
        },
        columns: &[NAME, Column::new("Pod-Selector", Doc::Field(NetworkPolicySpec::json_schema, "podSelector")), AGE],
        row: |policy, now| vec![name(policy), selector(policy.pointer("/spec/podSelector")).into(), age(policy, now)],
        ..NETWORKING
    },
    BuiltinKind {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        generation: true,
        idle: idle::BUDGET,
        default: |budget| {
            wire::normalise(budget);
            budget_status(budget);
        },
        prepare_create: |budget, _| {
            fields(budget).remove("status");
            budget_status(budget);
        },
        validate: |budget, _| validate_budget(budget),
        columns: &[
            NAME,
            Column::new("Min Available", Doc::Text("The minimum number of pods that must be available.")),
            Column::new("Max Unavailable", Doc::Text("The maximum number of pods that may be unavailable.")),
            Column::new(
                "Allowed Disruptions",
                Doc::Text("Calculated number of pods that may be disrupted at this time."),
            )
            .typed("integer"),
            AGE,
        ],
        row: |budget, now| {
            let amount = |pointer: &str| match budget.pointer(pointer) {
                None => Value::from("N/A"),
                Some(value) => value.as_str().map_or_else(|| value.to_string(), str::to_owned).into(),
            };
            vec![
                name(budget),
                amount("/spec/minAvailable"),
                amount("/spec/maxUnavailable"),
                int(budget, "/status/disruptionsAllowed").unwrap_or(0).into(),
                age(budget, now),
            ]
        },
        ..WITH_STATUS
    },
    BuiltinKind {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        plural: "priorityclasses",
        singular: "priorityclass",
        short_names: &["pc"],
        namespaced: false,
        generation: true,
        default: |class| {
            wire::normalise(class);
            fill(class, "value", 0);
            fill(class, "preemptionPolicy", "PreemptLowerPriority");
        },
        admit: one_default_class,
        validate: |class, _| validate_class(class),
        validate_update: |new, old, _| {
            let mut errors = Vec::new();
            if new.get("value") != old.get("value") {
                errors.push(FieldError::forbidden("value", "may not be changed in an update."));
            }
            errors.extend(immutable(new, old, &["preemptionPolicy"]));
            errors
        },
        columns: &[
            NAME,
            Column::new("Value", Doc::Field(PriorityClass::json_schema, "value")).typed("integer"),
            Column::new("Global-Default", Doc::Field(PriorityClass::json_schema, "globalDefault")).typed("boolean"),
            AGE,
            Column::new("PreemptionPolicy", Doc::Field(PriorityClass::json_schema, "preemptionPolicy")),
        ],
        row: |class, now| {
            vec![
                name(class),
                int(class, "/value").unwrap_or(0).into(),
                flag(class, "/globalDefault").into(),
                age(class, now),
                field(class, "preemptionPolicy").into(),
            ]
        },
        ..BASE
    },
];

fn immutable(new: &Value, old: &Value, keys: &[&str]) -> Vec<FieldError> {
    let changed = keys.iter().filter(|key| new.get(**key) != old.get(**key));
    changed.map(|key| FieldError::invalid(*key, new.get(*key).unwrap_or(&Value::Null), IMMUTABLE)).collect()
}

fn validate_lease(lease: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(seconds) = lease.pointer("/spec/leaseDurationSeconds").filter(|s| s.as_i64() <= Some(0)) {
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
    if let Some(count) = lease.pointer("/spec/leaseTransitions").filter(|c| c.as_i64() < Some(0)) {
        errors.push(FieldError::invalid("spec.leaseTransitions", count, NOT_NEGATIVE));
    }
    errors
}

fn default_slice(slice: &mut Value) {
    wire::normalise(slice);
    fill(slice, "endpoints", Value::Null);
    fill(slice, "ports", Value::Null);
    for port in items_mut(slice, "ports") {
        fill(port, "name", "");
        fill(port, "protocol", "TCP");
    }
    for endpoint in items_mut(slice, "endpoints") {
        child(endpoint, "conditions");
    }
}

fn validate_slice(slice: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kinds = ["FQDN", "IPv4", "IPv6"];
    let kind = field(slice, "addressType");
    if kind.is_empty() {
        errors.push(FieldError::required("addressType", ""));
    } else if !kinds.contains(&kind) {
        errors.push(FieldError::not_supported("addressType", &Value::from(kind), &kinds));
    }
    for (i, endpoint) in items(slice, "endpoints").iter().enumerate() {
        let addresses = items(endpoint, "addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(format!("endpoints[{i}].addresses"), "must contain at least 1 address"));
        }
        if kind != "FQDN" {
            for (j, address) in addresses.iter().enumerate() {
                let path = format!("endpoints[{i}].addresses[{j}]");
                super::pod::validate::ip(address.as_str().unwrap_or_default(), &path, &mut errors);
            }
        }
    }
    errors
}

fn slice_row(slice: &Value, now: i64) -> Vec<Value> {
    let shown = |all: Vec<String>, none: &str| match all.len() {
        0 => none.to_owned(),
        1..=3 => all.join(","),
        more => format!("{} + {} more...", all[..3].join(","), more - 3),
    };
    let ports = items(slice, "ports").iter().map(|p| match p.get("port") {
        Some(number) => number.to_string(),
        None => "*".to_owned(),
    });
    let endpoints = items(slice, "endpoints").iter().flat_map(|e| items(e, "addresses"));
    let endpoints = endpoints.filter_map(Value::as_str).map(str::to_owned);
    vec![
        name(slice),
        field(slice, "addressType").into(),
        shown(ports.collect(), "<unset>").into(),
        shown(endpoints.collect(), "<unset>").into(),
        age(slice, now),
    ]
}

fn validate_ingress(ingress: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if list(ingress, "/spec/rules").is_empty() && ingress.pointer("/spec/defaultBackend").is_none() {
        let value = ingress.get("spec").unwrap_or(&Value::Null);
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(internal::invalid("spec", "networking.IngressSpec", value, why));
    }
    for (i, rule) in list(ingress, "/spec/rules").iter().enumerate() {
        for (j, path) in list(rule, "/http/paths").iter().enumerate() {
            let field_path = format!("spec.rules[{i}].http.paths[{j}]");
            let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
            let kind = field(path, "pathType");
            if kind.is_empty() {
                errors.push(FieldError::required(format!("{field_path}.pathType"), "pathType must be specified"));
            } else if !kinds.contains(&kind) {
                errors.push(FieldError::not_supported(format!("{field_path}.pathType"), &Value::from(kind), &kinds));
            } else if kind != "ImplementationSpecific" && !field(path, "path").starts_with('/') {
                let value = Value::from(field(path, "path"));
                errors.push(FieldError::invalid(format!("{field_path}.path"), &value, "must be an absolute path"));
            }
        }
    }
    errors
}

fn ingress_row(ingress: &Value, now: i64) -> Vec<Value> {
    let hosts: Vec<&str> =
        list(ingress, "/spec/rules").iter().map(|r| field(r, "host")).filter(|h| !h.is_empty()).collect();
    let hosts = match hosts.len() {
        0 => "*".to_owned(),
        1..=3 => hosts.join(","),
        more => format!("{} + {} more...", hosts[..3].join(","), more - 3),
    };
    let addresses: Vec<&str> = list(ingress, "/status/loadBalancer/ingress")
        .iter()
        .map(|i| if field(i, "ip").is_empty() { field(i, "hostname") } else { field(i, "ip") })
        .collect();
    let ports = if list(ingress, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        name(ingress),
        or_none(text(ingress, "/spec/ingressClassName")),
        hosts.into(),
        addresses.join(",").into(),
        ports.into(),
        age(ingress, now),
    ]
}

fn budget_status(budget: &mut Value) {
    let status = child(budget, "status");
    for key in ["currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"] {
        fill(status, key, 0);
    }
}

fn validate_budget(budget: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = Value::Object(Map::new());
    let spec = budget.get("spec").unwrap_or(&empty);
    if spec.get("minAvailable").is_some() && spec.get("maxUnavailable").is_some() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        errors.push(internal::invalid("spec", "policy.PodDisruptionBudgetSpec", spec, why));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if let Some(amount) = spec.get(key).filter(|a| a.as_i64().is_some_and(|n| n < 0)) {
            errors.push(FieldError::invalid(format!("spec.{key}"), amount, NOT_NEGATIVE));
        }
    }
    if let Some(selector) = spec.get("selector") {
        errors.extend(label_selector::validate(selector, "spec.selector"));
    }
    errors
}

const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
/// The priority classes that every cluster has.
const SYSTEM_CLASSES: [(&str, i64, &str); 2] = [
    ("system-cluster-critical", 2_000_000_000, "Used for system critical pods that must run in the cluster."),
    ("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their node."),
];

fn validate_class(class: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = text(class, "/metadata/name");
    let value = int(class, "/value").unwrap_or(0);
    if name.starts_with("system-") {
        let known = SYSTEM_CLASSES.iter().find(|(system, _, _)| *system == name);
        let why = match known {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, expected, _)) if *expected != value => {
                Some(format!("value of {name} PriorityClass must be {expected}"))
            }
            Some(_) if flag(class, "/globalDefault") => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(why) = why {
            let why =
                format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}");
            errors.push(FieldError::forbidden("metadata.name", why));
        }
    } else if value > HIGHEST_USER_PRIORITY {
        let why = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
        errors.push(FieldError::forbidden("value", why));
    }
    let policies = ["Never", "PreemptLowerPriority"];
    let policy = field(class, "preemptionPolicy");
    if !policies.contains(&policy) {
        errors.push(FieldError::not_supported(
            "preemptionPolicy",
            &Value::from(policy),
            &["PreemptLowerPriority", "Never"],
        ));
    }
    errors
}

fn one_default_class(class: &mut Value, _: Option<&Value>, context: &Context<'_>) -> ApiResult<()> {
    if !flag(class, "/globalDefault") {
        return Ok(());
    }
    let own = text(class, "/metadata/name");
    let classes = context.objects.list("scheduling.k8s.io", "priorityclasses", "");
    match classes.iter().find(|c| flag(c, "/globalDefault") && text(c, "/metadata/name") != own) {
        None => Ok(()),
        Some(other) => {
            let other = text(other, "/metadata/name");
            let why = format!("PriorityClass {other} is already marked as default. Only one default can exist");
            Err(ApiError::forbidden("scheduling.k8s.io", "priorityclasses", own, &why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_classes() {
        let class =
            |name: &str, value: i64| json!({"metadata": {"name": name}, "value": value, "preemptionPolicy": "Never"});
        for (class, expected) in [
            (class("a", 1), None),
            (class("a", 2_000_000_001), Some("value")),
            (class("system-mine", 1), Some("metadata.name")),
            (class("system-node-critical", 2_000_001_000), None),
            (class("system-node-critical", 5), Some("metadata.name")),
        ] {
            assert_eq!(validate_class(&class).first().map(|e| e.field.as_str()), expected, "{class}");
        }
    }

    #[test]
    fn leases() {
        let errors = validate_lease(&json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}));
        assert_eq!(errors.len(), 2);
        assert_eq!(validate_lease(&json!({"spec": {}})), []);
    }
}

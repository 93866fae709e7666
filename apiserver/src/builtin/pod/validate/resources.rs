//! Validation of requests and limits.

use super::{Errors, NOT_NEGATIVE, push};
use crate::builtin::names;
use crate::builtin::value::{entries, field, items};
use muster_api::field::FieldError;
use muster_api::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeSet;

const HUGE_PAGES: &str = "hugepages-";
/// Names without a domain that mean something somewhere, if not for containers.
pub(in crate::builtin) const STANDARD_RESOURCES: [&str; 16] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
pub(in crate::builtin) const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// `claims` are the names of what the pod claims.
pub(super) fn container(container: &Value, path: &str, claims: &[&str], errors: &mut Errors) {
    if let Some(resources) = container.get("resources") {
        lists(resources, &format!("{path}.resources"), errors);
        claimed(resources, claims, &format!("{path}.resources.claims"), errors);
    }
}

fn claimed(resources: &Value, claims: &[&str], path: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, claim) in items(resources, "claims").iter().enumerate() {
        let (name, request) = (field(claim, "name"), field(claim, "request"));
        let path = format!("{path}[{i}]");
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
            continue;
        }
        if !request.is_empty() {
            push(errors, format!("{path}.request"), request, names::label(request));
        }
        let whole = (name, "");
        let overlaps = seen.contains(&whole) || request.is_empty() && seen.iter().any(|(other, _)| *other == name);
        if overlaps {
            errors.push(FieldError::duplicate(&path, &Value::from(name)));
        } else if !seen.insert((name, request)) {
            errors.push(FieldError::duplicate(&path, &Value::from(format!("{name}/{request}"))));
        }
        if !claims.contains(&name) {
            let known = match claims {
                [] => " which is empty".to_owned(),
                claims => format!(
                    ": {}",
                    claims.iter().copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
                ),
            };
            let mut error = FieldError::not_found(path, &Value::from(name));
            error.message.push_str(&format!(": must be one of the names in pod.spec.resourceClaims{known}"));
            errors.push(error);
        }
    }
}

/// Requests and limits of the pod as a whole.
pub(super) fn pod_level(spec: &Value, path: &str, errors: &mut Errors) {
    if let Some(resources) = spec.get("resources") {
        lists(resources, &format!("{path}.resources"), errors);
    }
}

fn lists(resources: &Value, path: &str, errors: &mut Errors) {
    let (limits_path, requests_path) = (format!("{path}.limits"), format!("{path}.requests"));
    for (name, value) in entries(resources, "limits") {
        let path = format!("{limits_path}[{name}]");
        container_resource(name, &path, errors);
        quantity_errors(name, value, &path, errors);
        whole_pages(name, value, &path, errors);
    }
    for (name, value) in entries(resources, "requests") {
        let path = format!("{requests_path}[{name}]");
        container_resource(name, &path, errors);
        quantity_errors(name, value, &path, errors);
        whole_pages(name, value, &path, errors);
        let limit = resources.get("limits").and_then(|l| l.get(name));
        let (Some(request), limit) = (quantity(value), limit.and_then(quantity)) else { continue };
        match limit {
            Some(limit) if !overcommits(name) && request != limit => {
                let why = format!("must be equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(&requests_path, value, why));
            }
            Some(limit) if request > limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(&requests_path, value, why));
            }
            None if !overcommits(name) => {
                let why = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&limits_path, why));
            }
            _ => {}
        }
    }
    let all = || ["limits", "requests"].into_iter().flat_map(|list| entries(resources, list)).map(|(name, _)| name);
    if all().any(|name| name.starts_with(HUGE_PAGES)) && !all().any(|name| matches!(name.as_str(), "cpu" | "memory")) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

/// Huge pages come whole.
fn whole_pages(name: &str, value: &Value, path: &str, errors: &mut Errors) {
    let Some(size) = name.strip_prefix(HUGE_PAGES).and_then(|size| size.parse::<Quantity>().ok()) else { return };
    let bytes = |quantity: Quantity| u64::try_from(quantity.units()).ok().filter(|_| quantity.is_integer());
    let whole = match (quantity(value).and_then(bytes), bytes(size)) {
        (Some(amount), Some(size)) if size > 0 => amount > 0 && amount % size == 0,
        _ => false,
    };
    if !whole {
        let shown = value.as_str().unwrap_or_default();
        let why = format!("{shown} is not positive integer multiple of {name}");
        errors.push(FieldError::invalid(path, value, why));
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

/// Whether more of a resource may be promised than there is: not so for extended resources and huge pages.
fn overcommits(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn container_resource(name: &str, path: &str, errors: &mut Errors) {
    let messages = names::qualified(name);
    if !messages.is_empty() {
        push(errors, path.to_owned(), name, messages);
        return;
    }
    let standard = CONTAINER_RESOURCES.contains(&name) || name.starts_with(HUGE_PAGES);
    if !name.contains('/') && !standard {
        let value = Value::from(name);
        if !STANDARD_RESOURCES.contains(&name) {
            errors.push(FieldError::invalid(path, &value, "must be a standard resource type or fully qualified"));
        }
        errors.push(FieldError::invalid(path, &value, "must be a standard resource for containers"));
    } else if name.contains('/') && is_native(name) {
        let value = Value::from(name);
        errors.push(FieldError::invalid(path, &value, "doesn't follow extended resource name standard"));
    }
}

/// The name of a resource as quotas, nodes and claims have it.
pub(in crate::builtin) fn resource_name(name: &str, standard: &[&str], path: &str, errors: &mut Errors) {
    let messages = names::qualified(name);
    if !messages.is_empty() {
        push(errors, path.to_owned(), name, messages);
    } else if !name.contains('/') && !standard.contains(&name) && !name.contains("hugepages-") {
        let why = "must be a standard resource type or fully qualified";
        errors.push(FieldError::invalid(path, &Value::from(name), why));
    }
}

/// An amount of a resource: not negative, and whole where it cannot be divided.
pub(in crate::builtin) fn quantity_errors(name: &str, value: &Value, path: &str, errors: &mut Errors) {
    let Some(amount) = quantity(value) else {
        let why = muster_api::quantity::ParseError::Form.to_string();
        errors.push(FieldError::invalid(path, value, why));
        return;
    };
    if amount.is_negative() {
        errors.push(FieldError::invalid(path, value, NOT_NEGATIVE));
    }
    let whole = !is_native(name) || name == "pods" || name.starts_with("count/");
    if whole && !amount.is_integer() {
        errors.push(FieldError::invalid(path, value, "must be an integer"));
    }
}

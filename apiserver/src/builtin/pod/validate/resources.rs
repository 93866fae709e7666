//! Validation of requests and limits.

use super::{Errors, NOT_NEGATIVE, push};
use crate::builtin::names;
use crate::builtin::value::entries;
use muster_api::field::FieldError;
use muster_api::quantity::Quantity;
use serde_json::Value;

const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

pub(super) fn container(container: &Value, path: &str, errors: &mut Errors) {
    if let Some(resources) = container.get("resources") {
        lists(resources, &format!("{path}.resources"), errors);
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
        container_resource(name, &limits_path, errors);
        quantity_errors(name, value, &path, errors);
    }
    for (name, value) in entries(resources, "requests") {
        let path = format!("{requests_path}[{name}]");
        container_resource(name, &requests_path, errors);
        quantity_errors(name, value, &path, errors);
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
    let standard = CONTAINER_RESOURCES.contains(&name) || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        let value = Value::from(name);
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

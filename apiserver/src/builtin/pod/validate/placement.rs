//! Validation of where a pod may run: affinity, tolerations, spread.

use super::{Errors, one_of, push};
use crate::builtin::names;
use crate::builtin::value::{field, items};
use crate::schema::internal;
use muster_api::field::FieldError;
use serde_json::Value;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn tolerations(spec: &Value, path: &str, errors: &mut Errors) {
    for (i, toleration) in items(spec, "tolerations").iter().enumerate() {
        let path = format!("{path}.tolerations[{i}]");
        let (key, operator, effect) =
            (field(toleration, "key"), field(toleration, "operator"), field(toleration, "effect"));
        if !key.is_empty() {
            push(errors, format!("{path}.key"), key, names::qualified(key));
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format!("{path}.operator"), &Value::from(operator), why));
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{path}.effect"), &Value::from(effect), why));
        }
        let value = field(toleration, "value");
        match operator {
            "" | "Equal" => {
                let messages = names::label_value(value);
                if !messages.is_empty() {
                    let value = Value::from(value);
                    errors.push(FieldError::invalid(format!("{path}.operator"), &value, messages.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(internal::invalid(&format!("{path}.operator"), "core.Toleration", toleration, why));
            }
            "Exists" => {}
            _ => errors.push(FieldError::not_supported(
                format!("{path}.operator"),
                &Value::from(operator),
                &["Equal", "Exists"],
            )),
        }
        if !effect.is_empty() {
            one_of(toleration, &path, "effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        }
    }
}

pub(super) fn affinity(spec: &Value, path: &str, errors: &mut Errors) {
    let Some(affinity) = spec.get("affinity") else { return };
    let path = format!("{path}.affinity");
    if let Some(node) = affinity.get("nodeAffinity") {
        let path = format!("{path}.nodeAffinity");
        if let Some(required) = node.get(REQUIRED) {
            let terms = items(required, "nodeSelectorTerms");
            let path = format!("{path}.{REQUIRED}.nodeSelectorTerms");
            if terms.is_empty() {
                errors.push(FieldError::required(&path, "must have at least one node selector term"));
            }
            for (i, term) in terms.iter().enumerate() {
                node_term(term, &format!("{path}[{i}]"), errors);
            }
        }
        for (i, preferred) in items(node, PREFERRED).iter().enumerate() {
            let path = format!("{path}.{PREFERRED}[{i}]");
            weight(preferred, &path, errors);
            if let Some(term) = preferred.get("preference") {
                node_term(term, &format!("{path}.preference"), errors);
            }
        }
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get(key) else { continue };
        let path = format!("{path}.{key}");
        for (i, term) in items(pods, REQUIRED).iter().enumerate() {
            pod_term(term, &format!("{path}.{REQUIRED}[{i}]"), errors);
        }
        for (i, preferred) in items(pods, PREFERRED).iter().enumerate() {
            let path = format!("{path}.{PREFERRED}[{i}]");
            weight(preferred, &path, errors);
            pod_term(
                preferred.get("podAffinityTerm").unwrap_or(&Value::Null),
                &format!("{path}.podAffinityTerm"),
                errors,
            );
        }
    }
}

fn weight(preferred: &Value, path: &str, errors: &mut Errors) {
    let weight = preferred.get("weight").and_then(Value::as_i64).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(format!("{path}.weight"), &weight.into(), "must be in the range 1-100"));
    }
}

fn pod_term(term: &Value, path: &str, errors: &mut Errors) {
    let key = field(term, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
    } else {
        push(errors, format!("{path}.topologyKey"), key, names::qualified(key));
    }
}

fn node_term(term: &Value, path: &str, errors: &mut Errors) {
    for (i, expression) in items(term, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = items(expression, "values");
        match field(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), why));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(format!("{path}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            operator => {
                let why = "not a valid selector operator";
                errors.push(FieldError::invalid(format!("{path}.operator"), &Value::from(operator), why));
            }
        }
        let key = field(expression, "key");
        push(errors, format!("{path}.key"), key, names::qualified(key));
    }
}

pub(super) fn spread(spec: &Value, path: &str, errors: &mut Errors) {
    for (i, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{i}]");
        let skew = constraint.get("maxSkew").and_then(Value::as_i64).unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(format!("{path}.maxSkew"), &skew.into(), "must be greater than zero"));
        }
        if field(constraint, "topologyKey").is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        one_of(constraint, &path, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"], errors);
    }
}

//! Validation of probes and lifecycle hooks.

use super::{Errors, not_negative, one_of, push};
use crate::builtin::names;
use crate::builtin::value::{field, int, items};
use muster_api::field::FieldError;
use serde_json::Value;

/// `grace` is how long the pod may take to end.
pub(super) fn probes(container: &Value, path: &str, grace: Option<i64>, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = container.get("lifecycle").and_then(|l| l.get(hook)) {
            self::handler(
                handler,
                &["exec", "httpGet", "tcpSocket", "sleep"],
                &format!("{path}.lifecycle.{hook}"),
                errors,
            );
            let seconds = handler.pointer("/sleep/seconds");
            if let (Some(seconds), Some(grace)) = (seconds, grace)
                && !seconds.as_i64().is_some_and(|n| (0..=grace).contains(&n))
            {
                let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                errors.push(FieldError::invalid(format!("{path}.lifecycle.{hook}.sleep"), seconds, why));
            }
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(key) else { continue };
        let path = format!("{path}.{key}");
        handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], &path, errors);
        for number in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            not_negative(probe, &path, number, errors);
        }
        if key != "readinessProbe"
            && let Some(threshold) = probe.get("successThreshold").filter(|t| t.as_i64() != Some(1))
        {
            errors.push(FieldError::invalid(format!("{path}.successThreshold"), threshold, "must be 1"));
        }
        if let Some(grace) = probe.get("terminationGracePeriodSeconds") {
            let field = format!("{path}.terminationGracePeriodSeconds");
            if key == "readinessProbe" {
                errors.push(FieldError::invalid(field, grace, "must not be set for readinessProbes"));
            } else if grace.as_i64().is_none_or(|n| n <= 0) {
                errors.push(FieldError::invalid(field, grace, "must be greater than 0"));
            }
        }
    }
}

fn handler(handler: &Value, kinds: &[&str], path: &str, errors: &mut Errors) {
    let mut given = kinds.iter().filter(|kind| handler.get(**kind).is_some());
    let Some(kind) = given.next() else {
        errors.push(FieldError::required(path, "must specify a handler type"));
        return;
    };
    for other in given {
        errors.push(FieldError::forbidden(format!("{path}.{other}"), "may not specify more than 1 handler type"));
    }
    let action = &handler[*kind];
    let path = format!("{path}.{kind}");
    match *kind {
        "exec" if items(action, "command").is_empty() => {
            errors.push(FieldError::required(format!("{path}.command"), ""));
        }
        "httpGet" => {
            if field(action, "path").is_empty() {
                errors.push(FieldError::required(format!("{path}.path"), ""));
            }
            port(action, &path, errors);
            one_of(action, &path, "scheme", &["HTTP", "HTTPS"], errors);
            for header in items(action, "httpHeaders") {
                let name = field(header, "name");
                let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                if !valid {
                    let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. \
                               'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
                    errors.push(FieldError::invalid(format!("{path}.httpHeaders"), &Value::from(name), why));
                }
            }
        }
        "tcpSocket" => port(action, &path, errors),
        "grpc" => {
            let number = int(action, "/port").unwrap_or(0);
            if let Some(why) = names::port(number) {
                errors.push(FieldError::invalid(format!("{path}.port"), &number.into(), why));
            }
        }
        _ => {}
    }
}

/// A port given by number or by the name of a container's port.
fn port(action: &Value, path: &str, errors: &mut Errors) {
    let path = format!("{path}.port");
    match action.get("port") {
        Some(Value::String(name)) => push(errors, path, name, names::port_name(name)),
        number => {
            let number = number.and_then(Value::as_i64).unwrap_or(0);
            if let Some(why) = names::port(number) {
                errors.push(FieldError::invalid(path, &number.into(), why));
            }
        }
    }
}

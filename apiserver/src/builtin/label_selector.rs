//! Label selectors as objects have them: validation, and matching.

use super::metadata::validate_labels;
use super::names;
use super::value::{entries, field, items};
use muster_api::field::FieldError;
use serde_json::Value;

/// Whether the selector selects by something.
pub(super) fn is_empty(selector: &Value) -> bool {
    entries(selector, "matchLabels").next().is_none() && items(selector, "matchExpressions").is_empty()
}

/// Whether labels are selected. An absent selector selects nothing, an empty one everything.
pub(super) fn matches(selector: Option<&Value>, labels: Option<&Value>) -> bool {
    let Some(selector) = selector else { return false };
    let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
    entries(selector, "matchLabels").all(|(key, value)| label(key) == value.as_str())
        && items(selector, "matchExpressions").iter().all(|expression| {
            let value = label(field(expression, "key"));
            let listed = value.is_some_and(|value| items(expression, "values").iter().any(|v| v == value));
            match field(expression, "operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

pub(super) fn validate(selector: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = validate_labels(selector.get("matchLabels"), &format!("{path}.matchLabels"));
    for (i, expression) in items(selector, "matchExpressions").iter().enumerate() {
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
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            operator => {
                let why = "not a valid selector operator";
                errors.push(FieldError::invalid(format!("{path}.operator"), &Value::from(operator), why));
            }
        }
        let key = field(expression, "key");
        let wrong = names::qualified(key).into_iter();
        errors.extend(wrong.map(|m| FieldError::invalid(format!("{path}.key"), &Value::from(key), m)));
        for (j, value) in values.iter().enumerate() {
            let wrong = names::label_value(value.as_str().unwrap_or_default()).into_iter();
            errors.extend(wrong.map(|m| FieldError::invalid(format!("{path}.values[{j}]"), value, m)));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn matching() {
        let labels = json!({"app": "a", "tier": "x"});
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"app": "a"}}), true),
            (json!({"matchLabels": {"app": "b"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}), false),
            (json!({"matchExpressions": [{"key": "new", "operator": "NotIn", "values": ["a"]}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), false),
        ] {
            assert_eq!(matches(Some(&selector), Some(&labels)), expected, "{selector}");
        }
        assert!(!matches(None, Some(&labels)));
    }
}

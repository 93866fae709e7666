//! JSON merge patch (RFC 7386).

use crate::error::{ApiError, ApiResult};
use serde_json::{Map, Value};

/// Applies a merge patch; the patch has to be an object.
pub fn apply(document: &Value, patch: &Value) -> ApiResult<Value> {
    if !patch.is_object() {
        let found = super::go_kind(patch);
        return Err(ApiError::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
        )));
    }
    let mut document = document.clone();
    merge(&mut document, patch);
    Ok(document)
}

fn merge(document: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *document = patch.clone();
        return;
    };
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(document) = document else { return };
    for (key, value) in patch {
        if value.is_null() {
            document.remove(key);
        } else {
            merge(document.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn fields_are_merged_and_nulls_remove() {
        let document = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        let patch = json!({"a": {"b": null, "d": {"e": null, "f": 1}}, "l": [3]});
        assert_eq!(apply(&document, &patch), Ok(json!({"a": {"c": 2, "d": {"f": 1}}, "l": [3]})));
        assert_eq!(apply(&document, &json!([])).map_err(|e| e.code), Err(400));
    }

    /// The patch that makes `new` of `old`; `None` where none can (nulls cannot be set).
    fn diff(old: &Value, new: &Value) -> Value {
        let (Value::Object(a), Value::Object(b)) = (old, new) else { return new.clone() };
        let mut patch = Map::new();
        for key in a.keys().filter(|key| !b.contains_key(*key)) {
            patch.insert(key.clone(), Value::Null);
        }
        for (key, value) in b {
            match a.get(key) {
                Some(before) if before == value => {}
                Some(before) => drop(patch.insert(key.clone(), diff(before, value))),
                None => drop(patch.insert(key.clone(), value.clone())),
            }
        }
        Value::Object(patch)
    }

    fn without_nulls(value: Value) -> Value {
        match value {
            Value::Null => Value::from(0),
            Value::Array(items) => items.into_iter().map(without_nulls).collect(),
            Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, without_nulls(v))).collect()),
            other => other,
        }
    }

    proptest! {
        #[test]
        fn the_difference_applied_gives_the_new_document(old in crate::schema::arbitrary::value(), new in crate::schema::arbitrary::value()) {
            let (old, new) = (json!({"x": without_nulls(old)}), json!({"x": without_nulls(new)}));
            prop_assert_eq!(apply(&old, &diff(&old, &new)), Ok(new));
        }
    }
}

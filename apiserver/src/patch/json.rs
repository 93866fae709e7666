//! JSON patch (RFC 6902) as kube-apiserver carries it out: a replace of an absent field adds it.

use crate::error::{ApiError, ApiResult};
use crate::schema::MAX_DEPTH;
use serde_json::{Map, Value, json};

/// Operations that one patch may have.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes that all copies of one patch may add.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Applies the operations (the parsed body) to the document.
pub fn apply(document: &Value, operations: &Value) -> ApiResult<Value> {
    let Value::Array(operations) = operations else {
        let found = super::go_kind(operations);
        return Err(ApiError::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
        )));
    };
    if operations.len() > MAX_OPERATIONS {
        let why =
            format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", operations.len());
        return Err(ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: {why}")));
    }
    for operation in operations {
        decode(operation)?;
    }
    let mut document = document.clone();
    let mut copied = 0;
    for operation in operations {
        step(&mut document, operation, &mut copied).ok_or_else(rejected)?;
    }
    Ok(document)
}

/// The one answer to every operation that does not apply.
fn rejected() -> ApiError {
    ApiError::new(422, "Invalid", "the server rejected our request due to an error in our request")
        .with_details(json!({}))
}

fn decode(operation: &Value) -> ApiResult<()> {
    let Value::Object(fields) = operation else {
        let found = super::go_kind(operation);
        return Err(ApiError::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {found} into Go value of type handlers.jsonPatchOp"
        )));
    };
    for name in ["op", "path", "from"] {
        if let Some(value) = fields.get(name).filter(|v| !v.is_string() && !v.is_null()) {
            let found = super::go_kind(value);
            return Err(ApiError::bad_request(format!(
                "error decoding patch: json: cannot unmarshal {found} into Go struct field jsonPatchOp.{name} of type \
                 string"
            )));
        }
    }
    Ok(())
}

fn step(document: &mut Value, operation: &Value, copied: &mut usize) -> Option<()> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let path = tokens(text("path")?)?;
    match text("op")? {
        "add" => add(document, &path, operation.get("value")?.clone()),
        "remove" => remove(document, &path).map(drop),
        "replace" => {
            let value = operation.get("value")?.clone();
            if path.is_empty() {
                *document = value;
                return Some(());
            }
            let (last, parent) = parent(document, &path)?;
            match parent {
                Value::Object(map) => drop(map.insert(last.to_owned(), value)),
                Value::Array(items) => {
                    let at = index(last, items.len())?;
                    *items.get_mut(at)? = value;
                }
                _ => return None,
            }
            Some(())
        }
        "move" => {
            let from = tokens(text("from")?)?;
            if path.len() > from.len() && path.starts_with(&from) {
                return None;
            }
            let value = remove(document, &from)?;
            add(document, &path, value)
        }
        "copy" => {
            let value = get(document, &tokens(text("from")?)?)?.clone();
            *copied += value.to_string().len();
            if *copied > MAX_COPIED {
                return None;
            }
            add(document, &path, value)
        }
        "test" => {
            let wanted = operation.get("value").unwrap_or(&Value::Null);
            let found = get(document, &path).unwrap_or(&Value::Null);
            (found == wanted).then_some(())
        }
        _ => None,
    }
}

/// The tokens of a JSON pointer.
fn tokens(pointer: &str) -> Option<Vec<String>> {
    if pointer.is_empty() {
        return Some(Vec::new());
    }
    let rest = pointer.strip_prefix('/')?;
    Some(rest.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect())
}

/// An index into a list of this length; negative ones are refused.
fn index(token: &str, len: usize) -> Option<usize> {
    if token != "0" && (token.starts_with('0') || token.starts_with('+')) {
        return None;
    }
    token.parse().ok().filter(|at| *at <= len)
}

fn get<'a>(document: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(document, |value, token| match value {
        Value::Object(map) => map.get(token),
        Value::Array(items) => items.get(index(token, items.len())?),
        _ => None,
    })
}

/// The last token, and the place that holds it.
fn parent<'d, 'p>(document: &'d mut Value, path: &'p [String]) -> Option<(&'p str, &'d mut Value)> {
    let (last, way) = path.split_last()?;
    let mut place = document;
    for token in way {
        place = match place {
            Value::Object(map) => map.get_mut(token)?,
            Value::Array(items) => {
                let at = index(token, items.len())?;
                items.get_mut(at)?
            }
            _ => return None,
        };
    }
    Some((last, place))
}

fn add(document: &mut Value, path: &[String], value: Value) -> Option<()> {
    if path.len() + depth(&value) > MAX_DEPTH {
        return None;
    }
    if path.is_empty() {
        *document = value;
        return Some(());
    }
    let (last, parent) = parent(document, path)?;
    match parent {
        Value::Object(map) => drop(map.insert(last.to_owned(), value)),
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let at = index(last, items.len())?;
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &[String]) -> Option<Value> {
    if path.is_empty() {
        return Some(std::mem::take(document));
    }
    let (last, parent) = parent(document, path)?;
    match parent {
        Value::Object(map) => map.remove(last),
        Value::Array(items) => {
            let at = index(last, items.len()).filter(|at| *at < items.len())?;
            Some(items.remove(at))
        }
        _ => None,
    }
}

/// How deeply a value nests.
fn depth(value: &Value) -> usize {
    let below = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(map) => Map::values(map).map(depth).max(),
        _ => return 0,
    };
    1 + below.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn operations_apply() {
        let document = json!({"data": {"a": "1", "b": "2"}, "list": [1, 2]});
        for (operations, result) in [
            (json!([]), document.clone()),
            (
                json!([{"op": "add", "path": "/data/c", "value": "3"}]),
                json!({"data": {"a": "1", "b": "2", "c": "3"}, "list": [1, 2]}),
            ),
            (
                json!([{"op": "add", "path": "/list/-", "value": 3}]),
                json!({"data": {"a": "1", "b": "2"}, "list": [1, 2, 3]}),
            ),
            (
                json!([{"op": "add", "path": "/list/0", "value": 0}]),
                json!({"data": {"a": "1", "b": "2"}, "list": [0, 1, 2]}),
            ),
            (
                json!([{"op": "replace", "path": "/data/new", "value": "x"}]),
                json!({"data": {"a": "1", "b": "2", "new": "x"}, "list": [1, 2]}),
            ),
            (
                json!([{"op": "move", "from": "/data/a", "path": "/data/z"}]),
                json!({"data": {"b": "2", "z": "1"}, "list": [1, 2]}),
            ),
            (
                json!([{"op": "copy", "from": "/list", "path": "/data/l"}]),
                json!({"data": {"a": "1", "b": "2", "l": [1, 2]}, "list": [1, 2]}),
            ),
            (
                json!([{"op": "remove", "path": "/list"}, {"op": "add", "path": "/a~1b", "value": 1}]),
                json!({"data": {"a": "1", "b": "2"}, "a/b": 1}),
            ),
        ] {
            assert_eq!(apply(&document, &operations), Ok(result), "{operations}");
        }
    }

    #[test]
    fn operations_that_do_not_apply_are_rejected() {
        let document = json!({"data": {"a": "1"}, "list": [1]});
        for operations in [
            json!([{"op": "test", "path": "/data/a", "value": "no"}]),
            json!([{"op": "remove", "path": "/data/b"}]),
            json!([{"op": "add", "path": "/no/deep", "value": 1}]),
            json!([{"op": "replace", "path": "/list/7", "value": 1}]),
            json!([{"op": "frobnicate", "path": "/data"}]),
            json!([{"op": "move", "from": "/data", "path": "/data/a"}]),
        ] {
            assert_eq!(apply(&document, &operations).map_err(|e| e.code), Err(422), "{operations}");
        }
        let error = apply(&document, &json!({"data": 1})).expect_err("no list");
        assert_eq!(
            error.message,
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
        );
    }

    #[test]
    fn copies_cannot_blow_up_a_document() {
        let doubling: Vec<Value> =
            (0..64).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/{i}")})).collect();
        assert!(apply(&json!({"a": {}}), &Value::from(doubling)).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(document in crate::schema::arbitrary::value(), patch in crate::schema::arbitrary::value(), path in "[/a-c0-9~-]{0,6}") {
            let _ = apply(&document, &patch);
            for op in ["add", "remove", "replace", "test", "move", "copy"] {
                let _ = apply(&document, &json!([{"op": op, "path": path, "from": path, "value": patch}]));
            }
        }
    }
}

//! Patches: JSON patch, JSON merge patch, strategic merge patch, server-side apply with managed fields.
//! All are functions from values to values; decoding, defaulting and validation of the result are the caller's.

pub mod apply;
mod fields;
pub mod json;
mod managed;
pub mod merge;
pub mod strategic;
mod walk;

use serde_json::Value;

/// What Go's JSON package calls a value in its errors.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A value as Go's `%v` prints it: `map[a:1 b:[x y]]`. Errors of strict strategic merge patches show the patch so.
pub fn go_print(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_print).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let inner: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_print(value))).collect();
            format!("map[{}]", inner.join(" "))
        }
        scalar => scalar.to_string(),
    }
}

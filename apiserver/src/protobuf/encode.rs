//! JSON turned into messages: answers to clients that prefer the encoding. What is absent in JSON is left out, which
//! readers take for the zero value.

use super::{Field, MAGIC, MESSAGES, Message, Shape, message_name};
use base64::Engine as _;
use serde_json::Value;

/// The envelope with the object, or nothing where its kind has no encoding here.
pub(crate) fn to_bytes(object: &Value) -> Option<Vec<u8>> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let mut raw = Vec::new();
    if let Some(message) = MESSAGES.get(name_of(api_version, kind).as_str()) {
        fields(&mut raw, message, object);
    } else {
        let item = kind.strip_suffix("List")?;
        let message = MESSAGES.get(name_of(api_version, item).as_str())?;
        let mut metadata = Vec::new();
        fields(&mut metadata, MESSAGES.get("meta/v1.ListMeta")?, object.get("metadata").unwrap_or(&Value::Null));
        bytes(&mut raw, 1, &metadata);
        for item in object.get("items").and_then(Value::as_array).into_iter().flatten() {
            let mut inner = Vec::new();
            fields(&mut inner, message, item);
            bytes(&mut raw, 2, &inner);
        }
    }
    let mut type_meta = Vec::new();
    bytes(&mut type_meta, 1, api_version.as_bytes());
    bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = MAGIC.to_vec();
    bytes(&mut out, 1, &type_meta);
    bytes(&mut out, 2, &raw);
    bytes(&mut out, 3, b"");
    bytes(&mut out, 4, b"");
    Some(out)
}

/// One event of a watch, in a frame that begins with its length.
pub(crate) fn watch_event(kind: &str, object: &Value) -> Option<Vec<u8>> {
    let mut raw = Vec::new();
    bytes(&mut raw, 1, &to_bytes(object)?);
    let mut event = Vec::new();
    bytes(&mut event, 1, kind.as_bytes());
    bytes(&mut event, 2, &raw);
    let mut out = u32::try_from(event.len()).ok()?.to_be_bytes().to_vec();
    out.extend(event);
    Some(out)
}

/// Whether objects of a kind have an encoding here.
pub(crate) fn knows(api_version: &str, kind: &str) -> bool {
    MESSAGES.contains_key(name_of(api_version, kind).as_str())
}

fn name_of(api_version: &str, kind: &str) -> String {
    if kind == "Status" { "meta/v1.Status".to_owned() } else { message_name(api_version, kind) }
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// The fields of a message, by number.
fn fields(out: &mut Vec<u8>, message: &Message, object: &Value) {
    let mut numbers: Vec<(&u64, &Field)> = message.iter().collect();
    numbers.sort_unstable_by_key(|(number, _)| **number);
    for (place, field) in numbers {
        if field.inline {
            if let Some(inner) = MESSAGES.get(field.code) {
                let mut nested = Vec::new();
                fields(&mut nested, inner, object);
                bytes(out, *place, &nested);
            }
            continue;
        }
        let Some(value) = object.get(field.name).filter(|value| !value.is_null()) else { continue };
        match (field.shape, value) {
            (Shape::Repeated, Value::Array(items)) => items.iter().for_each(|item| one(out, *place, field.code, item)),
            (Shape::Map, Value::Object(entries)) => {
                for (key, value) in entries {
                    let mut entry = Vec::new();
                    bytes(&mut entry, 1, key.as_bytes());
                    one(&mut entry, 2, field.code, value);
                    bytes(out, *place, &entry);
                }
            }
            _ => one(out, *place, field.code, value),
        }
    }
}

fn one(out: &mut Vec<u8>, field: u64, code: &str, value: &Value) {
    let text = value.as_str().unwrap_or_default();
    match code {
        "b" => number(out, field, u64::from(value.as_bool().unwrap_or(false))),
        "i" => number(out, field, value.as_i64().unwrap_or(0) as u64),
        "d" => {
            varint(out, field << 3 | 1);
            out.extend_from_slice(&value.as_f64().unwrap_or(0.0).to_bits().to_le_bytes());
        }
        "s" => bytes(out, field, text.as_bytes()),
        "y" => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
            bytes(out, field, &decoded);
        }
        "Q" | "R" => {
            let shown = if code == "R" { value.to_string() } else { plain(value) };
            let mut inner = Vec::new();
            bytes(&mut inner, 1, shown.as_bytes());
            bytes(out, field, &inner);
        }
        "L" => {
            let mut inner = Vec::new();
            for item in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
                bytes(&mut inner, 1, item.as_bytes());
            }
            bytes(out, field, &inner);
        }
        "I" => {
            let mut inner = Vec::new();
            number(&mut inner, 1, u64::from(value.is_string()));
            number(&mut inner, 2, value.as_i64().unwrap_or(0) as u64);
            bytes(&mut inner, 3, text.as_bytes());
            bytes(out, field, &inner);
        }
        "T" | "U" => {
            let Ok(time) = text.parse::<jiff::Timestamp>() else { return };
            let mut inner = Vec::new();
            number(&mut inner, 1, time.as_second() as u64);
            let nanos = if code == "U" { time.subsec_nanosecond() } else { 0 };
            number(&mut inner, 2, i64::from(nanos) as u64);
            bytes(out, field, &inner);
        }
        "D" => {
            let nanos = text.strip_suffix("ns").and_then(|n| n.parse::<i64>().ok()).unwrap_or(0);
            let mut inner = Vec::new();
            number(&mut inner, 1, nanos as u64);
            bytes(out, field, &inner);
        }
        name => {
            let Some(message) = MESSAGES.get(name) else { return };
            let mut inner = Vec::new();
            fields(&mut inner, message, value);
            bytes(out, field, &inner);
        }
    }
}

/// A quantity is text in JSON too, or a number.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::to_json;
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_back() {
        for object in [
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "labels": {"a": "b"},
                "creationTimestamp": "2020-01-01T00:00:00Z", "generation": 3}, "data": {"a": "AAE="}, "type": "Opaque"}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
                "replicas": 0, "selector": {"matchLabels": {"app": "d"}},
                "template": {"spec": {"containers": [{"name": "c", "image": "i", "command": ["x", "y"],
                    "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "100m"}}}],
                    "volumes": [{"name": "v", "emptyDir": {}}]}}}}),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
                "spec": {"renewTime": "2020-01-01T00:00:01.000007Z"}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {
                "ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8081}]}}),
        ] {
            let bytes = to_bytes(&object).expect("a built-in kind");
            assert_eq!(to_json(&bytes).expect("what was written"), object);
        }
        assert_eq!(to_bytes(&json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob"})), None);
    }

    #[test]
    fn lists_and_events_hold_objects() {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
        let list =
            json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"}, "items": [map]});
        let list = to_bytes(&list).expect("a list of a built-in kind");
        assert!(list.windows(3).any(|bytes| bytes == [10, 1, b'c']));
        let event = watch_event("ADDED", &map).expect("an event");
        assert_eq!(event.len(), 4 + usize::from(event[3]));
        assert_eq!(&event[4..11], b"\x0a\x05ADDED");
    }
}

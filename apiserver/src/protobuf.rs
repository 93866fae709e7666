//! The protobuf encoding of Kubernetes. Clients written in Go send built-in kinds so without being asked to
//! (`kubectl create namespace`, `kubectl auth can-i`), and many prefer such answers.
//!
//! What the messages look like is data, in `protobuf.txt`. A field that it does not name is skipped.

mod encode;

pub(crate) use encode::{knows, to_bytes, watch_event};

use base64::Engine as _;
use muster_api::clock::{rfc3339, rfc3339_micro};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::LazyLock;

pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages in messages; the deepest of the API are far above it.
const DEPTH: usize = 32;

#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    #[error("{api_version}, Kind={kind} has no protobuf encoding here")]
    UnknownKind { api_version: String, kind: String },
    #[error("the protobuf message {0} is cut short or malformed")]
    Malformed(&'static str),
    #[error("the protobuf message is nested too deeply")]
    Depth,
    #[error("{0} holds what is not valid JSON")]
    Json(&'static str),
}

/// One field of a message.
struct Field {
    name: &'static str,
    /// Its fields stand in JSON beside those of the message around it.
    inline: bool,
    /// Written even when empty.
    always: bool,
    shape: Shape,
    /// The type code, or the name of a message.
    code: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Plain,
    Optional,
    Repeated,
    Map,
}

type Message = HashMap<u64, Field>;

static MESSAGES: LazyLock<HashMap<&'static str, Message>> = LazyLock::new(|| {
    let lines = include_str!("protobuf.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).map(|(name, fields)| (name, message(fields))).collect()
});

fn message(fields: &'static str) -> Message {
    let field = |text: &'static str| {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let number = text[..digits].parse().ok()?;
        let (name, kind) = text[digits..].split_once(':')?;
        let shape = match kind.as_bytes().first()? {
            b'?' => Shape::Optional,
            b'*' => Shape::Repeated,
            b'%' => Shape::Map,
            _ => Shape::Plain,
        };
        Some((
            number,
            Field {
                name: name.trim_start_matches(['<', '!']),
                inline: name.starts_with('<'),
                always: name.starts_with('!'),
                shape,
                code: kind.trim_start_matches(['?', '*', '%']),
            },
        ))
    };
    fields.split(' ').filter_map(field).collect()
}

/// The object of a body, as JSON.
pub(crate) fn to_json(body: &[u8]) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::Prefix)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for part in parts(envelope, "Unknown") {
        match part? {
            (1, Wire::Bytes(type_meta)) => {
                for part in parts(type_meta, "TypeMeta") {
                    match part? {
                        (1, Wire::Bytes(text)) => api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Wire::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let Some((&name, _)) = MESSAGES.get_key_value(message_name(&api_version, &kind).as_str()) else {
        return Err(Error::UnknownKind { api_version, kind });
    };
    let mut object = decode(name, raw, DEPTH)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

/// `authorization.k8s.io/v1`, `SelfSubjectAccessReview` -> `authorization/v1.SelfSubjectAccessReview`
fn message_name(api_version: &str, kind: &str) -> String {
    // Options are the same in every group.
    if kind.ends_with("Options") {
        return format!("meta/v1.{kind}");
    }
    match api_version.split_once('/') {
        Some((group, version)) => format!("{}/{version}.{kind}", group.split('.').next().unwrap_or_default()),
        None => format!("core/{api_version}.{kind}"),
    }
}

/// A value as it is on the wire.
#[derive(Clone, Copy, Debug)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in order.
fn parts<'a>(mut bytes: &'a [u8], message: &'static str) -> impl Iterator<Item = Result<(u64, Wire<'a>), Error>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let part = part(&mut bytes).ok_or(Error::Malformed(message));
        if part.is_err() {
            bytes = &[];
        }
        Some(part)
    })
}

fn part<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => Wire::Number(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => Wire::Number(u64::from(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?))),
        _ => return None,
    };
    Some((key >> 3, value))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn decode(name: &'static str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, Error> {
    let depth = depth.checked_sub(1).ok_or(Error::Depth)?;
    let mut object = Map::new();
    let Some(message) = MESSAGES.get(name) else { return Ok(object) };
    for part in parts(bytes, name) {
        let (number, wire) = part?;
        let Some(field) = message.get(&number) else { continue };
        if field.inline {
            if let Wire::Bytes(bytes) = wire {
                object.extend(decode(field.code, bytes, depth)?);
            }
            continue;
        }
        match field.shape {
            Shape::Repeated => {
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.push(value(name, field.code, wire, depth)?);
                }
            }
            Shape::Map => {
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let (Value::Object(map), Wire::Bytes(entry)) = (map, wire) {
                    let (key, value) = entry_of(name, field.code, entry, depth)?;
                    map.insert(key, value);
                }
            }
            Shape::Plain | Shape::Optional => {
                let value = value(name, field.code, wire, depth)?;
                // Go writes every plain field; an empty one means that it was not set.
                if field.shape == Shape::Optional || field.always && !value.is_null() || !is_empty(&value) {
                    object.insert(field.name.to_owned(), value);
                }
            }
        }
    }
    Ok(object)
}

fn entry_of(name: &'static str, code: &'static str, entry: &[u8], depth: usize) -> Result<(String, Value), Error> {
    let (mut key, mut wire) = (String::new(), Wire::Bytes(&[]));
    for part in parts(entry, name) {
        match part? {
            (1, Wire::Bytes(text)) => key = String::from_utf8_lossy(text).into_owned(),
            (2, value) => wire = value,
            _ => {}
        }
    }
    Ok((key, value(name, code, wire, depth)?))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn value(message: &'static str, code: &'static str, wire: Wire<'_>, depth: usize) -> Result<Value, Error> {
    let malformed = Error::Malformed(message);
    Ok(match (code, wire) {
        ("b", Wire::Number(number)) => Value::Bool(number != 0),
        // Negative numbers of any width are sent as 64 bits.
        ("i", Wire::Number(number)) => Value::from(number as i64),
        ("d", Wire::Number(number)) => Value::from(f64::from_bits(number)),
        ("s", Wire::Bytes(text)) => Value::from(std::str::from_utf8(text).map_err(|_| malformed)?),
        ("y", Wire::Bytes(bytes)) => Value::from(base64::engine::general_purpose::STANDARD.encode(bytes)),
        ("Q", Wire::Bytes(bytes)) => text_of(bytes, message)?,
        ("R", Wire::Bytes(bytes)) => match text_of(bytes, message)? {
            Value::String(json) if !json.is_empty() => serde_json::from_str(&json).map_err(|_| Error::Json(message))?,
            _ => Value::Null,
        },
        ("L", Wire::Bytes(bytes)) => {
            let mut list = Vec::new();
            for part in parts(bytes, message) {
                if let (1, wire) = part? {
                    list.push(value(message, "s", wire, depth)?);
                }
            }
            Value::Array(list)
        }
        ("I", Wire::Bytes(bytes)) => {
            let numbers = numbers_and_text(bytes, message)?;
            if numbers.first == 0 { Value::from(numbers.second as i32) } else { numbers.text }
        }
        ("T" | "U" | "D", Wire::Bytes(bytes)) => time(code, &numbers_and_text(bytes, message)?).ok_or(malformed)?,
        (name, Wire::Bytes(bytes)) if name.len() > 1 => Value::Object(decode(name, bytes, depth)?),
        _ => return Err(malformed),
    })
}

/// The text in field 1.
fn text_of(bytes: &[u8], message: &'static str) -> Result<Value, Error> {
    let mut text = Value::from("");
    for part in parts(bytes, message) {
        if let (1, Wire::Bytes(bytes)) = part? {
            text = Value::from(std::str::from_utf8(bytes).map_err(|_| Error::Malformed(message))?);
        }
    }
    Ok(text)
}

/// What times and integers-or-strings are made of: numbers in fields 1 and 2, text in field 3.
struct Small {
    first: i64,
    second: i64,
    text: Value,
    empty: bool,
}

fn numbers_and_text(bytes: &[u8], message: &'static str) -> Result<Small, Error> {
    let mut small = Small { first: 0, second: 0, text: Value::from(""), empty: bytes.is_empty() };
    for part in parts(bytes, message) {
        match part? {
            (1, Wire::Number(number)) => small.first = number as i64,
            (2, Wire::Number(number)) => small.second = number as i64,
            (3, Wire::Bytes(text)) => {
                small.text = Value::from(std::str::from_utf8(text).map_err(|_| Error::Malformed(message))?);
            }
            _ => {}
        }
    }
    Ok(small)
}

fn time(code: &str, small: &Small) -> Option<Value> {
    if small.empty {
        return Some(Value::Null);
    }
    if code == "D" {
        return Some(Value::from(format!("{}ns", small.first)));
    }
    let time = jiff::Timestamp::new(small.first, i32::try_from(small.second).ok()?).ok()?;
    Some(Value::from(if code == "T" { rfc3339(time) } else { rfc3339_micro(time) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn number(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn body(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &type_meta), &field(2, object), &field(3, b""), &field(4, b"")].concat()
    }

    #[test]
    fn objects_are_read_as_their_json_says_them() {
        let metadata = |name: &str| field(1, &[field(1, name.as_bytes()), field(2, b""), field(8, b"")].concat());
        let entry = |key: &str, value: &[u8]| [field(1, key.as_bytes()), field(2, value)].concat();
        let secret = [metadata("s"), field(2, &entry("a", b"\x00\x01")), field(3, b"Opaque")].concat();
        assert_eq!(
            to_json(&body("v1", "Secret", &secret)).unwrap(),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "AAE="}, "type": "Opaque"})
        );
        let selector = field(2, &[field(1, &entry("app", b"d"))].concat());
        let limits = field(8, &field(1, &entry("cpu", &field(1, b"100m"))));
        let port = field(6, &[number(3, 80), field(4, b"")].concat());
        let container = field(2, &[field(1, b"c"), limits, port].concat());
        let template = field(3, &[field(1, &field(1, b"")), field(2, &container)].concat());
        let deployment = [metadata("d"), field(2, &[number(1, 0), selector, template, number(7, 0)].concat())].concat();
        assert_eq!(
            to_json(&body("apps/v1", "Deployment", &deployment)).unwrap(),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
                "replicas": 0, "selector": {"matchLabels": {"app": "d"}},
                "template": {"spec": {"containers": [
                    {"name": "c", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "100m"}}}]}},
            }})
        );
        let volume = field(1, &[field(1, b"v"), field(2, &field(2, b""))].concat());
        let pod = [metadata("p"), field(2, &volume)].concat();
        assert_eq!(
            to_json(&body("v1", "Pod", &pod)).unwrap()["spec"]["volumes"],
            json!([{"name": "v", "emptyDir": {}}])
        );
    }

    #[test]
    fn integers_or_strings_and_times_are_what_they_are_in_json() {
        let backend = |target: &[u8]| {
            let port = [number(3, 80), field(4, target)].concat();
            let service = field(2, &field(1, &port));
            to_json(&body("v1", "Service", &service)).unwrap()["spec"]["ports"][0]["targetPort"].clone()
        };
        assert_eq!(backend(&[number(1, 0), number(2, 81), field(3, b"")].concat()), json!(81));
        assert_eq!(backend(&[number(1, 1), number(2, 0), field(3, b"http")].concat()), json!("http"));
        let lease = field(2, &field(4, &[number(1, 1), number(2, 0)].concat()));
        let lease = to_json(&body("coordination.k8s.io/v1", "Lease", &lease)).unwrap();
        assert_eq!(lease["spec"]["renewTime"], "1970-01-01T00:00:01.000000Z");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert_eq!(to_json(b"{}"), Err(Error::Prefix));
        let unknown = to_json(&body("kubeflow.org/v1", "PyTorchJob", b""));
        assert!(matches!(unknown, Err(Error::UnknownKind { .. })));
        let cut = body("v1", "Pod", &[0x0a, 0x7f]);
        assert_eq!(to_json(&cut), Err(Error::Malformed("core/v1.Pod")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(object in proptest::collection::vec(any::<u8>(), 0..120), junk in any::<bool>()) {
            let _ = to_json(&if junk { [MAGIC, &object].concat() } else { body("v1", "Pod", &object) });
        }
    }
}

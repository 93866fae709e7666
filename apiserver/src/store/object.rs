//! Objects as the store holds them: serialized once, with the few parts beside that selectors look at.
//!
//! The bytes leave out `apiVersion` and `kind`, which depend on the version asked for, and begin with the resource
//! version, which is known only at commit: `{"metadata":{"resourceVersion":"7","managedFields":[…],…},…}`. An answer
//! is the kind's prefix and these bytes, with no parsing in between, and for those who do not want them without the
//! managed fields, which are often half of an object.

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use serde_json::value::RawValue;
use std::ops::Range;
use std::sync::Arc;

const HEAD: &[u8] = b"{\"metadata\":{\"resourceVersion\":\"";
const MANAGERS: &[u8] = b",\"managedFields\":";

/// Which object: its resource (`group/plural`, an empty group for the core) and its place there (`namespace/name`, or
/// `name` for kinds without a namespace).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub resource: Arc<str>,
    pub path: Box<str>,
}

impl Key {
    pub fn new(resource: &Arc<str>, namespace: Option<&str>, name: &str) -> Self {
        let path = match namespace {
            Some(namespace) => format!("{namespace}/{name}").into(),
            None => name.into(),
        };
        Key { resource: resource.clone(), path }
    }

    /// The key as a backend keeps it.
    pub fn encode(&self) -> String {
        format!("{}/{}", self.resource, self.path)
    }

    /// The inverse of [`Key::encode`]; nothing where the text is not a key.
    pub fn decode(text: &str) -> Option<Key> {
        let group_end = text.find('/')?;
        let plural_end = group_end + 1 + text.get(group_end + 1..)?.find('/')?;
        let path = text.get(plural_end + 1..)?;
        (!path.is_empty()).then(|| Key { resource: text[..plural_end].into(), path: path.into() })
    }
}

/// What selectors match on: labels and the kind's selectable fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    pub uid: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    pub fields: Box<[(Box<str>, Box<str>)]>,
}

impl Index {
    /// `fields` are the kind's own; names and labels are taken from the metadata.
    pub fn of(object: &Value, fields: impl IntoIterator<Item = (String, String)>) -> Self {
        let metadata = &object["metadata"];
        let labels = metadata["labels"].as_object().map(|labels| {
            labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect()
        });
        Index {
            uid: metadata["uid"].as_str().unwrap_or_default().into(),
            labels: labels.unwrap_or_default(),
            fields: fields.into_iter().map(|(k, v)| (k.into_boxed_str(), v.into_boxed_str())).collect(),
        }
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }

    pub fn field(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }
}

/// An object about to be committed: all of it but the resource version.
#[derive(Clone, Debug)]
pub struct Draft {
    index: Index,
    tail: Vec<u8>,
    /// How many bytes the managed fields take, at the beginning.
    managers: usize,
}

impl Draft {
    pub fn new(object: &Value, index: Index) -> Self {
        let mut tail = Vec::with_capacity(512);
        let mut managers = 0;
        if let Some(metadata) = object["metadata"].as_object() {
            if let Some(list) = metadata.get("managedFields") {
                append(&mut tail, "managedFields", list);
                managers = tail.len();
            }
            let others =
                metadata.iter().filter(|(key, _)| !matches!(key.as_str(), "resourceVersion" | "managedFields"));
            for (key, value) in others {
                append(&mut tail, key, value);
            }
        }
        tail.push(b'}');
        if let Some(object) = object.as_object() {
            for (key, value) in object.iter().filter(|(k, _)| !matches!(k.as_str(), "apiVersion" | "kind" | "metadata"))
            {
                append(&mut tail, key, value);
            }
        }
        tail.push(b'}');
        Draft { index, tail, managers }
    }

    pub fn size(&self) -> usize {
        self.tail.len()
    }

    pub(super) fn commit(self, revision: u64) -> Object {
        let (json, start) = assemble(revision, &self.tail);
        Object { revision, index: self.index, json, managers: start..start + self.managers }
    }
}

fn append(out: &mut Vec<u8>, key: &str, value: &Value) {
    out.push(b',');
    // Writing a JSON value into memory has no way to fail.
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

/// The bytes of an object, and where its tail begins.
fn assemble(revision: u64, tail: &[u8]) -> (Bytes, usize) {
    let digits = revision.to_string();
    let mut json = BytesMut::with_capacity(HEAD.len() + digits.len() + 1 + tail.len());
    json.extend_from_slice(HEAD);
    json.extend_from_slice(digits.as_bytes());
    json.extend_from_slice(b"\"");
    let start = json.len();
    json.extend_from_slice(tail);
    (json.freeze(), start)
}

/// One version of an object, immutable.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub revision: u64,
    pub index: Index,
    /// Without `apiVersion` and `kind`; always begins with `{"metadata":{`.
    pub json: Bytes,
    /// Where the managed fields are in it.
    managers: Range<usize>,
}

impl Object {
    /// Reads a row of a backend. Nothing where the bytes are not an object that [`Draft`] has written.
    pub(super) fn load(revision: u64, json: Bytes, index: impl FnOnce(&Value) -> Index) -> Option<Object> {
        if !json.starts_with(HEAD) {
            return None;
        }
        let value: Value = serde_json::from_slice(&json).ok()?;
        let managers = managers_of(&json);
        Some(Object { revision, index: index(&value), json, managers })
    }

    /// The object with its `apiVersion` and `kind`, free to be changed.
    pub fn value(&self, api_version: &str, kind: &str) -> Value {
        let mut value = self.bare_value();
        value["apiVersion"] = api_version.into();
        value["kind"] = kind.into();
        value
    }

    /// The object without `apiVersion` and `kind`.
    pub fn bare_value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("the bytes were serialized by us, or parsed when they were loaded")
    }

    /// The bytes in two parts, with the managed fields or without them.
    pub(crate) fn parts(&self, managers: bool) -> [&[u8]; 2] {
        let cut = if managers { 0..0 } else { self.managers.clone() };
        [&self.json[..cut.start], &self.json[cut.end..]]
    }

    /// The same object under another revision, as a deletion reports it.
    pub fn at_revision(&self, revision: u64) -> Object {
        let (json, start) = assemble(revision, &self.json[tail_of(&self.json)..]);
        Object { revision, index: self.index.clone(), json, managers: start..start + self.managers.len() }
    }

    pub(super) fn weight(&self) -> usize {
        self.json.len() + 256
    }
}

/// Where the part behind the resource version begins.
fn tail_of(json: &[u8]) -> usize {
    json[HEAD.len()..].iter().position(|b| *b == b'"').map_or(0, |end| HEAD.len() + end + 1)
}

/// Where the managed fields are. An object of an older version, which has them elsewhere, is always given whole.
fn managers_of(json: &[u8]) -> Range<usize> {
    let start = tail_of(json);
    let Some(text) = json[start..].strip_prefix(MANAGERS) else { return start..start };
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<&RawValue>();
    match values.next() {
        Some(Ok(_)) => start..start + MANAGERS.len() + values.byte_offset(),
        _ => start..start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_written_with_its_revision_first_and_reads_back() {
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"},
            "metadata": {"name": "x", "uid": "u", "resourceVersion": "3", "labels": {"l": "m"}}});
        let object = Draft::new(&value, Index::of(&value, [])).commit(12);
        assert!(object.json.starts_with(b"{\"metadata\":{\"resourceVersion\":\"12\",\"labels\""));
        let mut expected = value;
        expected["metadata"]["resourceVersion"] = "12".into();
        assert_eq!(object.value("v1", "ConfigMap"), expected);
        assert_eq!(object.index.label("l"), Some("m"));
        expected["metadata"]["resourceVersion"] = "40".into();
        assert_eq!(object.at_revision(40).value("v1", "ConfigMap"), expected);
    }

    #[test]
    fn managed_fields_can_be_left_out_without_parsing() {
        let value = json!({"spec": {"a": 1}, "metadata": {"annotations": {"b": "]"}, "managedFields": [{"manager": "m\\]"},
            {"fieldsV1": {"f:x": {}}}], "name": "x"}});
        let mut brief = value.clone();
        if let Some(metadata) = brief["metadata"].as_object_mut() {
            metadata.remove("managedFields");
            metadata.insert("resourceVersion".to_owned(), "12".into());
        }
        let whole = Draft::new(&value, Index::default()).commit(12);
        let loaded = Object::load(12, whole.json.clone(), |_| Index::default()).expect("an object");
        assert_eq!(loaded, whole);
        for object in [&whole, &loaded, &whole.at_revision(4711).at_revision(12)] {
            let read: Value = serde_json::from_slice(&object.parts(false).concat()).expect("JSON");
            assert_eq!(read, brief);
            assert_eq!(object.parts(true).concat(), whole.json);
        }
        let none = Draft::new(&brief, Index::default()).commit(3);
        assert_eq!(none.parts(false).concat(), none.json);
    }

    #[test]
    fn an_empty_metadata_is_still_json() {
        let value = json!({"metadata": {}});
        let object = Draft::new(&value, Index::default()).commit(1);
        assert_eq!(object.bare_value(), json!({"metadata": {"resourceVersion": "1"}}));
    }

    #[test]
    fn keys_read_back() {
        for key in [
            Key::new(&"/pods".into(), Some("ns"), "a"),
            Key::new(&"rbac.authorization.k8s.io/clusterroles".into(), None, "a:b"),
        ] {
            assert_eq!(Key::decode(&key.encode()), Some(key));
        }
        for bad in ["", "/", "//", "a", "a/b", "a/b/"] {
            assert_eq!(Key::decode(bad), None, "{bad:?}");
        }
    }
}

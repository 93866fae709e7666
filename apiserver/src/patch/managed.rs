//! `metadata.managedFields`: who set which fields, read from and written to objects.

use super::fields::Set;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Who manages fields. Appliers keep one entry whatever version they apply with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    pub(crate) name: String,
    /// `Apply`, else `Update`.
    pub(crate) applied: bool,
    /// Empty for appliers.
    pub(crate) api_version: String,
    pub(crate) subresource: String,
}

impl Manager {
    /// As upstream names a manager in a conflict.
    pub(crate) fn print(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if !self.applied {
            text += &format!(" using {}", self.api_version);
        }
        text
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) set: Set,
    pub(crate) api_version: String,
    pub(crate) time: Option<String>,
}

/// All entries of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Managed(pub(crate) BTreeMap<Manager, Entry>);

/// The list of an object; `None` where it has none.
fn list(object: &Value) -> Option<&Vec<Value>> {
    object.get("metadata")?.get("managedFields")?.as_array()
}

impl Managed {
    /// Reads the entries of an object; `None` where an entry is malformed.
    pub(crate) fn decode(object: &Value) -> Option<Managed> {
        let mut managed = Managed::default();
        for entry in list(object).into_iter().flatten() {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let applied = match text("operation").as_str() {
                "Apply" => true,
                "Update" => false,
                _ => return None,
            };
            let api_version = text("apiVersion");
            if api_version.is_empty() || text("fieldsType") != "FieldsV1" {
                return None;
            }
            let manager = Manager {
                name: text("manager"),
                applied,
                api_version: if applied { String::new() } else { api_version.clone() },
                subresource: text("subresource"),
            };
            let set = match entry.get("fieldsV1") {
                Some(fields) => Set::from_fields(fields)?,
                None => Set::default(),
            };
            let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
            managed.0.insert(manager, Entry { set, api_version, time });
        }
        Some(managed)
    }

    /// Whether a request asks to forget all managers: an empty list, or one empty entry.
    pub(crate) fn is_reset(object: &Value) -> bool {
        match list(object).map(Vec::as_slice) {
            Some([]) => true,
            Some([only]) => only.as_object().is_some_and(|entry| {
                entry
                    .values()
                    .all(|v| v.is_null() || v.as_str() == Some("") || v.as_object().is_some_and(Map::is_empty))
            }),
            _ => false,
        }
    }

    /// Writes the entries, sorted as upstream sorts them; no entry leaves no list.
    pub(crate) fn encode(self, object: &mut Value) {
        let mut entries: Vec<(Manager, Entry)> = self.0.into_iter().collect();
        let key = |(manager, entry): &(Manager, Entry)| (!manager.applied, entry.time.clone().unwrap_or_default());
        entries.sort_by(|a, b| {
            let rest = || {
                (&a.0.name, &a.1.api_version, &a.0.subresource).cmp(&(&b.0.name, &b.1.api_version, &b.0.subresource))
            };
            key(a).cmp(&key(b)).then_with(rest)
        });
        let list: Vec<Value> = entries.into_iter().map(|(manager, entry)| encode_entry(manager, entry)).collect();
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        if list.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), Value::Array(list));
        }
    }
}

fn encode_entry(manager: Manager, entry: Entry) -> Value {
    let mut value = json!({
        "operation": if manager.applied { "Apply" } else { "Update" },
        "apiVersion": entry.api_version,
        "fieldsType": "FieldsV1",
    });
    value["fieldsV1"] = entry.set.into_fields();
    if let Some(time) = entry.time {
        value["time"] = time.into();
    }
    if !manager.subresource.is_empty() {
        value["subresource"] = manager.subresource.into();
    }
    if !manager.name.is_empty() {
        value["manager"] = manager.name.into();
    }
    value
}

/// The object without its managed fields, which are no part of what is compared.
pub(crate) fn strip(object: &Value) -> Value {
    let mut object = object.clone();
    take(&mut object);
    object
}

/// Takes the managed fields out of an object.
pub(crate) fn take(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

/// Whether two objects have the same fields, whoever manages them.
fn alike(a: &Value, b: &Value) -> bool {
    let same = |a: &Map<String, Value>, b: &Map<String, Value>, but: &str, equal: &dyn Fn(&Value, &Value) -> bool| {
        let count = |map: &Map<String, Value>| map.len() - usize::from(map.contains_key(but));
        count(a) == count(b)
            && a.iter().filter(|(key, _)| *key != but).all(|(key, value)| b.get(key).is_some_and(|b| equal(value, b)))
    };
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let equal = |a: &Value, b: &Value| a == b;
    let metadata = match (a.get("metadata"), b.get("metadata")) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => same(a, b, "managedFields", &equal),
        (a, b) => a == b,
    };
    metadata && same(a, b, "metadata", &equal)
}

/// Puts back the managed fields of the old object where nothing but their times has changed, so that a write without
/// effect stays without effect.
pub fn keep_times(old: &Value, new: &mut Value) {
    let without_times = |object: &Value| {
        let entries = list(object).cloned().unwrap_or_default();
        entries
            .into_iter()
            .map(|mut entry| {
                if let Some(map) = entry.as_object_mut() {
                    map.remove("time");
                }
                entry
            })
            .map(|entry| entry.to_string())
            .collect::<std::collections::BTreeSet<String>>()
    };
    if !alike(old, new) || without_times(old) != without_times(new) {
        return;
    }
    if let (Some(entries), Some(metadata)) = (list(old), new.get_mut("metadata")) {
        metadata["managedFields"] = Value::Array(entries.clone());
    }
}

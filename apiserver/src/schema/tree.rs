//! A JSON document that keeps the order of its fields and fields that occur twice, as the request had them.

use serde_json::{Map, Number, Value};

/// A parsed body. `Value` sorts its fields, but errors and warnings follow the order of the document.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Tree>),
    /// Fields as they came; of a field that occurs twice the last one counts.
    Object(Vec<(String, Tree)>),
}

impl Tree {
    /// The last field of this name.
    pub fn get(&self, name: &str) -> Option<&Tree> {
        match self {
            Tree::Object(fields) => fields.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Tree::String(text) => Some(text),
            _ => None,
        }
    }

    /// The plain value; of fields that occur twice the last one stays.
    pub fn into_value(self) -> Value {
        match self {
            Tree::Null => Value::Null,
            Tree::Bool(b) => Value::Bool(b),
            Tree::Number(n) => Value::Number(n),
            Tree::String(s) => Value::String(s),
            Tree::Array(items) => Value::Array(items.into_iter().map(Tree::into_value).collect()),
            Tree::Object(fields) => {
                let mut map = Map::new();
                for (key, value) in fields {
                    map.insert(key, value.into_value());
                }
                Value::Object(map)
            }
        }
    }

    /// What Go's JSON package calls this value in its errors.
    pub(crate) fn go_kind(&self) -> &'static str {
        match self {
            Tree::Null => "null",
            Tree::Bool(_) => "bool",
            Tree::Number(_) => "number",
            Tree::String(_) => "string",
            Tree::Array(_) => "array",
            Tree::Object(_) => "object",
        }
    }

    /// Paths of the fields that occur more than once in one object, in the order of the document.
    pub fn duplicates(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect_duplicates("", &mut found);
        found
    }

    fn collect_duplicates(&self, path: &str, found: &mut Vec<String>) {
        match self {
            Tree::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    item.collect_duplicates(&format!("{path}[{i}]"), found);
                }
            }
            Tree::Object(fields) => {
                let mut seen = std::collections::BTreeSet::new();
                for (key, value) in fields {
                    let at = child_path(path, key);
                    if !seen.insert(key.as_str()) && !found.contains(&at) {
                        found.push(at.clone());
                    }
                    value.collect_duplicates(&at, found);
                }
            }
            _ => {}
        }
    }
}

/// `a.b` for a field b of the object at a.
pub(crate) fn child_path(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl From<Value> for Tree {
    fn from(value: Value) -> Tree {
        match value {
            Value::Null => Tree::Null,
            Value::Bool(b) => Tree::Bool(b),
            Value::Number(n) => Tree::Number(n),
            Value::String(s) => Tree::String(s),
            Value::Array(items) => Tree::Array(items.into_iter().map(Tree::from).collect()),
            Value::Object(map) => Tree::Object(map.into_iter().map(|(k, v)| (k, Tree::from(v))).collect()),
        }
    }
}

//! Pruning and defaulting of custom objects by their structural schema.

use super::node::{Additional, Node};
use serde_json::{Map, Value};

/// Removes what the schema does not know; returns the paths removed, sorted. `root` keeps `apiVersion`, `kind` and
/// `metadata` of the object itself.
pub(crate) fn prune(value: &mut Value, schema: &Node, root: bool) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_at(value, Some(schema), root, "", &mut unknown);
    unknown.sort();
    unknown
}

fn is_type_meta(key: &str) -> bool {
    matches!(key, "apiVersion" | "kind" | "metadata")
}

fn prune_at(value: &mut Value, schema: Option<&Node>, root: bool, path: &str, unknown: &mut Vec<String>) {
    let Some(schema) = schema else {
        match value {
            Value::Object(map) => {
                unknown.extend(map.keys().map(|key| join(path, key)));
                map.clear();
            }
            Value::Array(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    prune_at(item, None, false, &format!("{path}[{i}]"), unknown);
                }
            }
            _ => {}
        }
        return;
    };
    let preserve = schema.preserve_unknown;
    match value {
        Value::Object(map) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            for key in keys {
                if (root || schema.embedded) && is_type_meta(&key) {
                    continue;
                }
                let at = join(path, &key);
                if let Some(property) = schema.properties.get(&key) {
                    if let Some(child) = map.get_mut(&key) {
                        prune_at(child, Some(property), false, &at, unknown);
                    }
                } else if let Additional::Schema(node) = &schema.additional {
                    if let Some(child) = map.get_mut(&key) {
                        prune_at(child, Some(node), false, &at, unknown);
                    }
                } else if matches!(schema.additional, Additional::Allowed) {
                    // `additionalProperties: true` keeps the field but knows nothing below it.
                    if let Some(child) = map.get_mut(&key).filter(|_| !preserve) {
                        prune_at(child, None, false, &at, unknown);
                    }
                } else if !preserve {
                    if !is_type_meta(&key) || !path.is_empty() {
                        unknown.push(at);
                    }
                    map.remove(&key);
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                let at = format!("{path}[{i}]");
                match schema.items.as_deref() {
                    Some(node) => prune_at(item, Some(node), false, &at, unknown),
                    None if preserve => {}
                    None => prune_at(item, None, false, &at, unknown),
                }
            }
        }
        _ => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Removes nulls where the schema allows none and has no default.
pub(crate) fn drop_nulls(value: &mut Value, schema: Option<&Node>) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                let child = schema.and_then(|s| s.child(key));
                let drop = value.is_null() && child.is_some_and(|c| !c.nullable && c.default.is_none());
                if !drop {
                    drop_nulls(value, child);
                }
                !drop
            });
        }
        Value::Array(items) => {
            for item in items {
                drop_nulls(item, schema.and_then(|s| s.items.as_deref()));
            }
        }
        _ => {}
    }
}

/// Fills defaults in, below the objects that are there.
pub(crate) fn default(value: &mut Value, schema: &Node) {
    match value {
        Value::Object(map) => default_fields(map, schema),
        Value::Array(items) => {
            let Some(node) = schema.items.as_deref() else { return };
            for item in items {
                replace_null(item, node);
                default(item, node);
            }
        }
        _ => {}
    }
}

fn default_fields(map: &mut Map<String, Value>, schema: &Node) {
    for (name, property) in schema.properties.iter() {
        let Some(default) = &property.default else { continue };
        match map.get(name) {
            None => {
                map.insert(name.to_owned(), default.clone());
            }
            Some(Value::Null) if !property.nullable => {
                map.insert(name.to_owned(), default.clone());
            }
            Some(_) => {}
        }
    }
    for (name, value) in map.iter_mut() {
        if let Some(property) = schema.properties.get(name) {
            default(value, property);
        } else if let Some(node) = schema.additional_schema() {
            replace_null(value, node);
            default(value, node);
        }
    }
}

fn replace_null(value: &mut Value, schema: &Node) {
    if value.is_null() && !schema.nullable {
        if let Some(default) = &schema.default {
            *value = default.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::node::compile;
    use proptest::prelude::*;
    use serde_json::json;

    fn schema() -> Node {
        compile(&json!({
            "type": "object",
            "properties": {
                "spec": {"type": "object", "properties": {
                    "a": {"type": "string", "default": "A"},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "env": {"type": "object", "additionalProperties": {"type": "string"}},
                    "note": {"type": "string", "nullable": true},
                    "items": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}}},
                }},
            },
        }))
        .expect("the schema compiles")
    }

    #[test]
    fn unknown_fields_are_named_and_removed() {
        let mut value = json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "n"}, "extra": 1,
            "spec": {"b": 1, "free": {"x": {"y": [1]}}, "env": {"A": "1"}, "items": [{"m": 1}]}});
        assert_eq!(prune(&mut value, &schema(), true), ["extra", "spec.b", "spec.items[0].m"]);
        assert_eq!(value["spec"], json!({"free": {"x": {"y": [1]}}, "env": {"A": "1"}, "items": [{}]}));
    }

    #[test]
    fn defaults_fill_what_is_absent_or_a_forbidden_null() {
        let schema = schema();
        let mut value = json!({"spec": {"a": null, "note": null, "env": null, "items": [{}, {"n": 2}]}});
        drop_nulls(&mut value, Some(&schema));
        default(&mut value, &schema);
        assert_eq!(value, json!({"spec": {"a": "A", "note": null, "items": [{"n": 1}, {"n": 2}]}}));
        let mut absent = json!({});
        default(&mut absent, &schema);
        assert_eq!(absent, json!({}));
    }

    proptest! {
        #[test]
        fn pruning_twice_changes_nothing(value in crate::schema::arbitrary::value()) {
            let schema = schema();
            let mut once = json!({"spec": value});
            prune(&mut once, &schema, true);
            let mut twice = once.clone();
            prop_assert!(prune(&mut twice, &schema, true).is_empty());
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn defaulting_twice_changes_nothing(value in crate::schema::arbitrary::value()) {
            let schema = schema();
            let mut once = json!({"spec": value});
            default(&mut once, &schema);
            let mut twice = once.clone();
            default(&mut twice, &schema);
            prop_assert_eq!(once, twice);
        }
    }
}

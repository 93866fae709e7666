//! The rules that a custom kind's schema has to keep: that it is structural, that its extensions make sense, that its
//! defaults fit.

use crate::schema::node::{self, Node};
use crate::schema::{MAX_DEPTH, default_errors, prune_default};
use muster_api::field::FieldError;
use serde_json::{Map, Value, json};

/// Errors of an `openAPIV3Schema`; `path` is where it lies in the definition.
pub(crate) fn validate(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    place(schema, Level::Root, path, false, 0, &mut errors);
    errors.sort_by_key(ToString::to_string);
    if !errors.is_empty() {
        keywords(schema, path, 0, &mut errors);
        return errors;
    }
    defaults(schema, path, true, &mut errors);
    keywords(schema, path, 0, &mut errors);
    if errors.is_empty() {
        if let Err(wrong) = node::compile(schema) {
            errors.extend(wrong.into_iter().map(|mut error| {
                error.field = join(path, &error.field);
                error
            }));
        }
    }
    errors
}

fn join(path: &str, name: &str) -> String {
    if name.is_empty() { path.to_owned() } else { format!("{path}.{name}") }
}

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Field,
    Item,
}

fn object<'a>(schema: &'a Value, name: &str) -> Option<&'a Map<String, Value>> {
    schema.get(name).and_then(Value::as_object)
}

fn text<'a>(schema: &'a Value, name: &str) -> &'a str {
    schema.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn list<'a>(schema: &'a Value, name: &str) -> &'a [Value] {
    schema.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// One place that gives structure (outside of allOf and its like).
fn place(schema: &Value, level: Level, path: &str, in_meta: bool, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > MAX_DEPTH / 2 {
        errors.push(FieldError::forbidden(path, "the schema is nested too deeply"));
        return;
    }
    let ty = text(schema, "type");
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let int_or_string = flag(schema, "x-kubernetes-int-or-string");
    let preserve = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let properties = object(schema, "properties");
    if ty == "array" && schema.get("items").is_none() {
        errors.push(FieldError::required(join(path, "items"), "must be specified"));
    }
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        place(items, Level::Item, &join(path, "items"), false, depth + 1, errors);
    }
    for (name, value) in properties.into_iter().flatten() {
        let meta = (level == Level::Root || embedded) && name == "metadata";
        place(value, Level::Field, &format!("{path}.properties[{name}]"), meta, depth + 1, errors);
    }
    if let Some(additional) = schema.get("additionalProperties") {
        let at = join(path, "additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(at.clone(), "must not be used at the root"));
        }
        if embedded {
            errors.push(FieldError::forbidden(at.clone(), "must not be used if x-kubernetes-embedded-resource is set"));
        }
        if additional.is_object() {
            place(additional, Level::Field, &at, false, depth + 1, errors);
        }
    }
    if int_or_string && preserve {
        errors.push(FieldError::invalid(
            join(path, "x-kubernetes-preserve-unknown-fields"),
            &json!(true),
            "must be false if x-kubernetes-int-or-string is true",
        ));
    }
    if int_or_string && embedded {
        errors.push(FieldError::invalid(
            join(path, "x-kubernetes-embedded-resource"),
            &json!(true),
            "must be false if x-kubernetes-int-or-string is true",
        ));
    }
    if embedded && ty != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if ty.is_empty() {
            FieldError::required(join(path, "type"), why)
        } else {
            FieldError::invalid(join(path, "type"), &json!(ty), why)
        });
    } else if ty.is_empty() && !int_or_string && !preserve && !in_meta {
        let what = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(join(path, "type"), what));
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.push(FieldError::invalid(join(path, "type"), &json!(ty), "must be object at the root"));
    }
    if level == Level::Root || embedded {
        for name in ["kind", "apiVersion"] {
            if let Some(property) = properties.and_then(|p| p.get(name)).filter(|p| text(p, "type") != "string") {
                let at = format!("{path}.properties[{name}].type");
                errors.push(FieldError::invalid(at, &json!(text(property, "type")), "must be string"));
            }
        }
        if let Some(metadata) = properties.and_then(|p| p.get("metadata")) {
            metadata_place(metadata, level, &format!("{path}.properties[metadata]"), errors);
        }
    }
    if embedded && !preserve && properties.is_none_or(Map::is_empty) {
        errors.push(FieldError::required(
            join(path, "properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
    values(schema, schema, int_or_string, path, path, depth, errors);
}

fn metadata_place(metadata: &Value, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    if text(metadata, "type") != "object" {
        errors.push(FieldError::invalid(join(path, "type"), &json!(text(metadata, "type")), "must be object"));
    }
    let names_only = object(metadata, "properties")
        .is_none_or(|p| p.keys().all(|name| matches!(name.as_str(), "name" | "generateName")));
    let plain = metadata
        .as_object()
        .is_some_and(|m| m.keys().all(|key| matches!(key.as_str(), "type" | "properties" | "description" | "title")));
    if level == Level::Root && !(names_only && plain) {
        errors.push(FieldError::forbidden(
            path,
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

/// What `allOf` and its like hold: checks of values alone, on places that the structure names. `structure` is the
/// structural place that they concern.
fn values(
    schema: &Value,
    structure: &Value,
    int_or_string: bool,
    path: &str,
    at_structure: &str,
    depth: usize,
    errors: &mut Vec<FieldError>,
) {
    if depth > MAX_DEPTH / 2 {
        errors.push(FieldError::forbidden(path, "the schema is nested too deeply"));
        return;
    }
    let pattern = json!([{"type": "integer"}, {"type": "string"}]);
    for name in ["allOf", "anyOf", "oneOf"] {
        if int_or_string && name == "anyOf" && schema.get("anyOf") == Some(&pattern) {
            continue;
        }
        for (i, nested) in list(schema, name).iter().enumerate() {
            let skip = int_or_string && name == "allOf" && i == 0 && nested.get("anyOf") == Some(&pattern);
            let at = format!("{path}.{name}[{i}]");
            nested_values(nested, Some(structure), skip, &at, at_structure, depth + 1, errors);
        }
    }
    if let Some(not) = schema.get("not").filter(|not| not.is_object()) {
        nested_values(not, Some(structure), false, &join(path, "not"), at_structure, depth + 1, errors);
    }
}

fn nested_values(
    schema: &Value,
    structure: Option<&Value>,
    int_or_string: bool,
    path: &str,
    at_structure: &str,
    depth: usize,
    errors: &mut Vec<FieldError>,
) {
    let Some(structure) = structure else {
        errors.push(FieldError::required(at_structure, &format!("because it is defined in {path}")));
        return;
    };
    for (name, why) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ] {
        let empty = match schema.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        };
        if !empty {
            errors.push(FieldError::forbidden(join(path, name), why));
        }
    }
    for (name, value) in object(schema, "properties").into_iter().flatten() {
        let at = format!("{path}.properties[{name}]");
        if name == "metadata" {
            errors.push(FieldError::forbidden(at.clone(), "must not be specified in a nested context"));
        }
        let below = object(structure, "properties").and_then(|properties| properties.get(name));
        nested_values(value, below, false, &at, &format!("{at_structure}.properties[{name}]"), depth + 1, errors);
    }
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        let below = structure.get("items").filter(|items| items.is_object());
        nested_values(items, below, false, &join(path, "items"), &join(at_structure, "items"), depth + 1, errors);
    }
    values(schema, structure, int_or_string, path, at_structure, depth, errors);
}

/// Keywords that are not allowed, and extensions that contradict the type.
fn keywords(schema: &Value, path: &str, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > MAX_DEPTH / 2 {
        return;
    }
    const TYPES: &[&str] = &["array", "boolean", "integer", "null", "number", "object", "string"];
    let ty = text(schema, "type");
    if !ty.is_empty() && !TYPES.contains(&ty) {
        errors.push(FieldError::not_supported(join(path, "type"), &json!(ty), TYPES));
    }
    if ty == "null" {
        errors.push(FieldError::forbidden(
            join(path, "type"),
            "type cannot be set to null, use nullable as an alternative",
        ));
    }
    for name in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        let present = schema.get(name).is_some_and(|v| !v.is_null() && !v.as_object().is_some_and(Map::is_empty));
        if present {
            errors.push(FieldError::forbidden(join(path, name), format!("{name} is not supported")));
        }
    }
    if flag(schema, "uniqueItems") {
        errors.push(FieldError::forbidden(
            join(path, "uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    if schema.get("items").is_some_and(Value::is_array) {
        errors.push(FieldError::forbidden(join(path, "items"), "items must be a schema object and not an array"));
    }
    let closed = schema.get("additionalProperties").is_some_and(|a| a.is_object() || a == &Value::Bool(false));
    if closed && object(schema, "properties").is_some_and(|p| !p.is_empty()) {
        errors.push(FieldError::forbidden(
            join(path, "additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let at = join(path, "x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(at, &json!(false), "must be true or undefined"));
    }
    map_and_list_types(schema, ty, path, errors);
    for (name, value) in object(schema, "properties").into_iter().flatten() {
        keywords(value, &format!("{path}.properties[{name}]"), depth + 1, errors);
    }
    for name in ["additionalProperties", "items", "not"] {
        if let Some(value) = schema.get(name).filter(|value| value.is_object()) {
            keywords(value, &join(path, name), depth + 1, errors);
        }
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (i, value) in list(schema, name).iter().enumerate() {
            keywords(value, &format!("{path}.{name}[{i}]"), depth + 1, errors);
        }
    }
}

fn map_and_list_types(schema: &Value, ty: &str, path: &str, errors: &mut Vec<FieldError>) {
    let wrong_type = |wanted: &str, extension: &str| {
        let why = format!("must be {wanted} if {extension} is specified");
        if ty.is_empty() {
            FieldError::required(join(path, "type"), &why)
        } else {
            FieldError::invalid(join(path, "type"), &json!(ty), why)
        }
    };
    if let Some(kind) = schema.get("x-kubernetes-map-type").and_then(Value::as_str) {
        if ty != "object" {
            errors.push(wrong_type("object", "x-kubernetes-map-type"));
        }
        if !matches!(kind, "atomic" | "granular") {
            let at = join(path, "x-kubernetes-map-type");
            errors.push(FieldError::not_supported(at, &json!(kind), &["atomic", "granular"]));
        }
    }
    let kind = schema.get("x-kubernetes-list-type").and_then(Value::as_str);
    let keys = list(schema, "x-kubernetes-list-map-keys");
    let items = schema.get("items");
    let at_kind = join(path, "x-kubernetes-list-type");
    let at_keys = join(path, "x-kubernetes-list-map-keys");
    if let Some(kind) = kind {
        if ty != "array" {
            errors.push(wrong_type("array", "x-kubernetes-list-type"));
        }
        if !matches!(kind, "atomic" | "set" | "map") {
            errors.push(FieldError::not_supported(at_kind.clone(), &json!(kind), &["atomic", "map", "set"]));
        }
    }
    if !keys.is_empty() && kind != Some("map") {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match kind {
            None => FieldError::required(at_kind, why),
            Some(kind) => FieldError::invalid(at_kind, &json!(kind), why),
        });
    }
    let Some(items) = items.filter(|_| matches!(kind, Some("map" | "set"))) else {
        if kind == Some("map") {
            errors
                .push(FieldError::required(join(path, "items"), "must have a schema if x-kubernetes-list-type is map"));
        }
        return;
    };
    let kind = kind.unwrap_or_default();
    if flag(items, "nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
        errors.push(FieldError::forbidden(join(path, "items.nullable"), why));
    }
    if kind == "set" {
        if text(items, "type") == "object" && text(items, "x-kubernetes-map-type") != "atomic" {
            errors.push(FieldError::invalid(
                join(path, "items.x-kubernetes-map-type"),
                &Value::Null,
                "must be atomic as item of a list with x-kubernetes-list-type=set",
            ));
        }
        return;
    }
    if keys.is_empty() {
        errors.push(FieldError::required(at_keys.clone(), "must not be empty if x-kubernetes-list-type is map"));
    }
    if text(items, "type") != "object" {
        errors.push(FieldError::invalid(
            join(path, "items.type"),
            &json!(text(items, "type")),
            "must be object if parent array's x-kubernetes-list-type is map",
        ));
        return;
    }
    let mut seen = Vec::new();
    for key in keys {
        let name = key.as_str().unwrap_or_default();
        let at = format!("{path}.items.properties[{name}]");
        match object(items, "properties").and_then(|properties| properties.get(name)) {
            None => errors.push(FieldError::invalid(
                at_keys.clone(),
                &Value::from(keys.to_vec()),
                "entries must all be names of item properties",
            )),
            Some(property) => {
                if matches!(text(property, "type"), "array" | "object") {
                    errors.push(FieldError::invalid(
                        join(&at, "type"),
                        &json!(text(property, "type")),
                        "must be a scalar type if parent array's x-kubernetes-list-type is map",
                    ));
                }
                if !list(items, "required").contains(key) && property.get("default").is_none() {
                    errors.push(FieldError::required(
                        join(&at, "default"),
                        "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                         property",
                    ));
                }
                if flag(property, "nullable") {
                    errors.push(FieldError::forbidden(
                        join(&at, "nullable"),
                        "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
                    ));
                }
            }
        }
        if seen.contains(&key) {
            errors.push(FieldError::invalid(
                at_keys.clone(),
                &Value::from(keys.to_vec()),
                "must not contain duplicate entries",
            ));
        }
        seen.push(key);
    }
}

/// Defaults must be values that the schema lets pass, as they are after pruning.
fn defaults(schema: &Value, path: &str, root: bool, errors: &mut Vec<FieldError>) {
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        let at = join(path, "default");
        if root {
            errors.push(FieldError::forbidden(at, "must not be set at the root"));
        } else if let Ok(node) = node::compile(schema) {
            check_default(&node, default, &at, errors);
        }
    }
    for (name, value) in object(schema, "properties").into_iter().flatten() {
        if root && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
            continue;
        }
        defaults(value, &format!("{path}.properties[{name}]"), false, errors);
    }
    for name in ["additionalProperties", "items"] {
        if let Some(value) = schema.get(name).filter(|value| value.is_object()) {
            defaults(value, &join(path, name), false, errors);
        }
    }
}

fn check_default(node: &Node, default: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(pruned) = prune_default(node, default) {
        let why = format!("must match the schema (it would become {pruned})");
        errors.push(FieldError::invalid(path, default, why));
        return;
    }
    errors.extend(default_errors(node, default).into_iter().map(|mut error| {
        error.field = match error.field.as_str() {
            "" | "<nil>" => path.to_owned(),
            field => join(path, field),
        };
        error
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn errors(schema: Value) -> Vec<String> {
        validate(&schema, "s").iter().map(ToString::to_string).collect()
    }

    fn with_a(a: Value) -> Value {
        json!({"type": "object", "properties": {"a": a}})
    }

    #[test]
    fn structure_is_required() {
        for (schema, error) in [
            (json!({}), "s.type: Required value: must not be empty at the root"),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                "s.type: Invalid value: \"array\": must be object at the root",
            ),
            (with_a(json!({})), "s.properties[a].type: Required value: must not be empty for specified object fields"),
            (with_a(json!({"type": "array"})), "s.properties[a].items: Required value: must be specified"),
            (
                with_a(json!({"type": "array", "items": {}})),
                "s.properties[a].items.type: Required value: must not be empty for specified array items",
            ),
            (
                with_a(json!({"type": "string", "default": 5})),
                "s.properties[a].default: Invalid value: \"integer\":  in body must be of type string: \"integer\"",
            ),
            (
                with_a(json!({"type": "string", "anyOf": [{"type": "string"}]})),
                "s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
            ),
            (
                with_a(json!({"type": "object", "allOf": [{"properties": {"b": {}}}]})),
                "s.properties[a].properties[b]: Required value: because it is defined in s.properties[a].allOf[0].properties[b]",
            ),
            (
                with_a(json!({"type": "strange"})),
                "s.properties[a].type: Unsupported value: \"strange\": supported values: \"array\", \"boolean\", \"integer\", \"null\", \"number\", \"object\", \"string\"",
            ),
            (with_a(json!({"type": "string", "$ref": "x"})), "s.properties[a].$ref: Forbidden: $ref is not supported"),
            (
                with_a(
                    json!({"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}),
                ),
                "s.properties[a].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ),
        ] {
            assert_eq!(errors(schema.clone()), [error], "{schema}");
        }
    }

    #[test]
    fn good_schemas_pass() {
        for schema in [
            with_a(json!({"x-kubernetes-int-or-string": true})),
            with_a(json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})),
            with_a(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
            with_a(json!({"type": "object", "additionalProperties": {"type": "string"}})),
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}}}}),
        ] {
            assert_eq!(errors(schema.clone()), Vec::<String>::new(), "{schema}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(schema in crate::schema::arbitrary::value()) {
            validate(&schema, "s");
            validate(&with_a(schema), "s");
        }
    }
}

//! Validation of custom objects by their schema, with the words, paths and reasons of the real API server.
//! On an update, values that have not changed are not complained about again.

use super::facts::ListKind;
use super::formats;
use super::node::{Additional, Checks, JsonType, Node};
use muster_api::field::{FieldError, Reason};
use serde_json::{Map, Number, Value};
use std::collections::HashSet;

/// Checks a value at a place. `path` is where it lies in the object, for the paths of errors; it is also how messages
/// name it.
pub(crate) fn validate(node: &Node, new: &Value, old: Option<&Value>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check(node, new, old, path, &mut errors);
    errors
}

fn check(node: &Node, new: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    if old == Some(new) {
        return;
    }
    check_type(node, new, path, errors);
    if let Some(checks) = node.checks.as_deref() {
        combinations(node, checks, new, path, errors);
    }
    match new {
        Value::String(text) => check_string(node, text, path, errors),
        Value::Number(number) => check_number(node, number, path, errors),
        Value::Array(items) => check_list(node, items, path, errors),
        _ => {}
    }
    if let Some(values) = node.checks.as_deref().and_then(|checks| checks.values.as_ref()) {
        if !values.iter().any(|value| equal(value, new)) && !(new.is_null() && node.nullable) {
            let words: Vec<String> = values.iter().map(|v| v.as_str().map_or(v.to_string(), str::to_owned)).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            errors.push(FieldError::not_supported(path, new, &words));
        }
    }
    if let Value::Object(map) = new {
        check_object(node, map, old.and_then(Value::as_object), path, errors);
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// Go's name of a value's type, which messages show.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::Number(number) if is_integer(number) => "integer",
        Value::Number(_) => "number",
    }
}

fn is_integer(number: &Number) -> bool {
    number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|n| n.fract() == 0.0)
}

fn check_type(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let wanted = match (node.int_or_string, node.ty) {
        (true, _) => "integer,string",
        (false, Some(ty)) => ty.as_str(),
        (false, None) => return,
    };
    if value.is_null() && node.nullable {
        return;
    }
    let found = type_name(value);
    let fits = wanted.split(',').any(|ty| ty == found) || (wanted == "number" && found == "integer");
    if !fits {
        let why = format!("{path} in body must be of type {wanted}: \"{found}\"");
        errors.push(FieldError::type_invalid(path, &Value::from(found), why));
    }
}

fn check_string(node: &Node, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let length = text.chars().count() as u64;
    if let Some(max) = node.max_length.filter(|max| length > *max) {
        errors.push(FieldError::too_long(path, usize::try_from(max).unwrap_or(usize::MAX)));
    }
    let Some(checks) = node.checks.as_deref() else { return };
    let invalid = |why: String| FieldError::invalid(path, &Value::from(text), format!("{path} in body {why}"));
    if let Some(min) = checks.min_length.filter(|min| length < *min) {
        errors.push(invalid(format!("should be at least {min} chars long")));
    }
    if let Some((pattern, regex)) = &checks.pattern {
        if !regex.is_match(text) {
            errors.push(invalid(format!("should match '{pattern}'")));
        }
    }
    if let Some(format) = &checks.format {
        if !formats::matches(format, text) {
            let why = format!("{path} in body must be of type {format}: {}", Value::from(text));
            errors.push(FieldError::type_invalid(path, &Value::from(text), why));
        }
    }
}

/// Whether an integer fits into the type that its format says. Upstream tells of no field there but in the words.
fn check_capacity(node: &Node, number: &Number, path: &str, errors: &mut Vec<FieldError>) {
    if node.int_or_string || node.ty != Some(JsonType::Integer) || !is_integer(number) {
        return;
    }
    let format = node.checks.as_deref().and_then(|checks| checks.format.as_deref());
    let small = number.as_f64().is_some_and(|n| n >= f64::from(i32::MIN) && n <= f64::from(i32::MAX));
    let fits = match format {
        Some("int32") => small,
        // A float as large as the limit of i64 is beyond it.
        _ => number.is_i64() || number.as_f64().is_some_and(|n| number.is_f64() && n.abs() < i64::MAX as f64),
    };
    if !fits {
        let format = format.map_or("(default format)".to_owned(), |format| format!("with format {format}"));
        let why = format!("Checked value must be of type integer {format} in {path}");
        errors.push(FieldError::invalid("<nil>", &Value::from(""), why));
    }
}

fn check_number(node: &Node, number: &Number, path: &str, errors: &mut Vec<FieldError>) {
    check_capacity(node, number, path, errors);
    let (Some(checks), Some(n)) = (node.checks.as_deref(), number.as_f64()) else { return };
    let value = Value::Number(number.clone());
    let mut invalid =
        |why: String| errors.push(FieldError::invalid(path, &value, format!("{path} in body should be {why}")));
    if let Some(step) = checks.multiple_of.filter(|step| *step > 0.0 && (n / step).fract() != 0.0) {
        invalid(format!("a multiple of {step}"));
    }
    match checks.maximum {
        Some((max, true)) if n >= max => invalid(format!("less than {max}")),
        Some((max, false)) if n > max => invalid(format!("less than or equal to {max}")),
        _ => {}
    }
    match checks.minimum {
        Some((min, true)) if n <= min => invalid(format!("greater than {min}")),
        Some((min, false)) if n < min => invalid(format!("greater than or equal to {min}")),
        _ => {}
    }
}

fn check_list(node: &Node, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    if let Some(item) = node.items.as_deref() {
        for (i, value) in items.iter().enumerate() {
            check(item, value, None, &format!("{path}[{i}]"), errors);
        }
    }
    let count = items.len() as u64;
    if let Some(max) = node.max_items.filter(|max| count > *max) {
        errors.push(FieldError::too_many(path, items.len(), usize::try_from(max).unwrap_or(usize::MAX)));
    }
    let Some(checks) = node.checks.as_deref() else { return };
    let whole = || Value::from(items.to_vec());
    if let Some(min) = checks.min_items.filter(|min| count < *min) {
        let why = format!("{path} in body should have at least {min} items");
        errors.push(FieldError::invalid(path, &Value::from(items.len()), why));
    }
    if checks.unique_items && repeated(items).next().is_some() {
        errors.push(FieldError::invalid(path, &whole(), format!("{path} in body shouldn't contain duplicates")));
    }
}

/// Positions of items that came before.
fn repeated(items: &[Value]) -> impl Iterator<Item = usize> + '_ {
    let mut seen = HashSet::new();
    items.iter().enumerate().filter_map(move |(i, item)| (!seen.insert(item.to_string())).then_some(i))
}

fn check_object(
    node: &Node,
    map: &Map<String, Value>,
    old: Option<&Map<String, Value>>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if let Some(max) = node.max_properties.filter(|max| map.len() as u64 > *max) {
        errors.push(FieldError::too_many(path, map.len(), usize::try_from(max).unwrap_or(usize::MAX)));
    }
    if let Some(checks) = node.checks.as_deref() {
        if let Some(min) = checks.min_properties.filter(|min| (map.len() as u64) < *min) {
            let why = format!("{path} in body should have at least {min} properties");
            errors.push(FieldError::invalid(path, &Value::from(map.len()), why));
        }
        for name in checks.required.iter().filter(|name| !map.contains_key(*name)) {
            errors.push(FieldError::required(join(path, name), ""));
        }
    }
    for (name, value) in map {
        let at = join(path, name);
        let before = old.and_then(|old| old.get(name));
        match (node.properties.get(name), &node.additional) {
            (Some(property), _) => check_field(property, value, before, &at, errors),
            (None, Additional::Schema(schema)) => check_field(schema, value, before, &at, errors),
            (None, Additional::Forbidden) if !node.properties.is_empty() => {
                let why = format!("{at} in body is a forbidden property");
                errors.push(FieldError::new(Reason::Invalid, at.clone(), format!("Invalid value: \"\": {why}")));
            }
            _ => {}
        }
    }
}

/// A field's items correlate with those before only where the list is keyed.
fn check_field(node: &Node, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    let keys = match (&node.list.0, value, old) {
        (ListKind::Map(keys), Value::Array(items), Some(Value::Array(before))) if old != Some(value) => {
            Some((keys, items, before))
        }
        _ => None,
    };
    let (Some((keys, items, before)), Some(item_node)) = (keys, node.items.as_deref()) else {
        return check(node, value, old, path, errors);
    };
    let mut found = Vec::new();
    check(node, value, old, path, &mut found);
    // Errors of items that were there before, unchanged, do not count.
    let unchanged: Vec<String> = items
        .iter()
        .enumerate()
        .filter(|(_, item)| {
            before.iter().any(|b| key_of(b, keys, item_node) == key_of(item, keys, item_node) && b == *item)
        })
        .map(|(i, _)| format!("{path}[{i}]"))
        .collect();
    errors.extend(found.into_iter().filter(|error| {
        !unchanged.iter().any(|at| {
            error.field.strip_prefix(at.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }));
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn combinations(node: &Node, checks: &Checks, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && node.nullable {
        return;
    }
    let run = |schema: &Node| validate(schema, value, None, path);
    let broken =
        |why: &str| FieldError::invalid(path_or_nil(path), &Value::from(""), format!("{} in body {why}", named(path)));
    if !checks.any_of.is_empty() {
        let results: Vec<Vec<FieldError>> = checks.any_of.iter().map(run).collect();
        if !results.iter().any(Vec::is_empty) {
            errors.push(broken("must validate at least one schema (anyOf)"));
            errors.extend(closest(results));
        }
    }
    if !checks.one_of.is_empty() {
        let results: Vec<Vec<FieldError>> = checks.one_of.iter().map(run).collect();
        match results.iter().filter(|errors| errors.is_empty()).count() {
            1 => {}
            0 => {
                errors.push(broken("must validate one and only one schema (oneOf). Found none valid"));
                errors.extend(closest(results));
            }
            n => errors
                .push(broken(&format!("must validate one and only one schema (oneOf). Found {n} valid alternatives"))),
        }
    }
    if !checks.all_of.is_empty() {
        let found: Vec<FieldError> = checks.all_of.iter().flat_map(run).collect();
        if !found.is_empty() {
            errors.extend(found);
            errors.push(broken("must validate all the schemas (allOf)"));
        }
    }
    if let Some(not) = checks.not.as_deref() {
        if run(not).is_empty() {
            errors.push(broken("must not validate the schema (not)"));
        }
    }
}

fn named(path: &str) -> &str {
    if path.is_empty() { "" } else { path }
}

/// The errors of the alternative that fails least.
fn closest(results: Vec<Vec<FieldError>>) -> Vec<FieldError> {
    results.into_iter().min_by_key(Vec::len).unwrap_or_default()
}

/// The path of an error that concerns the whole object.
pub(crate) fn path_or_nil(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}

/// Items that are repeated in sets, and keys that are repeated in keyed lists, anywhere below.
pub(crate) fn repeated_items(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Array(items) => {
            match &node.list.0 {
                ListKind::Set => {
                    for i in repeated(items) {
                        errors.push(FieldError::duplicate(format!("{path}[{i}]"), &items[i]));
                    }
                }
                ListKind::Map(keys) => {
                    let item_node = node.items.as_deref();
                    let found: Vec<Value> = items
                        .iter()
                        .map(|item| item_node.map(|n| key_of(item, keys, n)).unwrap_or(Value::Null))
                        .collect();
                    for i in repeated(&found) {
                        errors.push(FieldError::duplicate(format!("{path}[{i}]"), &found[i]));
                    }
                }
                ListKind::Atomic => {}
            }
            if let Some(item) = node.items.as_deref() {
                for (i, value) in items.iter().enumerate() {
                    repeated_items(item, value, &format!("{path}[{i}]"), errors);
                }
            }
        }
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(property) = node.properties.get(name) {
                    repeated_items(property, value, &join(path, name), errors);
                } else if let Some(schema) = node.additional_schema() {
                    repeated_items(schema, value, &format!("{path}[{name}]"), errors);
                }
            }
        }
        _ => {}
    }
}

/// The keys of a list item, with their defaults.
fn key_of(item: &Value, keys: &[String], node: &Node) -> Value {
    let mut found = Map::new();
    for key in keys {
        let default = || node.properties.get(key).and_then(|p| p.default.clone());
        if let Some(value) = item.get(key).cloned().or_else(default) {
            found.insert(key.clone(), value);
        }
    }
    Value::Object(found)
}

/// Embedded objects need to say what they are.
pub(crate) fn embedded_objects(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            if node.embedded {
                for name in ["apiVersion", "kind"] {
                    let found = map.get(name).and_then(Value::as_str).unwrap_or_default();
                    if found.is_empty() {
                        errors.push(FieldError::required(join(path, name), "must not be empty"));
                    }
                }
            }
            for (name, value) in map {
                if let Some(property) = node.properties.get(name) {
                    embedded_objects(property, value, &join(path, name), errors);
                } else if let Some(schema) = node.additional_schema() {
                    embedded_objects(schema, value, &format!("{path}[{name}]"), errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = node.items.as_deref() {
                for (i, value) in items.iter().enumerate() {
                    embedded_objects(item, value, &format!("{path}[{i}]"), errors);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::node::compile;
    use proptest::prelude::*;
    use serde_json::json;

    fn errors(schema: Value, value: Value) -> Vec<String> {
        let node = compile(&schema).expect("the schema compiles");
        validate(&node, &json!({"a": value}), None, "").iter().map(ToString::to_string).collect()
    }

    fn at_a(schema: Value) -> Value {
        json!({"type": "object", "properties": {"a": schema}})
    }

    #[test]
    fn every_check_speaks_as_upstream() {
        for (schema, value, error) in [
            (
                json!({"type": "integer"}),
                json!("3"),
                "a: Invalid value: \"string\": a in body must be of type integer: \"string\"",
            ),
            (
                json!({"type": "integer"}),
                json!(1.5),
                "a: Invalid value: \"number\": a in body must be of type integer: \"number\"",
            ),
            (
                json!({"type": "integer", "format": "int32"}),
                json!(1u64 << 31),
                "<nil>: Invalid value: \"\": Checked value must be of type integer with format int32 in a",
            ),
            (
                json!({"type": "integer"}),
                json!(1u64 << 63),
                "<nil>: Invalid value: \"\": Checked value must be of type integer (default format) in a",
            ),
            (
                json!({"type": "integer", "format": "int64"}),
                json!(1e30),
                "<nil>: Invalid value: \"\": Checked value must be of type integer with format int64 in a",
            ),
            (
                json!({"type": "string"}),
                json!(null),
                "a: Invalid value: \"null\": a in body must be of type string: \"null\"",
            ),
            (
                json!({"x-kubernetes-int-or-string": true}),
                json!(true),
                "a: Invalid value: \"boolean\": a in body must be of type integer,string: \"boolean\"",
            ),
            (
                json!({"type": "integer", "maximum": 10}),
                json!(11),
                "a: Invalid value: 11: a in body should be less than or equal to 10",
            ),
            (
                json!({"type": "integer", "minimum": 0}),
                json!(-1),
                "a: Invalid value: -1: a in body should be greater than or equal to 0",
            ),
            (
                json!({"type": "integer", "minimum": 0, "exclusiveMinimum": true}),
                json!(0),
                "a: Invalid value: 0: a in body should be greater than 0",
            ),
            (
                json!({"type": "integer", "multipleOf": 3}),
                json!(4),
                "a: Invalid value: 4: a in body should be a multiple of 3",
            ),
            (
                json!({"type": "string", "enum": ["fast", "slow"]}),
                json!("medium"),
                "a: Unsupported value: \"medium\": supported values: \"fast\", \"slow\"",
            ),
            (
                json!({"type": "string", "pattern": "^[a-z]+$"}),
                json!("ABC"),
                "a: Invalid value: \"ABC\": a in body should match '^[a-z]+$'",
            ),
            (
                json!({"type": "string", "minLength": 1}),
                json!(""),
                "a: Invalid value: \"\": a in body should be at least 1 chars long",
            ),
            (json!({"type": "string", "maxLength": 2}), json!("abc"), "a: Too long: may not be more than 2 bytes"),
            (
                json!({"type": "string", "format": "date-time"}),
                json!("tomorrow"),
                "a: Invalid value: \"tomorrow\": a in body must be of type date-time: \"tomorrow\"",
            ),
            (json!({"type": "array", "maxItems": 1}), json!([1, 2]), "a: Too many: 2: must have at most 1 items"),
            (
                json!({"type": "array", "minItems": 1}),
                json!([]),
                "a: Invalid value: 0: a in body should have at least 1 items",
            ),
            (json!({"type": "object", "required": ["b"]}), json!({}), "a.b: Required value"),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                json!({"A": 1}),
                "a.A: Invalid value: \"integer\": a.A in body must be of type string: \"integer\"",
            ),
            (
                json!({"type": "integer", "not": {"minimum": 5}}),
                json!(6),
                "a: Invalid value: \"\": a in body must not validate the schema (not)",
            ),
        ] {
            assert_eq!(errors(at_a(schema.clone()), value), [error], "{schema}");
        }
    }

    #[test]
    fn alternatives_are_counted() {
        let schema = json!({"type": "object", "oneOf": [{"required": ["x"]}, {"required": ["y"]}]});
        assert_eq!(
            errors(at_a(schema.clone()), json!({"x": 1, "y": 1})),
            [
                "a: Invalid value: \"\": a in body must validate one and only one schema (oneOf). Found 2 valid alternatives"
            ]
        );
        assert_eq!(errors(at_a(schema.clone()), json!({"x": 1})), Vec::<String>::new());
        assert_eq!(errors(at_a(schema), json!({})).len(), 2);
        let any = json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]});
        assert_eq!(errors(at_a(any), json!("http")), Vec::<String>::new());
    }

    #[test]
    fn unchanged_values_are_not_complained_about() {
        let node = compile(&at_a(json!({"type": "object", "properties": {
            "old": {"type": "string", "maxLength": 1}, "new": {"type": "string", "maxLength": 1},
        }})))
        .expect("compiles");
        let before = json!({"a": {"old": "long", "new": "x"}});
        let after = json!({"a": {"old": "long", "new": "longer"}});
        let fields: Vec<String> = validate(&node, &after, Some(&before), "").into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["a.new"]);
    }

    #[test]
    fn sets_and_keys_are_unique() {
        let node = compile(&json!({"type": "object", "properties": {
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        }}))
        .expect("compiles");
        let mut errors = Vec::new();
        let value = json!({"tags": ["a", "b", "a"], "items": [{"name": "x", "v": 1}, {"name": "x", "v": 2}]});
        repeated_items(&node, &value, "", &mut errors);
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["items[1]: Duplicate value: {\"name\":\"x\"}", "tags[2]: Duplicate value: \"a\""]);
    }

    proptest! {
        #[test]
        fn never_panics(schema in crate::schema::arbitrary::value(), new in crate::schema::arbitrary::value(), old in crate::schema::arbitrary::value()) {
            if let Ok(node) = compile(&json!({"type": "object", "properties": {"spec": schema}})) {
                let (new, old) = (json!({"spec": new}), json!({"spec": old}));
                validate(&node, &new, Some(&old), "");
                prop_assert!(validate(&node, &new, Some(&new), "").is_empty());
            }
        }
    }
}

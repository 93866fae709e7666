//! Schemas of built-in and custom kinds: decoding, pruning, defaulting, validation, and the view of them that
//! patches and managed fields work with. Everything here is a pure function over JSON values.

mod decode;
mod facts;
mod fill;
mod formats;
pub(crate) mod internal;
mod json;
pub mod node;
pub mod quantity;
mod rules;
pub mod strict;
mod time;
mod tree;
mod validate;
pub mod view;

#[cfg(test)]
pub(crate) mod arbitrary;

pub use decode::Decoded;
pub use facts::ListKind;
pub use json::MAX_DEPTH;
pub(crate) use json::parse as parse_json;
pub use tree::Tree;
pub use view::View;

use facts::facts;
use muster_api::field::FieldError;
use node::Node;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The compiled schema of one kind.
#[derive(Debug)]
pub struct Schema {
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    BuiltIn(facts::StructId),
    Custom(Box<Node>),
    /// A custom kind that keeps whatever it is given.
    Free(Box<Node>),
}

/// Why an object cannot be decoded, in Go's words: `json: cannot unmarshal ...`.
/// They follow `X in version "v1" cannot be handled as a X: ` in a 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

impl Schema {
    /// The schema of a built-in kind; `None` for kinds that are not built in.
    pub fn builtin(group: &str, version: &str, kind: &str) -> Option<Arc<Schema>> {
        static SCHEMAS: OnceLock<Mutex<HashMap<facts::StructId, Arc<Schema>>>> = OnceLock::new();
        let id = facts().kind(group, version, kind)?;
        let mut schemas = SCHEMAS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        let schema = schemas.entry(id).or_insert_with(|| Arc::new(Schema { origin: Origin::BuiltIn(id) }));
        Some(schema.clone())
    }

    /// Compiles the `openAPIV3Schema` of a custom kind's version. `None` stands for a version without a schema.
    pub fn custom(open_api_v3_schema: Option<&Value>) -> Result<Arc<Schema>, Vec<FieldError>> {
        let origin = match open_api_v3_schema {
            Some(schema) => Origin::Custom(Box::new(node::compile(schema)?)),
            None => Origin::Free(Box::new(Node { preserve_unknown: true, ..Node::default() })),
        };
        Ok(Arc::new(Schema { origin }))
    }

    pub fn is_builtin(&self) -> bool {
        matches!(self.origin, Origin::BuiltIn(_))
    }

    /// Decodes a document: types (built-in kinds), metadata, unknown and repeated fields, pruning, and for custom kinds
    /// defaults. The value always has the form in which it is stored.
    pub fn decode(&self, tree: Tree) -> Result<Decoded, DecodeError> {
        match &self.origin {
            Origin::BuiltIn(id) => decode::decode(*id, tree).map_err(DecodeError),
            Origin::Custom(node) | Origin::Free(node) => decode_custom(node, tree),
        }
    }

    /// Decodes a value that is already parsed (the result of a patch).
    pub fn decode_value(&self, value: Value) -> Result<Decoded, DecodeError> {
        self.decode(Tree::from(value))
    }

    /// Paths that the schema does not know, and their removal.
    pub fn prune(&self, value: &mut Value) -> Vec<String> {
        match &self.origin {
            Origin::BuiltIn(_) => Vec::new(),
            Origin::Custom(node) | Origin::Free(node) => fill::prune(value, node, true),
        }
    }

    /// Fills defaults of a custom kind's schema. Built-in kinds have their own functions for that.
    pub fn default(&self, value: &mut Value) {
        if let Origin::Custom(node) | Origin::Free(node) = &self.origin {
            fill::drop_nulls(value, Some(node));
            fill::default(value, node);
        }
    }

    /// What an object of this kind holds before anything was set: managed fields compare a new object with it.
    pub fn zero(&self) -> Value {
        match &self.origin {
            Origin::BuiltIn(id) => decode::zero(*id),
            Origin::Custom(_) | Origin::Free(_) => Value::Object(Map::new()),
        }
    }

    /// The whole object, for patches and managed fields.
    pub fn root(&self) -> View<'_> {
        match &self.origin {
            Origin::BuiltIn(id) => View::go(facts().struct_type(*id)),
            Origin::Custom(node) | Origin::Free(node) => View::CustomObject(node),
        }
    }

    /// Checks a custom object (built-in kinds have their own functions): types and values, embedded objects, unique
    /// items, rules. With `old` it is an update, on which unchanged values are not complained about. Through the
    /// status subresource only the status is checked.
    pub fn validate(&self, new: &Value, old: Option<&Value>, subresource: &str) -> Vec<FieldError> {
        let Some(root) = self.node() else { return Vec::new() };
        let mut errors = if subresource == "status" {
            status_errors(root, new, old)
        } else {
            validate::validate(root, new, old, "")
        };
        validate::embedded_objects(root, new, "", &mut errors);
        let mut before = Vec::new();
        if let Some(old) = old {
            validate::repeated_items(root, old, "", &mut before);
        }
        if before.is_empty() {
            validate::repeated_items(root, new, "", &mut errors);
        }
        if root.has_rules() {
            rules::validate(root, new, old, &mut errors);
        }
        errors
    }

    pub(crate) fn node(&self) -> Option<&Node> {
        match &self.origin {
            Origin::Custom(node) | Origin::Free(node) => Some(node),
            Origin::BuiltIn(_) => None,
        }
    }
}

/// What pruning leaves of a schema's default, where that is not all of it.
pub(crate) fn prune_default(node: &Node, default: &Value) -> Option<Value> {
    let mut pruned = default.clone();
    (!fill::prune(&mut pruned, node, false).is_empty()).then_some(pruned)
}

/// What the schema has against its own default.
pub(crate) fn default_errors(node: &Node, default: &Value) -> Vec<FieldError> {
    let mut value = default.clone();
    fill::default(&mut value, node);
    let mut errors = validate::validate(node, &value, None, "");
    validate::repeated_items(node, &value, "", &mut errors);
    errors
}

/// Errors of the status name its fields without the prefix, as upstream's messages do.
fn status_errors(root: &Node, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let (Some(node), Some(status)) = (root.properties.get("status"), new.get("status")) else { return Vec::new() };
    let mut errors = validate::validate(node, status, old.and_then(|old| old.get("status")), "");
    for error in &mut errors {
        error.field = match error.field.as_str() {
            "" | "<nil>" => "status".to_owned(),
            field => format!("status.{field}"),
        };
    }
    errors
}

/// What is known of a built-in type beside its description, by its name in OpenAPI documents.
pub(crate) fn describe(model: &str) -> Option<&'static facts::Struct> {
    let rest = ["io.k8s.api.", "io.k8s.apimachinery.pkg.apis.", "io.k8s.apiextensions-apiserver.pkg.apis."]
        .iter()
        .find_map(|prefix| model.strip_prefix(prefix))?;
    // `core.v1.Pod` is `core/v1.Pod` in the table.
    facts().by_id(&rest.replacen('.', "/", 1))
}

/// Metadata is decoded as that of every object; the rest is pruned and filled by the schema, checked later.
fn decode_custom(node: &Node, tree: Tree) -> Result<Decoded, DecodeError> {
    let fields = match tree {
        Tree::Object(_) | Tree::Null => &tree,
        other => {
            let found = other.go_kind();
            let words = format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}");
            return Err(DecodeError(words));
        }
    };
    let mut strict: Vec<String> = fields.duplicates().iter().map(|at| format!("duplicate field \"{at}\"")).collect();
    let metadata = fields.get("metadata").cloned();
    let mut value = match tree.into_value() {
        Value::Null => Value::Object(Map::new()),
        value => value,
    };
    plain_numbers(&mut value);
    let mut unknown = Vec::new();
    if let Some(metadata) = metadata {
        let decoded = decode::decode_at(facts().object_meta(), metadata, "metadata")
            .map_err(|words| DecodeError(format!("metadata: Invalid value: {}: {words}", value["metadata"])))?;
        unknown.extend(decoded.strict.into_iter().filter(|error| !strict.contains(error)));
        value["metadata"] = decoded.value;
    }
    strict.extend(unknown);
    strict.extend(fill::prune(&mut value, node, true).iter().map(|at| format!("unknown field \"{at}\"")));
    fill::drop_nulls(&mut value, Some(node));
    fill::default(&mut value, node);
    Ok(Decoded { value, strict })
}

/// Numbers as Go writes them again: `2.0` comes back as `2`, and who reads an integer there finds one.
fn plain_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            // Up to here each whole number of a float is one of an i64.
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9_007_199_254_740_992.0);
            if let Some(whole) = whole {
                *value = Value::from(whole as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain_numbers),
        Value::Object(map) => map.values_mut().for_each(plain_numbers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn panel() -> Arc<Schema> {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "mode": {"type": "string", "default": "slow"},
            "nested": {"type": "object", "properties": {"a": {"type": "string", "default": "A"}}},
        }}}});
        Schema::custom(Some(&schema)).expect("the schema compiles")
    }

    /// A job of `replicas: 2.0` passed as one of an integer, and stayed one that no controller could read.
    #[test]
    fn whole_numbers_of_custom_objects_are_integers() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-preserve-unknown-fields": true}}});
        let schema = Schema::custom(Some(&schema)).expect("the schema compiles");
        let body = br#"{"spec":{"replicas":2.0,"list":[1e3,-0.0],"half":0.5,"far":1e300}}"#;
        let decoded = schema.decode(parse_json(body).expect("JSON")).expect("decodes");
        assert_eq!(
            decoded.value["spec"].to_string(),
            json!({"replicas": 2, "list": [1000, 0], "half": 0.5, "far": 1e300}).to_string()
        );
    }

    #[test]
    fn custom_objects_are_pruned_and_filled() {
        let body = br#"{"kind":"Panel","metadata":{"name":"p","odd":1,"creationTimestamp":null},
            "spec":{"b":1,"nested":{"c":3},"b":2},"extra":1}"#;
        let decoded = panel().decode(strict::parse(body, "application/json").expect("JSON")).expect("decodes");
        assert_eq!(
            decoded.strict,
            [
                "duplicate field \"spec.b\"",
                "unknown field \"metadata.odd\"",
                "unknown field \"extra\"",
                "unknown field \"spec.b\"",
                "unknown field \"spec.nested.c\"",
            ]
        );
        assert_eq!(
            decoded.value,
            json!({"kind": "Panel", "metadata": {"name": "p"}, "spec": {"mode": "slow", "nested": {"a": "A"}}})
        );
    }

    #[test]
    fn metadata_of_custom_objects_is_typed() {
        let error = panel().decode_value(json!({"metadata": {"labels": {"a": 1}}})).expect_err("wrong type");
        assert_eq!(
            error.to_string(),
            "metadata: Invalid value: {\"labels\":{\"a\":1}}: json: cannot unmarshal number into Go struct field \
             ObjectMeta.labels of type string"
        );
    }

    proptest! {
        #[test]
        fn decoding_never_panics_and_is_a_fixed_point(value in arbitrary::value(), kind in 0..4_usize) {
            let (group, kind) = [("", "Pod"), ("batch", "Job"), ("", "Secret"), ("apps", "Deployment")][kind];
            let schema = Schema::builtin(group, "v1", kind).expect("built in");
            for value in [value.clone(), json!({"metadata": value.clone(), "spec": value.clone()}), json!({"spec": {"template": {"spec": value}}})] {
                if let Ok(once) = schema.decode_value(value) {
                    let twice = schema.decode_value(once.value.clone()).expect("what was decoded decodes again");
                    prop_assert!(twice.strict.is_empty());
                    prop_assert_eq!(once.value, twice.value);
                }
            }
        }

        #[test]
        fn decoding_custom_objects_never_panics(value in arbitrary::value()) {
            let _ = panel().decode_value(value.clone());
            let _ = panel().decode_value(json!({"metadata": value.clone(), "spec": value.clone()}));
            let _ = Schema::custom(Some(&value));
            let _ = Schema::custom(None).map(|free| free.decode_value(value));
        }
    }
}

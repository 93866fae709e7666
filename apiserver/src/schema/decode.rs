//! Decoding of built-in kinds: what Go's decoder and encoder make of a document. Wrong types are refused in Go's
//! words, unknown and repeated fields are reported, empty fields that the encoder leaves out go, and fields that it
//! always writes come (`resources: {}`), so that a stored object looks as the real API server would give it back.

use super::facts::{Field, Special, Struct, StructId, Type, facts};
use super::tree::{Tree, child_path};
use super::{quantity, time};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// A decoded object and what strict decoding has against it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.x"`, `duplicate field "data.a"`, in the order of the document.
    pub strict: Vec<String>,
}

/// Decodes a document as the struct; the error is Go's: `json: cannot unmarshal ...`.
pub(crate) fn decode(id: StructId, tree: Tree) -> Result<Decoded, String> {
    decode_at(id, tree, "")
}

/// Decodes a part of an object; `path` is where it lies, for the paths of unknown fields.
pub(crate) fn decode_at(id: StructId, tree: Tree, path: &str) -> Result<Decoded, String> {
    let mut decoder = Decoder { strict: Vec::new(), owner: None, go_path: Vec::new() };
    let value = decoder.structure(id, tree, path)?;
    Ok(Decoded { value, strict: decoder.strict })
}

/// What the encoder writes for a struct that was never filled.
pub(crate) fn zero(id: StructId) -> Value {
    let mut map = Map::new();
    for field in &facts().get(id).fields {
        let value = zero_of(&field.ty);
        if !omitted(field, &value) {
            map.insert(field.name.to_owned(), value);
        }
    }
    Value::Object(map)
}

fn zero_of(ty: &Type) -> Value {
    match ty {
        Type::String => Value::String(String::new()),
        Type::Bool => Value::Bool(false),
        Type::Int(_) => Value::from(0),
        Type::Bytes | Type::List(_) | Type::Map(_) | Type::Pointer(_) => Value::Null,
        Type::Struct(id) => zero(*id),
        Type::Named(_, inner) => zero_of(inner),
        Type::Special(Special::Quantity) => Value::String("0".to_owned()),
        Type::Special(Special::IntOrString) => Value::from(0),
        Type::Special(_) => Value::Null,
    }
}

/// Whether the encoder leaves the field out.
fn omitted(field: &Field, value: &Value) -> bool {
    (field.omit_empty && empty(&field.ty, value)) || (field.omit_zero && value.is_null())
}

fn empty(ty: &Type, value: &Value) -> bool {
    match ty {
        Type::Named(_, inner) => empty(inner, value),
        Type::Pointer(_) => value.is_null(),
        Type::Struct(_) | Type::Special(_) => false,
        _ => match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(n) => n.as_i64() == Some(0),
            Value::String(s) => s.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(true) => false,
        },
    }
}

/// A type as Go prints it.
fn go_type(ty: &Type) -> String {
    match ty {
        Type::String => "string".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::Int(bits) => format!("int{bits}"),
        Type::Bytes => "[]uint8".to_owned(),
        Type::Struct(id) => facts().get(*id).go_name().to_owned(),
        Type::List(item) => format!("[]{}", go_type(item)),
        Type::Map(item) => format!("map[string]{}", go_type(item)),
        Type::Pointer(inner) => format!("*{}", go_type(inner)),
        Type::Named(name, _) => (*name).to_owned(),
        Type::Special(Special::Quantity) => "resource.Quantity".to_owned(),
        Type::Special(Special::IntOrString) => "intstr.IntOrString".to_owned(),
        Type::Special(Special::Time) => "v1.Time".to_owned(),
        Type::Special(Special::MicroTime) => "v1.MicroTime".to_owned(),
        Type::Special(_) => "runtime.RawExtension".to_owned(),
    }
}

struct Decoder {
    strict: Vec<String>,
    /// The innermost struct, for the words of an error.
    owner: Option<&'static str>,
    /// Names of the struct fields on the way here.
    go_path: Vec<&'static str>,
}

impl Decoder {
    fn mismatch(&self, found: &str, ty: &str) -> String {
        match self.owner {
            Some(owner) if !self.go_path.is_empty() => format!(
                "json: cannot unmarshal {found} into Go struct field {owner}.{} of type {ty}",
                self.go_path.join(".")
            ),
            _ => format!("json: cannot unmarshal {found} into Go value of type {ty}"),
        }
    }

    fn structure(&mut self, id: StructId, tree: Tree, path: &str) -> Result<Value, String> {
        let owner: &'static Struct = facts().get(id);
        let fields = match tree {
            Tree::Object(fields) => fields,
            Tree::Null => return Ok(zero(id)),
            other => return Err(self.mismatch(other.go_kind(), owner.go_name())),
        };
        let mut map = Map::new();
        let mut seen: Vec<&'static str> = Vec::new();
        for (key, value) in fields {
            let Some(field) = owner.field(&key) else {
                self.strict.push(format!("unknown field \"{}\"", child_path(path, &key)));
                continue;
            };
            let at = child_path(path, &key);
            if seen.contains(&field.name) {
                self.duplicate(&at);
            } else {
                seen.push(field.name);
            }
            let outer = self.owner.replace(owner.short_name());
            self.go_path.push(field.name);
            let decoded = self.value(&field.ty, value, &at)?;
            self.go_path.pop();
            self.owner = outer;
            map.insert(key, decoded);
        }
        for field in &owner.fields {
            match map.get(field.name) {
                Some(value) if omitted(field, value) => {
                    map.remove(field.name);
                }
                Some(_) => {}
                None => {
                    let value = zero_of(&field.ty);
                    if !omitted(field, &value) {
                        map.insert(field.name.to_owned(), value);
                    }
                }
            }
        }
        Ok(Value::Object(map))
    }

    fn duplicate(&mut self, at: &str) {
        let message = format!("duplicate field \"{at}\"");
        if !self.strict.contains(&message) {
            self.strict.push(message);
        }
    }

    fn value(&mut self, ty: &Type, tree: Tree, path: &str) -> Result<Value, String> {
        match ty {
            Type::Named(name, inner) => self.typed(inner, name, tree, path),
            _ => self.typed(ty, "", tree, path),
        }
    }

    /// `name` is the Go name of a defined type, or empty.
    fn typed(&mut self, ty: &Type, name: &str, tree: Tree, path: &str) -> Result<Value, String> {
        let wanted = || if name.is_empty() { go_type(ty) } else { name.to_owned() };
        match (ty, tree) {
            (Type::Named(name, inner), tree) => self.typed(inner, name, tree, path),
            (Type::Pointer(_), Tree::Null) => Ok(Value::Null),
            (Type::Pointer(inner), tree) => self.value(inner, tree, path),
            (Type::Struct(id), tree) => self.structure(*id, tree, path),
            (Type::Special(special), tree) => self.special(*special, tree, path),
            (_, Tree::Null) => Ok(zero_of(ty)),
            (Type::String, Tree::String(text)) => Ok(Value::String(text)),
            (Type::Bool, Tree::Bool(b)) => Ok(Value::Bool(b)),
            (Type::Int(bits), Tree::Number(n)) => {
                let fits = n.as_i64().filter(|n| *bits == 64 || i32::try_from(*n).is_ok());
                fits.map(Value::from).ok_or_else(|| self.mismatch(&format!("number {n}"), &wanted()))
            }
            (Type::Bytes, Tree::String(text)) => bytes(&text).map(Value::String),
            (Type::List(item), Tree::Array(items)) => {
                let mut list = Vec::with_capacity(items.len());
                for (i, tree) in items.into_iter().enumerate() {
                    list.push(self.value(item, tree, &format!("{path}[{i}]"))?);
                }
                Ok(Value::Array(list))
            }
            (Type::Map(item), Tree::Object(fields)) => {
                let mut map = Map::new();
                for (key, tree) in fields {
                    let at = child_path(path, &key);
                    let value = self.value(item, tree, &at)?;
                    if map.insert(key, value).is_some() {
                        self.duplicate(&at);
                    }
                }
                Ok(Value::Object(map))
            }
            (_, tree) => Err(self.mismatch(tree.go_kind(), &wanted())),
        }
    }

    fn special(&mut self, special: Special, tree: Tree, path: &str) -> Result<Value, String> {
        let schema = || facts().schema_props();
        match (special, tree) {
            (Special::Quantity, Tree::Null) => Ok(Value::String("0".to_owned())),
            (Special::IntOrString, Tree::Null) => Ok(Value::from(0)),
            (Special::SchemaOrBool | Special::SchemaOrArray | Special::SchemaOrStrings, tree @ Tree::Object(_)) => {
                self.structure(schema(), tree, path)
            }
            (Special::SchemaOrArray, Tree::Array(items)) => {
                let mut list = Vec::with_capacity(items.len());
                for (i, tree) in items.into_iter().enumerate() {
                    list.push(self.structure(schema(), tree, &format!("{path}[{i}]"))?);
                }
                Ok(Value::Array(list))
            }
            (Special::SchemaOrBool, Tree::Bool(b)) => Ok(Value::Bool(b)),
            (Special::SchemaOrStrings, tree @ Tree::Array(_)) => Ok(tree.into_value()),
            (Special::SchemaOrBool | Special::SchemaOrArray | Special::SchemaOrStrings, Tree::Null) => Ok(Value::Null),
            (Special::SchemaOrBool, _) => Err("boolean or JSON schema expected".to_owned()),
            (Special::SchemaOrArray | Special::SchemaOrStrings, tree) => {
                Err(self.mismatch(tree.go_kind(), "v1.JSONSchemaProps"))
            }
            (Special::Raw | Special::Fields, tree) => Ok(tree.into_value()),
            (_, Tree::Null) => Ok(Value::Null),
            (Special::Time, Tree::String(text)) => time::seconds(&text).map(Value::String),
            (Special::MicroTime, Tree::String(text)) => time::micros(&text).map(Value::String),
            (Special::Quantity, Tree::String(text)) => quantity::canonical(&text).map(Value::String),
            (Special::Quantity, Tree::Number(n)) => quantity::canonical(&n.to_string()).map(Value::String),
            (Special::Quantity, Tree::Bool(b)) => quantity::canonical(&b.to_string()).map(Value::String),
            (Special::Quantity, tree) => quantity::canonical(&tree.into_value().to_string()).map(Value::String),
            (Special::IntOrString, Tree::String(text)) => Ok(Value::String(text)),
            (Special::IntOrString, Tree::Number(n)) => match n.as_i64().filter(|n| i32::try_from(*n).is_ok()) {
                Some(n) => Ok(Value::from(n)),
                None => Err(self.mismatch(&format!("number {n}"), "int32")),
            },
            (Special::IntOrString, tree) => Err(self.mismatch(tree.go_kind(), "int32")),
            (Special::Time | Special::MicroTime, tree) => Err(self.mismatch(tree.go_kind(), "string")),
        }
    }
}

/// Base64 text, checked, in its one canonical form.
fn bytes(text: &str) -> Result<String, String> {
    let clean: String = text.chars().filter(|c| *c != '\n' && *c != '\r').collect();
    match STANDARD.decode(&clean) {
        Ok(_) => Ok(clean),
        Err(base64::DecodeError::InvalidByte(at, _)) => Err(format!("illegal base64 data at input byte {at}")),
        Err(_) => Err(format!("illegal base64 data at input byte {}", clean.len() / 4 * 4)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::json;
    use serde_json::json;

    fn decode_kind(group: &str, kind: &str, body: &str) -> Result<Decoded, String> {
        let id = facts().kind(group, "v1", kind).expect("the kind is built in");
        decode(id, json::parse(body.as_bytes()).expect("the body is JSON"))
    }

    #[test]
    fn wrong_types_are_refused_in_gos_words() {
        for (kind, body, words) in [
            ("ConfigMap", r#"{"data":{"a":1}}"#, "number into Go struct field ConfigMap.data of type string"),
            (
                "ConfigMap",
                r#"{"metadata":{"name":true}}"#,
                "bool into Go struct field ObjectMeta.metadata.name of type string",
            ),
            (
                "ConfigMap",
                r#"{"metadata":{"labels":{"a":1}}}"#,
                "number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                "Pod",
                r#"{"spec":{"containers":[{"image":1}]}}"#,
                "number into Go struct field Container.spec.containers.image of type string",
            ),
            (
                "Pod",
                r#"{"spec":{"containers":"x"}}"#,
                "string into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                "Pod",
                r#"{"spec":{"restartPolicy":{}}}"#,
                "object into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
            ),
            (
                "Pod",
                r#"{"spec":{"priority":1.5}}"#,
                "number 1.5 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                "Pod",
                r#"{"spec":{"priority":3000000000}}"#,
                "number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
            ),
            ("Pod", r#"[]"#, "array into Go value of type v1.Pod"),
            (
                "Pod",
                r#"{"metadata":{"creationTimestamp":7}}"#,
                "number into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
            ),
        ] {
            let error = decode_kind("", kind, body).expect_err(body);
            assert_eq!(error, format!("json: cannot unmarshal {words}"));
        }
    }

    #[test]
    fn strict_errors_follow_the_document() {
        let body = r#"{"spec":{"containers":[{"name":"a","imagePullpolicy":"Always","bogus":{}}],"restartpolicy":"Never"},
            "metadata":{"labels":{"a":"1","a":"2"}}}"#;
        let decoded = decode_kind("", "Pod", body).expect("the types are right");
        assert_eq!(
            decoded.strict,
            [
                "unknown field \"spec.containers[0].imagePullpolicy\"",
                "unknown field \"spec.containers[0].bogus\"",
                "unknown field \"spec.restartpolicy\"",
                "duplicate field \"metadata.labels.a\"",
            ]
        );
        assert_eq!(decoded.value["metadata"]["labels"]["a"], "2");
    }

    #[test]
    fn empty_fields_go_and_constant_ones_come() {
        let body = r#"{"metadata":{"name":"p","labels":{},"creationTimestamp":null},
            "spec":{"containers":[{"name":"a","image":"","command":[],"resources":{"limits":{"cpu":"1000m"}}}],
            "hostNetwork":false,"automountServiceAccountToken":false}}"#;
        let decoded = decode_kind("", "Pod", body).expect("the types are right");
        assert_eq!(
            decoded.value,
            json!({
                "metadata": {"name": "p"},
                "spec": {
                    "containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}],
                    "automountServiceAccountToken": false,
                },
                "status": {},
            })
        );
    }

    #[test]
    fn zero_objects_are_what_the_encoder_writes() {
        let id = facts().kind("apps", "v1", "Deployment").expect("deployments are built in");
        assert_eq!(
            zero(id),
            json!({
                "metadata": {},
                "spec": {
                    "selector": null,
                    "template": {"metadata": {}, "spec": {"containers": null}},
                    "strategy": {},
                },
                "status": {},
            })
        );
    }

    #[test]
    fn definitions_nest_schemas() {
        let body = r#"{"spec":{"versions":[{"schema":{"openAPIV3Schema":{"properties":{"a":{"items":{"typo":1},
            "additionalProperties":false,"default":{"x":null}}}}}}]}}"#;
        let decoded = decode_kind("apiextensions.k8s.io", "CustomResourceDefinition", body).expect("right types");
        assert_eq!(
            decoded.strict,
            ["unknown field \"spec.versions[0].schema.openAPIV3Schema.properties.a.items.typo\""]
        );
        let schema = &decoded.value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["a"];
        assert_eq!(schema, &json!({"items": {}, "additionalProperties": false, "default": {"x": null}}));
    }
}

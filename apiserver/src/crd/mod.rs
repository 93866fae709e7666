//! Custom kinds: definitions (what is filled in, refused, accepted), and what one says about its kind: names, schema,
//! subresources, printer columns, selectable fields.

mod definition;
mod jsonpath;
mod names;
mod structural;

pub use definition::{default, validate, validate_update};
pub use jsonpath::JsonPath;
pub use names::{is_established, status};

use crate::schema::Schema;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use muster_api::field::FieldError;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// One served version of a custom kind.
#[derive(Clone, Debug)]
pub struct CustomKind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Whether objects are stored in this version. There is no conversion: all versions hold the same fields.
    pub storage: bool,
    /// Clients are warned of a deprecated version with these words.
    pub deprecation: Option<String>,
    pub schema: Arc<Schema>,
    /// `openAPIV3Schema` as the definition has it, as text (which takes the least room), for the OpenAPI document.
    pub open_api: Arc<str>,
    pub status: bool,
    pub scale: Option<Scale>,
    /// Columns after the name.
    pub columns: Vec<Column>,
    /// Fields that field selectors may name, without the leading dot: `spec.color`.
    pub selectable: Vec<(String, JsonPath)>,
}

/// A printer column.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub r#type: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    path: JsonPath,
}

/// Where the scale subresource finds its numbers.
#[derive(Clone, Debug)]
pub struct Scale {
    spec_replicas: JsonPath,
    status_replicas: JsonPath,
    selector: Option<JsonPath>,
    /// `.spec.replicas`, for errors.
    pub spec_path: String,
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// What the API's schema says of a field of every object's metadata.
fn metadata_description(field: &str) -> String {
    let schema = ObjectMeta::json_schema(&mut SchemaGenerator::default());
    schema.pointer(&format!("/properties/{field}/description")).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl CustomKind {
    /// The served versions of an established definition, the preferred one first. A version whose schema does not
    /// compile is left out (the definition's validation lets none pass).
    pub fn parse(definition: &Value) -> Vec<CustomKind> {
        if !is_established(definition) {
            return Vec::new();
        }
        let versions = definition.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten();
        let mut kinds: Vec<CustomKind> = versions
            .filter(|version| version["served"] == true)
            .filter_map(|version| parse_version(definition, version))
            .collect();
        kinds.sort_by_key(|kind| std::cmp::Reverse(version_rank(&kind.version)));
        kinds
    }

    /// The `columnDefinitions` of this kind's `Table`: the name, then the columns of the definition, else the age.
    pub fn column_definitions(&self) -> Value {
        let name = json!({"name": "Name", "type": "string", "format": "name",
            "description": metadata_description("name"), "priority": 0});
        let others = self.columns.iter().map(|column| {
            json!({"name": column.name, "type": column.r#type, "format": column.format,
                "description": column.description, "priority": column.priority})
        });
        std::iter::once(name).chain(others).collect()
    }

    /// The cells of an object, in the order of the columns.
    pub fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let name = object.pointer("/metadata/name").cloned().unwrap_or_default();
        std::iter::once(name).chain(self.columns.iter().map(|column| column.cell(object, now))).collect()
    }

    /// Errors of a custom object: of its schema, and of its scale.
    pub fn validate(&self, new: &Value, old: Option<&Value>, subresource: &str) -> Vec<FieldError> {
        let mut errors = self.schema.validate(new, old, subresource);
        if let Some(replicas) = self.scale.as_ref().and_then(|scale| scale.spec_replicas.find(new).first().copied()) {
            let path = self.scale.as_ref().map(|scale| scale.spec_path.clone()).unwrap_or_default();
            if replicas.as_i64().is_some_and(|n| n < 0) {
                errors.push(FieldError::invalid(path, replicas, "should be a non-negative integer"));
            } else if replicas.as_i64().is_some_and(|n| n > i64::from(i32::MAX)) {
                let why = format!("should be less than or equal to {}", i32::MAX);
                errors.push(FieldError::invalid(path, replicas, why));
            }
        }
        errors
    }

    /// Values of the selectable fields of an object.
    pub fn selectable_values(&self, object: &Value) -> Map<String, Value> {
        let value_of = |path: &JsonPath| match path.find(object).first() {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        };
        self.selectable.iter().map(|(name, path)| (name.clone(), value_of(path).into())).collect()
    }
}

/// How versions are preferred: stable ones over beta over alpha, higher numbers first.
pub fn version_rank(version: &str) -> (u8, u64, u64) {
    let rest = version.strip_prefix('v').unwrap_or_default();
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (major, rest) = rest.split_at(digits(rest));
    let Ok(major) = major.parse::<u64>() else { return (0, 0, 0) };
    let (level, minor) = match rest {
        "" => return (3, major, 0),
        _ => match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
            (Some(minor), _) => (2, minor),
            (_, Some(minor)) => (1, minor),
            _ => return (0, 0, 0),
        },
    };
    match minor.parse::<u64>() {
        Ok(minor) => (level, major, minor),
        Err(_) if minor.is_empty() => (level, major, 0),
        Err(_) => (0, 0, 0),
    }
}

fn parse_version(definition: &Value, version: &Value) -> Option<CustomKind> {
    let open_api = version.pointer("/schema/openAPIV3Schema");
    let group = text(definition, "/spec/group");
    let name = text(version, "/name");
    let kind = text(definition, "/status/acceptedNames/kind");
    let deprecation = (version["deprecated"] == true).then(|| match text(version, "/deprecationWarning") {
        words if !words.is_empty() => words,
        _ => format!("{group}/{name} {kind} is deprecated"),
    });
    let scale = version.pointer("/subresources/scale").filter(|scale| !scale.is_null()).and_then(|scale| {
        Some(Scale {
            spec_replicas: JsonPath::parse(scale["specReplicasPath"].as_str()?)?,
            status_replicas: JsonPath::parse(scale["statusReplicasPath"].as_str()?)?,
            selector: scale["labelSelectorPath"].as_str().and_then(JsonPath::parse),
            spec_path: text(scale, "/specReplicasPath"),
        })
    });
    let selectable = version["selectableFields"].as_array().into_iter().flatten().filter_map(|field| {
        let path = field["jsonPath"].as_str()?;
        Some((path.trim_start_matches('.').to_owned(), JsonPath::parse(path)?))
    });
    Some(CustomKind {
        schema: Schema::custom(open_api).ok()?,
        list_kind: text(definition, "/status/acceptedNames/listKind"),
        plural: text(definition, "/status/acceptedNames/plural"),
        singular: text(definition, "/status/acceptedNames/singular"),
        short_names: texts(definition, "/status/acceptedNames/shortNames"),
        categories: texts(definition, "/status/acceptedNames/categories"),
        namespaced: definition.pointer("/spec/scope").and_then(Value::as_str) == Some("Namespaced"),
        storage: version["storage"] == true,
        deprecation,
        open_api: open_api.map(Value::to_string).unwrap_or_default().into(),
        status: version.pointer("/subresources/status").is_some_and(|status| !status.is_null()),
        scale,
        columns: columns(version),
        selectable: selectable.collect(),
        group,
        version: name,
        kind,
    })
}

fn columns(version: &Value) -> Vec<Column> {
    let declared = version["additionalPrinterColumns"].as_array().map(Vec::as_slice).unwrap_or_default();
    let columns = declared.iter().filter_map(|column| {
        let path = column["jsonPath"].as_str()?;
        let description = match text(column, "/description") {
            words if !words.is_empty() => words,
            _ => format!("Custom resource definition column (in JSONPath format): {path}"),
        };
        Some(Column {
            name: text(column, "/name"),
            r#type: text(column, "/type"),
            format: text(column, "/format"),
            description,
            priority: column["priority"].as_i64().unwrap_or(0),
            path: JsonPath::parse(path)?,
        })
    });
    let columns: Vec<Column> = columns.collect();
    if !columns.is_empty() {
        return columns;
    }
    let path = JsonPath::parse(".metadata.creationTimestamp");
    let age = |path| Column {
        name: "Age".to_owned(),
        r#type: "date".to_owned(),
        format: String::new(),
        description: metadata_description("creationTimestamp"),
        priority: 0,
        path,
    };
    path.map(age).into_iter().collect()
}

impl Column {
    /// The value of an object in this column; null where it has none of the column's type.
    pub fn cell(&self, object: &Value, now: i64) -> Value {
        let Some(value) = self.path.find(object).first().copied() else { return Value::Null };
        match (self.r#type.as_str(), value) {
            (_, Value::Null) => Value::Null,
            ("string", Value::String(text)) => text.clone().into(),
            ("string", other) => other.to_string().into(),
            ("integer", Value::Number(n)) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => n.into(),
                // A float is cut off, as upstream does.
                (None, Some(n)) => (n as i64).into(),
                _ => Value::Null,
            },
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
            ("date", Value::String(text)) => crate::builtin::since(text, now).into(),
            _ => Value::Null,
        }
    }
}

impl Scale {
    /// `spec.replicas`; nothing where the object has none.
    pub fn spec_replicas(&self, object: &Value) -> Option<i64> {
        self.spec_replicas.find(object).first().and_then(|n| n.as_i64())
    }

    pub fn status_replicas(&self, object: &Value) -> i64 {
        self.status_replicas.find(object).first().and_then(|n| n.as_i64()).unwrap_or(0)
    }

    /// The label selector, as text.
    pub fn selector(&self, object: &Value) -> String {
        let found = self.selector.as_ref().and_then(|path| path.find(object).first().copied());
        found.and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Sets `spec.replicas`, with the objects on the way.
    pub fn set_replicas(&self, object: &mut Value, replicas: i64) {
        let Some(names) = self.spec_replicas.fields() else { return };
        let mut place = object;
        for name in names {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(map) = place else { return };
            place = map.entry(name).or_insert(Value::Null);
        }
        *place = replicas.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn runs() -> CustomKind {
        let mut definition = json!({"metadata": {"name": "runs.g.io"}, "spec": {"group": "g.io", "scope": "Namespaced",
            "names": {"plural": "runs", "kind": "Run", "shortNames": ["r"]},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"replicas": {"type": "integer"}, "color": {"type": "string"}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.ready", "labelSelectorPath": ".status.selector"}},
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "additionalPrinterColumns": [
                    {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                    {"name": "State", "type": "string", "jsonPath": ".status.conditions[-1:].type"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]}]}});
        default(&mut definition);
        assert_eq!(validate(&definition), []);
        definition["status"] = status(&definition, &[], "t");
        CustomKind::parse(&definition).remove(0)
    }

    #[test]
    fn definitions_say_how_their_kind_is_served() {
        let kind = runs();
        assert_eq!((kind.kind.as_str(), kind.list_kind.as_str(), kind.status), ("Run", "RunList", true));
        let mut object = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"replicas": 2, "color": "red"}, "status": {"ready": 1, "selector": "a=b", "conditions": [{"type": "A"}, {"type": "B"}]}});
        assert_eq!(kind.cells(&object, 60), [Value::Null, json!(2), json!("B"), json!("60s")]);
        assert_eq!(kind.column_definitions()[0]["name"], "Name");
        assert_eq!(Value::Object(kind.selectable_values(&object)), json!({"spec.color": "red"}));
        let scale = kind.scale.clone().expect("has a scale");
        assert_eq!((scale.spec_replicas(&object), scale.status_replicas(&object)), (Some(2), 1));
        assert_eq!(scale.selector(&object), "a=b");
        scale.set_replicas(&mut object, -3);
        assert_eq!(
            kind.validate(&object, None, "")[0].to_string(),
            ".spec.replicas: Invalid value: -3: should be a non-negative integer"
        );
    }

    #[test]
    fn versions_are_preferred_by_stability_then_number() {
        let mut versions = ["v1alpha1", "v2", "v1beta2", "v10", "foo", "v1"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1alpha1", "foo"]);
    }
}

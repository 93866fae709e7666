//! Validation of `metadata`, the same for every kind, built-in or custom.

use super::{NameRule, names};
use muster_api::field::{FieldError, Reason};
use serde_json::{Map, Value};

/// Bytes that all annotations of an object may have together.
const ANNOTATIONS_SIZE: usize = 256 * 1024;
/// Longest prefix that a generated name keeps, so that five characters still fit into a label.
const GENERATED_PREFIX: usize = 58;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "foregroundDeletion", "orphan"];

/// How an object's metadata is checked.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub names: NameRule,
    pub namespaced: bool,
    /// Built-in kinds check finalizers more strictly, and report errors of an update from two layers.
    pub builtin: bool,
}

/// The name that `generateName` gives with five random characters.
pub fn generated_name(prefix: &str, suffix: &str) -> String {
    let mut end = prefix.len().min(GENERATED_PREFIX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &prefix[..end])
}

/// Five characters for `generateName`, without vowels or look-alikes, from a random number.
pub fn name_suffix(mut random: u64) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .map(|_| {
            let letter = LETTERS[(random % LETTERS.len() as u64) as usize];
            random /= LETTERS.len() as u64;
            char::from(letter)
        })
        .collect()
}

/// What is wrong with the metadata of an object.
pub fn validate(object: &Value, rules: &Rules) -> Vec<FieldError> {
    let empty = Map::new();
    let meta = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let text = |key: &str| meta.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut errors = Vec::new();
    let generate = text("generateName");
    if !generate.is_empty() {
        // A trailing dash is fine: the random part follows it.
        let masked = match generate.strip_suffix('-') {
            Some(head) if !head.is_empty() => format!("{head}a"),
            _ => generate.to_owned(),
        };
        push_all(&mut errors, "metadata.generateName", generate, check_name(rules.names, &masked));
    }
    let name = text("name");
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        push_all(&mut errors, "metadata.name", name, check_name(rules.names, name));
    }
    let namespace = text("namespace");
    if rules.namespaced {
        if namespace.is_empty() {
            errors.push(FieldError::required("metadata.namespace", ""));
        } else {
            push_all(&mut errors, "metadata.namespace", namespace, names::label(namespace));
        }
    } else if !namespace.is_empty() {
        errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
    }
    if let Some(generation) = meta.get("generation").filter(|g| g.as_i64().is_some_and(|n| n < 0)) {
        errors.push(FieldError::invalid("metadata.generation", generation, NOT_NEGATIVE));
    }
    validate_rest(meta, rules, &mut errors);
    errors
}

/// What an update of an object may not do to its metadata.
pub fn validate_update(new: &Value, old: &Value, rules: &Rules) -> Vec<FieldError> {
    let empty = Map::new();
    let new_meta = new.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let old_meta = old.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut errors = Vec::new();
    if old_meta.contains_key("deletionTimestamp") {
        let before = strings(old_meta.get("finalizers"));
        let added: Vec<String> =
            strings(new_meta.get("finalizers")).into_iter().filter(|f| !before.contains(f)).map(quoted).collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            ));
        }
    }
    let number = |m: &Map<String, Value>, key: &str| m.get(key).and_then(Value::as_i64).unwrap_or(0);
    if number(new_meta, "generation") < number(old_meta, "generation") {
        let value = new_meta.get("generation").unwrap_or(&Value::Null);
        errors.push(FieldError::invalid("metadata.generation", value, "must not be decremented"));
    }
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let value = |m: &Map<String, Value>| m.get(key).cloned().unwrap_or(Value::Null);
        if value(new_meta) != value(old_meta) {
            errors.push(FieldError::invalid(format!("metadata.{key}"), &value(new_meta), IMMUTABLE));
        }
    }
    validate_rest(new_meta, rules, &mut errors);
    if rules.builtin {
        // The generic layer and the kind's own validation both check metadata, and both are heard.
        errors.extend_from_within(..);
    }
    errors
}

pub(super) const IMMUTABLE: &str = "field is immutable";
pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// The messages of a name that breaks its kind's rule.
pub fn check_name(rule: NameRule, name: &str) -> Vec<String> {
    match rule {
        NameRule::Subdomain => names::subdomain(name),
        NameRule::Label => names::label(name),
        NameRule::Label1035 => names::label_1035(name),
        NameRule::PathSegment => names::path_segment(name),
    }
}

/// What is wrong with a map of labels.
pub fn validate_labels(labels: Option<&Value>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        push_all(&mut errors, path, key, names::qualified(key));
        let value = value.as_str().unwrap_or_default();
        push_all(&mut errors, path, value, names::label_value(value));
    }
    errors
}

/// What is wrong with a map of annotations.
pub fn validate_annotations(annotations: Option<&Value>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        // Case does not matter in the keys of annotations.
        push_all(&mut errors, path, key, names::qualified(&key.to_ascii_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_SIZE {
        errors.push(FieldError::too_long(path, ANNOTATIONS_SIZE));
    }
    errors
}

fn validate_rest(meta: &Map<String, Value>, rules: &Rules, errors: &mut Vec<FieldError>) {
    errors.extend(validate_labels(meta.get("labels"), "metadata.labels"));
    errors.extend(validate_annotations(meta.get("annotations"), "metadata.annotations"));
    validate_owners(meta.get("ownerReferences"), errors);
    validate_finalizers(meta.get("finalizers"), rules.builtin, errors);
}

fn validate_owners(owners: Option<&Value>, errors: &mut Vec<FieldError>) {
    let path = "metadata.ownerReferences";
    let owners: &[Value] = owners.and_then(Value::as_array).map_or(&[], Vec::as_slice);
    let text = |owner: &Value, key: &str| owner.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut controller: Option<&Value> = None;
    for owner in owners {
        let api_version = text(owner, "apiVersion");
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        if version.is_empty() {
            let value = Value::from(api_version.clone());
            errors.push(FieldError::invalid(format!("{path}.apiVersion"), &value, "version must not be empty"));
        }
        for key in ["kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{key}"), &Value::from(""), "must not be empty"));
            }
        }
        let kind = text(owner, "kind");
        if kind == "Event" && (api_version == "v1" || group == "events.k8s.io") {
            let message = format!(
                "Invalid value: {}: {group}/{version}, Kind={kind} is disallowed from being an owner",
                owner_json(owner)
            );
            errors.push(FieldError::new(Reason::Invalid, path, message));
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            match controller {
                None => controller = Some(owner),
                Some(first) => {
                    let all: Vec<String> = owners.iter().map(owner_json).collect();
                    let message = format!(
                        "Invalid value: [{}]: Only one reference can have Controller set to true. Found \"true\" in \
                         references for {}/{} and {}/{}",
                        all.join(","),
                        text(first, "kind"),
                        text(first, "name"),
                        kind,
                        text(owner, "name")
                    );
                    errors.push(FieldError::new(Reason::Invalid, path, message));
                }
            }
        }
    }
}

/// An owner reference with its fields in the order in which the API writes them.
fn owner_json(owner: &Value) -> String {
    let keys = ["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];
    let fields = keys.iter().filter_map(|k| owner.get(k).map(|v| format!("\"{k}\":{v}")));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

fn validate_finalizers(finalizers: Option<&Value>, builtin: bool, errors: &mut Vec<FieldError>) {
    let path = "metadata.finalizers";
    let names = strings(finalizers);
    for name in &names {
        push_all(errors, path, name, names::qualified(name));
    }
    if names.contains(&"orphan") && names.contains(&"foregroundDeletion") {
        let value = finalizers.unwrap_or(&Value::Null);
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(path, value, why));
    }
    if builtin {
        for (i, name) in names.iter().enumerate() {
            if !name.contains('/') && !STANDARD_FINALIZERS.contains(name) {
                let why = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(FieldError::invalid(format!("{path}[{i}]"), &Value::from(*name), why));
            }
        }
    }
}

fn strings(list: Option<&Value>) -> Vec<&str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn push_all(errors: &mut Vec<FieldError>, path: &str, value: &str, messages: Vec<String>) {
    errors.extend(messages.into_iter().map(|m| FieldError::invalid(path, &Value::from(value), m)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RULES: Rules = Rules { names: NameRule::Subdomain, namespaced: true, builtin: true };

    fn fields(errors: &[FieldError]) -> Vec<(&str, Reason)> {
        errors.iter().map(|e| (e.field.as_str(), e.reason)).collect()
    }

    #[test]
    fn what_is_refused_on_create() {
        for (meta, expected) in [
            (json!({"name": "a"}), vec![]),
            (json!({"name": "gen-x", "generateName": "gen-"}), vec![]),
            (json!({}), vec![("metadata.name", Reason::Required)]),
            (
                json!({"name": "Gen_x", "generateName": "Gen_"}),
                vec![("metadata.generateName", Reason::Invalid), ("metadata.name", Reason::Invalid)],
            ),
            (json!({"name": "a", "labels": {"a b": "x"}}), vec![("metadata.labels", Reason::Invalid)]),
            (json!({"name": "a", "annotations": {"A/b": "x"}}), vec![]),
            (
                json!({"name": "a", "annotations": {"b": "x".repeat(262144)}}),
                vec![("metadata.annotations", Reason::TooLong)],
            ),
            (json!({"name": "a", "finalizers": ["plain"]}), vec![("metadata.finalizers[0]", Reason::Invalid)]),
            (json!({"name": "a", "finalizers": ["orphan", "x.io/y"]}), vec![]),
            (
                json!({"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x"}]}),
                vec![("metadata.ownerReferences.uid", Reason::Invalid)],
            ),
        ] {
            let mut meta = meta;
            meta["namespace"] = "ns".into();
            let object = json!({"metadata": meta});
            assert_eq!(fields(&validate(&object, &RULES)), expected, "{object}");
        }
    }

    #[test]
    fn what_is_refused_on_update() {
        let old = json!({"metadata": {"name": "a", "namespace": "n", "uid": "1", "finalizers": ["x.io/a"],
            "deletionTimestamp": "2020-01-01T00:00:00Z"}});
        let mut new = old.clone();
        assert_eq!(validate_update(&new, &old, &RULES), []);
        new["metadata"]["finalizers"] = json!(["x.io/a", "x.io/b"]);
        let errors = validate_update(&new, &old, &Rules { builtin: false, ..RULES });
        assert_eq!(fields(&errors), [("metadata.finalizers", Reason::Forbidden)]);
        assert!(errors[0].message.ends_with(r#"found new finalizers []string{"x.io/b"}"#));
        new = old.clone();
        new["metadata"]["uid"] = "2".into();
        assert_eq!(fields(&validate_update(&new, &old, &RULES)), [("metadata.uid", Reason::Invalid); 2]);
    }

    #[test]
    fn generated_names_fit_a_label() {
        let name = generated_name(&"n".repeat(80), &name_suffix(123_456_789));
        assert_eq!(name.len(), 63);
        assert_eq!(generated_name("a-", "bcdfg"), "a-bcdfg");
    }
}

//! CustomResourceDefinitions as objects: what is filled in, and what is refused.

use super::jsonpath::JsonPath;
use super::{names, structural};
use crate::builtin::names as syntax;
use muster_api::field::FieldError;
use serde_json::{Value, json};

const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];

/// Fills what a definition may leave out.
pub fn default(definition: &mut Value) {
    let Some(spec) = definition.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let missing = |value: Option<&Value>| value.and_then(Value::as_str).is_none_or(str::is_empty);
        if !kind.is_empty() && missing(names.get("singular")) {
            names.insert("singular".to_owned(), kind.to_lowercase().into());
        }
        if !kind.is_empty() && missing(names.get("listKind")) {
            names.insert("listKind".to_owned(), format!("{kind}List").into());
        }
    }
    if spec.get("conversion").is_none_or(Value::is_null) {
        spec.insert("conversion".to_owned(), json!({"strategy": "None"}));
    }
    let stored = names::stored_versions(definition);
    if stored.as_array().is_some_and(|versions| !versions.is_empty())
        && definition.pointer("/status/storedVersions").and_then(Value::as_array).is_none_or(Vec::is_empty)
    {
        definition["status"]["storedVersions"] = stored;
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Errors of a definition's name, spec and stored versions.
pub fn validate(definition: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = text(definition, "/metadata/name");
    if name != format!("{}.{}", text(definition, "/spec/names/plural"), text(definition, "/spec/group")) {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", &json!(name), why));
    }
    spec(&definition["spec"], &mut errors);
    stored_versions(definition, &mut errors);
    errors
}

/// Errors of an update.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let established = names::is_established(old);
    for (pointer, field, always) in [
        ("/spec/scope", "spec.scope", false),
        ("/spec/names/kind", "spec.names.kind", false),
        ("/spec/group", "spec.group", true),
        ("/spec/names/plural", "spec.names.plural", true),
    ] {
        if (always || established) && new.pointer(pointer) != old.pointer(pointer) {
            let value = new.pointer(pointer).unwrap_or(&Value::Null);
            errors.push(FieldError::invalid(field, value, "field is immutable"));
        }
    }
    errors
}

fn spec(spec: &Value, errors: &mut Vec<FieldError>) {
    let group = text(spec, "/group");
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else {
        let wrong = syntax::subdomain(group);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid("spec.group", &json!(group), wrong.join(",")));
        } else if !group.contains('.') {
            let why = "should be a domain with at least one dot";
            errors.push(FieldError::invalid("spec.group", &json!(group), why));
        }
    }
    match text(spec, "/scope") {
        "Cluster" | "Namespaced" => {}
        "" => errors.push(FieldError::required("spec.scope", "")),
        other => errors.push(FieldError::not_supported("spec.scope", &json!(other), &["Cluster", "Namespaced"])),
    }
    versions(spec, errors);
    kind_names(spec, errors);
    if spec.get("preserveUnknownFields") == Some(&Value::Bool(true)) {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                   spec.versions[*].schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", &json!(true), why));
    }
    match text(spec, "/conversion/strategy") {
        "None" => {
            if spec.pointer("/conversion/webhook").is_some() {
                let why = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden("spec.conversion.webhookClientConfig", why));
            }
        }
        "" => errors.push(FieldError::required("spec.conversion.strategy", "")),
        // Converting webhooks are never called here, so that such a definition is refused rather than served wrongly.
        other => errors.push(FieldError::not_supported("spec.conversion.strategy", &json!(other), &["None"])),
    }
}

fn versions(spec: &Value, errors: &mut Vec<FieldError>) {
    let versions = list(spec, "/versions");
    // Where all versions agree, upstream takes what they say as said for the whole definition.
    let shared = |name: &str| {
        let first = versions.first().map(|version| version.get(name));
        first.is_some_and(|first| first.is_some() && versions.iter().all(|version| version.get(name) == first))
    };
    let mut seen = Vec::new();
    for (i, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{i}]");
        let name = text(version, "/name");
        let wrong = syntax::label_1035(name);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(format!("{at}.name"), &json!(name), wrong.join(",")));
        }
        seen.push(name);
        let first = i == 0;
        match version.pointer("/schema/openAPIV3Schema") {
            None => errors.push(FieldError::required(format!("{at}.schema.openAPIV3Schema"), "")),
            Some(schema) if shared("schema") => {
                if first {
                    errors.extend(structural::validate(schema, "spec.validation.openAPIV3Schema"));
                }
            }
            Some(schema) => errors.extend(structural::validate(schema, &format!("{at}.schema.openAPIV3Schema"))),
        }
        let subresources = shared("subresources");
        if !subresources || first {
            let at = if subresources { "spec.subresources".to_owned() } else { format!("{at}.subresources") };
            scale(version, &at, errors);
        }
        let columns = shared("additionalPrinterColumns");
        if !columns || first {
            let at = if columns { "spec" } else { &at };
            printer_columns(version, at, errors);
        }
        selectable_fields(version, &format!("{at}.selectableFields"), errors);
    }
    let whole = &spec["versions"];
    if (1..seen.len()).any(|i| seen[..i].contains(&seen[i])) {
        errors.push(FieldError::invalid("spec.versions", whole, "must contain unique version names"));
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", whole, why));
    }
}

fn scale(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(scale) = version.pointer("/subresources/scale").filter(|scale| !scale.is_null()) else { return };
    for (key, under, required) in [
        ("specReplicasPath", &[".spec."][..], true),
        ("statusReplicasPath", &[".status."], true),
        ("labelSelectorPath", &[".spec.", ".status."], false),
    ] {
        let at = format!("{path}.scale.{key}");
        let found = scale[key].as_str().unwrap_or_default();
        if found.is_empty() {
            if required {
                errors.push(FieldError::required(at, ""));
            }
            continue;
        }
        if let Some(why) = not_simple(found) {
            errors.push(FieldError::invalid(at, &json!(found), why));
        } else if !under.iter().any(|prefix| found.starts_with(prefix)) {
            let places: Vec<&str> = under.iter().map(|prefix| prefix.trim_end_matches('.')).collect();
            let why = match places.as_slice() {
                [one] => format!("should be a json path under {one}"),
                many => format!("should be a json path under either {}", many.join(" or ")),
            };
            errors.push(FieldError::invalid(at, &json!(found), why));
        }
    }
}

fn not_simple(path: &str) -> Option<&'static str> {
    if !path.starts_with('.') {
        return Some("must be a simple json path starting with .");
    }
    if JsonPath::parse(path).is_none() { Some("must be a json path in the dot notation") } else { None }
}

fn printer_columns(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    const FORMATS: &[&str] = &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    for (i, column) in list(version, "/additionalPrinterColumns").iter().enumerate() {
        let at = format!("{path}.additionalPrinterColumns[{i}]");
        let one_of = |words: &[&str]| format!("must be one of {}", words.join(","));
        if text(column, "/name").is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        match text(column, "/type") {
            "" => errors.push(FieldError::required(format!("{at}.type"), &one_of(COLUMN_TYPES))),
            ty if !COLUMN_TYPES.contains(&ty) => {
                errors.push(FieldError::invalid(format!("{at}.type"), &json!(ty), one_of(COLUMN_TYPES)));
            }
            _ => {}
        }
        let format = text(column, "/format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            errors.push(FieldError::invalid(format!("{at}.format"), &json!(format), one_of(FORMATS)));
        }
        let found = text(column, "/jsonPath");
        if found.is_empty() {
            errors.push(FieldError::required(format!("{at}.JSONPath"), ""));
        } else if let Some(why) = not_simple(found) {
            errors.push(FieldError::invalid(format!("{at}.JSONPath"), &json!(found), why));
        }
    }
}

fn selectable_fields(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    const MOST: usize = 8;
    let fields = list(version, "/selectableFields");
    let mut seen: Vec<&str> = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let at = format!("{path}[{i}].jsonPath");
        let found = text(field, "/jsonPath");
        if found.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let place = JsonPath::parse(found).and_then(|path| {
            let names = path.fields()?.into_iter().map(str::to_owned).collect::<Vec<_>>();
            let mut schema = version.pointer("/schema/openAPIV3Schema")?;
            for name in &names {
                schema = schema.get("properties")?.get(name)?;
            }
            Some((names, text(schema, "/type").to_owned()))
        });
        match place {
            None => {
                errors.push(FieldError::invalid(at, &json!(found), "is an invalid path: it does not refer to a field"))
            }
            Some((names, _)) if names.first().is_some_and(|name| name == "metadata") => {
                errors.push(FieldError::invalid(at, &json!(found), "must not point to fields in metadata"));
            }
            Some((_, ty)) if !matches!(ty.as_str(), "string" | "boolean" | "integer") => {
                let why = "must point to a field of type string, boolean or integer. Enum string fields and strings \
                           with formats are allowed.";
                errors.push(FieldError::invalid(at, &json!(found), why));
            }
            Some(_) if seen.contains(&found) => errors.push(FieldError::duplicate(at, &json!(found))),
            Some(_) => seen.push(found),
        }
    }
    if fields.len() > MOST {
        errors.push(FieldError::too_many(path, fields.len(), MOST));
    }
}

fn kind_names(spec: &Value, errors: &mut Vec<FieldError>) {
    for key in ["plural", "singular", "kind", "listKind"] {
        let name = text(spec, &format!("/names/{key}"));
        let at = format!("spec.names.{key}");
        if name.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let mixed = key.ends_with("ind");
        let wrong = syntax::label_1035(&if mixed { name.to_lowercase() } else { name.to_owned() });
        if !wrong.is_empty() {
            let prefix = if mixed { "may have mixed case, but should otherwise match: " } else { "" };
            errors.push(FieldError::invalid(at, &json!(name), format!("{prefix}{}", wrong.join(","))));
        }
    }
    for key in ["shortNames", "categories"] {
        for (i, name) in list(spec, &format!("/names/{key}")).iter().enumerate() {
            let wrong = syntax::label_1035(name.as_str().unwrap_or_default());
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(format!("spec.names.{key}[{i}]"), name, wrong.join(",")));
            }
        }
    }
    let kind = text(spec, "/names/kind");
    if !kind.is_empty() && kind == text(spec, "/names/listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid("spec.names.listKind", &json!(kind), why));
    }
}

fn stored_versions(definition: &Value, errors: &mut Vec<FieldError>) {
    let path = "status.storedVersions";
    let stored = list(definition, "/status/storedVersions");
    let whole = Value::from(stored.to_vec());
    if stored.is_empty() {
        errors.push(FieldError::invalid(path, &whole, "must have at least one stored version"));
        return;
    }
    let versions = list(definition, "/spec/versions");
    for version in versions.iter().filter(|version| version["storage"] == true) {
        if !stored.contains(&version["name"]) {
            let why = format!("must have the storage version {}", text(version, "/name"));
            errors.push(FieldError::invalid(path, &whole, why));
        }
    }
    for (i, name) in stored.iter().enumerate() {
        if !versions.iter().any(|version| &version["name"] == name) {
            let v = name.as_str().unwrap_or_default();
            let why = format!(
                "missing from spec.versions; {v} was previously a storage version, and must remain in spec.versions \
                 until a storage migration ensures no data remains persisted in {v} and removes {v} from \
                 status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("{path}[{i}]"), name, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn definition() -> Value {
        let mut definition = json!({"metadata": {"name": "widgets.life.example.com"}, "spec": {
            "group": "life.example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
        default(&mut definition);
        definition
    }

    fn fields(errors: &[FieldError]) -> Vec<&str> {
        errors.iter().map(|error| error.field.as_str()).collect()
    }

    #[test]
    fn defaults_complete_a_definition() {
        let definition = definition();
        assert_eq!(definition["spec"]["names"]["listKind"], "WidgetList");
        assert_eq!(definition["spec"]["names"]["singular"], "widget");
        assert_eq!(definition["spec"]["conversion"], json!({"strategy": "None"}));
        assert_eq!(validate(&definition), []);
    }

    #[test]
    fn mistakes_are_found_where_they_are() {
        let mut wrong = definition();
        wrong["metadata"]["name"] = "wrong.life.example.com".into();
        assert_eq!(fields(&validate(&wrong)), ["metadata.name"]);
        let mut wrong = definition();
        wrong["spec"]["versions"][0]["storage"] = false.into();
        wrong["status"]["storedVersions"] = json!([]);
        assert_eq!(fields(&validate(&wrong)), ["spec.versions", "status.storedVersions"]);
        let mut wrong = definition();
        wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"] = json!({"spec": {}});
        assert_eq!(fields(&validate(&wrong)), ["spec.validation.openAPIV3Schema.properties[spec].type"]);
        let mut wrong = definition();
        wrong["spec"]["versions"][0]["subresources"] =
            json!({"scale": {"specReplicasPath": ".status.x", "statusReplicasPath": "x"}});
        assert_eq!(
            fields(&validate(&wrong)),
            ["spec.subresources.scale.specReplicasPath", "spec.subresources.scale.statusReplicasPath"]
        );
    }

    #[test]
    fn what_is_served_cannot_be_renamed() {
        let mut old = definition();
        old["status"] = names::status(&old, &[], "t");
        let mut new = old.clone();
        new["spec"]["scope"] = "Cluster".into();
        assert_eq!(
            validate_update(&new, &old)[0].to_string(),
            "spec.scope: Invalid value: \"Cluster\": field is immutable"
        );
    }

    proptest! {
        #[test]
        fn never_panics(value in crate::schema::arbitrary::value()) {
            let mut definition = json!({"spec": {"names": value.clone(), "versions": [value.clone()]}});
            for definition in [&mut value.clone(), &mut definition] {
                default(definition);
                validate(definition);
                names::status(definition, &[value.clone()], "t");
            }
        }
    }
}

//! Validation of volumes.

use super::container::{field_reference, local_path, resource_reference};
use super::{Errors, push};
use crate::builtin::names;
use crate::builtin::value::{field, items};
use muster_api::field::FieldError;
use muster_api::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// What of its pod a volume can show.
const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks the volumes; gives their names, and whether they can be block devices.
pub(super) fn volumes<'a>(spec: &'a Value, path: &str, errors: &mut Errors) -> BTreeMap<&'a str, bool> {
    let mut names_seen = BTreeMap::new();
    for (i, volume) in items(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{i}]");
        let name = field(volume, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            push(errors, format!("{path}.name"), name, names::label(name));
        }
        source(volume, &path, errors);
        let device = volume.get("persistentVolumeClaim").is_some() || volume.get("ephemeral").is_some();
        if names_seen.insert(name, device).is_some() {
            errors.push(FieldError::duplicate(format!("{path}.name"), &Value::from(name)));
        }
    }
    names_seen
}

fn source(volume: &Value, path: &str, errors: &mut Errors) {
    let fields = volume.as_object().into_iter().flatten().filter(|(key, _)| *key != "name");
    let mut given = fields.map(|(key, value)| (key.as_str(), value));
    let Some((kind, source)) = given.next() else {
        errors.push(FieldError::required(path, "must specify a volume type"));
        return;
    };
    for (other, _) in given {
        errors.push(FieldError::forbidden(format!("{path}.{other}"), "may not specify more than 1 volume type"));
    }
    let path = format!("{path}.{kind}");
    let mut require = |key: &str| {
        if field(source, key).is_empty() {
            errors.push(FieldError::required(format!("{path}.{key}"), ""));
        }
    };
    match kind {
        "configMap" => require("name"),
        "secret" => require("secretName"),
        "hostPath" => require("path"),
        "persistentVolumeClaim" => require("claimName"),
        "nfs" => {
            require("server");
            require("path");
        }
        "csi" => require("driver"),
        _ => {}
    }
    match kind {
        "configMap" | "secret" => {
            mode(source.get("defaultMode"), &format!("{path}.defaultMode"), errors);
            keys_to_paths(source, &path, errors);
        }
        "hostPath" => {
            if field(source, "path").split('/').any(|part| part == "..") {
                let value = Value::from(field(source, "path"));
                errors.push(FieldError::invalid(format!("{path}.path"), &value, "must not contain '..'"));
            }
            let kind = field(source, "type");
            if !HOST_PATH_TYPES.contains(&kind) {
                let value = Value::from(kind);
                errors.push(FieldError::not_supported(format!("{path}.type"), &value, &HOST_PATH_TYPES));
            }
        }
        "emptyDir" => {
            let size = source.get("sizeLimit").and_then(Value::as_str).unwrap_or("0");
            if size.parse::<Quantity>().is_ok_and(Quantity::is_negative) {
                let why = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(format!("{path}.sizeLimit"), why));
            }
        }
        "downwardAPI" => {
            mode(source.get("defaultMode"), &format!("{path}.defaultMode"), errors);
            downward(source, &path, errors);
        }
        "projected" => projected(source, &path, errors),
        _ => {}
    }
}

fn mode(mode: Option<&Value>, path: &str, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|m| !m.as_i64().is_some_and(|n| (0..=0o777).contains(&n))) {
        errors.push(FieldError::invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive"));
    }
}

fn keys_to_paths(source: &Value, path: &str, errors: &mut Errors) {
    for (i, item) in items(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        if field(item, "key").is_empty() {
            errors.push(FieldError::required(format!("{path}.key"), ""));
        }
        let place = field(item, "path");
        if place.is_empty() {
            errors.push(FieldError::required(format!("{path}.path"), ""));
        }
        inside(place, &format!("{path}.path"), errors);
        mode(item.get("mode"), &format!("{path}.mode"), errors);
    }
}

/// A relative path that does not begin with `..`.
fn inside(text: &str, path: &str, errors: &mut Errors) {
    local_path(text, path, errors);
    let first = text.split('/').next().unwrap_or_default();
    if first.starts_with("..") && first != ".." {
        errors.push(FieldError::invalid(path, &Value::from(text), "must not start with '..'"));
    }
}

fn downward(source: &Value, path: &str, errors: &mut Errors) {
    for (i, item) in items(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        let place = field(item, "path");
        if place.is_empty() {
            errors.push(FieldError::required(format!("{path}.path"), ""));
        }
        inside(place, &format!("{path}.path"), errors);
        match (item.get("fieldRef"), item.get("resourceFieldRef")) {
            (Some(_), Some(_)) => {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&path, &Value::from("resource"), why));
            }
            (Some(reference), None) => {
                field_reference(reference, &format!("{path}.fieldRef"), &VOLUME_FIELDS, errors);
            }
            (None, Some(reference)) => {
                resource_reference(reference, &format!("{path}.resourceFieldRef"), true, errors);
            }
            (None, None) => {
                let why = "one of fieldRef and resourceFieldRef is required";
                errors.push(FieldError::required(format!("{path}.fieldRef"), why));
            }
        }
        mode(item.get("mode"), &format!("{path}.mode"), errors);
    }
}

fn projected(source: &Value, path: &str, errors: &mut Errors) {
    mode(source.get("defaultMode"), &format!("{path}.defaultMode"), errors);
    for (i, projection) in items(source, "sources").iter().enumerate() {
        let path = format!("{path}.sources[{i}]");
        let fields = projection.as_object().into_iter().flatten();
        let mut given = fields.map(|(key, value)| (key.as_str(), value));
        let Some((kind, inner)) = given.next() else { continue };
        for (other, _) in given {
            errors.push(FieldError::forbidden(format!("{path}.{other}"), "may not specify more than 1 volume type"));
        }
        let path = format!("{path}.{kind}");
        match kind {
            "configMap" | "secret" => {
                if field(inner, "name").is_empty() {
                    errors.push(FieldError::required(format!("{path}.name"), ""));
                }
                keys_to_paths(inner, &path, errors);
            }
            "downwardAPI" => downward(inner, &path, errors),
            "serviceAccountToken" => {
                let seconds = inner.get("expirationSeconds");
                if let Some(seconds) = seconds.filter(|s| s.as_i64().is_some_and(|n| n < 600)) {
                    let why = "may not specify a duration less than 10 minutes";
                    errors.push(FieldError::invalid(format!("{path}.expirationSeconds"), seconds, why));
                }
                if field(inner, "path").is_empty() {
                    errors.push(FieldError::required(format!("{path}.path"), ""));
                } else {
                    inside(field(inner, "path"), &format!("{path}.path"), errors);
                }
            }
            _ => {}
        }
    }
}

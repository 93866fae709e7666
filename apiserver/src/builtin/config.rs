//! ConfigMaps and Secrets.

use super::columns::{Column, Doc};
use super::metadata::IMMUTABLE;
use super::rows::{AGE, NAME, age, name};
use super::table::BASE;
use super::value::{child, entries, field, fields, fill, flag};
use super::{BuiltinKind, Context, names, wire};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use muster_api::field::FieldError;
use schemars::JsonSchema;
use serde_json::{Map, Value};

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        validate: |map, _| validate_map(map),
        validate_update: validate_map_update,
        columns: &[NAME, Column::new("Data", Doc::Field(ConfigMap::json_schema, "data")), AGE],
        row: |map, now| {
            let count = entries(map, "data").count() + entries(map, "binaryData").count();
            vec![name(map), count.into(), age(map, now)]
        },
        ..BASE
    },
    BuiltinKind {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        default: default_secret,
        validate: |secret, _| validate_secret(secret),
        validate_update: validate_secret_update,
        columns: &[
            NAME,
            Column::new("Type", Doc::Field(Secret::json_schema, "type")),
            Column::new("Data", Doc::Field(Secret::json_schema, "data")),
            AGE,
        ],
        row: |secret, now| {
            vec![name(secret), field(secret, "type").into(), entries(secret, "data").count().into(), age(secret, now)]
        },
        fields: |secret| {
            let mut values = Map::new();
            values.insert("type".into(), field(secret, "type").into());
            values
        },
        field_labels: &["type"],
        ..BASE
    },
];

/// Bytes that one object may hold.
const LIMIT: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";

fn decoded_size(data: &Value) -> usize {
    data.as_str().map_or(0, |text| text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(2))
}

fn validate_map(map: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    let binary: Vec<&String> = entries(map, "binaryData").map(|(key, _)| key).collect();
    for (key, value) in entries(map, "data") {
        size += value.as_str().map_or(0, str::len);
        keys(&mut errors, "data", key);
        if binary.contains(&key) {
            let why = "duplicate of key present in binaryData";
            errors.push(FieldError::invalid(format!("data[{key}]"), &Value::from(key.as_str()), why));
        }
    }
    for (key, value) in entries(map, "binaryData") {
        size += decoded_size(value);
        keys(&mut errors, "binaryData", key);
    }
    if size > LIMIT {
        errors.push(FieldError::too_long("[]", LIMIT));
    }
    errors
}

fn keys(errors: &mut Vec<FieldError>, map: &str, key: &str) {
    let wrong = names::config_key(key).into_iter();
    errors.extend(wrong.map(|m| FieldError::invalid(format!("{map}[{key}]"), &Value::from(key), m)));
}

fn validate_map_update(new: &Value, old: &Value, _: &Context<'_>) -> Vec<FieldError> {
    frozen(new, old, &["data", "binaryData"])
}

fn frozen(new: &Value, old: &Value, maps: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !flag(old, "/immutable") {
        return errors;
    }
    if !flag(new, "/immutable") {
        errors.push(FieldError::forbidden("immutable", FROZEN));
    }
    for key in maps {
        if new.get(*key) != old.get(*key) {
            errors.push(FieldError::forbidden(*key, FROZEN));
        }
    }
    errors
}

fn default_secret(secret: &mut Value) {
    wire::normalise(secret);
    fill(secret, "type", "Opaque");
    if let Some(Value::Object(plain)) = fields(secret).remove("stringData") {
        let data = fields(child(secret, "data"));
        for (key, value) in plain {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
        }
    }
}

fn validate_secret(secret: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in entries(secret, "data") {
        size += decoded_size(value);
        keys(&mut errors, "data", key);
    }
    if size > LIMIT {
        errors.push(FieldError::too_long("data", LIMIT));
    }
    let get = |key: &str| secret.get("data").and_then(|d| d.get(key)).and_then(Value::as_str);
    let mut require = |key: &str, present: bool| {
        if !present {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match field(secret, "type") {
        "kubernetes.io/tls" => {
            require("tls.crt", get("tls.crt").is_some());
            require("tls.key", get("tls.key").is_some());
        }
        "kubernetes.io/basic-auth" => {
            let either = get("username").is_some() || get("password").is_some();
            require("username", either);
            require("password", either);
        }
        "kubernetes.io/ssh-auth" => require("ssh-privatekey", get("ssh-privatekey").is_some_and(|k| !k.is_empty())),
        "kubernetes.io/dockercfg" => json_key(get(".dockercfg"), ".dockercfg", &mut errors),
        "kubernetes.io/dockerconfigjson" => json_key(get(".dockerconfigjson"), ".dockerconfigjson", &mut errors),
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            let account = secret.pointer("/metadata/annotations").map_or("", |a| field(a, key));
            if account.is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{key}]"), ""));
            }
        }
        _ => {}
    }
    errors
}

/// A key that has to be there and hold JSON; what it holds is a secret and is not shown.
fn json_key(value: Option<&str>, key: &str, errors: &mut Vec<FieldError>) {
    let path = format!("data[{key}]");
    let Some(value) = value else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let bytes = STANDARD.decode(value).unwrap_or_default();
    if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_err() {
        let why = if bytes.is_empty() { "unexpected end of JSON input" } else { "invalid JSON" };
        errors.push(FieldError::invalid(path, &Value::from("<secret contents redacted>"), why));
    }
}

fn validate_secret_update(new: &Value, old: &Value, _: &Context<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if field(new, "type") != field(old, "type") {
        errors.push(FieldError::invalid("type", &Value::from(field(new, "type")), IMMUTABLE));
    }
    errors.extend(frozen(new, old, &["data"]));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::NoObjects;
    use serde_json::json;

    const CONTEXT: Context<'static> =
        Context { now: "", namespace: Some("n"), subresource: "", objects: &NoObjects, random: &|| 7 };

    #[test]
    fn plain_text_becomes_data() {
        let mut secret = json!({"stringData": {"user": "me", "pw": "x"}, "data": {"pw": "b2xk"}});
        default_secret(&mut secret);
        assert_eq!(secret, json!({"data": {"pw": "eA==", "user": "bWU="}, "type": "Opaque"}));
    }

    #[test]
    fn types_ask_for_keys() {
        for (kind, data, expected) in [
            ("Opaque", json!({"a b": ""}), vec!["data[a b]"]),
            ("kubernetes.io/tls", json!({"tls.crt": ""}), vec!["data[tls.key]"]),
            ("kubernetes.io/basic-auth", json!({"x": ""}), vec!["data[username]", "data[password]"]),
            ("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "e30="}), vec![]),
            ("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "e30"}), vec!["data[.dockerconfigjson]"]),
        ] {
            let errors = validate_secret(&json!({"type": kind, "data": data}));
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), expected, "{kind}");
        }
    }

    #[test]
    fn immutable_means_it() {
        let old = json!({"type": "Opaque", "immutable": true, "data": {"x": "eA=="}});
        for (new, expected) in [
            (old.clone(), vec![]),
            (json!({"type": "Opaque", "immutable": true, "data": {"x": "eQ=="}}), vec!["data"]),
            (json!({"type": "Opaque", "data": {"x": "eA=="}}), vec!["immutable"]),
            (json!({"type": "other", "immutable": true, "data": {"x": "eA=="}}), vec!["type"]),
        ] {
            let errors = validate_secret_update(&new, &old, &CONTEXT);
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), expected, "{new}");
        }
    }

    #[test]
    fn sizes() {
        let data = STANDARD.encode(vec![0; LIMIT]);
        assert_eq!(validate_map(&json!({"binaryData": {"a": data}})), []);
        assert_eq!(validate_map(&json!({"data": {"a": "x".repeat(LIMIT + 1)}})).len(), 1);
    }
}

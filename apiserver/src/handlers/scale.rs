//! The scale subresource: the number of replicas of any kind that has one, in one form.

use super::Req;
use super::patch::{Patch, PatchType};
use super::update::Change;
use super::write::Written;
use crate::codec;
use crate::error::{ApiError, ApiResult};
use crate::options::WriteOptions;
use crate::patch;
use crate::registry::Served;
use crate::response::Response;
use crate::server::Api;
use muster_api::field::FieldError;
use serde_json::{Value, json};
use std::sync::Arc;

/// A `LabelSelector`, or a plain map of labels, as text.
fn selector_text(selector: &Value) -> String {
    let labels = if selector["matchLabels"].is_object() || selector["matchExpressions"].is_array() {
        &selector["matchLabels"]
    } else {
        selector
    };
    let mut terms: Vec<String> = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        terms.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        terms.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    terms.sort();
    terms.join(",")
}

fn scale_of(served: &Served, object: &Value) -> Value {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let (replicas, status, selector) = match served.custom_scale() {
        Some(scale) => {
            (scale.spec_replicas(object).unwrap_or(0), scale.status_replicas(object), scale.selector(object))
        }
        None => (number("/spec/replicas"), number("/status/replicas"), selector_text(&object["spec"]["selector"])),
    };
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": {}, "status": {"replicas": status},
    });
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !metadata[key].is_null() {
            scale["metadata"][key] = metadata[key].clone();
        }
    }
    if replicas != 0 {
        scale["spec"]["replicas"] = replicas.into();
    }
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

impl Api {
    pub(super) async fn scale(
        self: &Arc<Self>,
        req: &mut Req,
        served: &Arc<Served>,
        verb: &str,
    ) -> ApiResult<Response> {
        let form = req.form(served, false, false)?;
        let (namespace, name) = (req.resource.namespace.clone(), req.name().to_owned());
        if verb == "get" {
            let object = self.store.get(&self.key(served, namespace.as_deref(), &name));
            let object = object.ok_or_else(|| served.not_found(&name))?;
            return Ok(super::read::encode(form.encoding, 200, &scale_of(served, &served.value(&object))));
        }
        let content_type = req.header(http::header::CONTENT_TYPE).to_owned();
        let kind = if verb == "patch" { "PatchOptions" } else { "UpdateOptions" };
        let apply = content_type.starts_with("application/apply-patch");
        let options = WriteOptions::parse(kind, &req.query, &req.headers, apply)?;
        let body = req.body().await?;
        let (patch, given) = if verb == "patch" {
            (Some(Patch::read(&content_type, &body, true)?), Value::Null)
        } else {
            // As it is now that the body is read: one in protobuf has become JSON.
            let content_type = req.header(http::header::CONTENT_TYPE).to_owned();
            codec::check_media_type(&content_type)?;
            let tree = crate::schema::strict::parse(&body, &content_type);
            let tree = tree.map_err(|error| error.unrecognized("Scale", &body))?;
            (None, tree.into_value())
        };
        let change = Change {
            served,
            namespace: namespace.as_deref(),
            name: &name,
            subresource: "scale",
            options: &options,
            put: false,
            tracked: !apply,
        };
        let builtin = served.as_builtin().is_some();
        let schema = served.schema().ok_or_else(|| ApiError::internal("the kind has no schema"))?;
        let now = self.clock.now_rfc3339();
        let written = self
            .modify(&change, &mut req.warnings, |old| {
                let before = scale_of(served, old);
                let scale = match &patch {
                    None => given.clone(),
                    Some(patch) => match patch.kind {
                        PatchType::Json => patch::json::apply(&before, &patch.document)?,
                        _ => patch::merge::apply(&before, &patch.document)?,
                    },
                };
                let given = codec::name_of(&scale);
                if !given.is_empty() && given != name {
                    let why = format!("the name of the object ({given}) does not match the name on the URL ({name})");
                    return Err(ApiError::bad_request(why));
                }
                let version = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                if !version.is_empty() && before["metadata"]["resourceVersion"] != version {
                    return Err(served.conflict(&name));
                }
                let replicas = match &scale["spec"]["replicas"] {
                    Value::Null => 0,
                    value => value.as_i64().ok_or_else(|| {
                        ApiError::bad_request("Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal into Go struct field ScaleSpec.spec.replicas of type int32")
                    })?,
                };
                if replicas < 0 && builtin {
                    let error = FieldError::invalid(
                        "spec.replicas",
                        &json!(replicas),
                        "must be greater than or equal to 0",
                    );
                    return Err(ApiError::invalid("autoscaling", "Scale", &name, &[error]));
                }
                let mut new = if apply {
                    // What is applied to a scale is applied to the object: its replicas and nothing else.
                    json!({"apiVersion": served.api_version(), "kind": served.kind, "metadata": {"name": name}})
                } else {
                    old.clone()
                };
                match served.custom_scale() {
                    Some(scale) => scale.set_replicas(&mut new, replicas),
                    None => new["spec"]["replicas"] = replicas.into(),
                }
                if apply {
                    let operation = super::patch::operation(served, &options, "scale", &now);
                    new = patch::apply::apply(&schema, Some(old), &new, &operation, options.force)?;
                }
                Ok(new)
            })
            .await?;
        let value = match written {
            Written::Stored(object) => served.value(&object),
            Written::Gone(value) => value,
        };
        Ok(super::read::encode(form.encoding, 200, &scale_of(served, &value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_text() {
        for (selector, text) in [
            (json!({"matchLabels": {"b": "2", "a": "1"}}), "a=1,b=2"),
            (json!({"a": "1"}), "a=1"),
            (json!({"matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]}]}), "k in (x,y)"),
            (json!(null), ""),
        ] {
            assert_eq!(selector_text(&selector), text);
        }
    }
}

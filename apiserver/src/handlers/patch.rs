//! Patches: JSON patch, merge patch, strategic merge patch, server-side apply.

use super::Req;
use super::update::Change;
use super::write::{Written, place};
use crate::codec::{self, FieldValidation};
use crate::error::{ApiError, ApiResult};
use crate::options::WriteOptions;
use crate::patch::{self, apply};
use crate::registry::Served;
use crate::response::Response;
use crate::schema::{Tree, strict};
use crate::server::Api;
use muster_api::field::FieldError;
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    pub(super) fn of(content_type: &str, strategic: bool) -> ApiResult<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(PatchType::Json),
            "application/merge-patch+json" => Ok(PatchType::Merge),
            "application/strategic-merge-patch+json" if strategic => Ok(PatchType::Strategic),
            "application/apply-patch+yaml" => Ok(PatchType::Apply),
            // Media types of objects are refused before it comes to patches.
            "" | "application/json" | "application/yaml" | "application/vnd.kubernetes.protobuf" => {
                Err(ApiError::unsupported_media_type("415: Unsupported Media Type").with_details(json!({})))
            }
            _ => {
                let strategic = if strategic { "application/strategic-merge-patch+json, " } else { "" };
                Err(ApiError::unsupported_media_type(format!(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, {strategic}application/apply-patch+yaml"
                )))
            }
        }
    }

    /// Reads the body of a patch. The duplicate fields of a document are reported by its decoding, later.
    pub(super) fn parse(self, body: &[u8]) -> ApiResult<(Value, Vec<String>)> {
        let media = if self == PatchType::Apply { "yaml" } else { "json" };
        let tree = strict::parse(body, media).map_err(|error| {
            ApiError::bad_request(match self {
                PatchType::Apply => format!("error decoding YAML: error converting YAML to JSON: {}", error.message),
                PatchType::Strategic => error.message,
                _ => format!("error decoding patch: {}", error.message),
            })
        })?;
        let duplicates = tree.duplicates().into_iter().map(|path| format!("duplicate field {path:?}")).collect();
        Ok((tree.into_value(), duplicates))
    }
}

/// A patch that is ready to be applied to whatever the object is at that moment.
pub(super) struct Patch {
    pub(super) kind: PatchType,
    pub(super) document: Value,
    duplicates: Vec<String>,
}

impl Patch {
    pub(super) fn read(content_type: &str, body: &[u8], strategic: bool) -> ApiResult<Self> {
        let kind = PatchType::of(content_type, strategic)?;
        let (document, duplicates) = kind.parse(body)?;
        Ok(Patch { kind, document, duplicates })
    }
}

impl Api {
    pub(super) async fn patch(self: &Arc<Self>, req: &mut Req, served: &Arc<Served>) -> ApiResult<Response> {
        let form = req.form(served, false, false)?;
        let content_type = req.header(http::header::CONTENT_TYPE).to_owned();
        let kind = PatchType::of(&content_type, served.as_builtin().is_some())?;
        let options = WriteOptions::parse("PatchOptions", &req.query, &req.headers, kind == PatchType::Apply)?;
        let body = req.body().await?;
        let patch = Patch::read(&content_type, &body, served.as_builtin().is_some())?;
        let (namespace, name) = (req.resource.namespace.clone(), req.name().to_owned());
        let subresource = req.resource.sub().to_owned();
        let change = Change {
            served,
            namespace: namespace.as_deref(),
            name: &name,
            subresource: &subresource,
            options: &options,
            put: false,
            tracked: kind != PatchType::Apply,
        };
        if patch.kind == PatchType::Apply {
            self.check_applied(served, namespace.as_deref(), &name, &patch.document)?;
            let absent = self.store.head(&self.key(served, namespace.as_deref(), &name)).is_none();
            if absent && subresource.is_empty() {
                let (code, written) = self.apply_new(&change, &patch, &mut req.warnings).await?;
                self.after_write(served, false).await?;
                return self.answer_written(req, served, form, code, written);
            }
        }
        let written = self.apply_patch(&change, &patch, &mut req.warnings).await?;
        self.after_write(served, matches!(written, Written::Gone(_))).await?;
        self.answer_written(req, served, form, 200, written)
    }

    /// Applies a patch to an object that there is.
    pub(super) async fn apply_patch(
        &self,
        change: &Change<'_>,
        patch: &Patch,
        warnings: &mut Vec<String>,
    ) -> ApiResult<Written> {
        let mut found = Vec::new();
        let written = self
            .modify(change, warnings, |old| {
                found.clear();
                self.patched(change, patch, old, &mut found)
            })
            .await?;
        warnings.extend(found);
        Ok(written)
    }

    /// The object after the patch, decoded.
    fn patched(&self, change: &Change<'_>, patch: &Patch, old: &Value, warnings: &mut Vec<String>) -> ApiResult<Value> {
        let Change { served, options, subresource, .. } = *change;
        let schema = served.schema().ok_or_else(|| ApiError::internal("the kind has no schema"))?;
        let mut new = match patch.kind {
            PatchType::Json => patch::json::apply(old, &patch.document)?,
            PatchType::Merge => patch::merge::apply(old, &patch.document)?,
            PatchType::Strategic => patch::strategic::apply(&schema, old, &patch.document)?,
            PatchType::Apply => {
                let now = self.clock.now_rfc3339();
                let operation = operation(served, options, subresource, &now);
                apply::apply(&schema, Some(old), &patch.document, &operation, options.force)?
            }
        };
        if !matches!(subresource, "" | "status") {
            new = codec::typed(served, new);
        }
        decode_patched(served, patch, new, options.validation, warnings)
    }

    /// Creates what is applied.
    async fn apply_new(
        &self,
        change: &Change<'_>,
        patch: &Patch,
        warnings: &mut Vec<String>,
    ) -> ApiResult<(u16, Written)> {
        let Change { served, namespace, options, subresource, .. } = *change;
        let schema = served.schema().ok_or_else(|| ApiError::internal("the kind has no schema"))?;
        let now = self.clock.now_rfc3339();
        let uid = patch.document["metadata"]["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(ApiError::conflict(&served.group, &served.plural, change.name, &why));
        }
        let operation = operation(served, options, subresource, &now);
        let mut new = apply::apply(&schema, None, &patch.document, &operation, options.force)?;
        if let Some(metadata) = new["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        let new = decode_patched(served, patch, new, options.validation, warnings)?;
        let applied = WriteOptions { manager: String::new(), ..options.clone() };
        match self.create_object(served, namespace, new, &applied, warnings).await {
            // Somebody else was faster: then it is a change of what they made.
            Err(error) if error.reason == "AlreadyExists" => {
                Ok((200, self.apply_patch(change, patch, warnings).await?))
            }
            outcome => Ok((201, outcome?)),
        }
    }

    /// What is applied must say what it is, and agree with the URL.
    fn check_applied(&self, served: &Served, namespace: Option<&str>, name: &str, document: &Value) -> ApiResult<()> {
        let found = match document {
            Value::Object(_) | Value::Null => "",
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
        };
        if !found.is_empty() {
            return Err(ApiError::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {found} into \
                 Go value of type map[string]interface {{}}"
            )));
        }
        let kind = document["kind"].as_str().unwrap_or_default();
        let api_version = document["apiVersion"].as_str().unwrap_or_default();
        if kind != served.kind || api_version != served.api_version() {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            return Err(ApiError::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")));
        }
        let given = document["metadata"]["name"].as_str().unwrap_or_default();
        if !given.is_empty() && given != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        place(served, &mut document.clone(), namespace)
    }
}

/// How a write counts for managed fields.
pub(super) fn operation<'a>(
    served: &Served,
    options: &'a WriteOptions,
    subresource: &'a str,
    now: &'a str,
) -> apply::Operation<'a> {
    let has_status = served.subresources.iter().any(|name| name == "status");
    apply::Operation {
        manager: &options.manager,
        subresource,
        now,
        reset: apply::reset_fields(subresource, has_status),
    }
}

/// Decodes the result of a patch as the kind; what strict decoding finds counts as it does for whole objects.
fn decode_patched(
    served: &Served,
    patch: &Patch,
    new: Value,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> ApiResult<Value> {
    let shown = match patch.kind {
        PatchType::Strategic => patch::go_print(&patch.document),
        PatchType::Json | PatchType::Merge | PatchType::Apply => patch.document.to_string(),
    };
    let refused = |why: String| {
        let error = FieldError::invalid("patch", &json!(shown), why);
        ApiError::invalid("", "", "", &[error])
    };
    let mut decoded = codec::decode(served, Tree::from(new)).map_err(refused)?;
    decoded.strict.splice(0..0, patch.duplicates.iter().cloned());
    codec::report(&mut decoded, validation, warnings).map_err(|why| match patch.kind {
        PatchType::Apply => ApiError::bad_request(format!("failed to create typed patch object: {why}")),
        _ => refused(why),
    })?;
    Ok(codec::typed(served, decoded.value))
}

//! Request bodies: from bytes to an object of the kind that the URL asks for.

use crate::error::{ApiError, ApiResult};
use crate::registry::{Catalog, Served};
use crate::schema::{Decoded, Tree, strict};
use muster_api::field::FieldError;
use serde_json::Value;

/// What happens with fields that the kind does not know or that occur twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// The media types of a body that holds one object.
pub(crate) fn check_media_type(content_type: &str) -> ApiResult<()> {
    let mut parts = content_type.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let sound = parts.all(|parameter| parameter.is_empty() || parameter.contains('='));
    match media {
        "" | "application/json" | "application/yaml" if sound => Ok(()),
        _ => Err(ApiError::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// Reads a body as an object of `served`. `apiVersion` and `kind` may be left out.
pub(crate) fn object(
    catalog: &Catalog,
    served: &Served,
    body: &[u8],
    content_type: &str,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> ApiResult<Value> {
    check_media_type(content_type)?;
    let tree = strict::parse(body, content_type).map_err(|error| error.unrecognized(&served.kind, body))?;
    let (api_version, kind) = strict::type_meta(&tree).map_err(|why| strict::unrecognized(&served.kind, &why, body))?;
    let (group, version) = split(&api_version);
    if served.as_builtin().is_none() && kind == served.kind && group == served.group && version != served.version {
        // What is unknown is what the version in the data does not know.
        let mut decoded = match catalog.find(group, version, &served.plural) {
            Some(other) => decode(&other, tree.clone()),
            None => Ok(nothing_known(&tree)),
        }
        .map_err(ApiError::bad_request)?;
        report(&mut decoded, validation, warnings).map_err(|why| {
            ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
        })?;
    }
    check_type(catalog, served, &api_version, &kind, &tree)?;
    let version = if version.is_empty() { &served.version } else { version };
    let refused = |why: &str| {
        ApiError::bad_request(format!(
            "{} in version {version:?} cannot be handled as a {}: {why}",
            served.kind, served.kind
        ))
    };
    let mut decoded = decode(served, tree).map_err(|why| refused(&why))?;
    report(&mut decoded, validation, warnings).map_err(|why| refused(&why))?;
    Ok(typed(served, decoded.value))
}

/// A custom object of a version that there is not: all its fields are unknown.
fn nothing_known(tree: &Tree) -> Decoded {
    let value = tree.clone().into_value();
    let fields = value.as_object().into_iter().flatten().map(|(field, _)| field.as_str());
    let unknown = fields.filter(|field| !matches!(*field, "apiVersion" | "kind" | "metadata"));
    Decoded { strict: unknown.map(|field| format!("unknown field {field:?}")).collect(), value }
}

/// Decodes a document that need not say what it is.
pub(crate) fn decode(served: &Served, tree: Tree) -> Result<Decoded, String> {
    match served.schema() {
        Some(schema) => schema.decode(tree).map_err(|error| error.to_string()),
        None => Ok(Decoded { strict: tree.duplicates(), value: tree.into_value() }),
    }
}

/// Deals with what strict decoding has found; the error is the reason of a refusal.
pub(crate) fn report(
    decoded: &mut Decoded,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let found = std::mem::take(&mut decoded.strict);
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => warnings.extend(found),
        FieldValidation::Strict if found.is_empty() => {}
        FieldValidation::Strict => return Err(format!("strict decoding error: {}", found.join(", "))),
    }
    Ok(())
}

/// Gives an object the type that it is served as.
pub(crate) fn typed(served: &Served, mut value: Value) -> Value {
    if !value.is_object() {
        value = Value::Object(serde_json::Map::new());
    }
    value["apiVersion"] = served.api_version().into();
    value["kind"] = served.kind.clone().into();
    if !value["metadata"].is_object() {
        value["metadata"] = Value::Object(serde_json::Map::new());
    }
    value
}

fn split(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The name of a group's internal version in messages.
fn internal(group: &str) -> &str {
    match group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    }
}

fn check_type(catalog: &Catalog, served: &Served, api_version: &str, kind: &str, body: &Tree) -> ApiResult<()> {
    let wanted = served.api_version();
    let api_version = if api_version.is_empty() { wanted.as_str() } else { api_version };
    let kind = if kind.is_empty() { served.kind.as_str() } else { kind };
    if api_version == wanted && kind == served.kind {
        return Ok(());
    }
    let (group, version) = split(api_version);
    let why = if served.as_builtin().is_none() {
        if kind == served.kind {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
            )));
        }
        let name = body.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Tree::as_str);
        let error = FieldError::invalid("kind", &kind.into(), format!("must be {}", served.kind));
        return Err(ApiError::invalid(&served.group, kind, name.unwrap_or_default(), &[error]));
    } else if catalog.by_kind(group, version, kind).is_some_and(|known| known.as_builtin().is_some()) {
        format!("converting ({version}.{kind}) to ({}.{}): unknown conversion", internal(&served.group), served.kind)
    } else {
        format!("no kind {kind:?} is registered for version {api_version:?} in scheme \"pkg/runtime/scheme.go:110\"")
    };
    Err(ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {}: {why}", served.kind)))
}

/// A stored object's name.
pub(crate) fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The name in a store path (`namespace/name` or `name`).
pub(crate) fn name_in(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

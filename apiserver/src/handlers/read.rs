//! Reading: get and list, in the form that the client asked for.

use super::Req;
use crate::error::{ApiError, ApiResult};
use crate::negotiate::{Encoding, Form, Shape};
use crate::options::{ListOptions, VersionMatch, version};
use crate::registry::Served;
use crate::response::{self, Response};
use crate::selector::{FieldSelector, LabelSelector};
use crate::server::Api;
use crate::store::{Object, Page};
use crate::{protobuf, table, yaml};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// How long a read waits for a revision that is not there yet.
const FRESH_WAIT: Duration = Duration::from_secs(3);

/// Which objects of a resource a request is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    pub(crate) namespace: Option<String>,
    /// From a path that names one object (a deprecated way to watch it).
    pub(crate) name: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    pub(crate) fn parse(req: &Req, served: &Served) -> ApiResult<Self> {
        let labels = LabelSelector::parse(req.query.get("labelSelector").unwrap_or_default())?;
        let fields = FieldSelector::parse(req.query.get("fieldSelector").unwrap_or_default())?;
        for (field, _, _) in &fields.0 {
            served.check_field(field)?;
        }
        Ok(Selection { namespace: req.resource.namespace.clone(), name: req.resource.name.clone(), labels, fields })
    }

    /// Whether it holds all objects of its namespace.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.name.is_none()
    }

    pub(crate) fn matches(&self, served: &Served, path: &str, object: &Object) -> bool {
        let (namespace, name) = path.split_once('/').unwrap_or(("", path));
        if self.namespace.as_deref().is_some_and(|wanted| served.namespaced && wanted != namespace)
            || self.name.as_deref().is_some_and(|wanted| wanted != name)
        {
            return false;
        }
        self.labels.matches(&object.index)
            && self.fields.matches(|field| match field {
                "metadata.name" => Cow::Owned(name.to_owned()),
                "metadata.namespace" => Cow::Owned(namespace.to_owned()),
                field => served.field(object, field),
            })
    }
}

impl Api {
    /// Waits until the store has come to a revision, for a moment.
    pub(crate) async fn fresh(&self, revision: u64) -> ApiResult<()> {
        if self.store.revision() >= revision {
            return Ok(());
        }
        let waited = tokio::time::timeout(FRESH_WAIT, self.store.durable(revision)).await;
        if matches!(waited, Ok(Ok(()))) {
            return Ok(());
        }
        let current = self.store.revision();
        let message = format!("Timeout: Too large resource version: {revision}, current: {current}");
        let mut error = ApiError::new(504, "Timeout", message).with_details(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }));
        error.retry_after = Some(1);
        Err(error)
    }

    pub(super) async fn get(&self, req: &Req, served: &Arc<Served>) -> ApiResult<Response> {
        let form = req.form(served, false, false)?;
        if let Some(revision) = version(req.query.text("resourceVersion"))? {
            self.fresh(revision).await?;
        }
        let object = self.store.get(&self.key(served, req.namespace(), req.name()));
        let object = object.ok_or_else(|| served.not_found(req.name()))?;
        self.answer(req, served, form, 200, &object)
    }

    /// Answers with a stored object.
    pub(crate) fn answer(
        &self,
        req: &Req,
        served: &Arc<Served>,
        form: Form,
        code: u16,
        object: &Object,
    ) -> ApiResult<Response> {
        if form.shape == Shape::Whole && form.encoding == Encoding::Json {
            let json = served.json(object, form.managers);
            return Ok(response::bytes(code, form.encoding.content_type(), json));
        }
        self.answer_value(req, served, form, code, served.value(object))
    }

    /// Answers with an object that need not be stored.
    pub(crate) fn answer_value(
        &self,
        req: &Req,
        served: &Arc<Served>,
        form: Form,
        code: u16,
        value: Value,
    ) -> ApiResult<Response> {
        let value = match form.shape {
            Shape::Whole => value,
            Shape::Partial(version, _) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": value["metadata"]})
            }
            Shape::Table(version) => {
                let metadata = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let include = table::Include::parse(req.query.get("includeObject"))?;
                table::table(served, version, metadata, &[value], include, self.clock.now(), true)
            }
        };
        Ok(encode(form.encoding, code, &value))
    }

    pub(super) async fn list(&self, req: &Req, served: &Arc<Served>) -> ApiResult<Response> {
        let form = req.form(served, true, false)?;
        let options = ListOptions::parse(&req.query)?;
        let selection = Selection::parse(req, served)?;
        let include = match form.shape {
            Shape::Table(_) => table::Include::parse(req.query.get("includeObject"))?,
            _ => table::Include::Metadata,
        };
        let mut after = None;
        let mut at = None;
        if let Some(token) = &options.continue_token {
            let (path, revision) = read_continue(token)?;
            if options.resource_version.is_some_and(|version| version != 0) {
                let message = "specifying resource version is not allowed when using continue";
                return Err(ApiError::bad_request(message));
            }
            after = Some(path);
            at = revision;
        } else if let Some(version) = options.resource_version.filter(|version| *version > 0) {
            self.fresh(version).await?;
            let exact = options.version_match == VersionMatch::Exact
                || (options.version_match == VersionMatch::Unset && options.limit > 0);
            at = exact.then_some(version);
        }
        let page = self.store.list(&served.storage, selection.namespace.as_deref(), after.as_deref(), at);
        let page = match page {
            Ok(page) => page,
            Err(_) if options.continue_token.is_some() => {
                return Err(expired_continue(after.as_deref().unwrap_or_default()));
            }
            Err(_) => return Err(ApiError::gone("The resourceVersion for the provided list is too old.")),
        };
        let Page { items, paths, revision } = page;
        // A list of whatever is at hand is given whole.
        let at_hand = options.resource_version == Some(0) && options.continue_token.is_none();
        let limit = if at_hand { 0 } else { options.limit };
        let mut chosen: Vec<Arc<Object>> = Vec::new();
        let mut more: Option<(usize, Arc<str>)> = None;
        let mut last: Option<Arc<str>> = None;
        for (place, (object, path)) in items.iter().zip(&paths).enumerate() {
            if !selection.matches(served, path, object) {
                continue;
            }
            if limit > 0 && chosen.len() == limit {
                more = last.take().map(|last| (items.len() - place, last));
                break;
            }
            chosen.push(object.clone());
            last = Some(path.clone());
        }
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if served.typed_items() && form.shape == Shape::Whole {
            metadata["continue"] = "".into();
        }
        if let Some((remaining, last)) = more {
            metadata["continue"] = write_continue(&last, revision).into();
            if selection.is_everything() {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
        Ok(self.answer_list(served, form, metadata, &chosen, include))
    }

    /// Answers with several stored objects.
    pub(crate) fn answer_list(
        &self,
        served: &Arc<Served>,
        form: Form,
        metadata: Value,
        objects: &[Arc<Object>],
        include: table::Include,
    ) -> Response {
        let value = match form.shape {
            Shape::Whole if form.encoding == Encoding::Json => {
                return response::bytes(200, "application/json", list_json(served, &metadata, objects, form.managers));
            }
            Shape::Whole => {
                let list = list_json(served, &metadata, objects, form.managers);
                serde_json::from_slice(&list).unwrap_or_default()
            }
            Shape::Partial(version, _) => {
                let items = objects.iter().map(|object| {
                    json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": object.bare_value()["metadata"]})
                });
                let items: Vec<Value> = items.collect();
                // A list of nothing is null in Go.
                let items = if items.is_empty() { Value::Null } else { items.into() };
                json!({"kind": "PartialObjectMetadataList", "apiVersion": version, "metadata": metadata, "items": items})
            }
            Shape::Table(version) => {
                let objects: Vec<Value> = objects.iter().map(|object| served.value(object)).collect();
                table::table(served, version, metadata, &objects, include, self.clock.now(), true)
            }
        };
        encode(form.encoding, 200, &value)
    }
}

/// A value in the encoding that was asked for.
pub(crate) fn encode(encoding: Encoding, code: u16, value: &Value) -> Response {
    let body = match encoding {
        Encoding::Json => value.to_string(),
        Encoding::Yaml => yaml::to_string(value),
        Encoding::Protobuf => match protobuf::to_bytes(value) {
            Some(body) => return response::bytes(code, encoding.content_type(), body),
            None => return response::json(code, value),
        },
    };
    response::bytes(code, encoding.content_type(), body)
}

fn list_json(served: &Served, metadata: &Value, objects: &[Arc<Object>], managers: bool) -> Bytes {
    let size: usize = objects.iter().map(|object| object.json.len() + 64).sum();
    let mut out = BytesMut::with_capacity(size + 128);
    let head = json!({"kind": served.list_kind, "apiVersion": served.api_version(), "metadata": metadata}).to_string();
    out.extend_from_slice(&head.as_bytes()[..head.len() - 1]);
    out.extend_from_slice(b",\"items\":[");
    for (place, object) in objects.iter().enumerate() {
        if place > 0 {
            out.extend_from_slice(b",");
        }
        out.extend_from_slice(&served.item_json(object, managers));
    }
    out.extend_from_slice(b"]}");
    out.freeze()
}

/// As Go reads base64: what is left over in the last character does not matter.
const CONTINUE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

fn write_continue(path: &str, revision: u64) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": path}).to_string())
}

/// The path after which to go on, and the revision of the pages before (none: of now).
fn read_continue(token: &str) -> ApiResult<(String, Option<u64>)> {
    let wrong = |why: &str| ApiError::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let foreign = |byte: &u8| !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let token = token.trim_end_matches('=').as_bytes();
    let broken = token.iter().position(foreign).or((token.len() % 4 == 1).then_some(token.len() - 1));
    let text = match broken {
        None => CONTINUE.decode(token).map_err(|e| wrong(&e.to_string()))?,
        Some(place) => return Err(wrong(&format!("illegal base64 data at input byte {place}"))),
    };
    let token = crate::schema::parse_json(&text).map_err(|why| wrong(&why))?.into_value();
    match (token["v"].as_str(), token["start"].as_str()) {
        (Some("meta.k8s.io/v1"), Some(start)) => Ok((start.to_owned(), token["rv"].as_u64())),
        _ => Err(wrong("server does not recognize this encoded version")),
    }
}

/// 410 with a token by which the list can be continued from the present, inconsistently.
fn expired_continue(path: &str) -> ApiError {
    let token = URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "start": path}).to_string());
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                   list without the continue parameter, or use the continue token in this response to retrieve the \
                   remainder of the results. Continuing with the provided token results in an inconsistent list - \
                   objects that were created, modified, or deleted between the time the first chunk was returned and \
                   now may show up in the list.";
    let mut error = ApiError::gone(message);
    error.list_continue = Some(token);
    error
}

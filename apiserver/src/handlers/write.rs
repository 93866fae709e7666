//! Creating objects, and what all writes have in common.

use super::{Req, Stored, definitions};
use crate::builtin::{Context, NameRule, metadata};
use crate::codec;
use crate::crd;
use crate::error::{ApiError, ApiResult};
use crate::options::WriteOptions;
use crate::patch::apply;
use crate::registry::{Served, Source};
use crate::response::Response;
use crate::server::Api;
use crate::store::{CommitError, Object, Op};
use muster_api::field::FieldError;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// How often a generated name is drawn again when it is taken.
const NAME_DRAWS: usize = 8;

/// What a write leaves behind.
#[derive(Debug)]
pub(crate) enum Written {
    Stored(Arc<Object>),
    /// A dry run's result, or an object that the write has removed.
    Gone(Value),
}

/// The metadata of an object, made if need be.
pub(super) fn metadata_of(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("it has just been made an object")
}

/// Sets the namespace of an object to that of the request; they must not contradict each other.
pub(super) fn place(served: &Served, object: &mut Value, namespace: Option<&str>) -> ApiResult<()> {
    let metadata = metadata_of(object);
    let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    match namespace.filter(|_| served.namespaced) {
        Some(namespace) if given.is_empty() || given == namespace => {
            metadata.insert("namespace".to_owned(), namespace.into());
            Ok(())
        }
        None if given.is_empty() || !served.namespaced => {
            metadata.remove("namespace");
            Ok(())
        }
        _ => Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}

pub(super) fn rules(served: &Served) -> metadata::Rules {
    match &served.source {
        Source::Builtin(kind) => {
            metadata::Rules { names: kind.name_rule, namespaced: served.namespaced, builtin: true }
        }
        Source::Custom(_) => {
            metadata::Rules { names: NameRule::Subdomain, namespaced: served.namespaced, builtin: false }
        }
    }
}

pub(super) fn refuse(served: &Served, name: &str, errors: &[FieldError]) -> ApiResult<()> {
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(served.stored_group(), &served.kind, name, errors)) }
}

pub(super) fn store_failed(error: &CommitError) -> ApiError {
    match error {
        CommitError::Full(_) => {
            let mut full = ApiError::new(507, "InsufficientStorage", format!("nothing was written: {error}"));
            full.retry_after = Some(1);
            full
        }
        error => ApiError::internal(error.to_string()),
    }
}

impl Api {
    pub(super) async fn create(self: &Arc<Self>, req: &mut Req, served: &Arc<Served>) -> ApiResult<Response> {
        let form = req.form(served, false, false)?;
        let options = WriteOptions::parse("CreateOptions", &req.query, &req.headers, false)?;
        let body = req.body().await?;
        let content_type = req.header(http::header::CONTENT_TYPE).to_owned();
        codec::check_media_type(&content_type)?;
        let catalog = self.registry.catalog();
        let object = codec::object(&catalog, served, &body, &content_type, options.validation, &mut req.warnings)?;
        drop(body);
        if let Some(answer) = self.review(req, served, &object)? {
            return Ok(crate::response::json(201, &answer));
        }
        let namespace = req.resource.namespace.clone();
        let written = self.create_object(served, namespace.as_deref(), object, &options, &mut req.warnings).await?;
        self.after_write(served, false).await?;
        match written {
            Written::Stored(object) => self.answer(req, served, form, 201, &object),
            Written::Gone(value) => self.answer_value(req, served, form, 201, value),
        }
    }

    /// Creates a decoded object.
    pub(crate) async fn create_object(
        &self,
        served: &Arc<Served>,
        namespace: Option<&str>,
        object: Value,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> ApiResult<Written> {
        let generated = codec::name_of(&object).is_empty() && object["metadata"]["generateName"].is_string();
        if !generated {
            return self.try_create(served, namespace, object, options, warnings).await;
        }
        for draw in 1.. {
            let before = warnings.len();
            match self.try_create(served, namespace, object.clone(), options, warnings).await {
                Err(error) if error.reason == "AlreadyExists" && draw < NAME_DRAWS => {
                    warnings.truncate(before);
                }
                outcome => return outcome,
            }
        }
        Err(ApiError::internal("no free name was found"))
    }

    async fn try_create(
        &self,
        served: &Arc<Served>,
        namespace: Option<&str>,
        object: Value,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> ApiResult<Written> {
        let object = self.prepare_new(served, namespace, object, options, warnings)?;
        let name = codec::name_of(&object);
        let key = self.key(served, namespace, name);
        let _held = self.admit_quota(served, namespace, &object, None).await?;
        if options.dry_run {
            return match self.store.head(&key) {
                Some(_) => Err(self.exists(served, &key, name)),
                None => Ok(Written::Gone(object)),
            };
        }
        let mut ops = vec![Op::Create { key: key.clone(), draft: served.draft(&object) }];
        ops.extend(self.say_if_idle(served, &object));
        match self.store.commit(ops).await {
            Ok(mut objects) => Ok(Written::Stored(objects.remove(0))),
            Err(CommitError::Exists(_)) => Err(self.exists(served, &key, name)),
            Err(error) => Err(store_failed(&error)),
        }
    }

    /// Brings a new object into the form in which it is stored, if it may be stored.
    fn prepare_new(
        &self,
        served: &Arc<Served>,
        namespace: Option<&str>,
        mut object: Value,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> ApiResult<Value> {
        place(served, &mut object, namespace)?;
        let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        // Only the store minds, and a dry run does not come to it.
        if !version.is_empty() && !options.dry_run {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let now = self.clock.now_rfc3339();
        let stored = Stored(self);
        let random = || self.random.below(u64::MAX);
        let context = Context { now: &now, namespace, subresource: "", objects: &stored, random: &random };
        match &served.source {
            Source::Builtin(kind) => (kind.default)(&mut object),
            Source::Custom(_) => {}
        }
        let definition = &*served.storage == definitions::STORAGE;
        if definition {
            crd::default(&mut object);
        }
        let metadata = metadata_of(&mut object);
        let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
        if metadata.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() && !prefix.is_empty() {
            let name = metadata::generated_name(prefix, &self.random.suffix(5));
            metadata.insert("name".to_owned(), name.into());
        }
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
            metadata.remove(key);
        }
        if version.is_empty() {
            metadata.remove("resourceVersion");
        }
        metadata.insert("uid".to_owned(), self.random.uuid().into());
        metadata.insert("creationTimestamp".to_owned(), now.clone().into());
        let name = codec::name_of(&object).to_owned();
        self.own_fields(served, None, &mut object, options, "", &now);
        self.admit_namespace(served, namespace, &name)?;
        self.admit(served, &mut object, None, &context, warnings)?;
        let mut errors = match &served.source {
            Source::Builtin(kind) => {
                (kind.prepare_create)(&mut object, &context);
                if kind.generation {
                    metadata_of(&mut object).insert("generation".to_owned(), json!(1));
                }
                let mut errors = metadata::validate(&object, &rules(served));
                errors.extend((kind.validate)(&object, &context));
                errors
            }
            Source::Custom(kind) => {
                if kind.status
                    && let Some(fields) = object.as_object_mut()
                {
                    fields.remove("status");
                }
                metadata_of(&mut object).insert("generation".to_owned(), json!(1));
                let mut errors = metadata::validate(&object, &rules(served));
                errors.extend(kind.validate(&object, None, ""));
                errors
            }
        };
        if definition {
            crd::default(&mut object);
            errors.extend(crd::validate(&object));
        }
        refuse(served, &name, &errors)?;
        if let Source::Builtin(kind) = &served.source {
            warnings.extend((kind.warnings)(&object, None));
        }
        self.consult_webhooks(served, &object, None, warnings)?;
        Ok(object)
    }

    /// An object that is stored but that nothing acts on says so, in an event of the same transaction.
    fn say_if_idle(&self, served: &Served, object: &Value) -> Option<Op> {
        let kind = served.as_builtin()?;
        let instead = (kind.idle)(object)?;
        let events = self.registry.catalog().find("", "v1", "events")?;
        let (now, metadata) = (self.clock.now_rfc3339(), &object["metadata"]);
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        let name = format!("{}.{}", codec::name_of(object), self.random.suffix(16));
        let mut involved = json!({"apiVersion": served.api_version(), "kind": kind.kind,
            "name": metadata["name"], "uid": metadata["uid"]});
        if served.namespaced {
            involved["namespace"] = namespace.into();
        }
        let event = json!({
            "metadata": {"name": name, "namespace": namespace, "uid": self.random.uuid(), "creationTimestamp": now},
            "involvedObject": involved, "type": "Warning", "reason": "NotActedOn", "count": 1,
            "message": format!("this {} is stored, but no part of Muster acts on it: {instead}", kind.kind),
            "source": {"component": "muster-apiserver"}, "firstTimestamp": now, "lastTimestamp": now, "eventTime": null,
            "reportingComponent": "muster-apiserver", "reportingInstance": "",
        });
        Some(Op::Create { key: self.key(&events, Some(namespace), &name), draft: events.draft(&event) })
    }

    fn exists(&self, served: &Served, key: &crate::store::Key, name: &str) -> ApiError {
        let mut error = ApiError::already_exists(&served.group, &served.plural, name);
        let deleting = self.store.head(key).is_some_and(|o| !o.bare_value()["metadata"]["deletionTimestamp"].is_null());
        if deleting {
            error.message = format!("object is being deleted: {}", error.message);
        }
        error
    }

    /// Records who has set which fields. A write by apply has done so itself; it comes without a manager.
    pub(super) fn own_fields(
        &self,
        served: &Served,
        old: Option<&Value>,
        new: &mut Value,
        options: &WriteOptions,
        subresource: &str,
        now: &str,
    ) {
        let Some(schema) = served.schema() else { return };
        if !options.manager.is_empty() {
            let operation = super::patch::operation(served, options, subresource, now);
            apply::track_update(&schema, old, new, &operation);
        }
    }
}

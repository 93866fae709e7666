//! Changing objects: update and patch, of the object itself or of a subresource, with optimistic concurrency.

use super::write::{Written, metadata_of, place, refuse, rules, store_failed};
use super::{Req, Stored, definitions};
use crate::builtin::{Context, metadata};
use crate::codec;
use crate::crd;
use crate::error::{ApiError, ApiResult};
use crate::options::WriteOptions;
use crate::registry::{Served, Source};
use crate::response::Response;
use crate::server::Api;
use crate::store::{CommitError, Op};
use serde_json::{Value, json};
use std::sync::Arc;

/// How often a change is tried again that met a newer object and did not insist on an older one.
const TRIES: usize = 10;

/// Which object is changed, and how it counts.
pub(crate) struct Change<'a> {
    pub(crate) served: &'a Arc<Served>,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) options: &'a WriteOptions,
    /// Whether a new object without a resource version is refused where the kind demands one.
    pub(crate) put: bool,
    /// Whether the managed fields are still to be recorded: an apply has done so itself.
    pub(crate) tracked: bool,
}

impl Api {
    pub(super) async fn update(self: &Arc<Self>, req: &mut Req, served: &Arc<Served>) -> ApiResult<Response> {
        let form = req.form(served, false, false)?;
        let options = WriteOptions::parse("UpdateOptions", &req.query, &req.headers, false)?;
        let body = req.body().await?;
        let content_type = req.header(http::header::CONTENT_TYPE).to_owned();
        codec::check_media_type(&content_type)?;
        let catalog = self.registry.catalog();
        let object = codec::object(&catalog, served, &body, &content_type, options.validation, &mut req.warnings)?;
        let (namespace, name) = (req.resource.namespace.clone(), req.name().to_owned());
        let subresource = req.resource.sub().to_owned();
        let creates = subresource.is_empty() && served.as_builtin().is_some_and(|kind| kind.create_on_update);
        if creates && self.store.head(&self.key(served, namespace.as_deref(), &name)).is_none() {
            same_name(&object, &name)?;
            let written = self.create_object(served, namespace.as_deref(), object, &options, &mut req.warnings).await?;
            return self.answer_written(req, served, form, 201, written);
        }
        let change = Change {
            served,
            namespace: namespace.as_deref(),
            name: &name,
            subresource: &subresource,
            options: &options,
            put: true,
            tracked: true,
        };
        let written = self.modify(&change, &mut req.warnings, |_| Ok(object.clone())).await?;
        self.after_write(served, matches!(written, Written::Gone(_))).await?;
        self.answer_written(req, served, form, 200, written)
    }

    pub(super) fn answer_written(
        &self,
        req: &Req,
        served: &Arc<Served>,
        form: crate::negotiate::Form,
        code: u16,
        written: Written,
    ) -> ApiResult<Response> {
        match written {
            Written::Stored(object) => self.answer(req, served, form, code, &object),
            Written::Gone(value) => self.answer_value(req, served, form, code, value),
        }
    }

    /// Changes an object by what `make` makes of it.
    pub(crate) async fn modify(
        &self,
        change: &Change<'_>,
        warnings: &mut Vec<String>,
        mut make: impl FnMut(&Value) -> ApiResult<Value>,
    ) -> ApiResult<Written> {
        let Change { served, namespace, name, .. } = *change;
        let key = self.key(served, namespace, name);
        let start = warnings.len();
        for attempt in 1.. {
            warnings.truncate(start);
            let current = self.store.head(&key).ok_or_else(|| served.not_found(name))?;
            let old = served.value(&current);
            let new = make(&old)?;
            let insists = change.put && new["metadata"]["resourceVersion"].as_str().is_some_and(|v| !v.is_empty());
            let new = self.prepare_change(change, &old, new, warnings)?;
            if new == old {
                // Nothing to write; but what is answered must be durable.
                match self.store.durable(current.revision).await {
                    Ok(()) => return Ok(Written::Stored(current)),
                    Err(CommitError::Full(_)) if attempt < TRIES => continue,
                    Err(error) => return Err(store_failed(&error)),
                }
            }
            let counted = change.subresource.is_empty();
            let _held = match counted {
                true => self.admit_quota(served, namespace, &new, Some(&old)).await?,
                false => None,
            };
            if change.options.dry_run {
                return Ok(Written::Gone(new));
            }
            let removed = finished(served, &new);
            let op = if removed {
                Op::Delete { key: key.clone(), expected: current.revision }
            } else {
                Op::Update { key: key.clone(), expected: current.revision, draft: served.draft(&new) }
            };
            match self.store.commit(vec![op]).await {
                Ok(_) if removed => return Ok(Written::Gone(new)),
                Ok(mut objects) => return Ok(Written::Stored(objects.remove(0))),
                Err(CommitError::Conflict(_)) if !insists && attempt < TRIES => {}
                Err(CommitError::Conflict(_)) => return Err(served.conflict(name)),
                Err(CommitError::Missing(_)) => return Err(served.not_found(name)),
                Err(error) => return Err(store_failed(&error)),
            }
        }
        Err(served.conflict(name))
    }

    /// Brings a changed object into the form in which it is stored, if it may be stored.
    fn prepare_change(
        &self,
        change: &Change<'_>,
        old: &Value,
        new: Value,
        warnings: &mut Vec<String>,
    ) -> ApiResult<Value> {
        let Change { served, namespace, name, subresource, options, put, tracked } = *change;
        let mut new = codec::typed(served, new);
        same_name(&new, name)?;
        place(served, &mut new, namespace)?;
        let text = |value: &Value, key: &str| value["metadata"][key].as_str().unwrap_or_default().to_owned();
        let (uid, old_uid) = (text(&new, "uid"), text(old, "uid"));
        if put && !uid.is_empty() && uid != old_uid {
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition \
                 failed: UID in precondition: {uid}, UID in object meta: {old_uid}",
                served.registry_key(namespace, name)
            );
            return Err(ApiError::conflict(&served.group, &served.plural, name, &why));
        }
        let (version, old_version) = (text(&new, "resourceVersion"), text(old, "resourceVersion"));
        if version.is_empty() {
            let demanded = match &served.source {
                Source::Builtin(kind) => !kind.unconditional_update,
                Source::Custom(_) => true,
            };
            if put && demanded {
                let why = "must be specified for an update";
                let error = muster_api::field::FieldError::invalid("metadata.resourceVersion", &json!(0), why);
                return Err(ApiError::invalid(&served.group, &served.plural, name, &[error]));
            }
        } else if version.parse::<u64>().is_err() {
            return Err(ApiError::bad_request(format!("strconv.ParseUint: parsing {version:?}: invalid syntax")));
        } else if version != old_version {
            return Err(served.conflict(name));
        }
        let now = self.clock.now_rfc3339();
        let stored = Stored(self);
        let random = || self.random.below(u64::MAX);
        let context = Context { now: &now, namespace, subresource, objects: &stored, random: &random };
        match &served.source {
            Source::Builtin(kind) => (kind.default)(&mut new),
            Source::Custom(kind) if subresource == "status" => only_status(&mut new, old, kind.status),
            Source::Custom(_) => {}
        }
        let definition = &*served.storage == definitions::STORAGE;
        if definition {
            crd::default(&mut new);
        }
        let metadata = metadata_of(&mut new);
        metadata.remove("selfLink");
        for key in
            ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion"]
        {
            match &old["metadata"][key] {
                Value::Null => metadata.remove(key),
                value => metadata.insert(key.to_owned(), value.clone()),
            };
        }
        if uid.is_empty() {
            metadata.insert("uid".to_owned(), old["metadata"]["uid"].clone());
        }
        if tracked {
            self.own_fields(served, Some(old), &mut new, options, subresource, &now);
        }
        if matches!(subresource, "" | "status") {
            self.admit(served, &mut new, Some(old), &context, warnings)?;
        }
        let mut errors = match &served.source {
            Source::Builtin(kind) => {
                (kind.prepare_update)(&mut new, old, &context);
                if kind.generation && new["spec"] != old["spec"] {
                    bump_generation(&mut new);
                }
                let mut errors = metadata::validate(&new, &rules(served));
                errors.extend(metadata::validate_update(&new, old, &rules(served)));
                if errors.is_empty() {
                    errors.extend((kind.validate)(&new, &context));
                    errors.extend((kind.validate_update)(&new, old, &context));
                }
                errors
            }
            Source::Custom(kind) => {
                if kind.status && subresource != "status" {
                    keep(&mut new, old, "status");
                }
                let without = |object: &Value| {
                    let fields = object.as_object().into_iter().flatten();
                    let counts = |key: &str| key != "metadata" && !(kind.status && key == "status");
                    fields.filter(|(key, _)| counts(key)).map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
                };
                if without(&new) != without(old) {
                    bump_generation(&mut new);
                }
                let mut errors = metadata::validate(&new, &rules(served));
                errors.extend(metadata::validate_update(&new, old, &rules(served)));
                errors.extend(kind.validate(&new, Some(old), subresource));
                errors
            }
        };
        if definition && subresource.is_empty() {
            errors.extend(crd::validate(&new));
            errors.extend(crd::validate_update(&new, old));
        }
        refuse(served, name, &errors)?;
        if let Source::Builtin(kind) = &served.source
            && subresource.is_empty()
        {
            warnings.extend((kind.warnings)(&new, Some(old)));
        }
        if subresource.is_empty() {
            self.consult_webhooks(served, &new, Some(old), warnings)?;
        }
        if subresource == "scale" {
            // Entries of a scale are recorded without a time.
            for entry in new["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
                if let Some(fields) =
                    entry.as_object_mut().filter(|fields| fields.get("subresource").is_some_and(|s| s == "scale"))
                {
                    fields.remove("time");
                }
            }
        }
        Ok(new)
    }
}

/// Gives a field the value that it had.
fn keep(new: &mut Value, old: &Value, field: &str) {
    let Some(fields) = new.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => fields.insert(field.to_owned(), value.clone()),
        None => fields.remove(field),
    };
}

/// Of a write to the status of a custom kind nothing else counts.
fn only_status(new: &mut Value, old: &Value, has_status: bool) {
    if !has_status {
        return;
    }
    let status = new.get("status").cloned();
    let managed = new["metadata"]["managedFields"].take();
    let version = new["metadata"]["resourceVersion"].take();
    *new = old.clone();
    keep(new, &json!({"status": status}), "status");
    if status.is_none()
        && let Some(fields) = new.as_object_mut()
    {
        fields.remove("status");
    }
    for (key, value) in [("managedFields", managed), ("resourceVersion", version)] {
        if !value.is_null() {
            new["metadata"][key] = value;
        }
    }
}

pub(super) fn bump_generation(object: &mut Value) {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    object["metadata"]["generation"] = (generation + 1).into();
}

fn same_name(object: &Value, name: &str) -> ApiResult<()> {
    match codec::name_of(object) {
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        given if given == name => Ok(()),
        given => Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))),
    }
}

/// Whether an object that is being deleted has nothing left to wait for.
pub(super) fn finished(served: &Served, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let waits = |value: &Value| value.as_array().is_some_and(|list| !list.is_empty());
    !metadata["deletionTimestamp"].is_null()
        && !waits(&metadata["finalizers"])
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !(&*served.storage == "/namespaces" && waits(&object["spec"]["finalizers"]))
}

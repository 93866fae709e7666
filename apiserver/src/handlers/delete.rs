//! Deleting: at once, gracefully, or once the finalizers are gone.

use super::read::Selection;
use super::update::{bump_generation, finished};
use super::write::{Written, store_failed};
use super::{Req, definitions};
use crate::builtin::BuiltinKind;
use crate::codec;
use crate::error::{ApiError, ApiResult};
use crate::options::{dry_run, refuse};
use crate::registry::Served;
use crate::request::Query;
use crate::response::{self, Response};
use crate::schema::strict;
use crate::server::Api;
use crate::store::{CommitError, Object, Op};
use jiff::SignedDuration;
use muster_api::clock::rfc3339;
use muster_api::field::FieldError;
use serde_json::{Value, json};
use std::sync::Arc;

const TRIES: usize = 10;

/// What becomes of the objects that the deleted one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    grace: Option<i64>,
    propagation: Option<Propagation>,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: bool,
}

impl DeleteOptions {
    fn parse(query: &Query, body: &[u8], content_type: &str) -> ApiResult<Self> {
        let mut errors = Vec::new();
        let mut options = DeleteOptions { dry_run: dry_run(query, &mut errors), ..DeleteOptions::default() };
        let mut policy = query.text("propagationPolicy").map(str::to_owned);
        let mut orphan = query.get("orphanDependents").map(|_| query.flag("orphanDependents"));
        options.grace = query.integer("gracePeriodSeconds")?;
        if !body.is_empty() {
            codec::check_media_type(content_type)?;
            let tree = strict::parse(body, content_type).map_err(|error| {
                let message = if error.yaml {
                    error.message
                } else {
                    format!("couldn't get version/kind; json parse error: {}", error.message)
                };
                ApiError::bad_request(message)
            })?;
            let (_, kind) = strict::type_meta(&tree).map_err(ApiError::bad_request)?;
            if !matches!(kind.as_str(), "" | "DeleteOptions" | "Eviction") {
                return Err(ApiError::bad_request(format!("{kind} cannot be handled as DeleteOptions")));
            }
            let body = tree.into_value();
            let body = if kind == "Eviction" { &body["deleteOptions"] } else { &body };
            let wrong = |field: &str| ApiError::bad_request(format!("DeleteOptions.{field} has the wrong type"));
            let text = |value: &Value, field: &str| match value {
                Value::Null => Ok(None),
                Value::String(text) => Ok(Some(text.clone())),
                _ => Err(wrong(field)),
            };
            match &body["gracePeriodSeconds"] {
                Value::Null => {}
                value => options.grace = Some(value.as_i64().ok_or_else(|| wrong("gracePeriodSeconds"))?),
            }
            match &body["orphanDependents"] {
                Value::Null => {}
                value => orphan = Some(value.as_bool().ok_or_else(|| wrong("orphanDependents"))?),
            }
            policy = text(&body["propagationPolicy"], "propagationPolicy")?.or(policy);
            options.uid = text(&body["preconditions"]["uid"], "preconditions.uid")?;
            options.resource_version =
                text(&body["preconditions"]["resourceVersion"], "preconditions.resourceVersion")?;
            if let Value::Array(values) = &body["dryRun"]
                && !values.is_empty()
            {
                if values.iter().any(|value| value != "All") {
                    errors.push(FieldError::not_supported("dryRun", &body["dryRun"], &["All"]));
                }
                options.dry_run = true;
            }
        }
        options.propagation = match policy.as_deref() {
            None | Some("") => orphan.map(|orphan| if orphan { Propagation::Orphan } else { Propagation::Background }),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some("Orphan") => Some(Propagation::Orphan),
            Some(other) => {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(FieldError::not_supported("propagationPolicy", &json!(other), &supported));
                None
            }
        };
        if let (Some(policy), Some(_)) = (policy.filter(|policy| !policy.is_empty()), orphan) {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", &json!(policy), why));
        }
        refuse("DeleteOptions", &errors)?;
        // A negative grace is the shortest there is.
        options.grace = options.grace.map(|grace| if grace < 0 { 1 } else { grace });
        Ok(options)
    }
}

/// What a deletion does to an object.
enum Step {
    /// It is being deleted already, and nothing changes.
    Nothing,
    /// It stays for a while, marked.
    Mark(Value),
    Remove,
}

impl Api {
    pub(super) async fn delete(self: &Arc<Self>, req: &mut Req, served: &Arc<Served>) -> ApiResult<Response> {
        let form = req.form(served, false, false)?;
        let body = req.body().await?;
        let options = DeleteOptions::parse(&req.query, &body, req.header(http::header::CONTENT_TYPE))?;
        let (namespace, name) = (req.resource.namespace.clone(), req.name().to_owned());
        if options.propagation.is_none() && served.as_builtin().is_some_and(|kind| kind.orphan_by_default) {
            req.warnings.push(format!(
                "child pods are preserved by default when {} are deleted; set propagationPolicy=Background to remove them \
                 or set propagationPolicy=Orphan to suppress this warning",
                served.plural
            ));
        }
        let outcome = self.delete_object(served, namespace.as_deref(), &name, &options).await?;
        self.after_write(served, outcome.1).await?;
        match outcome {
            (Written::Stored(object), false) => self.answer(req, served, form, 200, &object),
            (Written::Stored(object), true) => {
                if let Some(kind) = served.as_builtin().filter(|kind| kind.returns_deleted) {
                    let last = self.last_state(kind, served.value(&object));
                    return self.answer_value(req, served, form, 200, last);
                }
                Ok(response::json(200, &deleted_status(served, &name, &object.index.uid)))
            }
            (Written::Gone(value), _) => self.answer_value(req, served, form, 200, value),
        }
    }

    pub(super) async fn delete_with_body(
        &self,
        served: &Arc<Served>,
        namespace: Option<&str>,
        name: &str,
        query: &Query,
        body: &[u8],
        content_type: &str,
    ) -> ApiResult<()> {
        let options = DeleteOptions::parse(query, body, content_type)?;
        self.delete_object(served, namespace, name, &options).await.map(|_| ())
    }

    /// Deletes an object. The flag says whether it is gone.
    pub(crate) async fn delete_object(
        &self,
        served: &Arc<Served>,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
    ) -> ApiResult<(Written, bool)> {
        let key = self.key(served, namespace, name);
        for attempt in 1.. {
            let current = self.store.head(&key).ok_or_else(|| served.not_found(name))?;
            preconditions(served, name, &current, options)?;
            if &*served.storage == "/namespaces" && super::admission::PERMANENT.contains(&name) {
                let why = "this namespace may not be deleted";
                return Err(ApiError::forbidden("", "namespaces", name, why));
            }
            let old = served.value(&current);
            let step = self.deletion_step(served, &old, options);
            let op = match step {
                Step::Nothing => match self.store.durable(current.revision).await {
                    Ok(()) => return Ok((Written::Stored(current), false)),
                    Err(CommitError::Full(_)) if attempt < TRIES => continue,
                    Err(error) => return Err(store_failed(&error)),
                },
                Step::Mark(new) if options.dry_run => return Ok((Written::Gone(new), false)),
                Step::Remove if options.dry_run => return Ok((Written::Stored(current), true)),
                Step::Mark(new) if finished(served, &new) => {
                    Op::Delete { key: key.clone(), expected: current.revision }
                }
                Step::Mark(new) => {
                    Op::Update { key: key.clone(), expected: current.revision, draft: served.draft(&new) }
                }
                Step::Remove => Op::Delete { key: key.clone(), expected: current.revision },
            };
            let removes = matches!(op, Op::Delete { .. });
            match self.store.commit(vec![op]).await {
                Ok(mut objects) if removes => return Ok((Written::Stored(objects.remove(0)), true)),
                Ok(mut objects) => return Ok((Written::Stored(objects.remove(0)), false)),
                Err(CommitError::Conflict(_)) if attempt < TRIES => {}
                Err(CommitError::Conflict(_)) => return Err(served.conflict(name)),
                Err(CommitError::Missing(_)) => return Err(served.not_found(name)),
                Err(error) => return Err(store_failed(&error)),
            }
        }
        Err(served.conflict(name))
    }

    /// A removed object as it is answered: one that ends gracefully has been told to end at once.
    fn last_state(&self, kind: &BuiltinKind, mut object: Value) -> Value {
        if (kind.grace)(&object, Some(0)).is_some() {
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["metadata"]["deletionTimestamp"] = self.clock.now_rfc3339().into();
                bump_generation(&mut object);
            }
            object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        }
        object
    }

    fn deletion_step(&self, served: &Served, old: &Value, options: &DeleteOptions) -> Step {
        let mut new = old.clone();
        let mut changed = set_finalizers(served, &mut new, options.propagation);
        let is_namespace = &*served.storage == "/namespaces";
        let held = |object: &Value| object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let now = self.clock.now();
        if let Some(until) = old["metadata"]["deletionTimestamp"].as_str() {
            let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
            if let (Some(asked), Some(before)) = (options.grace, before)
                && asked < before
            {
                // Only a shorter grace than before is granted.
                let shortened = until.parse::<jiff::Timestamp>().ok();
                let shortened = shortened.and_then(|t| t.checked_sub(SignedDuration::from_secs(before - asked)).ok());
                new["metadata"]["deletionTimestamp"] = rfc3339(shortened.unwrap_or(now)).into();
                new["metadata"]["deletionGracePeriodSeconds"] = asked.into();
                changed = true;
            }
            return if changed { Step::Mark(new) } else { Step::Nothing };
        }
        if &*served.storage == definitions::STORAGE {
            let mut finalizers = new["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            finalizers.push(definitions::CLEANUP.into());
            new["metadata"]["finalizers"] = finalizers.into();
        }
        let grace = served.as_builtin().and_then(|kind| (kind.grace)(old, options.grace)).unwrap_or(0).max(0);
        let waits = held(&new) || (is_namespace && old["spec"]["finalizers"].as_array().is_some_and(|l| !l.is_empty()));
        if grace == 0 && !waits {
            return Step::Remove;
        }
        let until = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        new["metadata"]["deletionTimestamp"] = rfc3339(until).into();
        if is_namespace {
            new["status"]["phase"] = "Terminating".into();
        } else {
            new["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        }
        if new["metadata"]["generation"].as_i64().unwrap_or(0) > 0 {
            bump_generation(&mut new);
        }
        Step::Mark(new)
    }

    pub(super) async fn delete_collection(
        self: &Arc<Self>,
        req: &mut Req,
        served: &Arc<Served>,
    ) -> ApiResult<Response> {
        let form = req.form(served, false, false)?;
        let body = req.body().await?;
        let options = DeleteOptions::parse(&req.query, &body, req.header(http::header::CONTENT_TYPE))?;
        let selection = Selection::parse(req, served)?;
        let page = self.store.list(&served.storage, selection.namespace.as_deref(), None, None);
        let page = page.map_err(|_| ApiError::gone("the list is too old"))?;
        let mut chosen = Vec::new();
        for (object, path) in page.items.iter().zip(&page.paths) {
            if selection.matches(served, path, object) {
                chosen.push((object.clone(), codec::name_in(path).to_owned()));
            }
        }
        let deletions = chosen.iter().map(|(object, name)| {
            // Only the objects that were listed are meant, not others that took their names since.
            let options = DeleteOptions { uid: Some(object.index.uid.to_string()), ..options.clone() };
            let namespace = req.resource.namespace.as_deref();
            async move {
                match self.delete_object(served, namespace, name, &options).await {
                    Err(error) if !matches!(error.code, 404 | 409) => Err(error),
                    _ => Ok(()),
                }
            }
        });
        for outcome in futures::future::join_all(deletions).await {
            outcome?;
        }
        self.after_write(served, true).await?;
        let objects: Vec<Arc<Object>> = chosen.into_iter().map(|(object, _)| object).collect();
        let metadata = json!({"resourceVersion": self.store.revision().to_string()});
        Ok(self.answer_list(served, form, metadata, &objects, crate::table::Include::Metadata))
    }
}

fn preconditions(served: &Served, name: &str, object: &Object, options: &DeleteOptions) -> ApiResult<()> {
    let conflict = |why: String| {
        let mut error = ApiError::conflict("", &served.kind, name, &why);
        if !served.group.is_empty() {
            error = ApiError::conflict(&served.group, &served.plural, name, &why);
        }
        Err(error)
    };
    if let Some(uid) = options.uid.as_deref().filter(|uid| **uid != *object.index.uid) {
        return conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been \
             deleted and then recreated",
            object.index.uid
        ));
    }
    let revision = object.revision.to_string();
    if let Some(version) = options.resource_version.as_deref().filter(|version| *version != revision) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record \
             ({revision}). The object might have been modified"
        ));
    }
    Ok(())
}

/// Sets the finalizers by which the garbage collector learns of the propagation policy; says whether they changed.
fn set_finalizers(served: &Served, object: &mut Value, propagation: Option<Propagation>) -> bool {
    let propagation = match propagation {
        Some(propagation) => Some(propagation),
        None if served.as_builtin().is_some_and(|kind| kind.orphan_by_default) => Some(Propagation::Orphan),
        None => None,
    };
    let Some(propagation) = propagation else { return false };
    let before = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let mut after: Vec<Value> =
        before.iter().filter(|f| *f != "orphan" && *f != "foregroundDeletion").cloned().collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => after.push("foregroundDeletion".into()),
        Propagation::Orphan => after.push("orphan".into()),
    }
    if after.len() == before.len() && after.iter().all(|f| before.contains(f)) {
        return false;
    }
    if after.is_empty() {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("finalizers");
        }
    } else {
        object["metadata"]["finalizers"] = after.into();
    }
    true
}

fn deleted_status(served: &Served, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": served.plural, "uid": uid});
    if !served.group.is_empty() {
        details["group"] = served.group.clone().into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

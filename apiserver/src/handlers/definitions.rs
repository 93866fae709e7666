//! CustomResourceDefinitions at work: accepting names, serving the kinds, clearing up after a definition is deleted.
//!
//! Whatever changes a definition settles all of them before it answers, so that a client that has created one can use
//! it at once.

use super::delete::DeleteOptions;
use super::write::{Written, store_failed};
use crate::codec;
use crate::crd;
use crate::error::ApiResult;
use crate::options::WriteOptions;
use crate::registry::Served;
use crate::server::Api;
use crate::store::{CommitError, Op};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) const STORAGE: &str = "apiextensions.k8s.io/customresourcedefinitions";
/// Holds a deleted definition until its objects are gone.
pub(super) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
const TRIES: usize = 10;

fn deleting(definition: &Value) -> bool {
    !definition["metadata"]["deletionTimestamp"].is_null()
}

impl Api {
    fn definitions(&self) -> Option<Arc<Served>> {
        self.registry.catalog().find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    }

    /// The definitions' kinds with their schemas as they were written, which the registry does not keep.
    pub(crate) fn described_kinds(&self) -> Vec<crd::CustomKind> {
        let Some(definitions) = self.definitions() else { return Vec::new() };
        let page = self.store.list(STORAGE, None, None, None);
        let objects = page.map(|page| page.items).unwrap_or_default();
        objects.iter().flat_map(|object| crd::CustomKind::parse(&definitions.value(object))).collect()
    }

    /// Called after a write; does nothing unless it concerned a definition, or an object that one waits for.
    pub(super) async fn after_write(&self, served: &Served, removed: bool) -> ApiResult<()> {
        if &*served.storage == STORAGE {
            return self.settle_definitions().await;
        }
        if removed && served.as_builtin().is_none() {
            let waits = self.definitions().is_some_and(|definitions| {
                let key = self.key(&definitions, None, &format!("{}.{}", served.plural, served.group));
                self.store.head(&key).is_some_and(|object| deleting(&object.bare_value()))
            });
            if waits {
                return self.settle_definitions().await;
            }
        }
        Ok(())
    }

    /// Brings the status of all definitions, and the kinds that are served, up to date.
    pub(super) async fn settle_definitions(&self) -> ApiResult<()> {
        let Some(definitions) = self.definitions() else { return Ok(()) };
        let _one_at_a_time = self.settling.lock().await;
        let all = |api: &Api| -> Vec<Value> {
            let page = api.store.list(STORAGE, None, None, None);
            page.map(|page| page.items.iter().map(|object| definitions.value(object)).collect()).unwrap_or_default()
        };
        let (leaving, staying): (Vec<Value>, Vec<Value>) = all(self).into_iter().partition(deleting);
        for definition in &staying {
            self.accept(&definitions, definition, &all(self)).await?;
        }
        let mut empty = Vec::new();
        for definition in &leaving {
            if self.clear_up(definition).await? {
                empty.push(codec::name_of(definition));
            }
        }
        // A kind is served as long as it has objects, so that their finalizers can be removed; and it is not served any
        // more when its definition is seen to be gone.
        let kinds = all(self).into_iter().filter(|definition| !empty.contains(&codec::name_of(definition)));
        let kinds = kinds.flat_map(|definition| crd::CustomKind::parse(&definition));
        self.registry.set_custom(kinds.map(|kind| Arc::new(Served::custom(kind))).collect());
        for definition in leaving.iter().filter(|definition| empty.contains(&codec::name_of(definition))) {
            self.release(&definitions, definition).await?;
        }
        Ok(())
    }

    async fn accept(&self, definitions: &Arc<Served>, definition: &Value, all: &[Value]) -> ApiResult<()> {
        let name = codec::name_of(definition);
        let others: Vec<Value> = all.iter().filter(|other| codec::name_of(other) != name).cloned().collect();
        let key = self.key(definitions, None, name);
        for _ in 0..TRIES {
            let Some(current) = self.store.head(&key) else { return Ok(()) };
            let mut new = definitions.value(&current);
            let status = crd::status(&new, &others, &self.clock.now_rfc3339());
            if new["status"] == status {
                return Ok(());
            }
            new["status"] = status;
            let op = Op::Update { key: key.clone(), expected: current.revision, draft: definitions.draft(&new) };
            match self.store.commit(vec![op]).await {
                Err(CommitError::Conflict(_)) => {}
                Err(CommitError::Missing(_)) => return Ok(()),
                outcome => return outcome.map(|_| ()).map_err(|error| store_failed(&error)),
            }
        }
        Ok(())
    }

    /// Deletes the objects of a deleted definition; whether none is left. What finalizers hold stays, and its end
    /// settles the definition again.
    async fn clear_up(&self, definition: &Value) -> ApiResult<bool> {
        let Some(kind) = crd::CustomKind::parse(definition).into_iter().next() else {
            return Ok(true);
        };
        let served = Arc::new(Served::custom(kind));
        let page = self.store.list(&served.storage, None, None, None);
        for path in page.map(|page| page.paths).unwrap_or_default() {
            let (namespace, name) = match path.split_once('/') {
                Some((namespace, name)) => (Some(namespace), name),
                None => (None, &*path),
            };
            match self.delete_object(&served, namespace, name, &DeleteOptions::default()).await {
                Err(error) if error.code != 404 => return Err(error),
                _ => {}
            }
        }
        Ok(self.store.count(&served.storage) == 0)
    }

    async fn release(&self, definitions: &Arc<Served>, definition: &Value) -> ApiResult<()> {
        let options = WriteOptions::internal("muster");
        let change = super::update::Change {
            served: definitions,
            namespace: None,
            name: codec::name_of(definition),
            subresource: "status",
            options: &options,
            put: false,
            tracked: false,
        };
        let free = |old: &Value| {
            let mut new = old.clone();
            if let Some(finalizers) = new["metadata"]["finalizers"].as_array_mut() {
                finalizers.retain(|finalizer| finalizer != CLEANUP);
            }
            Ok(new)
        };
        match self.modify(&change, &mut Vec::new(), free).await {
            Err(error) if error.code != 404 => Err(error),
            _ => Ok(()),
        }
    }

    /// Creates a definition, or gives it the spec that it should have.
    pub(super) async fn install_definition(&self, definition: Value) -> ApiResult<()> {
        let Some(served) = self.definitions() else { return Ok(()) };
        // Without a manager: nobody shares these definitions with Muster, and who owns each of their thousands of fields
        // would take as much room as the definitions.
        let options = WriteOptions::internal("");
        let name = codec::name_of(&definition).to_owned();
        let mut definition = codec::typed(&served, definition);
        if self.store.head(&self.key(&served, None, &name)).is_none() {
            if let Some(fields) = definition.as_object_mut() {
                fields.remove("status");
            }
            return self.create_object(&served, None, definition, &options, &mut Vec::new()).await.map(|_| ());
        }
        let change = super::update::Change {
            served: &served,
            namespace: None,
            name: &name,
            subresource: "",
            options: &options,
            put: false,
            tracked: true,
        };
        let renew = |old: &Value| {
            let mut new = old.clone();
            new["spec"] = definition["spec"].clone();
            for part in ["labels", "annotations"] {
                for (key, value) in definition["metadata"][part].as_object().into_iter().flatten() {
                    if !new["metadata"][part].is_object() {
                        new["metadata"][part] = json!({});
                    }
                    new["metadata"][part][key] = value.clone();
                }
            }
            Ok(new)
        };
        let written = self.modify(&change, &mut Vec::new(), renew).await;
        written.map(|_: Written| ())
    }
}

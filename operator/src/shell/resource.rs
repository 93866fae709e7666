//! The resources that controllers read and write, and the requests on them.

use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;

/// A resource of the API.
pub fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// Why a request failed, as far as a controller cares.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("{0}")]
    NotFound(String),
    /// The object has changed, or another has its uid.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    AlreadyExists(String),
    /// Any other answer of the API server.
    #[error("{0}")]
    Refused(String),
    #[error("the request failed: {0}")]
    Unreachable(String),
}

impl From<kube::Error> for RequestError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match (status.code, status.reason.as_str()) {
                (404, _) => RequestError::NotFound(status.message),
                (409, "AlreadyExists") => RequestError::AlreadyExists(status.message),
                (409, _) => RequestError::Conflict(status.message),
                _ => RequestError::Refused(status.message),
            },
            other => RequestError::Unreachable(other.to_string()),
        }
    }
}

/// What is left of an object after it was deleted.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone.
    Gone,
    /// It stays until its grace period or its finalizers are over.
    Leaving(Box<DynamicObject>),
}

/// Requests on one resource in one namespace.
#[derive(Clone, Debug)]
pub struct Objects {
    api: Api<DynamicObject>,
}

impl Objects {
    pub fn new(client: &Client, resource: &ApiResource, namespace: &str) -> Self {
        Objects { api: Api::namespaced_with(client.clone(), namespace, resource) }
    }

    pub async fn get(&self, name: &str) -> Result<DynamicObject, RequestError> {
        Ok(self.api.get(name).await?)
    }

    pub async fn create(&self, object: Value) -> Result<DynamicObject, RequestError> {
        let object: DynamicObject =
            serde_json::from_value(object).map_err(|error| RequestError::Refused(error.to_string()))?;
        Ok(self.api.create(&PostParams::default(), &object).await?)
    }

    pub async fn merge(&self, name: &str, patch: &Value) -> Result<DynamicObject, RequestError> {
        Ok(self.api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    pub async fn replace_status(&self, name: &str, object: &DynamicObject) -> Result<DynamicObject, RequestError> {
        Ok(self.api.replace_status(name, &PostParams::default(), object).await?)
    }

    /// Deletes the object with this uid, its dependents in the background. Where another object has the name by now,
    /// the answer is that there is none.
    pub async fn delete(&self, name: &str, uid: &str) -> Result<Deleted, RequestError> {
        match self.delete_once(name, uid).await {
            // Either another object has the name, or the server saw so many writers that it gave up.
            Err(RequestError::Conflict(message)) => match self.get(name).await {
                Ok(object) if object.metadata.uid.as_deref() == Some(uid) => Err(RequestError::Conflict(message)),
                Ok(_) => Err(RequestError::NotFound(message)),
                Err(error) => Err(error),
            },
            outcome => outcome,
        }
    }

    async fn delete_once(&self, name: &str, uid: &str) -> Result<Deleted, RequestError> {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let outcome = self.api.delete(name, &params).await?;
        Ok(match outcome.left() {
            Some(object) if is_leaving(&object) => Deleted::Leaving(Box::new(object)),
            _ => Deleted::Gone,
        })
    }
}

fn is_leaving(object: &DynamicObject) -> bool {
    let metadata = &object.metadata;
    let graceful = metadata.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0);
    let finalizers = metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
    metadata.deletion_timestamp.is_some() && (graceful || finalizers)
}

//! Admission: what is checked of every write besides the object's own rules.

use super::Stored;
use crate::builtin::{Context, Objects};
use crate::error::{ApiError, ApiResult};
use crate::registry::{Served, Source};
use crate::server::Api;
use muster_api::admission;
use serde_json::{Value, json};

/// Namespaces that are always there.
pub(super) const PERMANENT: [&str; 3] = ["default", "kube-system", "kube-public"];

impl Api {
    /// A new object needs a namespace that exists and is not on its way out.
    pub(super) fn admit_namespace(&self, served: &Served, namespace: Option<&str>, name: &str) -> ApiResult<()> {
        let Some(namespace) = namespace.filter(|_| served.namespaced) else { return Ok(()) };
        let Some(object) = Stored(self).get("", "namespaces", "", namespace) else {
            return Err(ApiError::not_found("", "namespaces", namespace));
        };
        if object["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut error = ApiError::forbidden(&served.group, &served.plural, name, &why);
        if let Some(details) = &mut error.details {
            details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
        }
        Err(error)
    }

    /// The rules of admission for the kind.
    pub(super) fn admit(
        &self,
        served: &Served,
        object: &mut Value,
        old: Option<&Value>,
        context: &Context<'_>,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        match &served.source {
            Source::Builtin(kind) if kind.kind == "Pod" && !self.pod_admission => {}
            Source::Builtin(kind) => (kind.admit)(object, old, context)?,
            Source::Custom(kind) => warnings.extend(kind.deprecation.clone()),
        }
        Ok(())
    }

    /// The validating webhooks of the training operator. As all of them they see what the schema has accepted.
    pub(super) fn consult_webhooks(
        &self,
        served: &Served,
        object: &Value,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        if served.group == "kubeflow.org" && served.version == "v1" {
            match admission::review(&served.kind, old, object) {
                Ok(found) => warnings.extend(found),
                Err(denial) => return Err(ApiError::new(403, "Forbidden", denial)),
            }
        }
        Ok(())
    }
}

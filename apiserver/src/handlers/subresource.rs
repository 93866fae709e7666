//! Subresources of the built-in kinds and of custom ones.

use super::{Req, unknown_path};
use crate::error::{ApiError, ApiResult};
use crate::registry::Served;
use crate::response::{self, Response};
use crate::server::Api;
use serde_json::json;
use std::sync::Arc;

impl Api {
    pub(super) async fn subresource(
        self: &Arc<Self>,
        req: &mut Req,
        served: &Arc<Served>,
        verb: &str,
    ) -> ApiResult<Response> {
        let subresource = req.resource.sub().to_owned();
        if !served.subresources.contains(&subresource) {
            return Err(unknown_path());
        }
        match (subresource.as_str(), verb) {
            ("status", "get") => self.get(req, served).await,
            ("status", "update") => self.update(req, served).await,
            ("status", "patch") => self.patch(req, served).await,
            ("finalize", "update") => self.update(req, served).await,
            ("scale", "get" | "update" | "patch") => self.scale(req, served, verb).await,
            ("binding", "create") => {
                let name = req.name().to_owned();
                self.bind(req, Some(&name)).await
            }
            ("eviction", "create") => self.evict(req, served).await,
            ("token", "create") => self.request_token(req, served).await,
            ("log", "get") => self.pod_log(req, served).await,
            (what @ ("exec" | "attach" | "portforward"), "create" | "get") => self.pod_stream(req, served, what).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    /// `POST pods/NAME/eviction`: a deletion, since nothing here budgets disruptions.
    async fn evict(self: &Arc<Self>, req: &mut Req, served: &Arc<Served>) -> ApiResult<Response> {
        let body = req.body().await?;
        let content_type = req.header(http::header::CONTENT_TYPE).to_owned();
        let namespace = req.resource.namespace.clone();
        self.delete_with_body(served, namespace.as_deref(), req.name(), &req.query, &body, &content_type).await?;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(response::json(201, &status))
    }
}

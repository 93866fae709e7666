//! Subresources of the built-in kinds and of custom ones.

use super::{Req, unknown_path};
use crate::error::{ApiError, ApiResult};
use crate::registry::Served;
use crate::response::Response;
use crate::server::Api;
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
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    pub(super) async fn own_resource(self: &Arc<Self>, _req: &mut Req, _verb: &str) -> ApiResult<Response> {
        Err(unknown_path())
    }
}

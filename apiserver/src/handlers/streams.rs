//! What takes a stream to a pod: `exec`, `attach`, `portforward`. The request goes to the node with the connection it
//! came by; the node speaks with the client from then on.

use super::Req;
use super::logs::container;
use crate::error::{ApiError, ApiResult};
use crate::registry::Served;
use crate::response::Response;
use crate::server::Api;
use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::sync::Arc;

impl Api {
    pub(super) async fn pod_stream(
        self: &Arc<Self>,
        req: &mut Req,
        served: &Arc<Served>,
        what: &str,
    ) -> ApiResult<Response> {
        let (namespace, name) = (req.namespace().unwrap_or_default(), req.name());
        let object = self.store.get(&self.key(served, Some(namespace), name));
        let object = object.ok_or_else(|| served.not_found(name))?;
        let pod = served.value(&object);
        let (mut uri, fields) = match what {
            "portforward" => (format!("/portForward/{namespace}/{name}?"), &["ports"][..]),
            what => {
                let container = container(&pod, name, req.query.get("container"))?;
                let fields = &["command", "stdin", "stdout", "stderr", "tty"][..];
                (format!("/{what}/{namespace}/{name}/{container}?"), fields)
            }
        };
        if pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
            return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
        }
        for field in fields {
            for value in req.query.all(field) {
                uri.push_str(&format!("{field}={}&", utf8_percent_encode(value, NON_ALPHANUMERIC)));
            }
        }
        let request = http::Request::builder().method(&req.method).uri(uri.trim_end_matches(['&', '?']));
        let mut request = request.body(Bytes::new()).map_err(|error| ApiError::bad_request(error.to_string()))?;
        *request.headers_mut() = req.headers.clone();
        // Who asks is known here; the node learns no credentials.
        request.headers_mut().remove(http::header::AUTHORIZATION);
        *request.extensions_mut() = std::mem::take(&mut req.extensions);
        self.ask_node(request).await
    }
}

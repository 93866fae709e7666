//! The log of a pod's container, which the node keeps.

use super::Req;
use crate::error::{ApiError, ApiResult};
use crate::registry::Served;
use crate::response::{self, Response};
use crate::server::Api;
use bytes::Bytes;
use muster_api::field::FieldError;
use serde_json::{Value, json};
use std::sync::Arc;

fn container_names(pod: &Value) -> (Vec<&str>, Vec<&str>) {
    let names = |key: &str| pod["spec"][key].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str());
    (names("containers").collect(), names("initContainers").chain(names("ephemeralContainers")).collect())
}

/// The container that the request is about.
pub(super) fn container<'a>(pod: &'a Value, name: &str, asked: Option<&'a str>) -> ApiResult<&'a str> {
    let (main, others) = container_names(pod);
    match asked.filter(|asked| !asked.is_empty()) {
        Some(asked) if main.contains(&asked) || others.contains(&asked) => Ok(asked),
        Some(asked) => Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}"))),
        None => match main.as_slice() {
            [one] => Ok(one),
            [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {name}"))),
            many => {
                let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
                if let Some(default) = default.filter(|default| many.contains(default)) {
                    return Ok(default);
                }
                let mut message =
                    format!("a container name must be specified for pod {name}, choose one of: [{}]", many.join(" "));
                if !others.is_empty() {
                    message.push_str(&format!(" or one of the init containers: [{}]", others.join(" ")));
                }
                Err(ApiError::bad_request(message))
            }
        },
    }
}

impl Api {
    pub(super) async fn pod_log(self: &Arc<Self>, req: &mut Req, served: &Arc<Served>) -> ApiResult<Response> {
        let (namespace, name) = (req.namespace().unwrap_or_default().to_owned(), req.name().to_owned());
        let mut errors = Vec::new();
        let query = &req.query;
        for (field, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
            let value = query.integer(field)?;
            if let Some(value) = value.filter(|value| *value < least) {
                let why = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
                errors.push(FieldError::invalid(field, &json!(value), why));
            }
        }
        if query.text("sinceSeconds").is_some() && query.text("sinceTime").is_some() {
            errors.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
        }
        let object = self.store.get(&self.key(served, Some(&namespace), &name));
        let object = object.ok_or_else(|| served.not_found(&name))?;
        if !errors.is_empty() {
            return Err(ApiError::invalid("", "PodLogOptions", &name, &errors));
        }
        let pod = served.value(&object);
        let container = container(&pod, &name, query.get("container"))?;
        if pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
            return Ok(response::bytes(204, "text/plain", Bytes::new()));
        }
        let mut uri = format!("/containerLogs/{namespace}/{name}/{container}?");
        for field in ["follow", "previous", "timestamps"] {
            if query.flag(field) {
                uri.push_str(&format!("{field}=true&"));
            }
        }
        for field in ["tailLines", "sinceSeconds", "sinceTime", "limitBytes"] {
            if let Some(value) = query.text(field) {
                let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
                uri.push_str(&format!("{field}={value}&"));
            }
        }
        let request = http::Request::get(uri.trim_end_matches(['&', '?'])).body(Bytes::new());
        let request = request.map_err(|error| ApiError::bad_request(error.to_string()))?;
        self.ask_node(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_named_or_the_only_one() {
        let one = json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(container(&one, "p", None).expect("one"), "a");
        assert_eq!(container(&one, "p", Some("i")).expect("init"), "i");
        assert_eq!(container(&two, "p", Some("b")).expect("named"), "b");
        let error = container(&two, "two", None).expect_err("two");
        assert_eq!(error.message, "a container name must be specified for pod two, choose one of: [a b]");
        let error = container(&one, "p", Some("x")).expect_err("none");
        assert_eq!(error.message, "container x is not valid for pod p");
    }
}

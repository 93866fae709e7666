//! Binding pods to nodes: one by one, or a whole gang in one transaction.

use super::write::store_failed;
use super::{Req, unknown_path};
use crate::codec;
use crate::error::{ApiError, ApiResult};
use crate::options::WriteOptions;
use crate::registry::Served;
use crate::response::{self, Response};
use crate::schema::strict;
use crate::server::Api;
use crate::store::{CommitError, Op};
use serde_json::{Map, Value, json};
use std::sync::Arc;

const TRIES: usize = 10;

/// One pod and the node it is to run on.
#[derive(Clone, Debug, Default)]
struct Binding {
    namespace: String,
    name: String,
    /// Empty where any pod of that name will do.
    uid: String,
    node: String,
    annotations: Map<String, Value>,
}

/// Why a pod cannot be bound, or the pod as bound.
fn bound(pod: &Value, binding: &Binding, now: &str) -> Result<Value, String> {
    let name = &binding.name;
    let metadata = &pod["metadata"];
    if !binding.uid.is_empty() && metadata["uid"] != binding.uid.as_str() {
        let found = metadata["uid"].as_str().unwrap_or_default();
        return Err(format!("Precondition failed: UID in precondition: {}, UID in object meta: {found}", binding.uid));
    }
    if !metadata["deletionTimestamp"].is_null() {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
        return Err(format!("pod {name} is already assigned to node {node:?}"));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = binding.node.clone().into();
    if !binding.annotations.is_empty() {
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        for (key, value) in &binding.annotations {
            pod["metadata"]["annotations"][key] = value.clone();
        }
    }
    let conditions = &mut pod["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(scheduled);
    }
    Ok(pod)
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn annotations(value: &Value) -> ApiResult<Map<String, Value>> {
    match value {
        Value::Null => Ok(Map::new()),
        Value::Object(map) if map.values().all(Value::is_string) => Ok(map.clone()),
        _ => Err(ApiError::bad_request("annotations must be a map from string to string")),
    }
}

impl Api {
    /// `POST pods/NAME/binding`, and `POST bindings`.
    pub(super) async fn bind(self: &Arc<Self>, req: &mut Req, name: Option<&str>) -> ApiResult<Response> {
        let options = WriteOptions::parse("CreateOptions", &req.query, &req.headers, false)?;
        let body = req.body().await?;
        let content_type = req.header(http::header::CONTENT_TYPE).to_owned();
        codec::check_media_type(&content_type)?;
        let tree = strict::parse(&body, &content_type).map_err(|error| error.unrecognized("Binding", &body))?;
        let body = tree.into_value();
        let given = codec::name_of(&body).to_owned();
        let name = match name {
            Some(name) if !given.is_empty() && given != name => {
                return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
            }
            Some(name) => name.to_owned(),
            None => given,
        };
        let binding = Binding {
            namespace: req.namespace().unwrap_or_default().to_owned(),
            name: name.clone(),
            uid: text(&body["metadata"], "uid"),
            node: text(&body["target"], "name"),
            annotations: annotations(&body["metadata"]["annotations"])?,
        };
        if !matches!(body["target"]["kind"].as_str(), None | Some("" | "Node")) || binding.node.is_empty() {
            let error = if binding.node.is_empty() {
                muster_api::field::FieldError::required("target.name", "")
            } else {
                muster_api::field::FieldError::not_supported(
                    "target.kind",
                    &body["target"]["kind"],
                    &["Node", "<empty>"],
                )
            };
            return Err(ApiError::invalid("", "Binding", &name, &[error]));
        }
        self.bind_all(&[binding], "pods/binding", options.dry_run).await?;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(response::json(201, &status))
    }

    /// `POST /apis/muster.dev/v1alpha1/gangbindings`: all of the pods, or none.
    pub(super) async fn own_resource(self: &Arc<Self>, req: &mut Req, verb: &str) -> ApiResult<Response> {
        let path = &req.resource;
        if path.version != "v1alpha1" || path.resource != "gangbindings" || path.namespace.is_some() {
            return Err(unknown_path());
        }
        if verb != "create" || path.name.is_some() {
            return Err(ApiError::method_not_allowed());
        }
        let options = WriteOptions::parse("CreateOptions", &req.query, &req.headers, false)?;
        let body = req.body().await?;
        let content_type = req.header(http::header::CONTENT_TYPE).to_owned();
        codec::check_media_type(&content_type)?;
        let tree = strict::parse(&body, &content_type).map_err(|error| error.unrecognized("GangBinding", &body))?;
        let body = tree.into_value();
        let mut bindings = Vec::new();
        for binding in body["bindings"].as_array().into_iter().flatten() {
            let binding = Binding {
                namespace: text(binding, "namespace"),
                name: text(binding, "name"),
                uid: text(binding, "uid"),
                node: text(binding, "node"),
                annotations: annotations(&binding["annotations"])?,
            };
            if binding.namespace.is_empty() || binding.name.is_empty() || binding.node.is_empty() {
                return Err(ApiError::bad_request("every binding needs a namespace, a name and a node"));
            }
            bindings.push(binding);
        }
        if bindings.is_empty() {
            return Err(ApiError::bad_request("bindings must not be empty"));
        }
        self.bind_all(&bindings, "pods/binding", options.dry_run).await?;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(response::json(201, &status))
    }

    async fn bind_all(&self, bindings: &[Binding], what: &str, dry_run: bool) -> ApiResult<()> {
        let catalog = self.registry.catalog();
        let pods: Arc<Served> = catalog.find("", "v1", "pods").ok_or_else(unknown_path)?;
        let now = self.clock.now_rfc3339();
        for attempt in 1.. {
            let mut ops: Vec<Op> = Vec::with_capacity(bindings.len());
            for binding in bindings {
                let key = self.key(&pods, Some(&binding.namespace), &binding.name);
                let gone = || match bindings {
                    [_] => pods.not_found(&binding.name),
                    _ => ApiError::conflict("", what, &binding.name, &format!("pod {} is gone", binding.name)),
                };
                let current = self.store.head(&key).ok_or_else(gone)?;
                let pod = bound(&pods.value(&current), binding, &now)
                    .map_err(|why| ApiError::conflict("", what, &binding.name, &why))?;
                if ops.iter().any(|op| matches!(op, Op::Update { key: other, .. } if *other == key)) {
                    return Err(ApiError::bad_request(format!("pod {} is named twice", binding.name)));
                }
                ops.push(Op::Update { key, expected: current.revision, draft: pods.draft(&pod) });
            }
            if dry_run {
                return Ok(());
            }
            match self.store.commit(ops).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict(_) | CommitError::Missing(_)) if attempt < TRIES => {}
                Err(CommitError::Conflict(at) | CommitError::Missing(at)) => {
                    let name = bindings.get(at).map(|binding| binding.name.as_str()).unwrap_or_default();
                    return Err(pods.conflict(name));
                }
                Err(error) => return Err(store_failed(&error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_free_pod_is_bound() {
        let binding = Binding { name: "p".into(), uid: "u".into(), node: "n".into(), ..Binding::default() };
        let free = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "False"}, {"type": "Ready", "status": "False"}]}});
        let pod = bound(&free, &binding, "now").expect("is free");
        assert_eq!(pod["spec"]["nodeName"], "n");
        assert_eq!(pod["status"]["conditions"][1]["status"], "True");
        for (pointer, value) in [
            ("/metadata/uid", json!("other")),
            ("/metadata/deletionTimestamp", json!("2020-01-01T00:00:00Z")),
            ("/spec/nodeName", json!("m")),
            ("/spec/schedulingGates", json!([{"name": "g"}])),
        ] {
            let mut pod = free.clone();
            let mut at = &mut pod;
            for part in pointer.trim_start_matches('/').split('/') {
                at = &mut at[part];
            }
            *at = value;
            assert!(bound(&pod, &binding, "now").is_err(), "{pointer}");
        }
    }
}

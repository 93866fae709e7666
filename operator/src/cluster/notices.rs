//! Events about events: what is stored and not acted on says so, and what is old goes.

use super::Shared;
use super::garbage::api;
use crate::shell::resource::RequestError;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use muster_api::clock::rfc3339;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const COMPONENT: &str = "muster-cluster";
const PAGE: u32 = 500;

/// Says of an object that nobody acts on its kind. The event's name follows from the object, so it is said once.
pub(super) async fn attend(shared: &Arc<Shared>, uid: &str) -> Result<Option<Duration>, RequestError> {
    let Some(node) = shared.graph().get(uid).cloned() else { return Ok(None) };
    let resource = &node.resource;
    let kind = &resource.api.kind;
    let Some(object) = api(shared, resource, &node.namespace).get_metadata_opt(&node.name).await? else {
        return Ok(None);
    };
    let namespace = if node.namespace.is_empty() { "default" } else { &node.namespace };
    let now = rfc3339(shared.config.clock.now());
    let message = format!(
        "Muster keeps {kind} objects so that clients can read and write them, but runs no controller for them: nothing \
         happens because of this one"
    );
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": format!("{}.{uid}.stored", node.name), "namespace": namespace},
        "involvedObject": {
            "apiVersion": resource.api.api_version,
            "kind": kind,
            "namespace": node.namespace,
            "name": node.name,
            "uid": uid,
            "resourceVersion": object.metadata.resource_version,
        },
        "type": "Warning",
        "reason": "StoredOnly",
        "message": message,
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": "",
    });
    let event: Event = serde_json::from_value(event).map_err(|e| RequestError::Refused(e.to_string()))?;
    let events: Api<Event> = Api::namespaced(shared.client.clone(), namespace);
    match events.create(&PostParams::default(), &event).await.map_err(RequestError::from) {
        // The event may be there from an earlier run, and the namespace may be on its way out.
        Ok(_) | Err(RequestError::AlreadyExists(_) | RequestError::NotFound(_) | RequestError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes the events that have not been renewed for long.
pub(super) async fn expire(shared: &Arc<Shared>) -> Result<Option<Duration>, RequestError> {
    let ttl = shared.config.event_ttl;
    let now = shared.config.clock.now();
    let events: Api<Event> = Api::all(shared.client.clone());
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let found = events.list_metadata(&page).await?;
        for event in &found.items {
            let metadata = &event.metadata;
            let managed = metadata.managed_fields.iter().flatten().filter_map(|entry| entry.time.as_ref());
            let touched = managed.chain(metadata.creation_timestamp.as_ref()).map(|time| time.0).max();
            if !touched.is_some_and(|touched| is_old(touched, now, ttl)) {
                continue;
            }
            let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else { continue };
            let api: Api<Event> = Api::namespaced(shared.client.clone(), namespace);
            match api.delete(name, &DeleteParams::default()).await.map_err(RequestError::from) {
                Ok(_) | Err(RequestError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = ListParams::default().limit(PAGE).continue_token(&token),
            None => return Ok(Some(ttl / 6)),
        }
    }
}

fn is_old(touched: Timestamp, now: jiff::Timestamp, ttl: Duration) -> bool {
    let age = now.as_second().saturating_sub(touched.as_second());
    u64::try_from(age).is_ok_and(|age| age > ttl.as_secs())
}

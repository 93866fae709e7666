//! Events go when they have not been renewed for long.

use super::Shared;
use crate::shell::resource::RequestError;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams};
use std::sync::Arc;
use std::time::Duration;

const PAGE: u32 = 500;

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

//! The kinds that the cluster serves, found by discovery.

use kube::Client;
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A kind whose objects can be listed and watched.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) api: ApiResource,
    pub(super) namespaced: bool,
    pub(super) deletable: bool,
    /// Whether all objects of a namespace can be deleted at once.
    pub(super) collection: bool,
}

impl Resource {
    pub(super) fn is(&self, group: &str, kind: &str) -> bool {
        self.api.group == group && self.api.kind == kind
    }
}

/// (group, plural) to the kind in its preferred version.
pub(super) type Resources = BTreeMap<(String, String), Arc<Resource>>;

/// Objects that come and go too fast to follow, own nothing and are owned by nobody.
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

pub(super) fn is_followed(resource: &Resource) -> bool {
    !IGNORED.contains(&(resource.api.group.as_str(), resource.api.plural.as_str()))
}

pub(super) async fn discover(client: &Client) -> Result<Resources, kube::Error> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    let mut found = Resources::new();
    for group in discovery.groups() {
        for (api, capabilities) in group.recommended_resources() {
            let can = |verb: &str| capabilities.operations.iter().any(|v| v == verb);
            if !can(verbs::LIST) || !can(verbs::WATCH) {
                continue;
            }
            let resource = Resource {
                namespaced: capabilities.scope == Scope::Namespaced,
                deletable: can(verbs::DELETE),
                collection: can(verbs::DELETE_COLLECTION),
                api,
            };
            found.insert((resource.api.group.clone(), resource.api.plural.clone()), Arc::new(resource));
        }
    }
    Ok(found)
}

//! Events: one object per (regarded object, reason, message), counted up when it happens again.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use muster_api::clock::Clock;
use serde_json::json;
use std::hash::{DefaultHasher, Hash, Hasher};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventType {
    Normal,
    Warning,
}

/// Writes events in the name of one component. A failed write is logged and forgotten: an event never holds up what
/// it tells of.
#[derive(Clone)]
pub(crate) struct Recorder {
    pub(crate) client: kube::Client,
    pub(crate) clock: Clock,
    /// `muster-scheduler`, `kubelet`.
    pub(crate) component: &'static str,
    /// The node's name, for the node's events.
    pub(crate) host: Option<String>,
}

impl Recorder {
    pub(crate) async fn publish(&self, regarding: &ObjectReference, kind: EventType, reason: &str, message: &str) {
        if let Err(error) = self.try_publish(regarding, kind, reason, message).await {
            tracing::debug!(%error, reason, message, "failed to record an event");
        }
    }

    async fn try_publish(
        &self,
        regarding: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: &str,
    ) -> Result<(), kube::Error> {
        let namespace = regarding.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let now = Time(seconds(self.clock.now()));
        let name = event_name(regarding, reason, message);
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: regarding.clone(),
            type_: Some(match kind {
                EventType::Normal => "Normal".to_owned(),
                EventType::Warning => "Warning".to_owned(),
            }),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            source: Some(EventSource { component: Some(self.component.to_owned()), host: self.host.clone() }),
            reporting_component: Some(self.component.to_owned()),
            reporting_instance: Some(self.host.clone().unwrap_or_default()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now.clone()),
            count: Some(1),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let count = api.get(&name).await?.count.unwrap_or(1).saturating_add(1);
                let patch = json!({"count": count, "lastTimestamp": now});
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

/// The same event of the same object has the same name, so that it is counted, across restarts too.
fn event_name(regarding: &ObjectReference, reason: &str, message: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (regarding.uid.as_deref(), regarding.kind.as_deref(), regarding.field_path.as_deref(), reason, message)
        .hash(&mut hasher);
    let mut name = regarding.name.clone().unwrap_or_default();
    name.truncate(230);
    format!("{name}.{:016x}", hasher.finish())
}

/// Objects carry whole seconds.
pub(crate) fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

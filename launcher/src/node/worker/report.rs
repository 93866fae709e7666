//! What a pod's worker tells others: the pod's status and deletion, events, how far its logs are.

use super::{Done, Worker};
use crate::node::http::{LogState, LogStates, PodLogs};
use crate::node::lifecycle::{Plan, State, restart_at};
use futures::FutureExt;
use k8s_openapi::api::core::v1 as core;
use kube::Resource;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::Request;
use muster_events::{Severity, Subject};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Who a node's events are by.
const COMPONENT: &str = "kubelet";

impl Worker {
    pub(super) fn pods(&self) -> Api<core::Pod> {
        Api::namespaced(self.shared.client.clone(), &self.key.0)
    }

    pub(super) fn write(&mut self, status: Value) {
        self.writing = true;
        self.on_the_way = None;
        let (client, path) = (self.shared.client.clone(), core::Pod::url_path(&(), Some(&self.key.0)));
        let name = self.key.1.clone();
        // The uid makes sure that it is this pod's and not that of a later one of its name.
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": status}));
        self.work.push(
            async move {
                let request = Request::new(path).patch_subresource("status", &name, &PatchParams::default(), &patch);
                let result = match request {
                    // The watch tells what became of it; the answer is not worth reading.
                    Ok(request) => client.request_text(request).await.map(drop),
                    Err(error) => Err(kube::Error::BuildRequest(error)),
                };
                Done::Written { status, result }
            }
            .boxed(),
        );
    }

    pub(super) fn delete(&mut self) {
        let (pods, name) = (self.pods(), self.key.1.clone());
        let params = force(&self.uid);
        self.work.push(async move { Done::Deleted(pods.delete(&name, &params).await.map(drop)) }.boxed());
    }

    pub(super) fn event(&self, severity: Severity, reason: &'static str, message: String) {
        self.tell(None, severity, reason, &message);
    }

    pub(super) fn container_event(&self, container: &str, severity: Severity, reason: &'static str, message: String) {
        let init = self.facts.init.iter().any(|init| init.name == container);
        let list = if init { "initContainers" } else { "containers" };
        self.tell(Some(format!("spec.{list}{{{container}}}")), severity, reason, &message);
    }

    fn tell(&self, field_path: Option<String>, severity: Severity, reason: &str, message: &str) {
        let pod = Subject { field_path, ..Subject::pod(&self.key.0, &self.key.1, &self.uid) };
        self.shared.recorder.record(&pod, COMPONENT, severity, reason, message);
    }

    /// Lets readers of logs know how far the containers are.
    pub(super) fn tell_logs(&self, plan: &Plan) {
        let stopping = self.observed.stop.is_some() || plan.finished;
        let states: LogStates = self
            .observed
            .containers
            .iter()
            .map(|(name, container)| {
                let attempt = container.attempt;
                let state = match &container.state {
                    State::Running { .. } => LogState::Running { attempt },
                    State::Ended(_) if !stopping && restart_at(self.facts.restart_policy, container).is_some() => {
                        LogState::Waiting { reason: "CrashLoopBackOff".to_owned(), attempt: attempt + 1 }
                    }
                    State::Ended(_) => LogState::Ended { attempt },
                    State::Held(obstacle) => LogState::Waiting { reason: obstacle.reason.to_owned(), attempt },
                    State::Waiting | State::Starting => {
                        let init = self.facts.init.iter().any(|init| init.name == *name);
                        let reason = if plan.initialised || init { "ContainerCreating" } else { "PodInitializing" };
                        LogState::Waiting { reason: reason.to_owned(), attempt }
                    }
                };
                (name.clone(), state)
            })
            .collect();
        self.logs.send_if_modified(|known| {
            let changed = *known != states;
            *known = states;
            changed
        });
    }
}

/// What readers of logs must know of a pod that an earlier node finished.
pub(in crate::node) fn logs_of_finished(pod: &core::Pod) -> PodLogs {
    let status = pod.status.clone().unwrap_or_default();
    let all =
        { status.init_container_statuses.into_iter().flatten() }.chain(status.container_statuses.into_iter().flatten());
    let states = all
        .map(|container| {
            let attempt = u32::try_from(container.restart_count).unwrap_or(0);
            let waiting = container.state.and_then(|state| state.waiting);
            let state = match waiting {
                Some(waiting) => LogState::Waiting { reason: waiting.reason.unwrap_or_default(), attempt },
                None => LogState::Ended { attempt },
            };
            (container.name, state)
        })
        .collect();
    PodLogs { uid: pod.metadata.uid.clone().unwrap_or_default(), states: watch::channel(states).1 }
}

/// Ends an object at once, if it still is the one that is meant.
pub(in crate::node) fn force(uid: &str) -> DeleteParams {
    DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() }),
        ..DeleteParams::default()
    }
}
